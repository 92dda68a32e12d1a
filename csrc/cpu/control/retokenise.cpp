// Tokenises the end of a kept step again, as draft and target read it. Twin:
// rsd_kernels/retokenise/twin.py.

#include "slots.h"
#include "words.h"

namespace {

class Ends {
  public:
    Ends(const RsdSlots& s, const RsdTables& tables, const RsdMerges* merges)
        : s_(s), tables_(tables), merges_(merges) {}

    // A step whose end these tables cannot settle waits for the host.
    void settle(int32_t b) const {
        const int32_t* context = context_of(s_, b);
        const int32_t length = s_.length[b];
        const int32_t begin = merges_ ? end_word(context, s_.kept_from[b], length) : UNKNOWN;
        if (begin == UNKNOWN) {
            s_.phase[b] = Phase::WAIT_HOST;
            return;
        }
        Tokens tokens(context + begin, context + length);
        if (tokens.size() > 1) {
            tokens = merge_bytes(*merges_, bytes_of(tables_, context + begin, context + length));
        }
        replace(b, begin, tokens);
    }

  private:
    static constexpr int32_t UNKNOWN = -1;

    // Where the last word begins. It is empty if the context does not end in a newline.
    int32_t end_word(const int32_t* context, int32_t first, int32_t length) const {
        int32_t begin = length, after = 0, size = 0;
        for (; begin > 0; --begin) {
            const int32_t flags = merges_->flags[context[begin - 1]];
            if (!(flags & JOINS_NEXT) || (begin == length && !(flags & ENDS_LINE))) break;
            if (begin < length) {
                if ((flags | after) & UNCERTAIN) return UNKNOWN;
                if (!(after & (flags & ENDS_LINE ? STARTS_LINE : JOINS_PREVIOUS))) break;
            }
            size += bytes_of(tables_, context[begin - 1]);
            if (size > MAX_WORD_BYTES) return UNKNOWN;
            after = flags;
        }
        // The first token may change those of the delimiter before it.
        const bool unsettles = merges_->flags[context[first]] & UNSETTLES;
        return begin >= first && unsettles ? UNKNOWN : begin;
    }

    // K and V from the first token that differs on count no more. As many tokens as before may
    // still be written; without room for an end that is longer nothing changes.
    void replace(int32_t b, int32_t begin, const Tokens& tokens) const {
        s_.kept_from[b] = -1;
        int32_t* context = context_of(s_, b);
        const int32_t length = s_.length[b], count = static_cast<int32_t>(tokens.size());
        const int32_t saved = length - begin - count, taken = s_.shortened[b];
        int32_t same = 0;
        while (same < std::min(count, count + saved) && context[begin + same] == tokens[same]) {
            ++same;
        }
        const int32_t fewer = std::max(taken + saved, 0) - std::max(taken, 0);
        const int32_t limit = s_.length_limit[b] - fewer;
        if ((same == count && saved == 0) || length - saved >= limit) return;
        std::copy(tokens.begin() + same, tokens.end(), context + begin + same);
        s_.length[b] = s_.committed[b] = length - saved;
        s_.length_limit[b] = limit;
        s_.min_length[b] -= saved;
        s_.shortened[b] = taken + saved;
        s_.prompt_length[b] = std::min(s_.prompt_length[b], begin + same);
        for (const int32_t role : {Role::DRAFT, Role::TARGET}) {
            int32_t& kv_len = of_role(s_, s_.kv_len, role, b);
            kv_len = std::min(kv_len, begin + same);
        }
    }

    const RsdSlots& s_;
    const RsdTables& tables_;
    const RsdMerges* const merges_;
};

}  // namespace

void rsd_cpu_retokenise(const RsdSlots* slots, const RsdTables* tables, const RsdMerges* merges) {
    const RsdSlots& s = *slots;
    const Ends ends(s, *tables, merges);
    for (int32_t b = 0; b < s.num_slots; ++b) {
        const bool decided = s.kept_from[b] >= 0 && s.length[b] == s.committed[b];
        const bool goes_on = s.phase[b] == Phase::DRAFT || s.phase[b] == Phase::CHOICE;
        if (decided && goes_on && s.mode[b] == Mode::RSD) ends.settle(b);
    }
}
