// The exported functions: they choose the instruction set and refuse bad arguments.

#include <string.h>

#include <atomic>

#include "ops.h"
#include "rsd_cpu.h"

namespace {

struct Choice {
    const Kernels* kernels;
    bool (*runs)();
};

#if defined(__x86_64__)
bool has_avx512() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
bool has_avx2() {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
           __builtin_cpu_supports("f16c");
}
#endif
bool always() { return true; }

const Choice CHOICES[] = {
#if defined(__x86_64__)
    {&kernels_avx512, has_avx512},
    {&kernels_avx2, has_avx2},
#endif
    {&kernels_baseline, always},
};

const Kernels* best() {
    for (const Choice& choice : CHOICES) {
        if (choice.runs()) return choice.kernels;
    }
    return &kernels_baseline;
}

const Kernels*& chosen() {
    static const Kernels* kernels = best();
    return kernels;
}

// Every thread of a team calls fn(its Runner).
template <typename Fn>
void run(int64_t work, int32_t num_threads, const Fn& fn) {
    in_team(work, num_threads, [&](Team& team) { fn(Runner{*chosen(), team}); });
}

}  // namespace

int32_t rsd_cpu_abi_version() { return RSD_CPU_ABI_VERSION; }

const char* rsd_cpu_source_hash() { return RSD_SOURCE_HASH; }

const char* rsd_cpu_error_string(int32_t code) {
    switch (code) {
        case RSD_CPU_SUCCESS: return "success";
        case RSD_CPU_ERROR_SHAPE: return "a size is out of range";
        case RSD_CPU_ERROR_TOKEN: return "a token id is not in the vocabulary";
        case RSD_CPU_ERROR_POSITION: return "a position is past the rope tables";
        case RSD_CPU_ERROR_PAGE: return "a page or an offset is not in the pool";
        case RSD_CPU_ERROR_SEQUENCE: return "a sequence has rows that its length does not cover";
        case RSD_CPU_ERROR_ISA: return "this machine cannot run that instruction set";
        case RSD_CPU_ERROR_VALUE: return "a value is not finite or beyond the range of a half";
        default: return "unknown code";
    }
}

const char* rsd_cpu_isa() { return chosen()->name; }

int32_t rsd_cpu_choose_isa(const char* name) {
    for (const Choice& choice : CHOICES) {
        if (strcmp(choice.kernels->name, name) == 0 && choice.runs()) {
            chosen() = choice.kernels;
            return RSD_CPU_SUCCESS;
        }
    }
    return RSD_CPU_ERROR_ISA;
}

int32_t rsd_cpu_product(const RsdProduct* product, int32_t num_threads) {
    run(work_of(*product), num_threads, [&](const Runner& r) { r.product(*product); });
    return RSD_CPU_SUCCESS;
}

int32_t rsd_cpu_embed(const RsdEmbed* embed, int32_t num_threads) {
    const int32_t code = check_embed(*embed);
    if (code == RSD_CPU_SUCCESS) {
        run(work_of(*embed), num_threads, [&](const Runner& r) { r.embed(*embed); });
    }
    return code;
}

int32_t rsd_cpu_norm(const RsdNorm* norm, int32_t num_threads) {
    run(work_of(*norm), num_threads, [&](const Runner& r) { r.norm(*norm); });
    return RSD_CPU_SUCCESS;
}

int32_t rsd_cpu_silu_mul(const RsdSiluMul* silu_mul, int32_t num_threads) {
    run(work_of(*silu_mul), num_threads, [&](const Runner& r) { r.silu_mul(*silu_mul); });
    return RSD_CPU_SUCCESS;
}

int32_t rsd_cpu_rope_write(const RsdRopeWrite* rope_write, int32_t num_threads) {
    const int32_t code = check_rope_write(*rope_write);
    if (code == RSD_CPU_SUCCESS) {
        run(work_of(*rope_write), num_threads, [&](const Runner& r) { r.rope_write(*rope_write); });
    }
    return code;
}

int32_t rsd_cpu_attention(const RsdAttention* attention, int32_t num_threads) {
    const int32_t code = check_attention(*attention);
    if (code == RSD_CPU_SUCCESS) {
        run(work_of(*attention), num_threads, [&](const Runner& r) { r.attention(*attention); });
    }
    return code;
}

int32_t rsd_cpu_quantise(const RsdQuantise* quantise, int32_t num_threads) {
    std::atomic<bool> fits{true};
    run(work_of(*quantise), num_threads, [&](const Runner& r) {
        if (!r.quantise(*quantise)) fits = false;
    });
    return fits ? RSD_CPU_SUCCESS : RSD_CPU_ERROR_VALUE;
}

int32_t rsd_cpu_draw(const RsdDraw* draw) {
    chosen()->draw(*draw);
    return RSD_CPU_SUCCESS;
}

int32_t rsd_cpu_decoder(const RsdDecoder* decoder, const RsdPass* pass, int32_t num_threads) {
    return run_decoder(*chosen(), *decoder, *pass, num_threads);
}

int32_t rsd_cpu_sample(const RsdSlots* slots, const RsdBatch* batch, float* logits, int32_t num_ids,
                       int32_t role) {
    return sample(*chosen(), *slots, *batch, logits, num_ids, role);
}
