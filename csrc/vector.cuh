// 16-byte vectors of bfloat16, float16 or float32: loads, and conversion to and from float32.

#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace rsd {

constexpr int kVectorBytes = 16;

template <typename T>
constexpr int kPerVector = kVectorBytes / static_cast<int>(sizeof(T));

// Weights are read once a pass, so they stay out of L1, which the activations need. The read-only
// path is safe: nothing writes weights while kernels run. volatile keeps the loads where they are
// written, several in flight and ahead of a dependency wait.
__device__ __forceinline__ uint4 load_weight_vector(const void* address) {
#ifdef __CUDA_ARCH__
    uint4 bits;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(bits.x), "=r"(bits.y), "=r"(bits.z), "=r"(bits.w)
                 : "l"(address));
    return bits;
#else  // a host compiler: the tests run kernels on the CPU
    return *static_cast<const uint4*>(address);
#endif
}

// For what every block reads: activations and the weights of a norm. Activations may have been
// written by the kernel before this one while this one was already on the device, so the read-only
// path is not safe for them.
__device__ __forceinline__ uint4 load_reused_vector(const void* address) {
    return *static_cast<const uint4*>(address);
}

template <typename T>
struct Convert;

template <>
struct Convert<float> {
    static __device__ __forceinline__ float load(float value) { return value; }
    static __device__ __forceinline__ float store(float value) { return value; }
    static __device__ __forceinline__ void unpack(const uint4& bits, float (&out)[4]) {
        out[0] = __uint_as_float(bits.x);
        out[1] = __uint_as_float(bits.y);
        out[2] = __uint_as_float(bits.z);
        out[3] = __uint_as_float(bits.w);
    }
};

template <>
struct Convert<__half> {
    static __device__ __forceinline__ float load(__half value) { return __half2float(value); }
    static __device__ __forceinline__ __half store(float value) { return __float2half_rn(value); }
    static __device__ __forceinline__ void unpack(const uint4& bits, float (&out)[8]) {
        unpack_pair(bits.x, out[0], out[1]);
        unpack_pair(bits.y, out[2], out[3]);
        unpack_pair(bits.z, out[4], out[5]);
        unpack_pair(bits.w, out[6], out[7]);
    }

  private:
    static __device__ __forceinline__ void unpack_pair(uint32_t bits, float& low, float& high) {
        low = __half2float(__ushort_as_half(static_cast<unsigned short>(bits & 0xffffu)));
        high = __half2float(__ushort_as_half(static_cast<unsigned short>(bits >> 16)));
    }
};

// A bfloat16 is the upper half of a float32.
template <>
struct Convert<__nv_bfloat16> {
    static __device__ __forceinline__ float load(__nv_bfloat16 value) {
        return __bfloat162float(value);
    }
    static __device__ __forceinline__ __nv_bfloat16 store(float value) {
        return __float2bfloat16_rn(value);
    }
    static __device__ __forceinline__ void unpack(const uint4& bits, float (&out)[8]) {
        unpack_pair(bits.x, out[0], out[1]);
        unpack_pair(bits.y, out[2], out[3]);
        unpack_pair(bits.z, out[4], out[5]);
        unpack_pair(bits.w, out[6], out[7]);
    }

  private:
    static __device__ __forceinline__ void unpack_pair(uint32_t bits, float& low, float& high) {
        low = __uint_as_float(bits << 16);
        high = __uint_as_float(bits & 0xffff0000u);
    }
};

}  // namespace rsd
