// The ops of rsd_cpu.h on some threads, arguments taken as right: what library.cpp exports, and
// what decoder.cpp strings together.

#ifndef RSD_CPU_OPS_H_
#define RSD_CPU_OPS_H_

#include "kernels.h"

struct Runner {
    const Kernels& kernels;
    int64_t num_threads;

    void product(const RsdProduct& p) const;
    void norm(const RsdNorm& n) const;
    void silu_mul(const RsdSiluMul& s) const;
    // gate_up = x Wt + bias as `p` says, then gated = silu(gate) * up, without waiting in between.
    void gate_up(const RsdProduct& p, const RsdSiluMul& s) const;
    void rope_write(const RsdRopeWrite& w) const;
    void attention(const RsdAttention& a) const;
};

int32_t check_rope_write(const RsdRopeWrite& w);
int32_t check_attention(const RsdAttention& a);
int32_t run_decoder(const Runner& run, const RsdDecoder& d, const RsdPass& pass);

#endif  // RSD_CPU_OPS_H_
