// Decode projection: y[r, n] = sum_k x[r, k] * weight[n, k] (+ bias[n]) for one to four rows.
//
// At this size the time is that of reading the weights, so the kernel is built around keeping
// 16-byte loads in flight: a warp owns kOutputs rows of the weight, its lanes walk k side by side,
// and the next kUnroll vectors of every row are asked for before the present ones are used. Where
// the weight has too few rows to fill the device, `split` warps share the k of one group and add up
// in shared memory.

#include <climits>

#include "launch.cuh"
#include "rsd_kernels.h"
#include "vector.cuh"

namespace rsd {
namespace {

constexpr int kWarpSize = 32;
constexpr int kWarps = 8;    // in a block
constexpr int kOutputs = 2;  // weight rows of a warp: each activation loaded is used this often
constexpr int kUnroll = 4;   // vectors of every weight row in flight in a lane
constexpr int kMaxRows = 4;
constexpr int kWarpsWanted = 16;  // on a multiprocessor, before k is no longer split

template <typename T>
struct Projection {
    T* y;
    const T* x;
    const T* weight;
    const T* bias;
    int64_t y_stride;
    int64_t x_stride;
    int64_t weight_stride;
    int num_outputs;
    int num_vectors;  // of one row, along k
    int split;        // warps that share the k of one group of outputs: 1, 2, 4 or 8
};

// Vectors first, first + step, ... of every weight row of this warp; zero past the end of the row.
template <typename T>
__device__ __forceinline__ void load_weights(const T* const (&row)[kOutputs], int first, int step,
                                             int num_vectors, uint4 (&bits)[kUnroll][kOutputs]) {
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
        const int vector = first + u * step;
#pragma unroll
        for (int o = 0; o < kOutputs; ++o) {
            bits[u][o] = vector < num_vectors ? load_weight_vector(row[o] + vector * kPerVector<T>)
                                              : make_uint4(0, 0, 0, 0);
        }
    }
}

// sum[r][o] += x[r, vector] . weight[o, vector], elements in order.
template <typename T, int kRows>
__device__ __forceinline__ void accumulate(const Projection<T>& p, int vector,
                                           const uint4 (&weight_bits)[kOutputs],
                                           float (&sum)[kRows][kOutputs]) {
    float weight[kOutputs][kPerVector<T>];
#pragma unroll
    for (int o = 0; o < kOutputs; ++o) Convert<T>::unpack(weight_bits[o], weight[o]);
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
        float x[kPerVector<T>];
        Convert<T>::unpack(load_activation_vector(p.x + r * p.x_stride + vector * kPerVector<T>),
                           x);
#pragma unroll
        for (int e = 0; e < kPerVector<T>; ++e) {
#pragma unroll
            for (int o = 0; o < kOutputs; ++o) sum[r][o] = fmaf(x[e], weight[o][e], sum[r][o]);
        }
    }
}

__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
    for (int distance = kWarpSize / 2; distance > 0; distance /= 2) {
        value += __shfl_xor_sync(0xffffffffu, value, distance);
    }
    return value;
}

// Adds the parts of every result of the block in a fixed order and writes it: one thread a result.
template <typename T, int kRows>
__device__ __forceinline__ void write_results(const Projection<T>& p,
                                              const float (&partial)[kWarps][kRows][kOutputs]) {
    const int groups = kWarps / p.split;
    const int thread = static_cast<int>(threadIdx.x);
    if (thread >= groups * kOutputs * kRows) return;
    const int column = thread % (groups * kOutputs);  // neighbours in y are neighbouring threads
    const int r = thread / (groups * kOutputs);
    const int output = static_cast<int>(blockIdx.x) * groups * kOutputs + column;
    if (output >= p.num_outputs) return;
    float value = 0.0f;
    for (int part = 0; part < p.split; ++part) {
        value += partial[column / kOutputs * p.split + part][r][column % kOutputs];
    }
    if (p.bias != nullptr) value += Convert<T>::load(p.bias[output]);
    p.y[r * p.y_stride + output] = Convert<T>::store(value);
}

template <typename T, int kRows>
__global__ void __launch_bounds__(kWarps* kWarpSize, 2)
    decode_projection_kernel(const __grid_constant__ Projection<T> p) {
    const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
    const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
    const int group = static_cast<int>(blockIdx.x) * (kWarps / p.split) + warp / p.split;
    const T* row[kOutputs];
#pragma unroll
    for (int o = 0; o < kOutputs; ++o) {
        // Past the last row the last row is read again, and the result is not written.
        const int output = min(group * kOutputs + o, p.num_outputs - 1);
        row[o] = p.weight + output * p.weight_stride;
    }

    const int step = p.split * kWarpSize;
    int vector = warp % p.split * kWarpSize + lane;
    uint4 bits[kUnroll][kOutputs];
    allow_next_kernel();
    load_weights(row, vector, step, p.num_vectors, bits);
    wait_for_previous_kernel();

    float sum[kRows][kOutputs] = {};
    while (vector < p.num_vectors) {
        uint4 next[kUnroll][kOutputs];
        load_weights(row, vector + kUnroll * step, step, p.num_vectors, next);
#pragma unroll
        for (int u = 0; u < kUnroll; ++u) {
            if (vector + u * step < p.num_vectors) {
                accumulate<T, kRows>(p, vector + u * step, bits[u], sum);
            }
#pragma unroll
            for (int o = 0; o < kOutputs; ++o) bits[u][o] = next[u][o];
        }
        vector += kUnroll * step;
    }

    __shared__ float partial[kWarps][kRows][kOutputs];
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
#pragma unroll
        for (int o = 0; o < kOutputs; ++o) {
            const float total = warp_sum(sum[r][o]);
            if (lane == 0) partial[warp][r][o] = total;
        }
    }
    __syncthreads();
    write_results<T, kRows>(p, partial);
}

// More warps on one group of outputs while a warp would need several batches of loads and the
// device still has room. Rows do not enter: a row's bits must not depend on its neighbours.
int choose_split(int num_outputs, int num_vectors, int num_multiprocessors) {
    const int64_t groups = (num_outputs + kOutputs - 1) / kOutputs;
    const int64_t wanted = static_cast<int64_t>(kWarpsWanted) * num_multiprocessors;
    int split = 1;
    while (split < kWarps && groups * split < wanted && num_vectors > split * kWarpSize * kUnroll) {
        split *= 2;
    }
    return split;
}

template <typename T>
using Kernel = void (*)(Projection<T>);

template <typename T>
Kernel<T> kernel_for(int64_t num_rows) {
    switch (num_rows) {
        case 1: return decode_projection_kernel<T, 1>;
        case 2: return decode_projection_kernel<T, 2>;
        case 3: return decode_projection_kernel<T, 3>;
        default: return decode_projection_kernel<T, kMaxRows>;
    }
}

// The stride of a single row is never used and may be anything.
bool is_aligned(const void* pointer, int64_t num_rows, int64_t row_bytes) {
    return reinterpret_cast<uintptr_t>(pointer) % kVectorBytes == 0 &&
           (num_rows == 1 || row_bytes % kVectorBytes == 0);
}

template <typename T>
int32_t run(Projection<T> p, int64_t num_rows, int64_t num_inputs, bool overlap_previous,
            int device, cudaStream_t stream) {
    if (num_inputs % kPerVector<T> != 0) return RSD_ERROR_SHAPE;
    if (!is_aligned(p.weight, p.num_outputs, p.weight_stride * sizeof(T)) ||
        !is_aligned(p.x, num_rows, p.x_stride * sizeof(T))) {
        return RSD_ERROR_ALIGNMENT;
    }
    p.num_vectors = static_cast<int>(num_inputs / kPerVector<T>);
    const DeviceScope scope(device);
    if (scope.status() != cudaSuccess) return scope.status();
    int multiprocessors = 0;
    const cudaError_t status =
        cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
    if (status != cudaSuccess) return status;
    p.split = choose_split(p.num_outputs, p.num_vectors, multiprocessors);
    const int outputs_per_block = kWarps / p.split * kOutputs;
    const int blocks = (p.num_outputs + outputs_per_block - 1) / outputs_per_block;
    return launch(kernel_for<T>(num_rows), dim3(blocks), dim3(kWarps * kWarpSize), overlap_previous,
                  stream, p);
}

}  // namespace
}  // namespace rsd

int32_t rsd_decode_projection(void* y, const void* x, const void* weight, const void* bias,
                              int64_t num_rows, int64_t num_outputs, int64_t num_inputs,
                              int64_t y_stride, int64_t x_stride, int64_t weight_stride,
                              int32_t dtype, int32_t overlap_previous, int32_t device,
                              void* stream) {
    // Half of INT_MAX leaves room for the kernel's look-ahead in 32-bit indices.
    constexpr int64_t kMaxSize = INT_MAX / 2;
    if (num_rows < 0 || num_rows > rsd::kMaxRows) return RSD_ERROR_SHAPE;
    if (num_outputs < 0 || num_outputs > kMaxSize) return RSD_ERROR_SHAPE;
    if (num_inputs < 0 || num_inputs > kMaxSize) return RSD_ERROR_SHAPE;
    if (num_rows == 0 || num_outputs == 0) return RSD_SUCCESS;
    if (y == nullptr) return RSD_ERROR_POINTER;
    if (num_inputs > 0 && (x == nullptr || weight == nullptr)) return RSD_ERROR_POINTER;
    const auto run = [&](auto zero) {
        using T = decltype(zero);
        const rsd::Projection<T> p{static_cast<T*>(y),
                                   static_cast<const T*>(x),
                                   static_cast<const T*>(weight),
                                   static_cast<const T*>(bias),
                                   y_stride,
                                   x_stride,
                                   weight_stride,
                                   static_cast<int>(num_outputs),
                                   0,
                                   1};
        return rsd::run(p, num_rows, num_inputs, overlap_previous != 0, device,
                        static_cast<cudaStream_t>(stream));
    };
    switch (dtype) {
        case RSD_DTYPE_BFLOAT16: return run(__nv_bfloat16{});
        case RSD_DTYPE_FLOAT16: return run(__half{});
        case RSD_DTYPE_FLOAT32: return run(float{});
        default: return RSD_ERROR_DTYPE;
    }
}
