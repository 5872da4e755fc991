// The row pass on a GPU: softmax, log-softmax, cross-entropy, its gradient and its Hessian, each in one launch.
//
// `reference.py` defines what is computed; `launches.py` chooses the variant, and `cuda.py` launches it. Every kernel
// reads the logits of a row, in T, reduces them in a fixed order, without atomics, and writes what was asked for, in O; in
// place if `out` is `logits`. Arithmetic is done in A: float, or double for logits that are.

typedef long long Index;  // rows times classes pass 2^31

enum Pass { SOFTMAX, LOG_SOFTMAX, LOSS, GRADIENT, HESSIAN };
enum Targets { NONE, LABELS, PROBABILITIES };  // with HESSIAN, PROBABILITIES are the direction, in the logits

// --- 16-bit floats, as they lie in memory ---

struct Half {
    unsigned short bits;
};
struct BFloat16 {
    unsigned short bits;
};

#ifndef ON_HOST  // where the tests run this file, they bring these along
__device__ inline float widen(Half x) {
    float wide;
    asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(x.bits));
    return wide;
}
__device__ inline void narrow(float wide, Half& x) { asm("cvt.rn.f16.f32 %0, %1;" : "=h"(x.bits) : "f"(wide)); }
__device__ inline void* shared_memory() {  // as much as the launch asks for
    extern __shared__ uint4 memory[];
    return memory;
}
#endif

__device__ inline float widen(BFloat16 x) { return __uint_as_float((unsigned)x.bits << 16); }
__device__ inline void narrow(float wide, BFloat16& x) {
#if __CUDA_ARCH__ >= 800
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(x.bits) : "f"(wide));
#else
    const unsigned bits = __float_as_uint(wide);
    const unsigned even = bits + 0x7fffu + (bits >> 16 & 1u);                  // to the nearest, ties to even
    x.bits = (unsigned short)((wide == wide ? even : bits | 0x400000u) >> 16);  // a NaN stays one
#endif
}
__device__ inline float widen(float x) { return x; }
__device__ inline void narrow(float wide, float& x) { x = wide; }
__device__ inline double widen(double x) { return x; }
__device__ inline void narrow(double wide, double& x) { x = wide; }

// --- Several numbers ---

template <typename T, int N>
struct alignas(N * sizeof(T) < 16 ? N * sizeof(T) : 16) Pack {
    T at[N];
};
template <int N, typename T>
__device__ inline Pack<T, N> load(const T* from) {
    return *reinterpret_cast<const Pack<T, N>*>(from);
}
template <typename T, int N, typename A>
__device__ inline Pack<T, N> narrowed(const A* wide) {
    Pack<T, N> pack;
#pragma unroll
    for (int v = 0; v < N; ++v) narrow(wide[v], pack.at[v]);
    return pack;
}

// Of a NaN and a number these may return either: the sums after them are NaN all the same.
__device__ inline float larger(float x, float y) { return fmaxf(x, y); }  // one instruction, where `?:` is two
__device__ inline double larger(double x, double y) { return x > y ? x : y; }
template <bool MAXIMUM, typename A>
__device__ inline A both(A x, A y) {
    return MAXIMUM ? larger(x, y) : x + y;
}

// The maximum or the sum over the threads of a row, the same bits in each of them. In `row_major` these are THREADS
// neighbours, and beyond a warp the whole block; in `class_major` the same lane of all THREADS warps.
template <bool MAXIMUM, int THREADS, typename A>
__device__ inline A over_neighbours(A x) {
    for (int step = (THREADS < 32 ? THREADS : 32) / 2; step > 0; step /= 2)
        x = both<MAXIMUM>(x, __shfl_xor_sync(0xffffffffu, x, step));
    if (THREADS > 32) {
        __shared__ A of_warp[32];
        __syncthreads();  // what was reduced before has been read
        if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = x;
        __syncthreads();
        x = of_warp[0];
        for (int warp = 1; warp < THREADS / 32; ++warp) x = both<MAXIMUM>(x, of_warp[warp]);
    }
    return x;
}
template <bool MAXIMUM, int THREADS, typename A>
__device__ inline A over_warps(A x) {
    if (THREADS > 1) {
        __shared__ A of_thread[THREADS * 32];
        const int lane = threadIdx.x % 32;
        __syncthreads();
        of_thread[threadIdx.x] = x;
        __syncthreads();
        x = of_thread[lane];
        for (int warp = 1; warp < THREADS; ++warp) x = both<MAXIMUM>(x, of_thread[warp * 32 + lane]);
    }
    return x;
}

// --- One row ---

// exp(z) of a logit z from which the largest has been subtracted: of float as a power of two, which is one instruction.
// The product rounds z by as much as that subtraction has rounded it.
__device__ inline float exponential(float z) { return exp2f(z * 1.44269504f); }
__device__ inline double exponential(double z) { return exp(z); }

__device__ inline float lowest(float) { return -3.402823466e38f; }
__device__ inline double lowest(double) { return -1.7976931348623157e308; }

// A sum; of many terms one after the other it is COMPENSATED (Kahan, 1965, doi:10.1145/363707.363723): without that
// small terms, which are all rounded the same way, would add up to an error of the size of the result's fifth digit.
template <typename A, bool COMPENSATED>
struct Sum {
    A value = 0, lost = 0;

    __device__ void operator+=(A x) {
        const A own = x - lost, next = value + own;
        if (COMPENSATED) {
            lost = next - value - own;
            if (lost != lost) lost = 0;  // of an infinity
        }
        value = next;
    }
    __device__ void operator*=(A factor) {
        value *= factor;
        lost *= factor;
    }
};

// Sums over classes, of logits z from which the largest of them, `top`, has been subtracted.
template <typename A, bool COMPENSATED>
struct Sums {
    A top = lowest(A());  // so far: finite, so that a logit of minus infinity has the exponential 0
    A n = 0;
    Sum<A, COMPENSATED> exps;      // of exp(z), without that of the label
    Sum<A, COMPENSATED> logits;    // of z, where there is smoothing
    Sum<A, COMPENSATED> mass;      // of t, the target probabilities
    Sum<A, COMPENSATED> expected;  // of t z
    Sum<A, COMPENSATED> along;     // of exp(z) u, where u is the direction

    template <bool OTHER>
    __device__ void operator+=(const Sums<A, OTHER>& more) {  // of logits from which the same was subtracted
        n += more.n;
        exps += more.exps.value;
        logits += more.logits.value;
        mass += more.mass.value;
        expected += more.expected.value;
        along += more.along.value;
    }
    __device__ void raise(A to) {
        const A by = n > 0 ? top - to : 0, factor = exponential(by);  // without any, the difference may be infinite
        exps *= factor;
        along *= factor;
        logits += n * by;
        expected += mass.value * by;
        top = to;
    }
};

// The same over all threads of a row.
template <typename A>
struct Totals {
    A top;
    A log_exps, inverse;  // of the sum of exp(z)
    A logits = 0, mass = 0, expected = 0;
    A along = 0;     // the mean of u under the softmax
    bool counts;     // whether the weight is not zero: else loss and gradient are zero, whatever the logits
    A weight;        // NaN where the label is no class: in the loss, and in each entry of the gradient
    A label_loss;    // -log(p) of the label
    A at_label;      // the gradient there
    A miss;          // what the gradient is less than the weighted probability elsewhere
};

template <typename A, int PASS, int TARGETS>
struct Row {
    Index given;     // the label, any integer
    int label = -1;  // the same where it is a class, once `find_label` has been called
    A weight, smoothing, even;
    int n_classes;

    // It asks for label and weight; nothing waits for them before `find_label` and `reduced` do.
    __device__ Row(const void* targets, const A* weights, A smoothing, Index row, int n_classes)
        : given(TARGETS == LABELS ? static_cast<const Index*>(targets)[row] : -1),
          weight(weights ? weights[row] : (A)1),
          smoothing(smoothing),
          even(smoothing != 0 ? smoothing / n_classes : 0),
          n_classes(n_classes) {}

    __device__ void find_label() {
        if (TARGETS == LABELS && given >= 0 && given < n_classes) label = (int)given;
    }
    __device__ bool known() const { return TARGETS == LABELS && label >= 0; }

    __device__ A probability(A t) const { return (1 - smoothing) * t + even; }

    // Add class k with shifted logit z, its exponential e, and its target t. The exponential of the label is left out:
    // it may be so much larger than the others that the sum of all holds nothing of these, which are loss and gradient.
    template <bool COMPENSATED>
    __device__ void add(Sums<A, COMPENSATED>& sums, int k, A z, A e, A t) const {
        sums.n += 1;
        sums.exps += TARGETS == LABELS && k == label ? 0 : e;
        if (PASS == HESSIAN) {
            sums.along += e * t;
        } else if (TARGETS == PROBABILITIES) {
            t = probability(t);
            sums.mass += t;
            if (t > 0) sums.expected += t * z;  // probability 0 costs nothing, also at logit minus infinity
        } else if (TARGETS == LABELS && smoothing != 0) {
            sums.logits += z;
        }
    }

    // Add the classes from k on, a pack of them, with logits y and targets t, and turn y into what `entry` takes.
    template <bool COMPENSATED, int VEC>
    __device__ void add(Sums<A, COMPENSATED>& sums, int k, A* y, const Pack<A, VEC>& t) const {
        Sums<A, false> of_pack;
#pragma unroll
        for (int v = 0; v < VEC; ++v) {
            const A z = y[v] - sums.top, e = exponential(z);
            add(of_pack, k + v, z, e, t.at[v]);
            y[v] = PASS == LOG_SOFTMAX ? z : e;
        }
        sums += of_pack;
    }

    // The totals over all threads, of a row whose label has the logit y.
    template <bool COMPENSATED, typename Total>
    __device__ Totals<A> reduced(const Sums<A, COMPENSATED>& sums, A y, Total total) const {
        const A z = y - sums.top, e = known() ? exponential(z) : 0;
        const A others = total(sums.exps.value), exps = others + e;
        Totals<A> of_row{sums.top, log(exps), 1 / exps};
        of_row.label_loss = z > -1 ? log1p(others / e) : of_row.log_exps - z;
        const bool outside = TARGETS == LABELS && !known();
        of_row.counts = outside || weight != 0;
        of_row.weight = outside ? (A)__uint_as_float(0x7fc00000u) : weight;
        of_row.at_label = of_row.counts ? of_row.weight * (smoothing - even - others * of_row.inverse) : 0;
        of_row.miss = of_row.weight * even;
        if (PASS == HESSIAN) {
            of_row.along = total(sums.along.value) * of_row.inverse;
        } else if (TARGETS == PROBABILITIES) {
            of_row.mass = total(sums.mass.value);
            of_row.expected = total(sums.expected.value);
        } else if (TARGETS == LABELS && smoothing != 0) {
            of_row.logits = total(sums.logits.value);
        }
        return of_row;
    }

    __device__ A loss(const Totals<A>& sums) const {
        if (!sums.counts) return 0;
        if (TARGETS == PROBABILITIES) return sums.weight * (sums.log_exps * sums.mass - sums.expected);
        if (smoothing == 0) return sums.weight * sums.label_loss;
        return sums.weight * ((1 - smoothing) * sums.label_loss + smoothing * sums.log_exps - even * sums.logits);
    }

    // What is written for a class with target t, where `e` is its exponential, or, for LOG_SOFTMAX, its shifted logit. At
    // the label `at_label` is written over it.
    __device__ A entry(const Totals<A>& sums, A e, A t) const {
        if (PASS == LOG_SOFTMAX) return e - sums.log_exps;
        if (PASS == SOFTMAX) return e * sums.inverse;
        if (!sums.counts) return 0;
        const A scale = sums.weight * sums.inverse;  // as all that is the same for each class, it is formed once
        if (PASS == HESSIAN) return scale * e * (t - sums.along);
        if (TARGETS == PROBABILITIES) return scale * sums.mass * e - sums.weight * probability(t);
        return scale * e - sums.miss;
    }
};

#define ARGUMENTS                                                                                              \
    const T *logits, Index logits_step, const A *bias, const void *targets, Index targets_step, const A *weights, \
        A smoothing, O *out, Index out_step, A *losses, Index n_rows, int n_classes, int kept

// Rows of classes side by side: `step` numbers from one row to the next. GROUP threads share a row. Each holds HELD packs
// of VEC classes in registers; with MORE, the next `kept` packs in shared memory; what lies beyond is read twice, and
// backwards the second time, when what was read last is still in the cache. VEC > 1 needs packs that are aligned, and
// rows of whole packs. Of the larger groups as many fit on a processor as make 1024 threads.
template <typename T, typename O, typename A, int PASS, int TARGETS, int VEC, int GROUP, int HELD, bool MORE>
__global__ void __launch_bounds__(GROUP > 32 ? GROUP : 128, GROUP > 32 ? 1024 / GROUP : 1) row_major(ARGUMENTS) {
    constexpr int STEP = GROUP * VEC;  // from one pack of a thread to its next
    // Packs waited for at once, alone or with their targets; more would not be held, nor would those of the next turns.
    constexpr int DEPTH = sizeof(A) == 4 && VEC <= 4 && TARGETS != PROBABILITIES ? 2 : 1;
    constexpr bool WIDE = sizeof(T) == sizeof(A);  // what is kept may be overwritten with what becomes of it
    const int lane = threadIdx.x % GROUP, beyond = HELD * STEP + lane * VEC;
    const int n_beyond = MORE && beyond < n_classes ? (n_classes - 1 - beyond) / STEP + 1 : 0;
    const int n_kept = !MORE ? 0 : n_beyond < kept ? n_beyond : kept;
    Index row = (Index)blockIdx.x * (blockDim.x / GROUP) + threadIdx.x / GROUP;
    const bool exists = row < n_rows;
    if (!exists) row = n_rows - 1;  // no thread may leave before the last reduction

    Row<A, PASS, TARGETS> own(targets, weights, smoothing, row, n_classes);
    const T* z = logits + row * logits_step;
    const A* t = static_cast<const A*>(targets) + row * targets_step;
    O* to = out + row * out_step;

    auto unpack = [&](const Pack<T, VEC>& pack, int first, A* x) {
#pragma unroll
        for (int v = 0; v < VEC; ++v) x[v] = widen(pack.at[v]);
        if (!bias) return;
        const Pack<A, VEC> added = load<VEC>(bias + first);
#pragma unroll
        for (int v = 0; v < VEC; ++v) x[v] += added.at[v];
    };
    auto* own_kept = static_cast<Pack<T, VEC>*>(MORE ? shared_memory() : nullptr) + lane;
    auto targets_at = [&](int first) {
        if (TARGETS == PROBABILITIES) return load<VEC>(t + first);
        return Pack<A, VEC>{};
    };
    auto write = [&](const Totals<A>& totals, int first, const A* y) {  // shifted logits, or their exponentials
        const Pack<A, VEC> target = targets_at(first);
        A entries[VEC];
#pragma unroll
        for (int v = 0; v < VEC; ++v) entries[v] = own.entry(totals, y[v], target.at[v]);
        *reinterpret_cast<Pack<O, VEC>*>(to + first) = narrowed<O, VEC>(entries);
    };

    Pack<T, VEC> held[HELD];  // on its way, all of it before anything waits for a part
#pragma unroll
    for (int i = 0; i < HELD; ++i)
        if (i * STEP + lane * VEC < n_classes) held[i] = load<VEC>(z + i * STEP + lane * VEC);
    A x[HELD * VEC];
    A top = lowest(A());
#pragma unroll
    for (int i = 0; i < HELD; ++i) {
        const int first = i * STEP + lane * VEC;
        if (first < n_classes) {
            unpack(held[i], first, x + i * VEC);
#pragma unroll
            for (int v = 0; v < VEC; ++v) top = larger(top, x[i * VEC + v]);
        }
    }
#pragma unroll 2 * DEPTH
    for (int i = 0; i < n_kept; ++i) {
        const Pack<T, VEC> pack = load<VEC>(z + beyond + i * STEP);
        own_kept[i * GROUP] = pack;
        A y[VEC];
        unpack(pack, beyond + i * STEP, y);
#pragma unroll
        for (int v = 0; v < VEC; ++v) top = larger(top, y[v]);
    }
    own.find_label();  // not before the row is loaded: the loads that come after it would wait for the label
    Sums<A, MORE && sizeof(A) == 4> sums;
    sums.top = top;
#pragma unroll 1
    for (int i = n_kept; i < n_beyond; i += DEPTH) {
        Pack<T, VEC> next[DEPTH];
#pragma unroll
        for (int j = 0; j < DEPTH; ++j)
            if (i + j < n_beyond) next[j] = load<VEC>(z + beyond + (i + j) * STEP);
        top = sums.top;
#pragma unroll
        for (int j = 0; j < DEPTH; ++j)
            if (i + j < n_beyond) {
                A y[VEC];
                unpack(next[j], beyond + (i + j) * STEP, y);
#pragma unroll
                for (int v = 0; v < VEC; ++v) top = larger(top, y[v]);
            }
        if (top > sums.top) sums.raise(top);
#pragma unroll
        for (int j = 0; j < DEPTH; ++j)
            if (i + j < n_beyond) {
                A y[VEC];
                unpack(next[j], beyond + (i + j) * STEP, y);
                own.add(sums, beyond + (i + j) * STEP, y, targets_at(beyond + (i + j) * STEP));
            }
    }
    top = over_neighbours<true, GROUP>(sums.top);
    sums.raise(top);
    A of_label = 0;
    if (own.known()) of_label = widen(z[own.label]) + (bias ? bias[own.label] : (A)0);
#pragma unroll
    for (int i = 0; i < HELD; ++i) {
        const int first = i * STEP + lane * VEC;
        if (first < n_classes) own.add(sums, first, x + i * VEC, targets_at(first));
    }
#pragma unroll 1
    for (int i = 0; i < n_kept; ++i) {
        A y[VEC];
        unpack(own_kept[i * GROUP], beyond + i * STEP, y);
        own.add(sums, beyond + i * STEP, y, targets_at(beyond + i * STEP));
        if (WIDE) own_kept[i * GROUP] = narrowed<T, VEC>(y);
    }
    const Totals<A> totals = own.reduced(sums, of_label, [](A part) { return over_neighbours<false, GROUP>(part); });

    if (losses && exists && lane == 0) losses[row] = own.loss(totals);
    if (PASS == LOSS) return;
    if (GROUP > 32)
        __syncthreads();  // all have read the logit of the label: it may be written over
    else
        __syncwarp();
    if (!exists) return;
#pragma unroll
    for (int i = 0; i < HELD; ++i) {
        const int first = i * STEP + lane * VEC;
        if (first < n_classes) write(totals, first, x + i * VEC);
    }
#pragma unroll 1
    for (int i = n_beyond - 1; i >= 0; --i) {
        const int first = beyond + i * STEP;
        A y[VEC];
        if (WIDE && i < n_kept) {
            const Pack<T, VEC> pack = own_kept[i * GROUP];
#pragma unroll
            for (int v = 0; v < VEC; ++v) y[v] = widen(pack.at[v]);
        } else {
            unpack(i < n_kept ? own_kept[i * GROUP] : load<VEC>(z + first), first, y);
#pragma unroll
            for (int v = 0; v < VEC; ++v) {
                y[v] -= top;
                if (PASS != LOG_SOFTMAX) y[v] = exponential(y[v]);
            }
        }
        write(totals, first, y);
    }
    if (own.known() && own.label / VEC % GROUP == lane) narrow(totals.at_label, to[own.label]);  // its own thread
}

// The same for few classes, and rows with nothing between them: a thread has a row, so that what a row costs besides its
// classes is done once for all of them. The block brings its ROWS to shared memory, and takes from there what becomes of
// them, as they lie. A thread goes over its row in packs of VEC classes, of which there are no parts.
template <typename T, typename O, typename A, int PASS, int TARGETS, int VEC, int ROWS>
__global__ void __launch_bounds__(ROWS) few_classes(ARGUMENTS) {
    const Index start = (Index)blockIdx.x * ROWS;
    const int n_own = n_rows - start < ROWS ? (int)(n_rows - start) : ROWS, count = n_own * n_classes;
    const int n_packs = n_classes / VEC, rest = count / 4 * 4 + threadIdx.x;
    const T* z = logits + start * n_classes;
    O* to = out + start * n_classes;
    A* own_logits = static_cast<A*>(shared_memory());
    const bool exists = threadIdx.x < n_own;
    Row<A, PASS, TARGETS> own(targets, weights, smoothing, exists ? start + threadIdx.x : n_rows - 1, n_classes);

    // Pack i of the block. Neighbours want the same pack of their rows at once: where n_packs is even, these would lie in
    // few of the eight columns of 16 bytes that shared memory has, and are spread over all of them.
    const int spread = VEC > 1 ? ((n_packs & -n_packs) - 1) & 7 : 0;
    auto* fours = reinterpret_cast<Pack<A, 4>*>(own_logits);
    auto* packs = reinterpret_cast<Pack<A, VEC>*>(own_logits);
    auto place = [&](int i) { return i ^ (i >> 3 & spread); };

#pragma unroll 4
    for (int i = threadIdx.x; i < count / 4; i += ROWS) {
        const Pack<T, 4> pack = load<4>(z + 4 * i);
        Pack<A, 4> wide;
#pragma unroll
        for (int v = 0; v < 4; ++v) wide.at[v] = widen(pack.at[v]);
        fours[place(i)] = wide;
    }
    if (rest < count) own_logits[rest] = widen(z[rest]);
    __syncthreads();

    if (exists) {
        const int first = threadIdx.x * n_packs;
        A top = lowest(A()), of_label = 0;
#pragma unroll 4
        for (int i = 0; i < n_packs; ++i) {
            Pack<A, VEC> pack = packs[place(first + i)];
            if (bias) {
                const Pack<A, VEC> added = load<VEC>(bias + i * VEC);
#pragma unroll
                for (int v = 0; v < VEC; ++v) pack.at[v] += added.at[v];
                packs[place(first + i)] = pack;
            }
#pragma unroll
            for (int v = 0; v < VEC; ++v) top = larger(top, pack.at[v]);
        }
        own.find_label();
        A* label = own.known() ? packs[place(first + own.label / VEC)].at + own.label % VEC : nullptr;
        if (label) of_label = *label;
        Sums<A, false> sums;
        sums.top = top;
#pragma unroll 4
        for (int i = 0; i < n_packs; ++i) {
            Pack<A, VEC> pack = packs[place(first + i)];
            own.add(sums, i * VEC, pack.at, Pack<A, VEC>{});
            if (PASS != LOSS) packs[place(first + i)] = pack;
        }
        const Totals<A> totals = own.reduced(sums, of_label, [](A all) { return all; });
        if (losses) losses[start + threadIdx.x] = own.loss(totals);
#pragma unroll 4
        for (int i = 0; PASS != LOSS && i < n_packs; ++i) {
            Pack<A, VEC> pack = packs[place(first + i)];
#pragma unroll
            for (int v = 0; v < VEC; ++v) pack.at[v] = own.entry(totals, pack.at[v], (A)0);
            packs[place(first + i)] = pack;
        }
        if (PASS != LOSS && label) *label = totals.at_label;
    }
    if (PASS == LOSS) return;
    __syncthreads();
#pragma unroll 4
    for (int i = threadIdx.x; i < count / 4; i += ROWS) {
        const Pack<A, 4> wide = fours[place(i)];
        *reinterpret_cast<Pack<O, 4>*>(to + 4 * i) = narrowed<O, 4>(wide.at);
    }
    if (rest < count) narrow(own_logits[rest], to[rest]);
}

// Classes of rows side by side: `step` numbers from one class to the next. A warp takes 32 rows, and a slice of the
// classes of each, which it reads twice.
template <typename T, typename O, typename A, int PASS, int TARGETS, int SLICES>
__global__ void __launch_bounds__(SLICES * 32) class_major(ARGUMENTS) {
    const int slice = threadIdx.x / 32;
    Index row = (Index)blockIdx.x * 32 + threadIdx.x % 32;
    const bool exists = row < n_rows;
    if (!exists) row = n_rows - 1;

    Row<A, PASS, TARGETS> own(targets, weights, smoothing, row, n_classes);
    const A* t = static_cast<const A*>(targets) + row;
    auto logit = [&](Index k) { return widen(logits[k * logits_step + row]) + (bias ? bias[k] : (A)0); };
    auto target = [&](Index k) { return TARGETS == PROBABILITIES ? t[k * targets_step] : (A)0; };
    own.find_label();
    const A of_label = own.known() ? logit(own.label) : (A)0;

    Sums<A, true> sums;
    for (Index k = slice; k < n_classes; k += SLICES) {
        const A z = logit(k);
        if (z > sums.top) sums.raise(z);
        own.add(sums, k, z - sums.top, exponential(z - sums.top), target(k));
    }
    sums.raise(over_warps<true, SLICES>(sums.top));
    const Totals<A> totals = own.reduced(sums, of_label, [](A part) { return over_warps<false, SLICES>(part); });

    if (losses && exists && slice == 0) losses[row] = own.loss(totals);
    if (PASS == LOSS || !exists) return;
    for (Index k = slice; k < n_classes; k += SLICES) {
        const A z = logit(k) - totals.top;
        narrow(own.entry(totals, PASS == LOG_SOFTMAX ? z : exponential(z), target(k)), out[k * out_step + row]);
    }
    if (own.known() && own.label % SLICES == slice) narrow(totals.at_label, out[(Index)own.label * out_step + row]);
}

// A factor of a product of lower precision, in packs of VEC numbers; VEC > 1 needs `x` and `to` to be aligned to them.
template <int VEC>
__global__ void __launch_bounds__(128) round_to_bfloat16(const float* x, BFloat16* to, Index n) {
    const Index i = ((Index)blockIdx.x * blockDim.x + threadIdx.x) * VEC;
    if (i + VEC <= n) {
        const Pack<float, VEC> wide = load<VEC>(x + i);
        *reinterpret_cast<Pack<BFloat16, VEC>*>(to + i) = narrowed<BFloat16, VEC>(wide.at);
    } else {
        for (Index j = i; j < n; ++j) narrow(x[j], to[j]);
    }
}

// The sum of each column of x (n_rows, n_columns), for each part of `of_part` rows: written to sums (parts, n_columns), or
// added to it. THREADS neighbours read a row, in packs of VEC columns; a block has 256 / THREADS rows at a time.
template <typename T, typename A, int VEC, int THREADS>
__global__ void __launch_bounds__(256)
    row_sums(const T* x, Index step, A* sums, Index n_rows, int n_columns, Index of_part, int add) {
    constexpr int ROWS = 256 / THREADS;
    __shared__ Pack<A, VEC> of_thread[256];
    const int tiles = (n_columns - 1) / (THREADS * VEC) + 1;
    const Index part = blockIdx.x / tiles, stop = n_rows < (part + 1) * of_part ? n_rows : (part + 1) * of_part;
    const int first = ((int)(blockIdx.x % tiles) * THREADS + (int)threadIdx.x % THREADS) * VEC;
    const int line = threadIdx.x / THREADS;

    Pack<A, VEC> own{};
    if (first < n_columns) {
#pragma unroll 4
        for (Index row = part * of_part + line; row < stop; row += ROWS) {
            const Pack<T, VEC> pack = load<VEC>(x + row * step + first);
#pragma unroll
            for (int v = 0; v < VEC; ++v) own.at[v] += widen(pack.at[v]);
        }
    }
    for (int half = ROWS / 2; half > 0; half /= 2) {
        of_thread[threadIdx.x] = own;
        __syncthreads();
        if (line < half) {
#pragma unroll
            for (int v = 0; v < VEC; ++v) own.at[v] += of_thread[threadIdx.x + half * THREADS].at[v];
        }
        __syncthreads();
    }
    if (line > 0 || first >= n_columns) return;
    A* to = sums + part * n_columns + first;
#pragma unroll
    for (int v = 0; v < VEC; ++v) to[v] = add ? to[v] + own.at[v] : own.at[v];
}
