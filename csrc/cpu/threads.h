// Work over the threads of the process's OpenMP pool. The library is compiled with OpenMP and
// linked without it: its calls go to the OpenMP that torch has loaded, so that there is one pool,
// of the size torch was told.

#ifndef RSD_CPU_THREADS_H_
#define RSD_CPU_THREADS_H_

#include <omp.h>
#include <stdint.h>

// Waking and joining a thread costs microseconds: about what so many products of floats cost.
constexpr int64_t PRODUCTS_PER_THREAD = 1 << 17;

inline int64_t threads_for(int64_t products, int64_t num_threads) {
    const int64_t wanted = products / PRODUCTS_PER_THREAD;
    return wanted < 1 ? 1 : wanted < num_threads ? wanted : num_threads;
}

// fn(first, last) on consecutive ranges that cover 0..count, each a multiple of `unit` long but the
// last. `products` says how much work it is in all.
template <typename Fn>
void over_ranges(int64_t count, int64_t unit, int64_t products, int64_t num_threads, const Fn& fn) {
    const int64_t threads = threads_for(products, num_threads);
    if (threads == 1) return fn(static_cast<int64_t>(0), count);
#pragma omp parallel num_threads(static_cast<int>(threads))
    {
        const int64_t index = omp_get_thread_num(), team = omp_get_num_threads();
        const int64_t units = (count + unit - 1) / unit;
        const int64_t first = units * index / team * unit;
        int64_t last = units * (index + 1) / team * unit;
        if (last > count) last = count;
        if (first < last) fn(first, last);
    }
}

#endif  // RSD_CPU_THREADS_H_
