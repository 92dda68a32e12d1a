// Work over the threads of the process's OpenMP pool. The library is compiled with OpenMP and
// linked without it: its calls go to the OpenMP that torch has loaded, so that there is one pool,
// of the size torch was told.
//
// Waking a thread that sleeps takes as long as a small op, so one team does all ops of a call, and
// its threads meet between two ops.

#ifndef RSD_CPU_THREADS_H_
#define RSD_CPU_THREADS_H_

#include <omp.h>
#include <sched.h>
#include <stdint.h>

#include <atomic>

// Work is counted in products of floats. To read a float from memory takes about as long as
// FLOAT_READ of them, to wake a thread as long as WORK_PER_THREAD, to meet as WORK_PER_SHARE.
constexpr int64_t FLOAT_READ = 8;
constexpr int64_t WORK_PER_THREAD = 1 << 21;
constexpr int64_t WORK_PER_SHARE = 1 << 13;

inline int64_t shares_of(int64_t work, int64_t work_per_share, int64_t most) {
    const int64_t wanted = work / work_per_share;
    return wanted < 1 ? 1 : wanted < most ? wanted : most;
}

// Where the threads of a team meet, and what they take shares from.
class Meeting {
  public:
    // Returns when all `team_size` threads have come.
    void wait(int64_t team_size) {
        const int64_t now = number_.load(std::memory_order_relaxed);
        if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == team_size) {
            arrived_.store(0, std::memory_order_relaxed);
            next_share_.store(0, std::memory_order_relaxed);
            number_.store(now + 1, std::memory_order_release);
            return;
        }
        for (int64_t i = 0; number_.load(std::memory_order_acquire) == now; ++i) {
            // Where there are more threads than cores, the one that is late needs this core.
            if (i < SPINS) {
                relax();
            } else {
                sched_yield();
            }
        }
    }

    // 0, 1, ... in turn, over all threads; from 0 again after they have met.
    int64_t take() { return next_share_.fetch_add(1, std::memory_order_relaxed); }

  private:
    static constexpr int64_t SPINS = 4000;

    static void relax() {
#if defined(__x86_64__)
        __builtin_ia32_pause();
#elif defined(__aarch64__)
        asm volatile("yield");
#endif
    }

    alignas(64) std::atomic<int64_t> arrived_{0};
    alignas(64) std::atomic<int64_t> number_{0};
    alignas(64) std::atomic<int64_t> next_share_{0};
};

// One thread's view of its team.
struct Team {
    int64_t index, size;
    Meeting& meeting;

    // All that the threads have written so far can be read afterwards.
    void wait() const { meeting.wait(size); }

    // fn(first, last) on this thread's part of 0..count: one of consecutive ranges, each a multiple
    // of `unit` long but the last. Little work is not divided: most threads then have no part.
    template <typename Fn>
    void range(int64_t count, int64_t unit, int64_t work, const Fn& fn) const {
        const int64_t shares = shares_of(work, WORK_PER_SHARE, size);
        if (index >= shares) return;
        const int64_t units = (count + unit - 1) / unit;
        const int64_t first = units * index / shares * unit;
        int64_t last = units * (index + 1) / shares * unit;
        if (last > count) last = count;
        if (first < last) fn(first, last);
    }
};

// fn(team) on as many threads as the work is worth.
template <typename Fn>
void in_team(int64_t work, int64_t num_threads, const Fn& fn) {
    const int64_t threads = shares_of(work, WORK_PER_THREAD, num_threads);
    Meeting meeting;
    if (threads == 1) return fn(Team{0, 1, meeting});
#pragma omp parallel num_threads(static_cast<int>(threads))
    fn(Team{omp_get_thread_num(), omp_get_num_threads(), meeting});
}

#endif  // RSD_CPU_THREADS_H_
