// The ops of rsd_cpu.h, run by a team of threads on arguments that were checked before: what
// library.cpp exports, and what decoder.cpp strings together.

#ifndef RSD_CPU_OPS_H_
#define RSD_CPU_OPS_H_

#include "kernels.h"
#include "threads.h"

// One thread's view of the ops.
struct Runner {
    const Kernels& kernels;
    Team& team;

    void product(const RsdProduct& p) const;
    void embed(const RsdEmbed& e) const;
    void norm(const RsdNorm& n) const;
    void silu_mul(const RsdSiluMul& s) const;
    // gate_up = x Wt + bias as `p` says, then gated = silu(gate) * up, in one op.
    void gate_up(const RsdProduct& p, const RsdSiluMul& s) const;
    void rope_write(const RsdRopeWrite& w) const;
    void attention(const RsdAttention& a) const;
    // False if a value of those that this thread met cannot be stored.
    bool quantise(const RsdQuantise& q) const;
};

// The work of an op, in multiplications; see threads.h.
int64_t work_of(const RsdProduct& p);
int64_t work_of(const RsdEmbed& e);
int64_t work_of(const RsdNorm& n);
int64_t work_of(const RsdSiluMul& s);
int64_t work_of(const RsdRopeWrite& w);
int64_t work_of(const RsdAttention& a);
int64_t work_of(const RsdQuantise& q);

int32_t check_embed(const RsdEmbed& e);
int32_t check_rope_write(const RsdRopeWrite& w);
int32_t check_attention(const RsdAttention& a);
int32_t run_decoder(const Kernels& kernels, const RsdDecoder& d, const RsdPass& pass,
                    int64_t num_threads);

// See rsd_cpu_sample.
int32_t sample(const Kernels& kernels, const RsdSlots& s, const RsdBatch& batch, float* logits,
               int64_t num_ids, int32_t role);

#endif  // RSD_CPU_OPS_H_
