// The row pass on a GPU: softmax, log-softmax, cross-entropy, its gradient and its Hessian, each in one launch.
//
// `reference.py` defines what is computed; `launches.py` chooses the variant, and `cuda.py` launches it. Every kernel
// reads the logits of a row, reduces them in a fixed order, without atomics, and writes what was asked for; in place if
// `out` is `logits`. Arithmetic is done in A: float, or double for logits that are.

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
    const unsigned bits = __float_as_uint(wide);
    const unsigned even = bits + 0x7fffu + (bits >> 16 & 1u);                  // to the nearest, ties to even
    x.bits = (unsigned short)((wide == wide ? even : bits | 0x400000u) >> 16);  // a NaN stays one
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

template <typename A>
__device__ inline A larger(A x, A y) {
    return x > y ? x : y;
}
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
    Sum<A, COMPENSATED> exps;      // of exp(z)
    Sum<A, COMPENSATED> logits;    // of z, where there is smoothing
    Sum<A, COMPENSATED> mass;      // of t, the target probabilities
    Sum<A, COMPENSATED> expected;  // of t z
    Sum<A, COMPENSATED> along;     // of exp(z) u, where u is the direction

    __device__ void raise(A to) {
        const A by = n > 0 ? top - to : 0, factor = exp(by);  // without any, the difference may be infinite
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
    A along = 0;  // the mean of u under the softmax
};

template <typename A, int PASS, int TARGETS>
struct Row {
    Index label;
    bool known;   // whether the label is a class
    bool counts;  // whether the weight is not zero: else loss and gradient are zero, whatever the logits
    A weight, smoothing, even;

    __device__ Row(const void* targets, const A* weights, A smoothing, Index row, int n_classes)
        : smoothing(smoothing), even(smoothing / n_classes) {
        label = TARGETS == LABELS ? static_cast<const Index*>(targets)[row] : -1;
        known = TARGETS != LABELS || (label >= 0 && label < n_classes);
        weight = weights ? weights[row] : (A)1;
        counts = !known || weight != 0;
        if (!known) weight = (A)__uint_as_float(0x7fc00000u);  // NaN: in the loss, and in each entry of the gradient
    }

    __device__ A probability(A t) const { return (1 - smoothing) * t + even; }

    // Add a class with shifted logit z, its exponential e, and its target t.
    template <bool COMPENSATED>
    __device__ void add(Sums<A, COMPENSATED>& sums, A z, A e, A t) const {
        sums.n += 1;
        sums.exps += e;
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

    template <bool COMPENSATED, typename Total>
    __device__ Totals<A> reduced(const Sums<A, COMPENSATED>& sums, Total total) const {
        const A exps = total(sums.exps.value);
        Totals<A> of_row{sums.top, log(exps), 1 / exps};
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

    __device__ A loss(const Totals<A>& sums, A logit_of_label) const {
        if (!counts) return 0;
        if (TARGETS == PROBABILITIES) return weight * (sums.log_exps * sums.mass - sums.expected);
        A expected = (1 - smoothing) * (logit_of_label - sums.top);
        if (smoothing != 0) expected += even * sums.logits;
        return weight * (sums.log_exps - expected);
    }

    // What is written for class k.
    __device__ A entry(const Totals<A>& sums, Index k, A z, A e, A t) const {
        if (PASS == LOG_SOFTMAX) return z - sums.log_exps;
        const A p = e * sums.inverse;
        if (PASS == SOFTMAX) return p;
        if (!counts) return 0;
        if (PASS == HESSIAN) return weight * (p * (t - sums.along));
        if (TARGETS == PROBABILITIES) return weight * (p * sums.mass - probability(t));
        return weight * (p - ((k == label ? 1 - smoothing : (A)0) + even));
    }
};

#define ARGUMENTS                                                                                              \
    const T *logits, Index logits_step, const A *bias, const void *targets, Index targets_step, const A *weights, \
        A smoothing, T *out, Index out_step, A *losses, Index n_rows, int n_classes, int kept

// Rows of classes side by side: `step` numbers from one row to the next. GROUP threads share a row. Each holds HELD packs
// of VEC classes in registers; with MORE, the next `kept` packs in shared memory; what lies beyond is read twice, and
// backwards the second time, when what was read last is still in the cache. VEC > 1 needs packs that are aligned, and
// rows of whole packs. Of the larger groups as many fit on a processor as make 1024 threads.
template <typename T, typename A, int PASS, int TARGETS, int VEC, int GROUP, int HELD, bool MORE>
__global__ void __launch_bounds__(GROUP > 32 ? GROUP : 128, GROUP > 32 ? 1024 / GROUP : 1) row_major(ARGUMENTS) {
    constexpr int STEP = GROUP * VEC;  // from one pack of a thread to its next
    constexpr int DEPTH = sizeof(A) == 4 && VEC <= 4 ? 2 : 1;  // packs waited for at once; more would not be held
    const int lane = threadIdx.x % GROUP, beyond = HELD * STEP + lane * VEC;
    const int n_beyond = MORE && beyond < n_classes ? (n_classes - 1 - beyond) / STEP + 1 : 0;
    const int n_kept = !MORE ? 0 : n_beyond < kept ? n_beyond : kept;
    Index row = (Index)blockIdx.x * (blockDim.x / GROUP) + threadIdx.x / GROUP;
    const bool exists = row < n_rows;
    if (!exists) row = n_rows - 1;  // no thread may leave before the last reduction

    const Row<A, PASS, TARGETS> own(targets, weights, smoothing, row, n_classes);
    const T* z = logits + row * logits_step;
    const A* t = static_cast<const A*>(targets) + row * targets_step;
    T* to = out + row * out_step;

    auto unpack = [&](const Pack<T, VEC>& pack, int first, A* x) {
#pragma unroll
        for (int v = 0; v < VEC; ++v) x[v] = widen(pack.at[v]) + (bias ? bias[first + v] : (A)0);
    };
    auto* own_kept = static_cast<Pack<T, VEC>*>(MORE ? shared_memory() : nullptr) + lane;
    auto targets_at = [&](int first) {
        if (TARGETS == PROBABILITIES) return load<VEC>(t + first);
        return Pack<A, VEC>{};
    };
    auto write = [&](const Totals<A>& totals, int first, const A* shifted, const A* exps) {
        const Pack<A, VEC> target = targets_at(first);
        Pack<T, VEC> pack;
#pragma unroll
        for (int v = 0; v < VEC; ++v)
            narrow(own.entry(totals, first + v, shifted[v], exps[v], target.at[v]), pack.at[v]);
        *reinterpret_cast<Pack<T, VEC>*>(to + first) = pack;
    };

    A x[HELD * VEC];
    A top = lowest(A());
#pragma unroll
    for (int i = 0; i < HELD; ++i) {
        const int first = i * STEP + lane * VEC;
        if (first < n_classes) {
            unpack(load<VEC>(z + first), first, x + i * VEC);
#pragma unroll
            for (int v = 0; v < VEC; ++v) top = larger(top, x[i * VEC + v]);
        }
    }
#pragma unroll 4
    for (int i = 0; i < n_kept; ++i) {
        const Pack<T, VEC> pack = load<VEC>(z + beyond + i * STEP);
        own_kept[i * GROUP] = pack;
        A y[VEC];
        unpack(pack, beyond + i * STEP, y);
#pragma unroll
        for (int v = 0; v < VEC; ++v) top = larger(top, y[v]);
    }
    Sums<A, MORE && sizeof(A) == 4> sums;
    sums.top = top;
    auto add = [&](const Pack<T, VEC>& pack, int first) {
        A y[VEC];
        unpack(pack, first, y);
        const Pack<A, VEC> target = targets_at(first);
#pragma unroll
        for (int v = 0; v < VEC; ++v) own.add(sums, y[v] - sums.top, exp(y[v] - sums.top), target.at[v]);
    };
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
            if (i + j < n_beyond) add(next[j], beyond + (i + j) * STEP);
    }
    top = over_neighbours<true, GROUP>(sums.top);
    sums.raise(top);
    // Not before the row is loaded: the address waits for the label, and so would every load that comes after this one.
    A at_label = 0;
    if (TARGETS == LABELS && own.known) at_label = widen(z[own.label]) + (bias ? bias[own.label] : (A)0);
#pragma unroll
    for (int i = 0; i < HELD; ++i) {
        const int first = i * STEP + lane * VEC;
        if (first < n_classes) {
            const Pack<A, VEC> target = targets_at(first);
#pragma unroll
            for (int v = 0; v < VEC; ++v) {
                const A shifted = x[i * VEC + v] - top, e = exp(shifted);
                own.add(sums, shifted, e, target.at[v]);
                x[i * VEC + v] = PASS == LOG_SOFTMAX ? shifted : e;
            }
        }
    }
    for (int i = 0; i < n_kept; ++i) add(own_kept[i * GROUP], beyond + i * STEP);
    const Totals<A> totals = own.reduced(sums, [](A part) { return over_neighbours<false, GROUP>(part); });

    if (losses && exists && lane == 0) losses[row] = own.loss(totals, at_label);
    if (PASS == LOSS) return;
    if (GROUP > 32)
        __syncthreads();  // all have read the logit of the label: it may be written over
    else
        __syncwarp();
    if (!exists) return;
#pragma unroll
    for (int i = 0; i < HELD; ++i) {
        const int first = i * STEP + lane * VEC;
        if (first < n_classes) write(totals, first, x + i * VEC, x + i * VEC);
    }
    for (int i = n_beyond - 1; i >= 0; --i) {
        const int first = beyond + i * STEP;
        A y[VEC], e[VEC];
        unpack(i < n_kept ? own_kept[i * GROUP] : load<VEC>(z + first), first, y);
#pragma unroll
        for (int v = 0; v < VEC; ++v) {
            y[v] -= top;
            e[v] = exp(y[v]);
        }
        write(totals, first, y, e);
    }
}

// Classes of rows side by side: `step` numbers from one class to the next. A warp takes 32 rows, and a slice of the
// classes of each, which it reads twice.
template <typename T, typename A, int PASS, int TARGETS, int SLICES>
__global__ void __launch_bounds__(SLICES * 32) class_major(ARGUMENTS) {
    const int slice = threadIdx.x / 32;
    Index row = (Index)blockIdx.x * 32 + threadIdx.x % 32;
    const bool exists = row < n_rows;
    if (!exists) row = n_rows - 1;

    const Row<A, PASS, TARGETS> own(targets, weights, smoothing, row, n_classes);
    const A* t = static_cast<const A*>(targets) + row;
    auto logit = [&](Index k) { return widen(logits[k * logits_step + row]) + (bias ? bias[k] : (A)0); };
    auto target = [&](Index k) { return TARGETS == PROBABILITIES ? t[k * targets_step] : (A)0; };
    const A at_label = TARGETS == LABELS && own.known ? logit(own.label) : (A)0;

    Sums<A, true> sums;
    for (Index k = slice; k < n_classes; k += SLICES) {
        const A z = logit(k);
        if (z > sums.top) sums.raise(z);
        own.add(sums, z - sums.top, exp(z - sums.top), target(k));
    }
    sums.raise(over_warps<true, SLICES>(sums.top));
    const Totals<A> totals = own.reduced(sums, [](A part) { return over_warps<false, SLICES>(part); });

    if (losses && exists && slice == 0) losses[row] = own.loss(totals, at_label);
    if (PASS == LOSS || !exists) return;
    for (Index k = slice; k < n_classes; k += SLICES) {
        const A z = logit(k) - totals.top;
        narrow(own.entry(totals, k, z, exp(z), target(k)), out[k * out_step + row]);
    }
}

// A factor of a product of lower precision.
__global__ void __launch_bounds__(128) round_to_bfloat16(const float* x, BFloat16* to, Index n) {
    const Index i = (Index)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) narrow(x[i], to[i]);
}
