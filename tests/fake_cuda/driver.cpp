// A CUDA driver without a device: graphs, conditional nodes, captures and streams, as libcuda.so.1.
//
// The bindings of Python load it in place of the real one, and so does Triton: the code that builds
// and launches the device loop, and the one that launches kernels, runs as it stands, down to the
// arguments and structs of every call. In graphs "kernels" are functions of the host:
// `fake_enqueue` stands for a launch, and the kernel `arm` is played by this file. What the
// documentation of CUDA forbids is refused; where it promises no order, or no value, this driver
// takes the worst: nodes that no edge orders run last added first, and a handle without a default
// holds a value that no program wants.

#include <dlfcn.h>

#include <cstdint>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

namespace {

using Result = int;
constexpr Result kSuccess = 0;
constexpr Result kInvalidValue = 1;
constexpr Result kNoDevice = 100;
constexpr Result kInvalidContext = 201;
constexpr Result kIllegalState = 401;
constexpr Result kNotFound = 500;
constexpr Result kNotSupported = 801;
constexpr Result kCaptureInvalidated = 901;

constexpr int kConditionalNode = 13;
constexpr int kCaptureNone = 0, kCaptureActive = 1, kCaptureInvalid = 2;
enum ConditionalType { kIf = 0, kWhile = 1, kSwitch = 2 };
constexpr unsigned kAssignDefault = 1;
constexpr unsigned kUndefined = 0x5eed5eed;

using HostFunction = void (*)(int64_t);

struct Graph;

struct ArmLaunch {
    const uint64_t* handles;
    const int32_t* const* flags;
    const int32_t* equals;
    int32_t count;
};

struct Node {
    enum Kind { kEmpty, kHost, kArm, kConditional } kind = kEmpty;
    std::vector<Node*> after;
    HostFunction function = nullptr;
    int64_t argument = 0;
    ArmLaunch arm{};
    uint64_t handle = 0;
    int type = 0;
    std::vector<Graph*> bodies;
};

struct Handle {
    unsigned initial;
    unsigned flags;
    int num_nodes = 0;  // conditional nodes that test it
};

struct Graph {
    Graph* root = this;
    std::vector<std::unique_ptr<Node>> nodes;
    std::vector<std::unique_ptr<Graph>> owned;   // bodies
    std::vector<std::unique_ptr<Graph*[]>> out;  // what phGraph_out points to
    std::map<uint64_t, Handle> handles;          // of a root
    bool has_executable = false;

    bool holds(const Node* node) const {
        for (const auto& mine : nodes) {
            if (mine.get() == node) return true;
        }
        return false;
    }
};

// A graph as it was when it was made executable.
struct Executable {
    Graph* source;
    struct Step {
        Node node;
        std::vector<std::unique_ptr<Executable>> bodies;
    };
    std::vector<Step> steps;  // in an order that the edges allow
};

struct Context {};
Context the_context;

struct Stream {
    Graph* graph = nullptr;  // that is captured
    bool invalid = false;
    uint64_t capture_id = 0;
    std::vector<Node*> frontier;
    std::vector<std::thread> work;  // each waits for the one before it
    std::mutex mutex;
    int pending = 0;
};

struct Module;

struct Function {
    Module* module;
    std::string name;
};

struct Module {
    std::vector<std::unique_ptr<Function>> functions;
};

// A launch by cuLaunchKernelEx, which is how Triton launches: looked at, not run.
struct Launch {
    std::string name;
    std::vector<int64_t> grid_and_block;
    Stream* stream = nullptr;
    bool may_start_early = false;
    std::vector<uint64_t> parameters;  // as many as were asked for, 8 bytes from where each lies
};

std::mutex global;
std::set<Graph*> graphs;
std::set<Executable*> executables;
std::set<Module*> modules;
std::map<uint64_t, unsigned> values;  // of handles, while a graph runs
std::string first_fault;
uint64_t next_id = 1;
int num_parameters = 0;
std::vector<Launch> launches;
int version = 13000;
bool takes_conditionals = true;
thread_local Context* current = nullptr;

void fault(const std::string& what) {
    const std::lock_guard<std::mutex> lock(global);
    if (first_fault.empty()) first_fault = what;
}

Result refuse(Result code, const char* why) {
    fault(why);
    return code;
}

bool valid_dependencies(const Graph& graph, Node* const* nodes, size_t count) {
    for (size_t i = 0; i < count; ++i) {
        if (!graph.holds(nodes[i])) return false;
    }
    return true;
}

// All zero: an edge that waits for the whole node before.
bool full_edges(const uint64_t* edges, size_t count) {
    for (size_t i = 0; edges != nullptr && i < count; ++i) {
        if (edges[i] != 0) return false;
    }
    return true;
}

Node* append(Graph& graph, std::vector<Node*> after, Node::Kind kind) {
    graph.nodes.push_back(std::make_unique<Node>());
    Node* node = graph.nodes.back().get();
    node->kind = kind;
    node->after = std::move(after);
    return node;
}

// Among the nodes whose predecessors are done, the one that was added last.
std::vector<const Node*> worst_order(const Graph& graph) {
    std::vector<const Node*> order;
    std::set<const Node*> done;
    while (order.size() < graph.nodes.size()) {
        for (auto node = graph.nodes.rbegin(); node != graph.nodes.rend(); ++node) {
            bool ready = done.count(node->get()) == 0;
            for (const Node* before : (*node)->after) ready = ready && done.count(before) != 0;
            if (!ready) continue;
            done.insert(node->get());
            order.push_back(node->get());
            break;
        }
    }
    return order;
}

const char* why_not_executable(const Graph& graph, bool is_body) {
    if (is_body && graph.nodes.empty()) return "the body of a conditional node is empty";
    for (const auto& entry : graph.handles) {
        if (entry.second.num_nodes == 0) return "a handle is tested by no conditional node";
    }
    for (const auto& body : graph.owned) {
        if (const char* why = why_not_executable(*body, true)) return why;
    }
    return nullptr;
}

std::unique_ptr<Executable> snapshot(Graph& graph) {
    auto made = std::make_unique<Executable>();
    made->source = &graph;
    for (const Node* node : worst_order(graph)) {
        made->steps.push_back({*node, {}});
        for (Graph* body : node->bodies) made->steps.back().bodies.push_back(snapshot(*body));
    }
    return made;
}

void set_handles(const ArmLaunch& arm) {
    for (int32_t i = 0; i < arm.count; ++i) {
        int32_t value = *arm.flags[i];
        if (arm.equals[i] >= 0) value = value == arm.equals[i];
        if (values.count(arm.handles[i]) == 0) {
            fault("a handle was set that does not belong to the graph that runs");
        }
        values[arm.handles[i]] = static_cast<unsigned>(value);
    }
}

void run(const Executable& executable);

void run_conditional(const Executable::Step& step) {
    const uint64_t handle = step.node.handle;
    if (step.node.type == kWhile) {
        while (values[handle] != 0) run(*step.bodies[0]);
    } else if (step.node.type == kIf) {
        const size_t body = values[handle] != 0 ? 0 : 1;
        if (body < step.bodies.size()) run(*step.bodies[body]);
    } else if (values[handle] < step.bodies.size()) {
        run(*step.bodies[values[handle]]);
    }
}

void run(const Executable& executable) {
    for (const auto& step : executable.steps) {
        switch (step.node.kind) {
            case Node::kEmpty: break;
            case Node::kHost: step.node.function(step.node.argument); break;
            case Node::kArm: set_handles(step.node.arm); break;
            case Node::kConditional: run_conditional(step); break;
        }
    }
}

void begin_values(const Graph& root) {
    values.clear();
    for (const auto& [handle, what] : root.handles) {
        values[handle] = what.flags & kAssignDefault ? what.initial : kUndefined;
    }
}

template <typename Work>
void enqueue(Stream& stream, Work work) {
    const std::lock_guard<std::mutex> lock(stream.mutex);
    std::thread before;
    if (!stream.work.empty()) {
        before = std::move(stream.work.back());
        stream.work.pop_back();
    }
    ++stream.pending;
    stream.work.emplace_back([&stream, work, before = std::move(before)]() mutable {
        if (before.joinable()) before.join();
        work();
        const std::lock_guard<std::mutex> done(stream.mutex);
        --stream.pending;
    });
}

}  // namespace

extern "C" {

// What the tests call.

Stream* fake_stream_create() { return new Stream; }

void fake_stream_synchronize(Stream* stream) {
    std::vector<std::thread> work;
    {
        const std::lock_guard<std::mutex> lock(stream->mutex);
        work.swap(stream->work);
    }
    for (auto& one : work) one.join();
}

int fake_stream_idle(Stream* stream) {
    const std::lock_guard<std::mutex> lock(stream->mutex);
    return stream->pending == 0;
}

// A launch of `function`: captured where the stream captures.
void fake_enqueue(Stream* stream, HostFunction function, int64_t argument) {
    if (stream->graph == nullptr) {
        enqueue(*stream, [=] { function(argument); });
        return;
    }
    Node* node = append(*stream->graph, stream->frontier, Node::kHost);
    node->function = function;
    node->argument = argument;
    stream->frontier = {node};
}

void fake_use_device() { current = &the_context; }
void fake_invalidate_capture(Stream* stream) { stream->invalid = true; }
void fake_set_version(int wanted) { version = wanted; }
void fake_take_conditionals(int whether) { takes_conditionals = whether != 0; }
int fake_num_alive() {
    const std::lock_guard<std::mutex> lock(global);
    return static_cast<int>(graphs.size() + executables.size() + modules.size());
}
const char* fake_first_fault() { return first_fault.c_str(); }
void fake_forget_fault() { first_fault.clear(); }

// After a failed capture a process is unfit to use the device; tests that go on start anew.
void fake_abandon() {
    const std::lock_guard<std::mutex> lock(global);
    for (Graph* graph : graphs) delete graph;
    for (Module* module : modules) delete module;
    graphs.clear();
    modules.clear();
}

// How many parameters the launches by cuLaunchKernelEx have from here on.
void fake_set_num_parameters(int count) { num_parameters = count; }
int fake_num_launches() { return static_cast<int>(launches.size()); }
const char* fake_launch_name() { return launches.back().name.c_str(); }
int64_t fake_launch_size(int axis) { return launches.back().grid_and_block[axis]; }
Stream* fake_launch_stream() { return launches.back().stream; }
int fake_launch_may_start_early() { return launches.back().may_start_early; }
uint64_t fake_launch_parameter(int index) { return launches.back().parameters[index]; }

// What the bindings call.

Result cuGetErrorName(Result code, const char** name) {
    static std::map<Result, std::string> names = {{kSuccess, "CUDA_SUCCESS"},
                                                  {kInvalidValue, "CUDA_ERROR_INVALID_VALUE"}};
    *name = names.count(code) ? names[code].c_str() : "CUDA_ERROR_OTHER";
    return kSuccess;
}

Result cuInit(unsigned) { return kNoDevice; }  // the real NVRTC asks, and does without

Result cuDriverGetVersion(int* out) {
    *out = version;
    return kSuccess;
}

Result cuCtxGetCurrent(Context** out) {
    *out = current;
    return kSuccess;
}

Result cuCtxSetCurrent(Context* context) {
    if (context != &the_context) return refuse(kInvalidContext, "an unknown context");
    current = context;
    return kSuccess;
}

Result cuStreamGetCtx(Stream*, Context** out) {
    *out = &the_context;
    return kSuccess;
}

Result cuModuleLoadData(Module** out, const void*) {
    if (current == nullptr) return refuse(kInvalidContext, "a module without a context");
    auto* made = new Module;
    const std::lock_guard<std::mutex> lock(global);
    modules.insert(made);
    *out = made;
    return kSuccess;
}

Result cuModuleUnload(Module* module) {
    const std::lock_guard<std::mutex> lock(global);
    if (modules.erase(module) == 0) return kInvalidValue;
    delete module;
    return kSuccess;
}

Result cuModuleGetFunction(Function** out, Module* module, const char* name) {
    module->functions.push_back(std::make_unique<Function>(Function{module, name}));
    *out = module->functions.back().get();
    return kSuccess;
}

Result cuGraphCreate(Graph** out, unsigned flags) {
    if (flags != 0) return refuse(kInvalidValue, "flags of a graph must be 0");
    *out = new Graph;
    const std::lock_guard<std::mutex> lock(global);
    graphs.insert(*out);
    return kSuccess;
}

Result cuGraphDestroy(Graph* graph) {
    const std::lock_guard<std::mutex> lock(global);
    if (graphs.erase(graph) == 0) return kInvalidValue;
    delete graph;
    return kSuccess;
}

Result cuGraphConditionalHandleCreate(uint64_t* out, Graph* graph, Context* context,
                                      unsigned initial, unsigned flags) {
    if (context != &the_context) return refuse(kInvalidContext, "a handle without a context");
    if (graph->root != graph) return refuse(kInvalidValue, "a handle of a body is never reset");
    *out = 1000 + next_id++;
    graph->handles[*out] = {initial, flags};
    return kSuccess;
}

Result cuGraphAddEmptyNode(Node** out, Graph* graph, Node* const* after, size_t count) {
    if (!valid_dependencies(*graph, after, count)) {
        return refuse(kInvalidValue, "a node follows one of another graph");
    }
    *out = append(*graph, {after, after + count}, Node::kEmpty);
    return kSuccess;
}

struct ConditionalParams {  // CUDA_CONDITIONAL_NODE_PARAMS
    uint64_t handle;
    int type;
    unsigned size;
    Graph** bodies;
    Context* context;
};

struct NodeParams {  // CUgraphNodeParams
    int type;
    int reserved[3];
    ConditionalParams conditional;
};

Result cuGraphAddNode_v2(Node** out, Graph* graph, Node* const* after, const uint64_t* edges,
                         size_t count, NodeParams* params) {
    if (!full_edges(edges, count)) return refuse(kInvalidValue, "an edge of another kind");
    if (params->type != kConditionalNode) return refuse(kInvalidValue, "not a conditional node");
    if (!valid_dependencies(*graph, after, count)) {
        return refuse(kInvalidValue, "a node follows one of another graph");
    }
    ConditionalParams& wanted = params->conditional;
    if (wanted.context != &the_context) return refuse(kInvalidContext, "a node without a context");
    const auto handle = graph->root->handles.find(wanted.handle);
    if (handle == graph->root->handles.end()) return refuse(kInvalidValue, "an unknown handle");
    if (handle->second.num_nodes > 0) return refuse(kInvalidValue, "a handle of two nodes");
    const unsigned most = wanted.type == kWhile ? 1 : wanted.type == kIf ? 2 : 1u << 16;
    if (wanted.size < 1 || wanted.size > most) return refuse(kInvalidValue, "number of bodies");
    if (wanted.type == kSwitch && version < 12080) return refuse(kInvalidValue, "no SWITCH yet");
    ++handle->second.num_nodes;
    Node* node = append(*graph, {after, after + count}, Node::kConditional);
    node->handle = wanted.handle;
    node->type = wanted.type;
    graph->out.push_back(std::make_unique<Graph*[]>(wanted.size));
    for (unsigned i = 0; i < wanted.size; ++i) {
        graph->owned.push_back(std::make_unique<Graph>());
        graph->owned.back()->root = graph->root;
        node->bodies.push_back(graph->owned.back().get());
        graph->out.back()[i] = node->bodies.back();
    }
    wanted.bodies = graph->out.back().get();
    *out = node;
    return kSuccess;
}

Result cuStreamBeginCaptureToGraph(Stream* stream, Graph* graph, Node* const* after,
                                   const uint64_t* edges, size_t count, int mode) {
    if (stream->graph != nullptr) return refuse(kIllegalState, "the stream captures already");
    if (mode != 2) return refuse(kInvalidValue, "not a relaxed capture");
    if (!full_edges(edges, count)) return refuse(kInvalidValue, "an edge of another kind");
    if (!valid_dependencies(*graph, after, count)) {
        return refuse(kInvalidValue, "a capture follows a node of another graph");
    }
    stream->graph = graph;
    stream->invalid = false;
    stream->capture_id = next_id++;
    stream->frontier.assign(after, after + count);
    return kSuccess;
}

Result cuStreamIsCapturing(Stream* stream, int* status) {
    *status = stream->graph == nullptr ? kCaptureNone
              : stream->invalid        ? kCaptureInvalid
                                       : kCaptureActive;
    return kSuccess;
}

Result cuStreamGetCaptureInfo_v3(Stream* stream, int* status, uint64_t* id, Graph** graph,
                                 Node* const** after, const void** edges, size_t* count) {
    cuStreamIsCapturing(stream, status);
    if (*status != kCaptureActive) return kSuccess;
    if (id != nullptr) *id = stream->capture_id;
    if (graph != nullptr) *graph = stream->graph;
    if (after != nullptr) *after = stream->frontier.data();
    static const uint64_t full[64] = {};  // a capture here never ends in more nodes
    if (edges != nullptr) *edges = full;
    if (count != nullptr) *count = stream->frontier.size();
    return kSuccess;
}

Result cuStreamEndCapture(Stream* stream, Graph** out) {
    if (stream->graph == nullptr) return refuse(kIllegalState, "the stream captures nothing");
    *out = stream->graph;
    stream->graph = nullptr;
    return stream->invalid ? refuse(kCaptureInvalidated, "an invalid capture was ended") : kSuccess;
}

Result cuGraphInstantiateWithFlags(Executable** out, Graph* graph, unsigned long long flags) {
    if (flags != 0) return refuse(kInvalidValue, "flags of an executable graph must be 0");
    if (graph->root != graph) return refuse(kInvalidValue, "a body cannot be launched");
    if (!graph->handles.empty() && !takes_conditionals) {
        return refuse(kNotSupported, "no conditional nodes on this machine");
    }
    if (const char* why = why_not_executable(*graph, false)) return refuse(kInvalidValue, why);
    if (!graph->handles.empty() && graph->has_executable) {
        return refuse(kInvalidValue, "a graph with conditional nodes is executable once");
    }
    graph->has_executable = true;
    *out = snapshot(*graph).release();
    const std::lock_guard<std::mutex> lock(global);
    executables.insert(*out);
    return kSuccess;
}

Result cuGraphExecDestroy(Executable* executable) {
    const std::lock_guard<std::mutex> lock(global);
    if (executables.erase(executable) == 0) return kInvalidValue;
    delete executable;
    return kSuccess;
}

Result cuGraphUpload(Executable*, Stream* stream) {
    return stream->graph == nullptr ? kSuccess : refuse(kIllegalState, "uploaded in a capture");
}

Result cuGraphLaunch(Executable* executable, Stream* stream) {
    if (current == nullptr) return refuse(kInvalidContext, "launched without a context");
    if (stream->graph != nullptr) return refuse(kIllegalState, "launched in a capture");
    enqueue(*stream, [executable] {
        begin_values(*executable->source);
        run(*executable);
    });
    return kSuccess;
}

Result cuLaunchKernel(Function* function, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                      unsigned block_x, unsigned block_y, unsigned block_z, unsigned shared_bytes,
                      Stream* stream, void** parameters, void** extra) {
    if (current == nullptr) return refuse(kInvalidContext, "a kernel without a context");
    if (grid_x * grid_y * grid_z * block_x * block_y * block_z != 1 || shared_bytes != 0) {
        return refuse(kInvalidValue, "two threads must not race on a handle");
    }
    if (extra != nullptr || stream->graph == nullptr || function->name != "arm") {
        return refuse(kInvalidValue, "handles are set inside a graph");
    }
    Node* node = append(*stream->graph, stream->frontier, Node::kArm);
    std::memcpy(&node->arm.handles, parameters[0], sizeof(node->arm.handles));
    std::memcpy(&node->arm.flags, parameters[1], sizeof(node->arm.flags));
    std::memcpy(&node->arm.equals, parameters[2], sizeof(node->arm.equals));
    std::memcpy(&node->arm.count, parameters[3], sizeof(node->arm.count));
    stream->frontier = {node};
    return kSuccess;
}

// How newer bindings find all of the above: a name, and the version of CUDA whose function is
// meant.
Result cuGetProcAddress_v2(const char* name, void** out, int cuda_version, uint64_t, int* status) {
    static const std::map<std::string, std::string> renamed = {
        {"cuGraphAddNode", "cuGraphAddNode_v2"},
        {"cuStreamGetCaptureInfo", "cuStreamGetCaptureInfo_v3"},
    };
    static void* const self = [] {
        Dl_info info;
        dladdr(reinterpret_cast<void*>(&cuInit), &info);
        return dlopen(info.dli_fname, RTLD_LAZY | RTLD_NOLOAD);
    }();
    const auto found = renamed.find(name);
    const bool is_new = found != renamed.end() && cuda_version >= 12030;
    *out = dlsym(self, is_new ? found->second.c_str() : name);
    if (status != nullptr) *status = *out == nullptr;  // CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND
    return *out == nullptr ? kNotFound : kSuccess;
}

// What Triton calls besides.

struct LaunchAttribute {  // CUlaunchAttribute
    int id;
    int padding;
    union {
        int programmatic_serialization;
        char bytes[64];
    };
};

struct LaunchConfig {  // CUlaunchConfig
    unsigned grid[3], block[3], shared_bytes;
    Stream* stream;
    LaunchAttribute* attributes;
    unsigned num_attributes;
};

Result cuLaunchKernelEx(const LaunchConfig* config, Function* function, void** parameters,
                        void** extra) {
    if (current == nullptr) return refuse(kInvalidContext, "a kernel without a context");
    if (extra != nullptr) return refuse(kInvalidValue, "parameters come one by one");
    Launch launch;
    launch.name = function->name;
    launch.stream = config->stream;
    for (unsigned size : config->grid) launch.grid_and_block.push_back(size);
    for (unsigned size : config->block) launch.grid_and_block.push_back(size);
    for (unsigned i = 0; i < config->num_attributes; ++i) {
        constexpr int kProgrammaticSerialization = 6;
        if (config->attributes[i].id != kProgrammaticSerialization) continue;
        launch.may_start_early = config->attributes[i].programmatic_serialization != 0;
    }
    for (int i = 0; i < num_parameters; ++i) {
        launch.parameters.push_back(0);
        std::memcpy(&launch.parameters.back(), parameters[i], sizeof(uint64_t));
    }
    launches.push_back(launch);
    return kSuccess;
}

Result cuDeviceGet(int* device, int) {
    *device = 0;
    return kSuccess;
}

Result cuDevicePrimaryCtxRetain(Context** out, int) {
    *out = &the_context;
    return kSuccess;
}

Result cuDeviceGetAttribute(int* value, int attribute, int) {
    const std::map<int, int> known = {{10, 32}, {16, 132}, {82, 65536}, {97, 227 * 1024}};
    *value = known.count(attribute) ? known.at(attribute) : 1;
    return kSuccess;
}

Result cuFuncGetAttribute(int* value, int attribute, Function*) {
    constexpr int kMaxThreadsPerBlock = 0;
    *value = attribute == kMaxThreadsPerBlock ? 1024 : 0;
    return kSuccess;
}

Result cuFuncSetAttribute(Function*, int, int) { return kSuccess; }
Result cuFuncSetCacheConfig(Function*, int) { return kSuccess; }

Result cuPointerGetAttribute(void* out, int, uint64_t pointer) {
    std::memcpy(out, &pointer, sizeof(pointer));  // the device knows it by the same address
    return kSuccess;
}

Result cuPointerGetAttributes(unsigned count, int*, void** out, uint64_t pointer) {
    for (unsigned i = 0; i < count; ++i) std::memcpy(out[i], &pointer, sizeof(pointer));
    return kSuccess;
}

Result cuGetErrorString(Result, const char** text) {
    *text = "refused by the fake driver";
    return kSuccess;
}

// Referred to by Triton's driver; nothing here gets so far.
Result cuOccupancyMaxActiveClusters(int*, Function*, const LaunchConfig*) { return kInvalidValue; }
Result cuTensorMapEncodeTiled() { return kInvalidValue; }
Result cuTensorMapEncodeIm2col() { return kInvalidValue; }
Result cuCtxGetLimit(size_t*, int) { return kInvalidValue; }
Result cuCtxSetLimit(int, size_t) { return kInvalidValue; }

}  // extern "C"
