// Writes a finished step into the PRM's context. Twin: rsd_kernels/bridge/twin.py.

#include "slots.h"
#include "words.h"

namespace {

class Bridge {
  public:
    Bridge(const RsdSlots& s, const RsdTables& tables, const RsdMerges& merges)
        : s_(s), tables_(tables), merges_(merges) {}

    void write_step(int32_t b) const {
        const int32_t* context = context_of(s_, b);
        Tokens step(context + s_.committed[b], context + s_.length[b]);
        if (drops_stop_token(b)) step.pop_back();
        if (!tables_.as_written && !translate(step, s_.match_bytes[b])) {
            s_.phase[b] = Phase::WAIT_HOST;
            return;
        }
        step.insert(step.end(), tables_.separator, tables_.separator + tables_.num_separators);
        if (s_.num_steps[b]) {
            step.insert(step.begin(), tables_.before_step,
                        tables_.before_step + tables_.num_before);
        }
        append(b, step);
    }

  private:
    // One that completes a delimiter is dropped with it. Where the PRM reads steps as they were
    // written, it sees the stop token unless something follows.
    bool drops_stop_token(int32_t b) const {
        if (s_.finish[b] != Finish::STOP_TOKEN) return false;
        return tables_.as_written ? tables_.num_separators > 0 : !s_.match_bytes[b];
    }

    // Turns a step into the PRM's tokens, without its delimiter. False if one of them has to reach
    // the PRM as text.
    bool translate(Tokens& step, int32_t delimiter_bytes) const {
        while (delimiter_bytes && !step.empty()) {
            const int32_t token = step.back(), size = bytes_of(tables_, token);
            step.pop_back();
            if (size > delimiter_bytes) {
                add_prefix(step, token, size - delimiter_bytes);
                retokenise_end(tables_, merges_, step);
            }
            delimiter_bytes -= std::min(delimiter_bytes, size);
        }
        for (int32_t& token : step) token = tables_.prm_token[token];
        if (std::find(step.begin(), step.end(), BY_TEXT) != step.end()) return false;
        step.erase(std::remove_if(step.begin(), step.end(), [](int32_t t) { return t < 0; }),
                   step.end());
        return true;
    }

    // The tokens of the first bytes of a token, or the token itself.
    void add_prefix(Tokens& step, int32_t token, int32_t num_bytes) const {
        const int32_t entry = tables_.prefix_entry[token];
        const int32_t* range = tables_.prefix_start + entry + num_bytes - 1;
        if (entry < 0 || range[0] >= range[1]) {
            step.push_back(token);
            return;
        }
        step.insert(step.end(), tables_.prefix_token + range[0], tables_.prefix_token + range[1]);
    }

    // If the step does not fit, no more steps are scored: the slot goes on in its `overflow_mode`,
    // or its output ends.
    void append(int32_t b, const Tokens& step) const {
        const int32_t start = s_.prm_committed[b];
        const int32_t stop = start + static_cast<int32_t>(step.size());
        if (stop > s_.prm_max_len) {
            s_.mode[b] = s_.overflow_mode[b];
            if (s_.mode[b] == Mode::RSD) s_.finish[b] = Finish::PRM_FULL;
            return;
        }
        std::copy(step.begin(), step.end(), s_.prm_tokens + b * s_.prm_max_len + start);
        s_.prm_length[b] = stop;
        s_.prm_keep[b] = stop - static_cast<int32_t>(tables_.num_transient);
    }

    const RsdSlots& s_;
    const RsdTables& tables_;
    const RsdMerges& merges_;
};

}  // namespace

void rsd_cpu_bridge(const RsdSlots* slots, const RsdTables* tables, const RsdMerges* merges) {
    const RsdSlots& s = *slots;
    const Bridge bridge(s, *tables, *merges);
    for (int32_t b = 0; b < s.num_slots; ++b) {
        if (s.ended[b] && s.mode[b] == Mode::RSD && s.finish[b] != Finish::ERROR) {
            bridge.write_step(b);
        }
    }
}
