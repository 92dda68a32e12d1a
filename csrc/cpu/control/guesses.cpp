#include "guesses.h"

namespace {

// What followed the latest of the longest matches with the end of the context: its first token,
// or `length` if nothing matches.
int32_t ngram(const int32_t* context, int32_t length) {
    int32_t best = length, longest = MIN_MATCH - 1;
    for (int32_t end = length - 1; end > 0 && longest < MAX_MATCH; --end) {
        int32_t size = 0;
        while (size < std::min(end, MAX_MATCH) &&
               context[end - 1 - size] == context[length - 1 - size]) {
            ++size;
        }
        if (size > longest) best = end, longest = size;
    }
    return best;
}

// Returns whether there was a match.
bool guess_by_ngram(const RsdSlots& s, int32_t b, int32_t most) {
    const int32_t length = s.length[b];
    int32_t* context = context_of(s, b);
    if (most < 1 || length <= MIN_MATCH) return false;
    const int32_t first = ngram(context, length), count = std::min(most, length - first);
    if (count < 1) return false;
    std::copy_n(context + first, count, context + length);
    s.guess_end[b] = length + count;
    s.guess_source[b] = GuessSource::NGRAM;
    return true;
}

void guess(const RsdSlots& s, int32_t b) {
    const int32_t length = s.length[b], asked = s.guess_tokens[b];
    const int32_t step_limit = s.committed[b] + s.max_step_tokens[b];
    // The target adds a token of its own behind the last guess.
    const int32_t room = std::min(s.length_limit[b], step_limit) - length - 1;
    if (s.speculation[b] & Speculation::NGRAM) {
        if (guess_by_ngram(s, b, std::min(asked ? asked : NGRAM_GUESSES, room))) return;
    }
    if (s.speculation[b] & Speculation::DRAFT) {
        const int32_t rate = s.guess_rate[b] * RATE_STEPS / RATE_ONE;
        const int32_t count = std::min(asked ? asked : s.guesses_at_rate[rate], room);
        if (count < 1) return;
        s.guess_stop[b] = length + count;
        s.guess_source[b] = GuessSource::DRAFT;
        s.phase[b] = Phase::GUESS;
    }
}

// The moving average after the guesses of a pass.
int32_t new_rate(int32_t rate, const Verified& found) {
    if (found.made == 0) return rate + ((RATE_ONE - rate) >> DRIFT_SHIFT);
    for (int32_t i = 0; i < found.kept; ++i) rate += (RATE_ONE - rate) >> RATE_SHIFT;
    return found.wrong ? rate - (rate >> RATE_SHIFT) : rate;
}

}  // namespace

void add_guess(const RsdSlots& s, int32_t b, int32_t token, int32_t num_ids) {
    int32_t end = std::max(s.length[b], s.guess_end[b]);
    const bool good = token >= 0 && token < num_ids;
    if (good) {
        context_of(s, b)[end] = token;
        s.guess_end[b] = ++end;
    }
    if (!good || end >= s.guess_stop[b] || is_stop_token(s, b, token)) s.phase[b] = Phase::TARGET;
}

void settle_guesses(const RsdSlots& s, int32_t b, const Verified& found) {
    const int32_t source = s.guess_source[b];
    of_role(s, s.guesses_made, source, b) += found.made;
    of_role(s, s.guesses_kept, source, b) += found.kept;
    s.step_guesses[b] += found.kept;
    if (source == GuessSource::DRAFT) s.guess_rate[b] = new_rate(s.guess_rate[b], found);
    if (!found.goes_on) s.guess_end[b] = 0;
    s.guess_stop[b] = 0;
    for (const int32_t role : {Role::DRAFT, Role::TARGET}) {
        int32_t& kv_len = of_role(s, s.kv_len, role, b);
        kv_len = std::min(kv_len, found.place);
    }
}

void rsd_cpu_guess(const RsdSlots* slots) {
    const RsdSlots& s = *slots;
    for (int32_t b = 0; b < s.num_slots; ++b) {
        const bool waits = s.phase[b] == Phase::TARGET && s.active[b];
        const bool asks = s.speculation[b] & (Speculation::DRAFT | Speculation::NGRAM);
        const bool has_none = s.guess_end[b] <= s.length[b] && s.guess_stop[b] == 0;
        if (waits && asks && has_none) guess(s, b);
    }
}
