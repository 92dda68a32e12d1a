// What the loop ops share: a slot's K and V, its pages, and the clock of the ticks.

#ifndef RSD_CPU_CONTROL_SLOTS_H_
#define RSD_CPU_CONTROL_SLOTS_H_

#include <algorithm>
#include <chrono>

#include "../rsd_cpu.h"
#include "enums.h"

// The element of a column [NUM_ROLES, B].
template <typename T>
T& of_role(const RsdSlots& s, T* column, int32_t role, int32_t slot) {
    return column[role * s.num_slots + slot];
}

inline int32_t* context_of(const RsdSlots& s, int32_t slot) { return s.tokens + slot * s.max_len; }

inline int32_t* pages_of(const RsdSlots& s, int32_t role, int32_t slot) {
    return s.page_table + (role * s.num_slots + slot) * s.num_columns;
}

inline int32_t pages_for(int32_t num_tokens, int32_t tokens_per_page) {
    return (num_tokens + tokens_per_page - 1) / tokens_per_page;
}

inline bool is_stop_token(const RsdSlots& s, int32_t slot, int32_t token) {
    const int32_t* stops = s.stop_tokens + slot * MAX_STOP_TOKENS;
    return std::find(stops, stops + MAX_STOP_TOKENS, token) != stops + MAX_STOP_TOKENS;
}

// Moves pages from the stack to the end of a page table; the caller checked that both have room.
inline void take_pages(const RsdSlots& s, int32_t role, int32_t slot, int32_t count) {
    int32_t& held = of_role(s, s.num_pages, role, slot);
    int32_t* table = pages_of(s, role, slot);
    for (; count > 0; --count) {
        const int32_t page = s.free_pages[--*s.num_free];
        s.page_owners[page] = 1;
        ++s.page_stamp[page];
        table[held++] = page;
    }
}

// Gives up all but the first `kept` pages, last first; those that no table names now are free.
inline void give_up_pages(const RsdSlots& s, int32_t role, int32_t slot, int32_t kept) {
    int32_t& held = of_role(s, s.num_pages, role, slot);
    const int32_t* table = pages_of(s, role, slot);
    while (held > kept) {
        const int32_t page = table[--held];
        if (--s.page_owners[page] == 0) s.free_pages[(*s.num_free)++] = page;
    }
}

// Rolls back one slot to keep[role] tokens of K and V, and gives up pages no longer needed.
inline void truncate_kv(const RsdSlots& s, int32_t slot, const int32_t (&keep)[NUM_ROLES],
                        const RsdPageSizes& per_page) {
    for (int32_t role = 0; role < NUM_ROLES; ++role) {
        int32_t& kv_len = of_role(s, s.kv_len, role, slot);
        kv_len = std::min(kv_len, keep[role]);
        give_up_pages(s, role, slot, pages_for(kv_len, per_page.of_role[role]));
    }
}

// Nanoseconds of the clock that Python's `perf_counter_ns` reads.
inline int64_t now() {
    const auto since = std::chrono::steady_clock::now().time_since_epoch();
    return std::chrono::duration_cast<std::chrono::nanoseconds>(since).count();
}

inline void begin_tick(const RsdSlots& s) {
    const int64_t time = now();
    if (*s.tick > 1) *s.idle_nanoseconds += time - *s.tick_end;
    *s.tick_nanoseconds -= time;
}

inline void end_tick(const RsdSlots& s) {
    *s.tick_end = now();
    *s.tick_nanoseconds += *s.tick_end;
}

#endif  // RSD_CPU_CONTROL_SLOTS_H_
