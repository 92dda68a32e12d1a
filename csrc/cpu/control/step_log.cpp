// The append-only log of decided steps. Twin: rsd_kernels/step_log/twin.py.

#include <string.h>

#include "step.h"

namespace {

int32_t bits(float value) {
    int32_t word;
    memcpy(&word, &value, sizeof word);
    return word;
}

// A token's logprob and rank, the k best ids, their logprobs. Returns where the next word goes.
int32_t* write_logprobs(const RsdSlots& s, int64_t place, int32_t k, int32_t* word) {
    *word++ = bits(s.token_logprob[place]);
    *word++ = s.token_rank[place];
    const int32_t* ids = s.top_token + place * MAX_LOGPROBS;
    const float* values = s.top_logprob + place * MAX_LOGPROBS;
    word = std::copy_n(ids, k, word);
    return std::transform(values, values + k, word, bits);
}

}  // namespace

void publish(const RsdSlots& s, int32_t b, const Decision& decision) {
    const int32_t first = std::max(s.committed[b], s.told[b]), last = s.length[b];
    const int32_t k = s.num_logprobs[b];
    int32_t* const record = s.log + *s.log_head;
    int32_t* word = record + LOG_HEADER;
    word = std::copy(context_of(s, b) + first, context_of(s, b) + last, word);
    for (int32_t at = first; k >= 0 && at < last; ++at) {
        word = write_logprobs(s, b * s.max_len + at, k, word);
    }
    const auto size = static_cast<int32_t>(word - record);
    const int32_t header[LOG_HEADER] = {size,
                                        b,
                                        s.generation[b],
                                        decision.kind,
                                        decision.source,
                                        bits(decision.reward),
                                        decision.finish,
                                        last - first,
                                        s.step_guesses[b]};
    std::copy_n(header, LOG_HEADER, record);
    *s.log_end = *s.log_head += size;
}
