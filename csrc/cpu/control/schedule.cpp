// Chooses one pass: the role, its packed rows and their pages. Twin: rsd_kernels/schedule/twin.py.

#include <vector>

#include "slots.h"

namespace {

// What a pass reads of one slot: tokens start..stop of its context, the last of them guesses.
struct Extend {
    int32_t slot, start, stop, guesses;
    bool complete;
};

class Scheduler {
  public:
    Scheduler(const RsdSlots& s, const RsdBatch& batch, const RsdPageSizes& per_page, int32_t rule,
              int32_t prm_kv)
        : s_(s), batch_(batch), per_page_(per_page), rule_(rule), prm_kv_(prm_kv) {}

    void run() {
        ++*s_.tick;
        begin_tick(s_);
        *s_.pass_role = NUM_ROLES;
        *s_.pass_body = static_cast<int32_t>(NUM_ROLES * s_.num_buckets);
        std::fill_n(s_.ended, s_.num_slots, 0);
        if (must_return()) return stop();
        find_ready();
        std::fill_n(s_.lacks_pages, s_.num_slots, 0);
        for (const int32_t role : order()) {
            if (ready_[role].empty()) break;
            pack(role);
            if (extends_.empty()) continue;
            fill(role);
            count_waits(role);
            *s_.pass_role = role;
            *s_.last_role = role;
            *s_.pass_body = static_cast<int32_t>(role * s_.num_buckets + bucket());
            *s_.pass_start = now();
            return;
        }
        stop();
    }

  private:
    void stop() {
        *s_.running = *s_.num_rows = *s_.num_seqs = *s_.num_places = 0;
        pad(0, 0, 0);
        end_tick(s_);
    }

    bool must_return() const {
        const int32_t asked = *s_.host_request;
        if (asked == HostRequest::RETURN || *s_.tick > *s_.tick_cap) return true;
        bool done = false, waits = false, lacks_pages = false;
        for (int32_t b = 0; b < s_.num_slots; ++b) {
            const int32_t phase = s_.phase[b];
            done |= phase == Phase::DONE;
            waits |= phase == Phase::WAIT_HOST || phase == Phase::CHOICE || has_read_prompt(b);
            lacks_pages |= s_.lacks_pages[b] != 0;
        }
        // The host gives up the pages of an output that has ended.
        return waits || (done && (lacks_pages || asked == HostRequest::RETURN_WHEN_FREE)) ||
               *s_.log_head + log_words_of_a_tick() > s_.log_words;
    }

    bool has_read_prompt(int32_t b) const {
        return s_.phase[b] == Phase::PROMPT && s_.active[b] && !reads_prompt(Role::DRAFT, b) &&
               !reads_prompt(Role::TARGET, b) && !reads_prompt(Role::PRM, b);
    }

    // Whether the role has yet to read the prompt of a slot in phase PROMPT.
    bool reads_prompt(int32_t role, int32_t b) const {
        const bool asked = s_.prompt_roles[b] & (1 << role);
        return asked && of_role(s_, s_.kv_len, role, b) < end_of(role, b);
    }

    // The most words that one tick can append: every slot decides a step, all guesses are kept.
    int64_t log_words_of_a_tick() const {
        int64_t words = 0;
        for (int64_t b = 0; b < s_.num_slots; ++b) {
            const int64_t asked = s_.num_logprobs[b];
            const int64_t a_token = asked < 0 ? 1 : 1 + LOGPROB_WORDS + 2 * asked;
            const int64_t end = std::max(s_.length[b], s_.guess_end[b]);
            words += (end - s_.committed[b] + MAX_CUT_TOKENS) * a_token + LOG_HEADER;
        }
        return words;
    }

    // The slots that each role could serve.
    void find_ready() {
        for (int32_t b = 0; b < s_.num_slots; ++b) {
            if (!s_.active[b]) continue;
            const int32_t phase = s_.phase[b], role = role_of(phase);
            if (role < NUM_ROLES) ready_[role].push_back(b);
            if (phase != Phase::PROMPT) continue;
            for (const int32_t reader : {Role::DRAFT, Role::TARGET, Role::PRM}) {
                if (reads_prompt(reader, b)) ready_[reader].push_back(b);
            }
        }
    }

    static int32_t role_of(int32_t phase) {
        switch (phase) {
            case Phase::DRAFT:
            case Phase::GUESS: return Role::DRAFT;
            case Phase::TARGET: return Role::TARGET;
            case Phase::SCORE: return Role::PRM;
            default: return NUM_ROLES;
        }
    }

    struct Order {
        int32_t roles[NUM_ROLES] = {Role::DRAFT, Role::TARGET, Role::PRM};
        const int32_t* begin() const { return roles; }
        const int32_t* end() const { return roles + NUM_ROLES; }
    };

    // Roles without a ready slot last.
    Order order() const {
        Order order;
        std::stable_sort(order.roles, order.roles + NUM_ROLES,
                         [&](int32_t a, int32_t b) { return before(a, b); });
        return order;
    }

    bool before(int32_t a, int32_t b) const {
        if (ready_[a].empty() != ready_[b].empty()) return ready_[b].empty();
        if (starved(a) != starved(b)) return starved(a) > starved(b);
        if (rule_ != BatchingRule::MOST_READY) return turn(a) < turn(b);
        if (weight(a) != weight(b)) return weight(a) > weight(b);
        return a > b;  // PRM, target, draft
    }

    int32_t starved(int32_t role) const {
        const int32_t longest = rule_ == BatchingRule::LOCK_STEP ? LONGEST_PHASE : STARVED_AFTER;
        return s_.role_wait[role] >= longest ? s_.role_wait[role] : 0;
    }

    int64_t weight(int32_t role) const {
        return static_cast<int64_t>(ready_[role].size()) * (role == Role::PRM ? 2 : 1);
    }

    // From the last role on: draft, PRM, target.
    int32_t turn(int32_t role) const {
        const int32_t turns = (*s_.last_role - role + NUM_ROLES) % NUM_ROLES;
        return rule_ == BatchingRule::EVERY_ROLE ? (turns + NUM_ROLES - 1) % NUM_ROLES : turns;
    }

    int32_t kv_role(int32_t role) const { return role == Role::PRM ? prm_kv_ : role; }

    // The end of what the role has to read of a slot, without guesses that it verifies. Of a
    // prompt that is only read the last token stays: a writer samples from there.
    int32_t end_of(int32_t role, int32_t b) const {
        if (role == Role::PRM) return s_.prm_length[b];
        if (s_.phase[b] == Phase::PROMPT) return s_.length[b] - 1;
        const bool guesses = role == Role::DRAFT && s_.phase[b] == Phase::GUESS;
        return guesses ? std::max(s_.guess_end[b], s_.length[b]) : s_.length[b];
    }

    // A writer needs a row to sample from even when it has read everything.
    int32_t start_of(int32_t role, int32_t b) const {
        const int32_t read = of_role(s_, s_.kv_len, kv_role(role), b);
        return role == Role::PRM ? read : std::min(read, end_of(role, b) - 1);
    }

    int32_t guesses_of(int32_t role, int32_t b) const {
        return role == Role::TARGET ? std::max(s_.guess_end[b] - s_.length[b], 0) : 0;
    }

    // A page that others own too is never written: they keep it, and the slot reads its tokens
    // again.
    void leave_shared_page(int32_t role, int32_t b) const {
        const int32_t kv = kv_role(role), per_page = per_page_.of_role[kv];
        const int32_t index = start_of(role, b) / per_page;
        if (index >= of_role(s_, s_.num_pages, kv, b)) return;
        if (s_.page_owners[pages_of(s_, kv, b)[index]] == 1) return;
        give_up_pages(s_, kv, b, index);
        int32_t& kv_len = of_role(s_, s_.kv_len, kv, b);
        kv_len = std::min(kv_len, index * per_page);
    }

    // Decode rows first, then chunks, in order of arrival; a slot gets all its pages or none.
    // Guesses are read where rows, places and pages are left.
    void pack(int32_t role) {
        std::vector<int32_t>& slots = ready_[role];
        for (const int32_t b : slots) leave_shared_page(role, b);
        std::stable_sort(slots.begin(), slots.end(),
                         [&](int32_t a, int32_t b) { return s_.arrival[a] < s_.arrival[b]; });
        std::stable_partition(slots.begin(), slots.end(),
                              [&](int32_t b) { return end_of(role, b) - start_of(role, b) == 1; });
        const int32_t kv = kv_role(role), per_page = per_page_.of_role[kv];
        auto room = static_cast<int32_t>(batch_.max_rows);
        auto spare = static_cast<int32_t>(batch_.max_places - static_cast<int64_t>(slots.size()));
        for (const int32_t b : slots) {
            if (room == 0) break;
            const int32_t start = start_of(role, b), end = end_of(role, b);
            const int32_t stop = std::min(end, start + room);
            const bool complete = stop == end && s_.phase[b] != Phase::PROMPT;
            int32_t more = 0;
            if (complete) more = std::min({guesses_of(role, b), spare, room - (stop - start)});
            const int32_t held = of_role(s_, s_.num_pages, kv, b);
            int32_t need = pages_for(stop + more, per_page) - held;
            if (more && need > *s_.num_free) {
                more = 0;
                need = pages_for(stop, per_page) - held;
            }
            if (need > *s_.num_free) {
                s_.lacks_pages[b] = 1;
                continue;
            }
            take_pages(s_, kv, b, need);
            extends_.push_back({b, start, stop + more, more, complete});
            room -= stop + more - start;
            spare -= more;
        }
    }

    void fill(int32_t role) {
        int32_t rows = 0, seqs = 0, places = 0;
        batch_.seq_start[0] = batch_.seq_place[0] = 0;
        for (const Extend& e : extends_) {
            fill_rows(role, e, rows);
            rows += e.stop - e.start;
            // A place behind the last row and each guess of what a writer reads to its end.
            const int32_t count = role != Role::PRM && e.complete ? e.guesses + 1 : 0;
            for (int32_t i = 0; i < count; ++i, ++places) {
                batch_.place_row_end[places] = rows - count + 1 + i;
                batch_.place_slot[places] = e.slot;
                batch_.place_position[places] = e.stop - count + 1 + i;
            }
            batch_.seq_slot[seqs] = e.slot;
            batch_.seq_kv_len[seqs] = e.stop;
            batch_.seq_complete[seqs] = e.complete;
            ++seqs;
            batch_.seq_start[seqs] = rows;
            batch_.seq_place[seqs] = places;
        }
        *s_.num_rows = rows;
        *s_.num_seqs = seqs;
        *s_.num_places = places;
        pad(rows, seqs, places);
    }

    void fill_rows(int32_t role, const Extend& e, int32_t row) const {
        const int32_t kv = kv_role(role), per_page = per_page_.of_role[kv];
        const int32_t* context =
            role == Role::PRM ? s_.prm_tokens + e.slot * s_.prm_max_len : context_of(s_, e.slot);
        const int32_t* table = pages_of(s_, kv, e.slot);
        for (int32_t at = e.start; at < e.stop; ++at, ++row) {
            batch_.slot[row] = e.slot;
            batch_.position[row] = at;
            batch_.token[row] = context[at];
            batch_.page[row] = table[at / per_page];
            batch_.offset[row] = at % per_page;
        }
    }

    // Rows without a page, sequences without rows, no places.
    void pad(int32_t rows, int32_t seqs, int32_t places) const {
        fill_from(batch_.token, rows, batch_.max_rows, 0);
        fill_from(batch_.slot, rows, batch_.max_rows, 0);
        fill_from(batch_.position, rows, batch_.max_rows, 0);
        fill_from(batch_.page, rows, batch_.max_rows, -1);
        fill_from(batch_.offset, rows, batch_.max_rows, 0);
        fill_from(batch_.seq_slot, seqs, batch_.max_seqs, 0);
        fill_from(batch_.seq_kv_len, seqs, batch_.max_seqs, 0);
        fill_from(batch_.seq_complete, seqs, batch_.max_seqs, 0);
        fill_from(batch_.seq_start, seqs + 1, batch_.max_seqs + 1, rows);
        fill_from(batch_.seq_place, seqs + 1, batch_.max_seqs + 1, places);
        fill_from(batch_.place_row_end, places, batch_.max_places, 0);
        fill_from(batch_.place_slot, places, batch_.max_places, 0);
        fill_from(batch_.place_position, places, batch_.max_places, 0);
    }

    static void fill_from(int32_t* column, int64_t first, int64_t size, int32_t value) {
        std::fill(column + first, column + size, value);
    }

    // The smallest that holds the rows of the pass.
    int64_t bucket() const {
        int32_t* const last = s_.row_buckets + s_.num_buckets;
        return std::lower_bound(s_.row_buckets, last, *s_.num_rows) - s_.row_buckets;
    }

    void count_waits(int32_t chosen) const {
        for (int32_t role = 0; role < NUM_ROLES; ++role) {
            const bool waits = role != chosen && !ready_[role].empty();
            s_.role_wait[role] = waits ? s_.role_wait[role] + 1 : 0;
        }
    }

    const RsdSlots& s_;
    const RsdBatch& batch_;
    const RsdPageSizes& per_page_;
    const int32_t rule_, prm_kv_;
    std::vector<int32_t> ready_[NUM_ROLES];
    std::vector<Extend> extends_;
};

}  // namespace

void rsd_cpu_schedule(const RsdSlots* slots, const RsdBatch* batch, const RsdPageSizes* per_page,
                      int32_t rule, int32_t prm_kv) {
    Scheduler(*slots, *batch, *per_page, rule, prm_kv).run();
}

void rsd_cpu_advance(const RsdSlots* slots, const RsdBatch* batch, int32_t role, int32_t prm_kv) {
    const RsdSlots& s = *slots;
    const int64_t share = (now() - *s.pass_start) / std::max(*s.num_seqs, 1);
    const int32_t kv = role == Role::PRM ? prm_kv : role;
    for (int32_t i = 0; i < *s.num_seqs; ++i) {
        const int32_t b = batch->seq_slot[i];
        of_role(s, s.kv_len, kv, b) = batch->seq_kv_len[i];
        of_role(s, s.tokens_read, role, b) += batch->seq_start[i + 1] - batch->seq_start[i];
        of_role(s, s.passes, role, b) += 1;
        of_role(s, s.nanoseconds, role, b) += share;
    }
}
