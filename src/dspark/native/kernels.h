// What the kernels of one level share. They are compiled once for each level, everything inside a
// namespace of its own: a function that two levels shared would be linked once, with the
// instructions of either. For the same reason they use no templates of the standard library.
#pragma once

#include <time.h>

#include "table.h"
#include "vectors.h"

namespace dspark::DSPARK_LEVEL {

constexpr long SMALL = 1 << 16;  // multiplications that are not worth a second thread

inline double now() {
    timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + 1e-9 * t.tv_nsec;
}

// Adds the seconds of its life to its kind, for this thread's caller to read.
class Clock {
   public:
    explicit Clock(Kind kind) : kind_(kind), start_(now()) {}
    ~Clock() { dspark_times()[static_cast<int>(kind_)] += now() - start_; }

   private:
    Kind kind_;
    double start_;
};

template <class T>
inline T* scratch(Use use, long count) {
    return static_cast<T*>(dspark_scratch(use, count * static_cast<long>(sizeof(T))));
}

// Runs work(begin, end) on parts of 0 … count - 1; no part divides a grain.
template <class Range>
inline void parallel(int threads, long count, long grain, const Range& range) {
    if (threads < 2 || count <= grain) return range(0, count);
    dspark_parallel(
        threads, count, grain,
        [](const void* work, long begin, long end) {
            (*static_cast<const Range*>(work))(begin, end);
        },
        &range);
}

template <class Do>
inline void dispatch(int is_bf16, const Do& work) {
    if (is_bf16)
        work(bf16{});
    else
        work(float{});
}

}  // namespace dspark::DSPARK_LEVEL
