// How the threads that compute a node share its work.
#pragma once

#include <atomic>
#include <cstdint>

// Hands the chunks of a node's work to whichever thread is free: cores differ in speed and have other
// things to do. Who computes a chunk makes no difference to its result. Relies on ggml's calling a
// node on every thread exactly once.
class alora_chunks {
  public:
    // Calls body(begin, end) for ranges that make up [0, n), from all nth threads together.
    template <typename F> void each_range(int64_t n, int ith, int nth, const F & body) {
        const int64_t n_chunks = n < PER_THREAD * nth ? n : PER_THREAD * nth;
        each(n_chunks, ith, nth,
                [&](int64_t i) { body(n * i / n_chunks, n * (i + 1) / n_chunks); });
    }

    // Calls body(i) for each i in [0, n), from all nth threads together.
    template <typename F> void each(int64_t n, int ith, int nth, const F & body) {
        for (int64_t i = ith; i < n; i = nth + next.fetch_add(1, std::memory_order_relaxed)) {
            body(i);
        }
        // the last thread to leave makes it ready for the next time
        if (left.fetch_add(1, std::memory_order_acq_rel) == nth - 1) {
            next.store(0, std::memory_order_relaxed);
            left.store(0, std::memory_order_release);
        }
    }

  private:
    static constexpr int64_t PER_THREAD = 4;

    std::atomic<int64_t> next{ 0 };
    std::atomic<int>     left{ 0 };
};
