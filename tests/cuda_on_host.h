// Runs a CUDA kernel on a CPU, one block at a time, its threads as fibers: to test what a kernel computes without a GPU.
//
// A warp runs until it waits for the others of its block, its threads until they wait for each other, in orders that
// change from block to block: one that does not wait where it has to reads what is not there yet, or no longer. A wait
// that not all of a warp or block come to ends the process. Numbers are those of this machine's exp and log; speed and
// alignment are not those of a GPU.

#pragma once
#include <setjmp.h>
#include <ucontext.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <vector>

#define ON_HOST
#define __device__
#define __global__ static
#define __shared__ static  // blocks run one after the other
#define __launch_bounds__(...)
using std::exp;
using std::log;
using std::log1p;

struct Coordinate {
    unsigned x;
};
static Coordinate threadIdx, blockIdx, blockDim;

static unsigned __float_as_uint(float x) {
    unsigned bits;
    memcpy(&bits, &x, 4);
    return bits;
}
static float __uint_as_float(unsigned bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

// --- Fibers ---

struct Fiber {
    std::vector<char> stack;
    jmp_buf here;
    const void* waits = nullptr;  // where it stands still, until all that belong there do
    bool done = true;             // with its part of the block
};
static std::vector<Fiber> fibers;  // one a thread; they serve one block after the other
static jmp_buf scheduler;
static std::function<void()> body;

static void yield() {
    if (!_setjmp(fibers[threadIdx.x].here)) _longjmp(scheduler, 1);
}

static void serve() {
    for (;;) {
        body();
        fibers[threadIdx.x].done = true;
        yield();
    }
}

static void resume(unsigned thread) {
    threadIdx.x = thread;
    Fiber& fiber = fibers[thread];
    if (_setjmp(scheduler)) return;
    if (!fiber.stack.empty()) _longjmp(fiber.here, 1);
    fiber.stack.resize(1 << 16);
    static ucontext_t first;
    getcontext(&first);
    first.uc_stack.ss_sp = fiber.stack.data();
    first.uc_stack.ss_size = fiber.stack.size();
    makecontext(&first, serve, 0);
    setcontext(&first);
}

static void wait(const void* place) {
    fibers[threadIdx.x].waits = place;
    yield();
}

static char of_block, of_warp[32];

static void __syncthreads() { wait(&of_block); }
static void __syncwarp() { wait(&of_warp[threadIdx.x / 32]); }

template <typename A>
static A __shfl_xor_sync(unsigned mask, A x, int step) {
    static A slots[1024];
    if (mask != 0xffffffffu) abort();
    slots[threadIdx.x] = x;
    __syncwarp();
    x = slots[threadIdx.x ^ step];
    __syncwarp();
    return x;
}

// --- Blocks ---

constexpr unsigned SHARED_BYTES = 1 << 18;
static void* shared_memory() {
    alignas(16) static char memory[SHARED_BYTES];
    return memory;
}

// Release those who wait in fibers [start, stop) if all wait at `place`; return whether they did.
static bool release(unsigned start, unsigned stop, const void* place) {
    for (unsigned i = start; i < stop; ++i)
        if (fibers[i].done || fibers[i].waits != place) return false;
    for (unsigned i = start; i < stop; ++i) fibers[i].waits = nullptr;
    return true;
}

// The i-th of n in an order of this block's own: from another one on in each, and forwards or backwards.
static unsigned in_turn(unsigned i, unsigned n) {
    const unsigned turn = (i + blockIdx.x / 2) % n;
    return blockIdx.x % 2 ? n - 1 - turn : turn;
}

// Run a warp as far as it gets alone; return whether it moved.
static bool run_warp(unsigned first) {
    bool moved = false;
    do
        for (unsigned i = 0; i < 32; ++i) {
            const unsigned thread = first + in_turn(i, 32);
            if (fibers[thread].done || fibers[thread].waits) continue;
            resume(thread);
            moved = true;
        }
    while (release(first, first + 32, &of_warp[first / 32]));
    return moved;
}

static void run_kernel(unsigned grid, unsigned block, std::function<void()> kernel) {
    if (block % 32 || block > 1024) abort();
    body = std::move(kernel);
    blockDim.x = block;
    fibers.resize(1024);
    memset(shared_memory(), 0xff, SHARED_BYTES);  // numbers that are not
    for (blockIdx.x = 0; blockIdx.x < grid; ++blockIdx.x) {
        for (unsigned thread = 0; thread < block; ++thread) fibers[thread].done = false;
        for (bool moved = true; moved;) {
            moved = false;
            for (unsigned i = 0; i < block / 32; ++i) moved |= run_warp(32 * in_turn(i, block / 32));
            release(0, block, &of_block);
        }
        for (unsigned thread = 0; thread < block; ++thread)
            if (!fibers[thread].done) {
                fprintf(stderr, "cuda_on_host: a thread waits for one that does not come\n");
                abort();
            }
    }
}

// --- Conversions of 16-bit floats: defined once the type is ---

struct Half;
static float widen(Half x);
static void narrow(float wide, Half& x);
