// Enough of CUDA to run a kernel on the CPU: the blocks one after another, and in a block every
// thread by turns, each on a stack of its own up to the next barrier. It shows whether indices,
// masks, sums and barriers are right; it says nothing about speed or about memory ordering between
// kernels.

#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <vector>

#define __global__
#define __device__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)
#define __shared__ static  // one block at a time

using std::min;

struct uint4 {
    uint32_t x, y, z, w;
};
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }

struct dim3 {
    unsigned x, y, z;
    explicit dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

inline dim3 threadIdx;
inline dim3 blockIdx;

namespace emulation {

constexpr unsigned kWarpSize = 32;
constexpr unsigned kMaxThreads = 1024;
constexpr size_t kStackBytes = 64 << 10;
constexpr int kMultiprocessors = 8;

struct Thread {
    ucontext_t context;
    std::vector<char> stack = std::vector<char>(kStackBytes);
    bool ended = false;
};

struct Barrier {
    unsigned arrived = 0;
    unsigned round = 0;
};

inline ucontext_t scheduler;
inline std::vector<Thread> team;
inline std::function<void()> body;
inline Barrier block_barrier;
inline Barrier warp_barriers[kMaxThreads / kWarpSize];
inline float exchange[kMaxThreads];

// Lets all others of the block come here, too.
inline void wait_at(Barrier& barrier, unsigned num_threads) {
    const unsigned round = barrier.round;
    if (++barrier.arrived == num_threads) {
        barrier.arrived = 0;
        ++barrier.round;
    }
    while (barrier.round == round) swapcontext(&team[threadIdx.x].context, &scheduler);
}

inline void run_thread() {
    body();
    team[threadIdx.x].ended = true;
}

// Runs `body` once for every thread of a block.
inline void run_block(unsigned num_threads) {
    team.resize(num_threads);
    for (Thread& thread : team) {
        getcontext(&thread.context);
        thread.context.uc_stack.ss_sp = thread.stack.data();
        thread.context.uc_stack.ss_size = thread.stack.size();
        thread.context.uc_link = &scheduler;
        thread.ended = false;
        makecontext(&thread.context, run_thread, 0);
    }
    for (bool running = true; running;) {
        running = false;
        for (unsigned i = 0; i < num_threads; ++i) {
            if (team[i].ended) continue;
            running = true;
            threadIdx = dim3(i);
            swapcontext(&scheduler, &team[i].context);
        }
    }
}

}  // namespace emulation

inline void __syncthreads() {
    emulation::wait_at(emulation::block_barrier, static_cast<unsigned>(emulation::team.size()));
}

inline float __shfl_xor_sync(unsigned, float value, int mask) {
    emulation::Barrier& warp = emulation::warp_barriers[threadIdx.x / emulation::kWarpSize];
    emulation::exchange[threadIdx.x] = value;
    emulation::wait_at(warp, emulation::kWarpSize);
    const float other = emulation::exchange[threadIdx.x ^ static_cast<unsigned>(mask)];
    emulation::wait_at(warp, emulation::kWarpSize);
    return other;
}

inline float rsqrtf(float value) { return 1.0f / std::sqrt(value); }

inline float __uint_as_float(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof(value));
    return value;
}

using cudaError_t = int;
using cudaStream_t = void*;
constexpr cudaError_t cudaSuccess = 0;

enum { cudaDevAttrMultiProcessorCount, cudaLaunchAttributeProgrammaticStreamSerialization };

struct cudaFuncAttributes {
    int ptxVersion;
};
struct cudaLaunchAttribute {
    int id;
    struct {
        int programmaticStreamSerializationAllowed;
    } val;
};
struct cudaLaunchConfig_t {
    dim3 gridDim, blockDim;
    cudaStream_t stream;
    cudaLaunchAttribute* attrs;
    int numAttrs;
};

template <typename Kernel>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, Kernel) {
    attributes->ptxVersion = 90;
    return cudaSuccess;
}
inline cudaError_t cudaGetDevice(int* device) {
    *device = 0;
    return cudaSuccess;
}
inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
inline cudaError_t cudaDeviceGetAttribute(int* value, int, int) {
    *value = emulation::kMultiprocessors;
    return cudaSuccess;
}
inline const char* cudaGetErrorString(cudaError_t) { return "an emulated CUDA error"; }

template <typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Arguments...),
                               Arguments... arguments) {
    emulation::body = [=] { kernel(arguments...); };
    for (unsigned block = 0; block < config->gridDim.x; ++block) {
        blockIdx = dim3(block);
        emulation::run_block(config->blockDim.x);
    }
    return cudaSuccess;
}
