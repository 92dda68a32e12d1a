// The kernels in the bodies of conditional nodes: what they do shows whether each ran once, in
// order.

#pragma once

#include <cooperative_groups.h>
#include <cuda_runtime.h>

constexpr size_t kReadBytes = size_t{8} << 20;  // of one kernel that reads
constexpr int kThreads = 256;

struct Turns {
    int done;
    int wanted;
    int body_runs;  // kernels of bodies that ran
};

__global__ void start_turns(Turns* turns, int wanted) {
    turns->done = 0;
    turns->wanted = wanted;
    turns->body_runs = 0;
}

__global__ void count_turn(Turns* turns) { ++turns->done; }

__global__ void touch(Turns* turns) {
    if (threadIdx.x == 0) ++turns->body_runs;
}

__global__ void read(const float4* data, Turns* turns) {
    float sum = 0.0f;
    const size_t count = kReadBytes / sizeof(float4);
    const size_t step = size_t{gridDim.x} * blockDim.x;
    for (size_t i = size_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += step) {
        const float4 value = data[i];
        sum += value.x + value.y + value.z + value.w;
    }
    if (sum == 1.2345f) turns->wanted = 0;  // never: keeps the loads
    if (blockIdx.x == 0 && threadIdx.x == 0) ++turns->body_runs;
}

// What a relay reads and writes: its kernels take turns to read one of the buffers and write the
// other, so that a kernel that begins before the previous one has ended spoils the count.
struct Relay {
    unsigned* values[2];
    unsigned* between;
    int count;
};

__device__ void wait_for_previous_kernel() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

__device__ void allow_next_kernel() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

__global__ void relay(Relay data, int from, Turns* turns) {
    allow_next_kernel();
    wait_for_previous_kernel();
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    const int other = (i + kThreads + 1) % data.count;  // of another block
    data.values[1 - from][i] = data.values[from][other] + 1;
    if (i == 0) ++turns->body_runs;
}

// The same by way of a barrier of the whole grid.
__global__ void relay_with_barrier(Relay data, int from, Turns* turns) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    const int other = (i + kThreads + 1) % data.count;
    data.between[i] = data.values[from][other] + 1;
    cooperative_groups::this_grid().sync();
    data.values[1 - from][i] = data.between[other];
    if (i == 0) ++turns->body_runs;
}

enum class Kind {
    kTouch,
    kRead,
    kRelay,
    kEarly,        // relays that may start while the previous one runs
    kCooperative,  // relays with a barrier of the grid
};

struct Work {
    int kernels;  // even, for relays
    Kind kind;

    bool relays() const { return kind >= Kind::kRelay; }
};

constexpr int kMaxBranches = 15;

struct Handles {
    cudaGraphConditionalHandle loop;
    cudaGraphConditionalHandle branch[kMaxBranches];  // one IF each, or the first for SWITCH
    int num_branches;
    bool is_switch;
};

// One thread sets every handle of the turn, as the arming kernel of the loop does.
__global__ void arm(Handles handles, Turns* turns) {
    const int turn = ++turns->done;
    cudaGraphSetConditional(handles.loop, turn < turns->wanted);
    if (handles.num_branches == 0) return;
    const int chosen = turn % handles.num_branches;
    if (handles.is_switch) {
        cudaGraphSetConditional(handles.branch[0], chosen);
        return;
    }
    for (int i = 0; i < handles.num_branches; ++i) {
        cudaGraphSetConditional(handles.branch[i], i == chosen);
    }
}
