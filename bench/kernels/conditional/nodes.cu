// What works in the bodies of conditional nodes, and what one turn of a loop costs, by who turns
// it: the host, or a CUDA graph with WHILE, IF and SWITCH nodes. Every turn runs k kernels in one
// body. One JSON object a line on standard output.
//
//   nvcc -O3 -std=c++17 -arch=native -o conditional_nodes nodes.cu
//   ./conditional_nodes times [turns]     # every case
//   ./conditional_nodes PROBE [turns]     # one of kProbes, which may hang

#include <cuda_runtime.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <vector>

#include "kernels.cuh"

#if CUDART_VERSION < 13000
#error "the CUDA 13 form of the graph API is used here"
#endif

namespace {

constexpr int kReads = 64;       // 512 MiB in turn: more than a cache holds
constexpr int kRelayBlocks = 2;  // on a multiprocessor: two kernels fit on the device at once
constexpr int kRuns = 7;
constexpr int kWarmUp = 2;

void check(cudaError_t status, const char* what) {
    if (status == cudaSuccess) return;
    std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(status));
    std::exit(1);
}

// ---- building graphs --------------------------------------------------------------------------

struct Device {
    cudaStream_t launch, outer, inner;
    Turns* turns;
    float4* data;
    Relay relay;
    int multiprocessors;
};

void launch_relay(const Device& device, Kind kind, int from, cudaStream_t stream) {
    cudaLaunchAttribute attribute{};
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(device.relay.count / kThreads);
    config.blockDim = dim3(kThreads);
    config.stream = stream;
    config.attrs = &attribute;
    if (kind == Kind::kEarly) {
        attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
        attribute.val.programmaticStreamSerializationAllowed = 1;
        config.numAttrs = 1;
    } else if (kind == Kind::kCooperative) {
        attribute.id = cudaLaunchAttributeCooperative;
        attribute.val.cooperative = 1;
        config.numAttrs = 1;
    }
    const auto kernel = kind == Kind::kCooperative ? relay_with_barrier : relay;
    check(cudaLaunchKernelEx(&config, kernel, device.relay, from, device.turns), "relay");
}

void enqueue(const Device& device, const Work& work, cudaStream_t stream) {
    for (int i = 0; i < work.kernels; ++i) {
        if (work.relays()) {
            // As in the loop, the first kernel of a body never starts early.
            const bool plain = i == 0 && work.kind == Kind::kEarly;
            launch_relay(device, plain ? Kind::kRelay : work.kind, i % 2, stream);
        } else if (work.kind == Kind::kRead) {
            const float4* data = device.data + i % kReads * (kReadBytes / sizeof(float4));
            read<<<4 * device.multiprocessors, kThreads, 0, stream>>>(data, device.turns);
        } else {
            touch<<<1, 32, 0, stream>>>(device.turns);
        }
    }
}

void capture(cudaStream_t stream, cudaGraph_t graph, const std::function<void()>& body) {
    check(cudaStreamBeginCaptureToGraph(stream, graph, nullptr, nullptr, 0,
                                        cudaStreamCaptureModeRelaxed),
          "begin capture");
    body();
    check(cudaStreamEndCapture(stream, nullptr), "end capture");
}

// Adds a conditional node behind everything captured on `stream` so far; returns its bodies.
std::vector<cudaGraph_t> add_conditional(cudaStream_t stream, cudaGraphConditionalHandle handle,
                                         cudaGraphConditionalNodeType type, int size) {
    cudaStreamCaptureStatus status;
    cudaGraph_t graph;
    const cudaGraphNode_t* frontier;
    const cudaGraphEdgeData* edges;
    size_t count;
    check(cudaStreamGetCaptureInfo(stream, &status, nullptr, &graph, &frontier, &edges, &count),
          "capture info");
    cudaGraphNodeParams params{};
    params.type = cudaGraphNodeTypeConditional;
    params.conditional.handle = handle;
    params.conditional.type = type;
    params.conditional.size = size;
    cudaGraphNode_t node;
    check(cudaGraphAddNode(&node, graph, frontier, edges, count, &params), "conditional node");
    check(cudaStreamUpdateCaptureDependencies(stream, &node, nullptr, 1,
                                              cudaStreamSetCaptureDependencies),
          "capture dependencies");
    return {params.conditional.phGraph_out, params.conditional.phGraph_out + size};
}

cudaGraphConditionalHandle new_handle(cudaGraph_t root, unsigned first_value) {
    cudaGraphConditionalHandle handle;
    check(cudaGraphConditionalHandleCreate(&handle, root, first_value, cudaGraphCondAssignDefault),
          "conditional handle");
    return handle;
}

cudaGraphExec_t instantiate(cudaGraph_t graph, cudaStream_t stream) {
    cudaGraphInstantiateParams params{};
    params.flags = cudaGraphInstantiateFlagUpload;
    params.uploadStream = stream;
    cudaGraphExec_t made;
    check(cudaGraphInstantiateWithParams(&made, graph, &params), "instantiate");
    if (params.result_out != cudaGraphInstantiateSuccess) {
        std::fprintf(stderr, "instantiate: result %d\n", static_cast<int>(params.result_out));
        std::exit(1);
    }
    return made;
}

cudaGraph_t new_graph() {
    cudaGraph_t graph;
    check(cudaGraphCreate(&graph, 0), "graph");
    return graph;
}

cudaGraph_t flat_graph(const Device& device, const Work& work, int copies) {
    const cudaGraph_t graph = new_graph();
    capture(device.outer, graph, [&] {
        for (int i = 0; i < copies; ++i) {
            enqueue(device, work, device.outer);
            count_turn<<<1, 1, 0, device.outer>>>(device.turns);
        }
    });
    return graph;
}

// WHILE { arm; k kernels }: captured straight into the body, or as a child graph of it.
cudaGraph_t while_graph(const Device& device, const Work& work, bool as_child) {
    const cudaGraph_t root = new_graph();
    Handles handles{};
    handles.loop = new_handle(root, 1);
    capture(device.outer, root, [&] {
        const cudaGraph_t body =
            add_conditional(device.outer, handles.loop, cudaGraphCondTypeWhile, 1)[0];
        capture(device.inner, body, [&] {
            arm<<<1, 1, 0, device.inner>>>(handles, device.turns);
            if (!as_child) enqueue(device, work, device.inner);
        });
        if (!as_child) return;
        const cudaGraph_t child = new_graph();
        capture(device.inner, child, [&] { enqueue(device, work, device.inner); });
        cudaGraphNode_t first;
        size_t count = 1;
        check(cudaGraphGetRootNodes(body, &first, &count), "root nodes");
        cudaGraphNode_t node;
        check(cudaGraphAddChildGraphNode(&node, body, &first, 1, child), "child graph");
    });
    return root;
}

// WHILE { arm; one of n bodies of k kernels }: by a SWITCH node, or by n IF nodes in a row.
cudaGraph_t branch_graph(const Device& device, const Work& work, int branches, bool is_switch) {
    const cudaGraph_t root = new_graph();
    Handles handles{};
    handles.loop = new_handle(root, 1);
    handles.num_branches = branches;
    handles.is_switch = is_switch;
    const int num_handles = is_switch ? 1 : branches;
    for (int i = 0; i < num_handles; ++i) handles.branch[i] = new_handle(root, 0);
    std::vector<cudaGraph_t> bodies;
    capture(device.outer, root, [&] {
        const cudaGraph_t loop =
            add_conditional(device.outer, handles.loop, cudaGraphCondTypeWhile, 1)[0];
        capture(device.inner, loop, [&] {
            arm<<<1, 1, 0, device.inner>>>(handles, device.turns);
            for (int i = 0; i < num_handles; ++i) {
                const auto type = is_switch ? cudaGraphCondTypeSwitch : cudaGraphCondTypeIf;
                const int size = is_switch ? branches : 1;
                const auto made = add_conditional(device.inner, handles.branch[i], type, size);
                bodies.insert(bodies.end(), made.begin(), made.end());
            }
        });
    });
    for (const cudaGraph_t body : bodies) {
        capture(device.inner, body, [&] { enqueue(device, work, device.inner); });
    }
    return root;
}

// ---- measuring --------------------------------------------------------------------------------

struct Case {
    const char* name;
    Work work;
    int turns;
};

void require_relayed(const Device& device, const char* name, int kernels) {
    std::vector<unsigned> values(device.relay.count);
    const size_t bytes = values.size() * sizeof(unsigned);
    check(cudaMemcpy(values.data(), device.relay.values[0], bytes, cudaMemcpyDeviceToHost),
          "values");
    for (size_t i = 0; i < values.size(); ++i) {
        if (values[i] == static_cast<unsigned>(kernels)) continue;
        std::fprintf(stderr, "%s: value %zu was passed on %u times, %d are wanted\n", name, i,
                     values[i], kernels);
        std::exit(3);
    }
}

void require_turns(const Device& device, const Case& found) {
    Turns turns;
    check(cudaMemcpy(&turns, device.turns, sizeof turns, cudaMemcpyDeviceToHost), "turns");
    const int kernels = found.turns * found.work.kernels;
    if (turns.done != found.turns || turns.body_runs != kernels) {
        std::fprintf(stderr, "%s, k = %d: %d turns and %d kernels, %d and %d are wanted\n",
                     found.name, found.work.kernels, turns.done, turns.body_runs, found.turns,
                     kernels);
        std::exit(2);
    }
    if (found.work.relays()) require_relayed(device, found.name, kernels);
}

void report(const Case& found, std::vector<double> microseconds) {
    std::sort(microseconds.begin(), microseconds.end());
    const double median = microseconds[microseconds.size() / 2] / found.turns;
    const double spread = (microseconds.back() - microseconds.front()) / found.turns;
    std::printf(
        "{\"case\": \"%s\", \"kernels\": %d, \"reads\": %s, \"us_a_turn\": %.4f, "
        "\"spread_us\": %.4f}\n",
        found.name, found.work.kernels, found.work.kind == Kind::kRead ? "true" : "false", median,
        spread);
    std::fflush(stdout);
}

// `run` starts all turns and returns when they are done.
void measure(const Device& device, const Case& wanted, const std::function<void()>& run) {
    std::vector<double> microseconds;
    for (int i = 0; i < kRuns + kWarmUp; ++i) {
        start_turns<<<1, 1, 0, device.launch>>>(device.turns, wanted.turns);
        const size_t bytes = device.relay.count * sizeof(unsigned);
        check(cudaMemsetAsync(device.relay.values[0], 0, bytes, device.launch), "memset");
        check(cudaStreamSynchronize(device.launch), "start");
        const auto start = std::chrono::steady_clock::now();
        run();
        const auto end = std::chrono::steady_clock::now();
        require_turns(device, wanted);
        if (i >= kWarmUp) {
            microseconds.push_back(std::chrono::duration<double, std::micro>(end - start).count());
        }
    }
    report(wanted, microseconds);
}

void launch_and_wait(const Device& device, cudaGraphExec_t graph, int times, bool wait_each) {
    for (int i = 0; i < times; ++i) {
        check(cudaGraphLaunch(graph, device.launch), "launch");
        if (wait_each) check(cudaStreamSynchronize(device.launch), "wait");
    }
    check(cudaStreamSynchronize(device.launch), "wait");
}

void measure_graph(const Device& device, const char* name, const Work& work, int turns,
                   cudaGraph_t graph, int launches, bool wait_each = false) {
    const cudaGraphExec_t made = instantiate(graph, device.launch);
    measure(device, Case{name, work, turns},
            [&] { launch_and_wait(device, made, launches, wait_each); });
    check(cudaGraphExecDestroy(made), "destroy");
    check(cudaGraphDestroy(graph), "destroy");
}

void measure_all(const Device& device, const Work& work, int turns) {
    const int unrolled = 32;
    const int whole = std::max(1, turns / unrolled);
    measure_graph(device, "host, a graph a turn", work, turns, flat_graph(device, work, 1), turns);
    measure_graph(device, "host, a graph a turn, waits", work, turns, flat_graph(device, work, 1),
                  turns, true);
    measure_graph(device, "unrolled by 32", work, whole * unrolled,
                  flat_graph(device, work, unrolled), whole);
    measure_graph(device, "WHILE", work, turns, while_graph(device, work, false), 1);
    measure_graph(device, "WHILE, child graph", work, turns, while_graph(device, work, true), 1);
    for (const int branches : {3, kMaxBranches}) {
        const char* by_switch = branches == 3 ? "WHILE, SWITCH of 3" : "WHILE, SWITCH of 15";
        const char* by_if = branches == 3 ? "WHILE, 3 IF" : "WHILE, 15 IF";
        measure_graph(device, by_switch, work, turns, branch_graph(device, work, branches, true),
                      1);
        measure_graph(device, by_if, work, turns, branch_graph(device, work, branches, false), 1);
    }
}

// ---- one probe --------------------------------------------------------------------------------

constexpr int kProbeKernels = 8;

struct Probe {
    const char* name;
    Kind kind;
    enum class In { kFlat, kWhile, kIf, kSwitch } in;
};

// The bodies of the loop's SWITCH hold kernels as in the last three of these.
constexpr Probe kProbes[] = {
    {"while", Kind::kTouch, Probe::In::kWhile},
    {"if", Kind::kTouch, Probe::In::kIf},
    {"switch", Kind::kTouch, Probe::In::kSwitch},
    {"early", Kind::kEarly, Probe::In::kFlat},
    {"early-in-while", Kind::kEarly, Probe::In::kWhile},
    {"cooperative-in-while", Kind::kCooperative, Probe::In::kWhile},
    {"plain-in-switch", Kind::kRelay, Probe::In::kSwitch},
    {"early-in-switch", Kind::kEarly, Probe::In::kSwitch},
    {"cooperative-in-switch", Kind::kCooperative, Probe::In::kSwitch},
};

void run_probe(const Device& device, const Probe& probe, int turns) {
    const Work work{kProbeKernels, probe.kind};
    switch (probe.in) {
        case Probe::In::kFlat:
            measure_graph(device, probe.name, work, turns, flat_graph(device, work, 1), turns);
            return;
        case Probe::In::kWhile:
            measure_graph(device, probe.name, work, turns, while_graph(device, work, false), 1);
            return;
        case Probe::In::kIf:
        case Probe::In::kSwitch:
            const bool is_switch = probe.in == Probe::In::kSwitch;
            measure_graph(device, probe.name, work, turns,
                          branch_graph(device, work, kMaxBranches, is_switch), 1);
    }
}

cudaStream_t new_stream() {
    cudaStream_t stream;
    check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "stream");
    return stream;
}

Device open_device() {
    Device device{};
    device.launch = new_stream();
    device.outer = new_stream();
    device.inner = new_stream();
    check(cudaDeviceGetAttribute(&device.multiprocessors, cudaDevAttrMultiProcessorCount, 0),
          "attribute");
    check(cudaMalloc(&device.turns, sizeof(Turns)), "malloc");
    device.relay.count = kRelayBlocks * device.multiprocessors * kThreads;
    for (unsigned** buffer :
         {&device.relay.values[0], &device.relay.values[1], &device.relay.between}) {
        check(cudaMalloc(buffer, device.relay.count * sizeof(unsigned)), "malloc");
    }
    return device;
}

void measure_times(Device& device, int turns) {
    check(cudaMalloc(&device.data, kReads * kReadBytes), "malloc");
    check(cudaMemset(device.data, 0, kReads * kReadBytes), "memset");
    for (const int kernels : {1, 8, 64}) measure_all(device, Work{kernels, Kind::kTouch}, turns);
    measure_all(device, Work{kReads, Kind::kRead}, std::max(32, turns / 16));
}

}  // namespace

int main(int argc, char** argv) {
    const char* wanted = argc > 1 ? argv[1] : "times";
    const int turns = argc > 2 ? std::max(32, std::atoi(argv[2])) : 1024;
    Device device = open_device();
    if (std::strcmp(wanted, "times") == 0) {
        measure_times(device, turns);
        return 0;
    }
    for (const Probe& probe : kProbes) {
        if (std::strcmp(wanted, probe.name) != 0) continue;
        run_probe(device, probe, turns);
        return 0;
    }
    std::fprintf(stderr, "there is no probe %s\n", wanted);
    return 1;
}
