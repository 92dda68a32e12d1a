// Enough of CUDA to run a kernel on the CPU: a host thread for every thread of a block, the blocks
// one after another. It shows whether indices, masks and sums are right; it says nothing about
// speed or about memory ordering between kernels.

#pragma once

#include <algorithm>
#include <barrier>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <thread>
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

inline thread_local dim3 threadIdx;
inline thread_local dim3 blockIdx;

namespace emulation {

constexpr unsigned kWarpSize = 32;
constexpr unsigned kMaxThreads = 1024;
constexpr int kMultiprocessors = 8;

inline std::unique_ptr<std::barrier<>> block_barrier;
inline std::vector<std::unique_ptr<std::barrier<>>> warp_barriers;
inline float exchange[kMaxThreads];

}  // namespace emulation

inline void __syncthreads() { emulation::block_barrier->arrive_and_wait(); }

inline float __shfl_xor_sync(unsigned, float value, int mask) {
    std::barrier<>& warp = *emulation::warp_barriers[threadIdx.x / emulation::kWarpSize];
    emulation::exchange[threadIdx.x] = value;
    warp.arrive_and_wait();
    const float other = emulation::exchange[threadIdx.x ^ static_cast<unsigned>(mask)];
    warp.arrive_and_wait();
    return other;
}

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
    const unsigned threads = config->blockDim.x;
    for (unsigned block = 0; block < config->gridDim.x; ++block) {
        emulation::block_barrier = std::make_unique<std::barrier<>>(threads);
        emulation::warp_barriers.clear();
        for (unsigned warp = 0; warp < threads / emulation::kWarpSize; ++warp) {
            emulation::warp_barriers.push_back(
                std::make_unique<std::barrier<>>(emulation::kWarpSize));
        }
        std::vector<std::thread> team;
        for (unsigned thread = 0; thread < threads; ++thread) {
            team.emplace_back([=] {
                threadIdx = dim3(thread);
                blockIdx = dim3(block);
                kernel(arguments...);
            });
        }
        for (std::thread& member : team) member.join();
    }
    return cudaSuccess;
}
