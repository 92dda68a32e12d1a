#include <math.h>

#include "step.h"

namespace {

void start_step(const RsdSlots& s, int32_t b) {
    s.delimiter_state[b] = s.match_bytes[b] = 0;
    s.finish[b] = Finish::NONE;
    s.guess_end[b] = s.guess_stop[b] = s.step_guesses[b] = 0;
}

class Steps {
  public:
    Steps(const RsdSlots& s, const RsdPageSizes& per_page) : s_(s), per_page_(per_page) {}

    // After a writer's pass: an ended draft step goes to the PRM, any other is kept unscored. A
    // candidate goes there whoever wrote it, unless nothing can come of it.
    void end(int32_t b) const {
        const int32_t source = s_.step_source[b], finish = s_.finish[b], mode = s_.mode[b];
        const bool fails = finish == Finish::ERROR || finish == Finish::PRM_FULL;
        if (s_.group[b] >= 0) {
            if (fails || mode != Mode::RSD) return wait_for_group(b, -INFINITY);
            s_.phase[b] = Phase::SCORE;
        } else if (fails) {
            drop(b, source);
        } else if (source == Role::DRAFT && mode == Mode::RSD) {
            s_.phase[b] = Phase::SCORE;
        } else if (source == Role::DRAFT && mode == Mode::TARGET) {
            // It did not fit the PRM's context, and the target writes from there on.
            reject(b, UNSCORED);
        } else {
            keep(b, source, UNSCORED);
        }
    }

    // Of an unscored step that goes on, the new tokens are told where the request streams them.
    void tell_part(int32_t b) const {
        const bool writes = s_.phase[b] == Phase::DRAFT || s_.phase[b] == Phase::TARGET;
        const bool has_new = s_.length[b] > std::max(s_.committed[b], s_.told[b]);
        if (!s_.stream_tokens[b] || !writes || !has_new) return;
        publish(s_, b, {RecordKind::PART, s_.step_source[b], UNSCORED, Finish::NONE});
        s_.told[b] = s_.length[b];
    }

    // Accepts the draft's step with probability w(reward), else rejects it. A candidate waits.
    void decide(int32_t b, float reward) const {
        if (s_.group[b] >= 0) return wait_for_group(b, reward);
        write_reward(b, reward);
        const double chance =
            accept_probability(s_.policy_kind[b], s_.policy_a[b], s_.policy_b[b], reward);
        if (accept_draw(s_, b) < chance) {
            keep(b, Role::DRAFT, reward);
        } else {
            reject(b, reward);
        }
    }

  private:
    void write_reward(int32_t b, float reward) const {
        s_.reward[b] = reward;
        if (reward != reward) ++s_.nan_rewards[b];
    }

    // The last candidate of a step to have its reward is where the host chooses.
    void wait_for_group(int32_t b, float reward) const {
        write_reward(b, reward);
        s_.phase[b] = --s_.group_left[s_.group[b]] == 0 ? Phase::CHOICE : Phase::CANDIDATE;
    }

    // The step becomes part of the output; the host gives up the pages of one that ends.
    void keep(int32_t b, int32_t source, float reward) const {
        const int32_t num_steps = s_.num_steps[b] + 1;
        int32_t finish = s_.finish[b];
        if (finish == Finish::NONE && num_steps >= s_.max_steps[b]) finish = Finish::STEPS;
        publish(s_, b, {RecordKind::KEPT, source, reward, finish});
        s_.num_steps[b] = num_steps;
        s_.kept_from[b] = s_.committed[b];
        s_.committed[b] = s_.length[b];
        s_.prm_committed[b] = s_.prm_length[b] = s_.prm_keep[b];
        s_.stop_committed[b] = s_.stop_state[b];
        start_step(s_, b);
        s_.phase[b] = finish ? Phase::DONE : next_phase(b);
        truncate_to_cursors(b, source);
    }

    int32_t next_phase(int32_t b) const {
        if (s_.mode[b] == Mode::TARGET) return Phase::TARGET;
        return s_.mode[b] == Mode::RSD && s_.candidates[b] > 0 ? Phase::CHOICE : Phase::DRAFT;
    }

    // Back to the last kept step, and the target writes this one. A target with a context of its
    // own waits for the host.
    void reject(int32_t b, float reward) const {
        publish(s_, b, {RecordKind::REJECTED, Role::DRAFT, reward, Finish::NONE});
        const int32_t guessed = s_.length[b];
        s_.length[b] = s_.committed[b];
        s_.prm_length[b] = s_.prm_keep[b] = s_.prm_committed[b];
        s_.stop_state[b] = s_.stop_committed[b];
        start_step(s_, b);
        if (s_.speculation[b] & Speculation::REJECTED) {
            s_.guess_end[b] = guessed;
            s_.guess_source[b] = GuessSource::REJECTED;
        }
        s_.phase[b] = s_.separate_contexts[b] ? Phase::WAIT_HOST : Phase::TARGET;
        truncate_to_cursors(b, Role::DRAFT);
    }

    // Ends the output without the step.
    void drop(int32_t b, int32_t source) const {
        publish(s_, b, {RecordKind::DROPPED, source, UNSCORED, s_.finish[b]});
        s_.phase[b] = Phase::DONE;
    }

    // Cuts K and V to what is kept; that of another context than the writer's stays.
    void truncate_to_cursors(int32_t b, int32_t writer) const {
        int32_t keep[NUM_ROLES] = {s_.length[b], s_.length[b], s_.prm_length[b]};
        if (s_.separate_contexts[b]) {
            const int32_t other = writer == Role::DRAFT ? Role::TARGET : Role::DRAFT;
            keep[other] = of_role(s_, s_.kv_len, other, b);
        }
        truncate_kv(s_, b, keep, per_page_);
    }

    const RsdSlots& s_;
    const RsdPageSizes& per_page_;
};

}  // namespace

void rsd_cpu_end_step(const RsdSlots* slots, const RsdPageSizes* per_page) {
    const Steps steps(*slots, *per_page);
    for (int32_t b = 0; b < slots->num_slots; ++b) {
        if (!slots->ended[b]) {
            steps.tell_part(b);
        } else if (slots->phase[b] != Phase::WAIT_HOST) {
            steps.end(b);
        }
    }
    end_tick(*slots);
}

void rsd_cpu_decide(const RsdSlots* slots, const RsdBatch* batch, const float* rewards,
                    const RsdPageSizes* per_page) {
    const Steps steps(*slots, *per_page);
    for (int32_t i = 0; i < *slots->num_seqs; ++i) {
        if (batch->seq_complete[i]) steps.decide(batch->seq_slot[i], rewards[i]);
    }
    end_tick(*slots);
}
