// Draws a token at the places that need nothing but a temperature; the others are left to the twin,
// rsd_kernels/sample/twin.py.

#include <math.h>

#include "../ops.h"
#include "slots.h"

namespace {

// Whether a slot's logits are used as they are.
bool is_plain(const RsdSlots& s, int32_t b, int32_t position) {
    return s.repetition_penalty[b] == 1 && !s.adjusts[b] && position >= s.min_length[b] &&
           s.num_logprobs[b] < 0;
}

// Whether the draw is among all ids.
bool filters(const RsdSlots& s, int32_t b, int64_t num_ids) {
    return (s.top_k[b] > 0 && s.top_k[b] < num_ids) || s.top_p[b] < 1 || s.min_p[b] > 0;
}

class Sampler {
  public:
    Sampler(const Kernels& kernels, const RsdSlots& s, const RsdBatch& batch, int64_t num_ids,
            int32_t role)
        : kernels_(kernels), s_(s), batch_(batch), num_ids_(num_ids), role_(role) {}

    // False if the twin has to.
    bool sample(int32_t place, float* logits) const {
        const int32_t b = batch_.place_slot[place], position = batch_.place_position[place];
        const bool greedy = s_.temperature[b] == 0;
        if (!is_plain(s_, b, position) || (!greedy && filters(s_, b, num_ids_))) return false;
        const Largest found = kernels_.largest(logits, num_ids_);
        int32_t& token = batch_.place_token[place];
        token = NOT_FINITE;
        if (!found.finite) return true;
        token = greedy ? static_cast<int32_t>(found.id) : draw(b, position, logits, found.value);
        return true;
    }

  private:
    int32_t draw(int32_t b, int32_t position, float* logits, float largest) const {
        const float most = largest / s_.temperature[b];
        if (!isfinite(most)) return NOT_FINITE;
        kernels_.scale(logits, num_ids_, s_.temperature[b], most);
        // Who guesses what the target will write draws as the target will.
        const bool by_target = role_ == Role::TARGET || s_.phase[b] == Phase::GUESS;
        int64_t token;
        float best;
        kernels_.draw(
            {&token, &best, logits, num_ids_, static_cast<uint64_t>(s_.seed[b]),
             static_cast<uint32_t>(s_.sample_index[b]), static_cast<uint32_t>(s_.num_steps[b]),
             static_cast<uint32_t>(position),
             static_cast<uint32_t>(by_target ? Purpose::TARGET_TOKEN : Purpose::DRAFT_TOKEN)});
        return static_cast<int32_t>(token);
    }

    const Kernels& kernels_;
    const RsdSlots& s_;
    const RsdBatch& batch_;
    const int64_t num_ids_;
    const int32_t role_;
};

}  // namespace

int32_t sample(const Kernels& kernels, const RsdSlots& s, const RsdBatch& batch, float* logits,
               int64_t num_ids, int32_t role) {
    const Sampler sampler(kernels, s, batch, num_ids, role);
    int32_t left = 0;
    for (int32_t place = 0; place < *s.num_places; ++place) {
        if (sampler.sample(place, logits + place * num_ids)) continue;
        batch.place_token[place] = RSD_CPU_NOT_SAMPLED;
        ++left;
    }
    return left;
}
