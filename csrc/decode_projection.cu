// Decode projection: the products of a decoder's forward for one to four rows, each with all that
// stands around it in one launch.
//
//   s[r, n] = sum_k h[r, k] * weight[n, k] (+ bias[n])   h is x, or rms_norm(x)
//   y[r, n] = s[r, n]                                    or, gated, silu(s[r, n]) * s[r, N + n]
//   y[r, n] += residual[r, n]                            where there is one
//
// With so few rows the time is that of reading the weights, so the kernel is built around keeping
// 16-byte loads in flight: a warp owns kOutputs rows of the weight, its lanes walk along k side by
// side, and the next kUnroll vectors of every row are requested before the current ones are used.
// Where the weight has too few rows to fill the device, `split` warps share the k of one group and
// add up in shared memory. The norm divides the finished sums, so no pass over x has to come first.

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
    void* y;  // of T, or of float
    const T* x;
    const T* weight;
    const T* bias;      // or null
    const T* norm;      // or null
    const T* residual;  // or null
    int64_t y_stride;
    int64_t x_stride;
    int64_t weight_stride;
    int64_t residual_stride;
    float eps;
    int num_outputs;  // columns of y; gated, half the rows of weight
    int num_vectors;  // of one row, along k
    int split;        // warps that share the k of one group of weight rows: 1, 2, 4 or 8
    bool gated;
    bool float32_out;
};

template <int kRows>
struct Sums {
    float product[kRows][kOutputs];
    float square[kRows];  // of x, where it is normed
};

// Outputs of one group of kOutputs weight rows. Gated, the rows are the gate and the up of one.
template <typename T>
__device__ __forceinline__ int outputs_per_group(const Projection<T>& p) {
    return p.gated ? 1 : kOutputs;
}

// Past the last output the last one is read again, and its result is not written.
template <typename T>
__device__ __forceinline__ int weight_row(const Projection<T>& p, int group, int o) {
    if (p.gated) return min(group, p.num_outputs - 1) + o * p.num_outputs;
    return min(group * kOutputs + o, p.num_outputs - 1);
}

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

// Adds the products of one vector of x with the weight rows, elements in order. With a norm, x is
// scaled by it and the squares are summed as well.
template <typename T, int kRows, bool kNormed>
__device__ __forceinline__ void accumulate(const Projection<T>& p, int vector,
                                           const uint4 (&weight_bits)[kOutputs],
                                           Sums<kRows>& sums) {
    const int first = vector * kPerVector<T>;
    float weight[kOutputs][kPerVector<T>];
#pragma unroll
    for (int o = 0; o < kOutputs; ++o) Convert<T>::unpack(weight_bits[o], weight[o]);
    float norm[kPerVector<T>];
    if constexpr (kNormed) Convert<T>::unpack(load_reused_vector(p.norm + first), norm);
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
        float x[kPerVector<T>];
        Convert<T>::unpack(load_reused_vector(p.x + r * p.x_stride + first), x);
#pragma unroll
        for (int e = 0; e < kPerVector<T>; ++e) {
            if constexpr (kNormed) {
                sums.square[r] = fmaf(x[e], x[e], sums.square[r]);
                x[e] *= norm[e];
            }
#pragma unroll
            for (int o = 0; o < kOutputs; ++o) {
                sums.product[r][o] = fmaf(x[e], weight[o][e], sums.product[r][o]);
            }
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

template <int kRows, bool kNormed>
__device__ __forceinline__ void add_up_warp(const Sums<kRows>& sums, int lane,
                                            Sums<kRows>& partial) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
#pragma unroll
        for (int o = 0; o < kOutputs; ++o) {
            const float total = warp_sum(sums.product[r][o]);
            if (lane == 0) partial.product[r][o] = total;
        }
        if constexpr (kNormed) {
            const float total = warp_sum(sums.square[r]);
            if (lane == 0) partial.square[r] = total;
        }
    }
}

// 1 / sqrt(mean(x^2) + eps) of row r, from the parts of the warps of one group.
template <typename T, int kRows>
__device__ __forceinline__ float inverse_rms(const Projection<T>& p, const Sums<kRows>* parts,
                                             int r) {
    float square = 0.0f;
    for (int part = 0; part < p.split; ++part) square += parts[part].square[r];
    return rsqrtf(square / static_cast<float>(p.num_vectors * kPerVector<T>) + p.eps);
}

// What the kernel has summed for weight row `weight_row`, row o of its group, times scale, plus its
// bias.
template <typename T, int kRows>
__device__ __forceinline__ float finished_sum(const Projection<T>& p, const Sums<kRows>* parts,
                                              int r, int o, int weight_row, float scale) {
    float sum = 0.0f;
    for (int part = 0; part < p.split; ++part) sum += parts[part].product[r][o];
    if (p.bias == nullptr) return sum * scale;
    return fmaf(sum, scale, Convert<T>::load(p.bias[weight_row]));
}

// Adds the parts of every result of the block in a fixed order and writes it: one thread a result.
template <typename T, int kRows, bool kNormed>
__device__ __forceinline__ void write_results(const Projection<T>& p,
                                              const Sums<kRows> (&partial)[kWarps]) {
    const int per_group = outputs_per_group(p);
    const int columns = kWarps / p.split * per_group;
    const int thread = static_cast<int>(threadIdx.x);
    if (thread >= columns * kRows) return;
    const int column = thread % columns;  // neighbours in y are neighbouring threads
    const int r = thread / columns;
    const int output = static_cast<int>(blockIdx.x) * columns + column;
    if (output >= p.num_outputs) return;

    const Sums<kRows>* parts = partial + column / per_group * p.split;
    const float scale = kNormed ? inverse_rms(p, parts, r) : 1.0f;
    float value = finished_sum(p, parts, r, column % per_group, output, scale);
    if (p.gated) {
        const float up = finished_sum(p, parts, r, 1, p.num_outputs + output, scale);
        value = value / (1.0f + expf(-value)) * up;
    }
    if (p.residual != nullptr) {
        value += Convert<T>::load(p.residual[r * p.residual_stride + output]);
    }
    const int64_t place = r * p.y_stride + output;
    if (p.float32_out) {
        static_cast<float*>(p.y)[place] = value;
    } else {
        static_cast<T*>(p.y)[place] = Convert<T>::store(value);
    }
}

template <typename T, int kRows, bool kNormed>
__global__ void __launch_bounds__(kWarps* kWarpSize, 2)
    decode_projection_kernel(const __grid_constant__ Projection<T> p) {
    const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
    const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
    const int group = static_cast<int>(blockIdx.x) * (kWarps / p.split) + warp / p.split;
    const T* row[kOutputs];
#pragma unroll
    for (int o = 0; o < kOutputs; ++o) {
        row[o] = p.weight + weight_row(p, group, o) * p.weight_stride;
    }

    const int step = p.split * kWarpSize;
    int vector = warp % p.split * kWarpSize + lane;
    uint4 bits[kUnroll][kOutputs];
    allow_next_kernel();
    load_weights(row, vector, step, p.num_vectors, bits);
    wait_for_previous_kernel();

    Sums<kRows> sums = {};
    while (vector < p.num_vectors) {
        uint4 next[kUnroll][kOutputs];
        load_weights(row, vector + kUnroll * step, step, p.num_vectors, next);
#pragma unroll
        for (int u = 0; u < kUnroll; ++u) {
            if (vector + u * step < p.num_vectors) {
                accumulate<T, kRows, kNormed>(p, vector + u * step, bits[u], sums);
            }
#pragma unroll
            for (int o = 0; o < kOutputs; ++o) bits[u][o] = next[u][o];
        }
        vector += kUnroll * step;
    }

    __shared__ Sums<kRows> partial[kWarps];
    add_up_warp<kRows, kNormed>(sums, lane, partial[warp]);
    __syncthreads();
    write_results<T, kRows, kNormed>(p, partial);
}

// More warps on one group of weight rows while a warp would need several batches of loads and the
// device still has room. Rows of x do not enter: a row's bits must not depend on its neighbours.
int choose_split(int num_groups, int num_vectors, int num_multiprocessors) {
    const int64_t groups = num_groups;
    const int64_t wanted = static_cast<int64_t>(kWarpsWanted) * num_multiprocessors;
    int split = 1;
    while (split < kWarps && groups * split < wanted && num_vectors > split * kWarpSize * kUnroll) {
        split *= 2;
    }
    return split;
}

template <typename T>
using Kernel = void (*)(Projection<T>);

template <typename T, bool kNormed>
Kernel<T> kernel_for(int64_t num_rows) {
    switch (num_rows) {
        case 1: return decode_projection_kernel<T, 1, kNormed>;
        case 2: return decode_projection_kernel<T, 2, kNormed>;
        case 3: return decode_projection_kernel<T, 3, kNormed>;
        default: return decode_projection_kernel<T, kMaxRows, kNormed>;
    }
}

// The stride of a single row is never used and may be anything.
bool is_aligned(const void* pointer, int64_t num_rows, int64_t row_bytes) {
    return reinterpret_cast<uintptr_t>(pointer) % kVectorBytes == 0 &&
           (num_rows == 1 || row_bytes % kVectorBytes == 0);
}

int ceil_div(int number, int divisor) { return (number + divisor - 1) / divisor; }

// The arguments have been checked, but for what depends on the dtype.
template <typename T>
int32_t run(const RsdProjection& given, int device, cudaStream_t stream) {
    const bool gated = (given.flags & RSD_PROJECTION_GATED) != 0;
    if (given.num_inputs % kPerVector<T> != 0) return RSD_ERROR_SHAPE;
    if (!is_aligned(given.weight, given.num_outputs * (gated ? 2 : 1),
                    given.weight_stride * sizeof(T)) ||
        !is_aligned(given.x, given.num_rows, given.x_stride * sizeof(T)) ||
        !is_aligned(given.norm, 1, 0)) {
        return RSD_ERROR_ALIGNMENT;
    }
    const DeviceScope scope(device);
    if (scope.status() != cudaSuccess) return scope.status();
    int multiprocessors = 0;
    const cudaError_t status =
        cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
    if (status != cudaSuccess) return status;

    const int num_outputs = static_cast<int>(given.num_outputs);
    const int num_vectors = static_cast<int>(given.num_inputs / kPerVector<T>);
    const int num_groups = gated ? num_outputs : ceil_div(num_outputs, kOutputs);
    const Projection<T> p{given.y,
                          static_cast<const T*>(given.x),
                          static_cast<const T*>(given.weight),
                          static_cast<const T*>(given.bias),
                          static_cast<const T*>(given.norm),
                          static_cast<const T*>(given.residual),
                          given.y_stride,
                          given.x_stride,
                          given.weight_stride,
                          given.residual_stride,
                          given.eps,
                          num_outputs,
                          num_vectors,
                          choose_split(num_groups, num_vectors, multiprocessors),
                          gated,
                          (given.flags & RSD_PROJECTION_FLOAT32_OUT) != 0};
    const Kernel<T> kernel = given.norm == nullptr ? kernel_for<T, false>(given.num_rows)
                                                   : kernel_for<T, true>(given.num_rows);
    const bool overlap_previous = (given.flags & RSD_PROJECTION_OVERLAP_PREVIOUS) != 0;
    return launch(kernel, dim3(ceil_div(num_groups, kWarps / p.split)), dim3(kWarps * kWarpSize),
                  overlap_previous, stream, p);
}

}  // namespace
}  // namespace rsd

int32_t rsd_decode_projection(const RsdProjection* projection, int32_t device, void* stream) {
    // Half of INT_MAX leaves room for the kernel's look-ahead, and for both halves of a gated
    // weight, in 32-bit indices.
    constexpr int64_t kMaxSize = INT_MAX / 2;
    if (projection == nullptr) return RSD_ERROR_POINTER;
    const RsdProjection& p = *projection;
    if (p.num_rows < 0 || p.num_rows > rsd::kMaxRows) return RSD_ERROR_SHAPE;
    if (p.num_outputs < 0 || p.num_outputs > kMaxSize) return RSD_ERROR_SHAPE;
    if (p.num_inputs < 0 || p.num_inputs > kMaxSize) return RSD_ERROR_SHAPE;
    if (p.num_rows == 0 || p.num_outputs == 0) return RSD_SUCCESS;
    if (p.y == nullptr) return RSD_ERROR_POINTER;
    if (p.num_inputs > 0 && (p.x == nullptr || p.weight == nullptr)) return RSD_ERROR_POINTER;
    const cudaStream_t cuda_stream = static_cast<cudaStream_t>(stream);
    switch (p.dtype) {
        case RSD_DTYPE_BFLOAT16: return rsd::run<__nv_bfloat16>(p, device, cuda_stream);
        case RSD_DTYPE_FLOAT16: return rsd::run<__half>(p, device, cuda_stream);
        case RSD_DTYPE_FLOAT32: return rsd::run<float>(p, device, cuda_stream);
        default: return RSD_ERROR_DTYPE;
    }
}
