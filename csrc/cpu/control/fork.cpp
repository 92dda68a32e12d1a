// Makes a slot a copy of another one, between two launches. Twin: rsd_kernels/fork/twin.py.

#include <string.h>

#include "slots.h"

namespace {

class Fork {
  public:
    Fork(const RsdSlots& s, int32_t source, int32_t target)
        : s_(s), source_(source), target_(target) {}

    void copy(const RsdForkedColumn& column) const {
        memcpy(column.bytes + target_ * column.slot_bytes,
               column.bytes + source_ * column.slot_bytes, static_cast<size_t>(used_bytes(column)));
    }

    // Whole pages are shared. The partial one is copied onto a page of the target's own; where
    // none is free, its tokens are read again.
    void share_pages(int32_t role, int32_t per_page, const RsdPool& pool) const {
        int32_t kv_len = of_role(s_, s_.kv_len, role, source_);
        // A writer reads its last token again to sample from it.
        if (role != Role::PRM) kv_len = std::max(0, std::min(kv_len, s_.length[source_] - 1));
        const int32_t whole = kv_len / per_page;
        const int32_t* from = pages_of(s_, role, source_);
        int32_t* to = pages_of(s_, role, target_);
        std::copy_n(from, whole, to);
        for (int32_t i = 0; i < whole; ++i) ++s_.page_owners[from[i]];
        of_role(s_, s_.num_pages, role, target_) = whole;
        if (kv_len % per_page && *s_.num_free > 0) {
            take_pages(s_, role, target_, 1);
            memcpy(pool.bytes + to[whole] * pool.page_bytes,
                   pool.bytes + from[whole] * pool.page_bytes,
                   static_cast<size_t>(pool.page_bytes));
        } else {
            kv_len = whole * per_page;
        }
        of_role(s_, s_.kv_len, role, target_) = kv_len;
    }

  private:
    int64_t used_bytes(const RsdForkedColumn& column) const {
        switch (column.used) {
            case RSD_CPU_CONTEXT:
                return int64_t{sizeof(int32_t)} *
                       std::max(s_.length[source_], s_.guess_end[source_]);
            case RSD_CPU_PRM_CONTEXT: return int64_t{sizeof(int32_t)} * s_.prm_length[source_];
            case RSD_CPU_LOGPROBS: return s_.num_logprobs[source_] < 0 ? 0 : column.slot_bytes;
            default: return column.slot_bytes;
        }
    }

    const RsdSlots& s_;
    const int32_t source_, target_;
};

}  // namespace

void rsd_cpu_fork(const RsdSlots* slots, const RsdForkedColumn* columns, const RsdPool* pool,
                  const RsdPageSizes* per_page, int32_t num_columns, int32_t source,
                  int32_t target) {
    const Fork fork(*slots, source, target);
    for (int32_t i = 0; i < num_columns; ++i) fork.copy(columns[i]);
    for (int32_t role = 0; role < NUM_ROLES; ++role) {
        fork.share_pages(role, static_cast<int32_t>(per_page->of_role[role]), *pool);
    }
}
