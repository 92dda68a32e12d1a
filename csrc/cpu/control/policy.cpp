// Whether a scored step is accepted. Twins: rsd_kernels/policy/formula.py and philox/twin.py.

#include <math.h>

#include "../philox.h"
#include "step.h"

double accept_probability(int32_t kind, float a, float b, float given) {
    const double reward = given;
    if (isnan(given)) return 0;
    switch (kind) {
        case PolicyKind::CONSTANT: return a;
        case PolicyKind::THRESHOLD: return given >= a;
        case PolicyKind::CLIP: return std::min(1.0, std::max(0.0, reward));
        case PolicyKind::SIGMOIDAL: return reward > 0 ? 1 / (1 + 1 / reward) : 0;
        default: break;
    }
    const double z = -static_cast<double>(a) * (reward - b);
    return z < 700 ? 1 / (1 + exp(z)) : 0;  // exp(710) overflows
}

double accept_draw(const RsdSlots& s, int32_t b) {
    uint32_t words[4] = {static_cast<uint32_t>(s.length[b]), static_cast<uint32_t>(s.num_steps[b]),
                         Purpose::ACCEPT, static_cast<uint32_t>(s.sample_index[b])};
    philox(words[0], words[1], words[2], words[3], static_cast<uint64_t>(s.seed[b]));
    return (words[0] >> 8) * 0x1p-24;
}
