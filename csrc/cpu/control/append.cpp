// Appends sampled tokens and finds the step's end, byte by byte. Twin:
// rsd_kernels/sample/append_twin.py.

#include "guesses.h"

namespace {

constexpr int32_t STATE_MASK = (1 << MOVE_SHIFT) - 1;

// Where the automata stand after a token.
struct Walk {
    int32_t delimiter_state, stop_state;
    int32_t delimiter_bytes;  // length of the delimiter that ended the step, 0 if none
    bool stopped;             // a stop string ended
    int32_t used;             // bytes of the token up to the end of what matched
};

// Replacement in place of a sampled one.
struct Replacement {
    const int32_t* first;
    int32_t count;
};

class Appender {
  public:
    Appender(const RsdSlots& s, const RsdTables& tables, int32_t num_ids, int32_t role)
        : s_(s), tables_(tables), num_ids_(num_ids), role_(role) {}

    // The first of the `count` tokens drawn for a slot, and another one as long as the last was
    // what had been guessed.
    void append_drawn(int32_t b, const int32_t* drawn, int32_t count) const {
        const int32_t first = s_.length[b];
        const int32_t guessed = role_ == Role::TARGET ? s_.guess_end[b] : first;
        Verified found{first, count - 1, 0, false, false};
        bool right = false;
        for (int32_t at = 0; at < count; ++at) {
            found.place = s_.length[b];
            right = append_token(b, drawn[at], first + at < guessed);
            found.kept += right && at + 1 < count;
            found.wrong = !right && at < found.made;
            if (s_.ended[b] || !right) break;
        }
        s_.step_source[b] = role_;
        if (role_ != Role::TARGET || !s_.speculation[b]) return;
        found.goes_on = right && !s_.ended[b];
        settle_guesses(s_, b, found);
    }

  private:
    // Returns whether just this token had been guessed for its place.
    bool append_token(int32_t b, const int32_t token, bool guessed) const {
        s_.match_bytes[b] = 0;
        if (token < 0 || token >= num_ids_) {  // NOT_FINITE, or no id at all
            s_.delimiter_state[b] = 0;
            s_.finish[b] = Finish::ERROR;
            s_.ended[b] = 1;
            return !guessed;
        }
        const int32_t length = s_.length[b];
        const bool stops_count = length + 1 > s_.min_length[b];
        const Walk walked = walk(b, token, stops_count);
        Replacement tokens{&token, 1};
        if (walked.delimiter_bytes && !walked.stopped && walked.used < bytes_of(token)) {
            tokens = replacement(token, walked.used, s_.length_limit[b] - length);
        }
        const bool right =
            guessed && tokens.count == 1 && context_of(s_, b)[length] == *tokens.first;
        write(b, length, tokens);
        s_.length[b] = length + tokens.count;
        s_.delimiter_state[b] = walked.delimiter_state;
        s_.stop_state[b] = walked.stop_state;
        s_.match_bytes[b] = walked.delimiter_bytes;
        s_.finish[b] = finish(b, token, stops_count, walked.stopped);
        const bool full = s_.length[b] - s_.committed[b] >= s_.max_step_tokens[b];
        s_.ended[b] = s_.finish[b] || walked.delimiter_bytes || full;
        return right;
    }

    int32_t finish(int32_t b, int32_t token, bool stops_count, bool stopped) const {
        if (stops_count && is_stop_token(s_, b, token)) return Finish::STOP_TOKEN;
        if (stopped) return Finish::STOP_STRING;
        return s_.length[b] >= s_.length_limit[b] ? Finish::LENGTH : Finish::NONE;
    }

    int32_t bytes_of(int32_t token) const {
        return tables_.token_start[token + 1] - tables_.token_start[token];
    }

    Walk walk(int32_t b, int32_t token, bool stops_count) const {
        const uint8_t* bytes = tables_.token_byte + tables_.token_start[token];
        const int16_t* delimiters = s_.delimiter_moves + int64_t{b} * MAX_DELIMITER_STATES * 256;
        const int16_t* stops = s_.stop_moves + int64_t{b} * MAX_STOP_STATES * 256;
        Walk at{s_.delimiter_state[b], s_.stop_state[b], 0, false, 0};
        const int32_t size = bytes_of(token);
        while (at.used < size && !at.delimiter_bytes && !at.stopped) {
            const uint8_t byte = bytes[at.used++];
            const int32_t delimiter = delimiters[at.delimiter_state * 256 + byte];
            const int32_t stop = stops[at.stop_state * 256 + byte];
            at.delimiter_state = delimiter & STATE_MASK;
            at.stop_state = stop & STATE_MASK;
            at.delimiter_bytes = delimiter >> MOVE_SHIFT;
            at.stopped = stops_count && stop >> MOVE_SHIFT;
        }
        return at;
    }

    // Canonical tokens of the first `used` bytes of a token; itself if there is none or no room.
    Replacement replacement(const int32_t& token, int32_t used, int32_t room) const {
        const int32_t entry = tables_.prefix_entry[token];
        if (entry < 0) return {&token, 1};
        const int32_t* range = tables_.prefix_start + entry + used - 1;
        const int32_t count = range[1] - range[0];
        if (count < 1 || count > room) return {&token, 1};
        return {tables_.prefix_token + range[0], count};
    }

    // The first token carries all the logprob.
    void write(int32_t b, int32_t first, Replacement tokens) const {
        std::copy_n(tokens.first, tokens.count, context_of(s_, b) + first);
        const int64_t from = b * s_.max_len + first;
        for (int64_t to = from + 1; to < from + tokens.count; ++to) {
            s_.token_logprob[to] = 0;
            s_.token_rank[to] = 1;
            std::copy_n(s_.top_logprob + from * MAX_LOGPROBS, MAX_LOGPROBS,
                        s_.top_logprob + to * MAX_LOGPROBS);
            std::copy_n(s_.top_token + from * MAX_LOGPROBS, MAX_LOGPROBS,
                        s_.top_token + to * MAX_LOGPROBS);
        }
    }

    const RsdSlots& s_;
    const RsdTables& tables_;
    const int32_t num_ids_, role_;
};

}  // namespace

void rsd_cpu_append(const RsdSlots* slots, const RsdBatch* batch, const RsdTables* tables,
                    int32_t num_ids, int32_t role) {
    const Appender appender(*slots, *tables, num_ids, role);
    for (int32_t i = 0; i < *slots->num_seqs; ++i) {
        const int32_t b = batch->seq_slot[i], first = batch->seq_place[i];
        const int32_t count = batch->seq_place[i + 1] - first;
        if (count < 1) continue;
        if (slots->phase[b] == Phase::GUESS) {
            add_guess(*slots, b, batch->place_token[first], num_ids);
        } else {
            appender.append_drawn(b, batch->place_token + first, count);
        }
    }
}
