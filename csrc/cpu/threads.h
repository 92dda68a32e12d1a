// Work shared by the threads of the process's OpenMP pool. The library is compiled with OpenMP but
// not linked to it: its calls go to the OpenMP that torch has loaded, so there is one pool, of the
// size that torch was given.
//
// Waking a thread takes as long as a small op, so one team does all ops of a call. Its threads take
// the parts of an op as they come: a core that is slow, or busy with something else, does fewer of
// them, and the others wait at most for the part it has begun.

#ifndef RSD_CPU_THREADS_H_
#define RSD_CPU_THREADS_H_

#include <omp.h>
#include <sched.h>
#include <stdint.h>

#include <atomic>

// Work is counted in multiplications. Reading a float from memory takes about as long as FLOAT_READ
// of them, and waking a thread as long as WORK_PER_THREAD. Less than WORK_PER_PART is not worth a
// part of its own.
constexpr int64_t FLOAT_READ = 8;
constexpr int64_t WORK_PER_THREAD = 1 << 21;
constexpr int64_t WORK_PER_PART = 1 << 14;
constexpr int64_t PARTS_PER_THREAD = 4;

inline int64_t at_least_one(int64_t number, int64_t most) {
    return number < 1 || most < 1 ? 1 : number < most ? number : most;
}

// Which op a team is at, and which of its parts are taken and done.
class Progress {
  public:
    // Takes the next of the `count` parts of this op. False once all of them are done.
    bool take(int64_t op, int64_t count, int64_t& part) {
        int64_t now = taken_.load(std::memory_order_acquire);
        for (int64_t turns = 0; now / MOST_PARTS == op;) {
            if (now % MOST_PARTS < count) {
                if (taken_.compare_exchange_weak(now, now + 1, std::memory_order_acq_rel,
                                                 std::memory_order_acquire)) {
                    part = now % MOST_PARTS;
                    return true;
                }
            } else {
                // With more threads than cores, the one waited for may need this core.
                if (++turns < SPINS) {
                    relax();
                } else {
                    sched_yield();
                }
                now = taken_.load(std::memory_order_acquire);
            }
        }
        return false;
    }

    // A part is done; after the last one the team is at the next op.
    void finish(int64_t op, int64_t count) {
        if (done_.fetch_add(1, std::memory_order_acq_rel) + 1 == count) {
            done_.store(0, std::memory_order_relaxed);
            taken_.store((op + 1) * MOST_PARTS, std::memory_order_release);
        }
    }

  private:
    static constexpr int64_t MOST_PARTS = int64_t{1} << 32;
    static constexpr int64_t SPINS = 4000;

    static void relax() {
#if defined(__x86_64__)
        __builtin_ia32_pause();
#elif defined(__aarch64__)
        asm volatile("yield");
#endif
    }

    alignas(64) std::atomic<int64_t> taken_{0};  // op * MOST_PARTS + parts taken
    alignas(64) std::atomic<int64_t> done_{0};
};

// One thread's view of its team. All threads must call the same ops in the same order.
class Team {
  public:
    Team(int64_t size, Progress& progress) : size_(size), progress_(progress) {}

    // An op: fn(part) once for every part below `count`, on any thread. On return all parts are
    // done, and what they wrote can be read.
    template <typename Fn>
    void each(int64_t count, const Fn& fn) {
        if (size_ == 1) {
            for (int64_t part = 0; part < count; ++part) fn(part);
        } else if (count > 0) {
            for (int64_t part; progress_.take(op_, count, part); progress_.finish(op_, count)) {
                fn(part);
            }
            ++op_;
        }
    }

    // An op: fn(first, last) on consecutive ranges that cover 0..count. The length of each but the
    // last is a multiple of `unit`.
    template <typename Fn>
    void ranges(int64_t count, int64_t unit, int64_t work, const Fn& fn) {
        const int64_t units = (count + unit - 1) / unit;
        const int64_t wanted = at_least_one(work / WORK_PER_PART, size_ * PARTS_PER_THREAD);
        const int64_t parts = size_ == 1 ? 1 : at_least_one(wanted, units);
        each(parts, [&](int64_t part) {
            const int64_t first = units * part / parts * unit;
            const int64_t last = units * (part + 1) / parts * unit;
            if (first < last) fn(first, last < count ? last : count);
        });
    }

  private:
    const int64_t size_;
    Progress& progress_;
    int64_t op_ = 0;
};

// Calls fn(team) on as many threads as the work is worth.
template <typename Fn>
void in_team(int64_t work, int64_t num_threads, const Fn& fn) {
    const int64_t threads = at_least_one(work / WORK_PER_THREAD, num_threads);
    Progress progress;
    if (threads == 1) {
        Team alone(1, progress);
        return fn(alone);
    }
#pragma omp parallel num_threads(static_cast<int>(threads))
    {
        Team team(omp_get_num_threads(), progress);
        fn(team);
    }
}

#endif  // RSD_CPU_THREADS_H_
