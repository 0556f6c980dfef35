// The largest of a row: the token of a greedy choice, and of a whole greedy block.
#pragma once


#include "kernels.h"

namespace dspark::DSPARK_LEVEL {

template <class T>
inline floats plus(const T* x, const T* bias, long at, long count) {
    const floats v = load_some(x + at, count);
    return bias ? v + load_some(bias + at, count) : v;
}

// Place of the first largest number; -1 where one is not a number or none is finite.
template <class T>
int64_t first_largest(const T* x, const T* bias, long size) {
    floats top = all(-__builtin_inff());
    ints wrong = {};
    for (long i = 0; i + LANES <= size; i += LANES) {
        const floats v = plus(x, bias, i, LANES);
        top = largest(v, top);
        wrong |= v != v;
    }
    float highest = -__builtin_inff();
    bool fine = true;
    for (long i = size / LANES * LANES; i < size; i++) {
        const float v = plus(x, bias, i, 1)[0];
        highest = v > highest ? v : highest;
        fine = fine && v == v;
    }
    for (int lane = 0; lane < LANES; lane++) {
        highest = top[lane] > highest ? top[lane] : highest;
        fine = fine && !wrong[lane];
    }
    if (!fine || __builtin_isinf(highest)) return -1;
    for (long i = 0; i < size; i += LANES) {
        const ints same = plus(x, bias, i, size - i) == highest;
        for (long lane = 0; lane < LANES && i + lane < size; lane++)
            if (same[lane]) return i + lane;
    }
    return -1;
}

// The greedy tokens of one block from slot `done` on; returns the slots that have one. It ends early
// at a token whose bias row is not kept.
template <class T>
long follow(const T* base, const Biases& kept, int64_t* ids, long done, long slots, long size) {
    for (; done < slots; done++) {
        const int64_t place = kept.place_of[ids[done]];
        if (place < 0) return done;
        const T* bias = static_cast<const T*>(kept.rows) + place * size;
        const int64_t best = first_largest(base + done * size, bias, size);
        const int64_t token = best < 0 ? 0 : best;  // a draft without a largest is only a bad one
        ids[done + 1] = kept.target_ids ? kept.target_ids[token] : token;
        __atomic_store_n(&kept.used[place], kept.turn, __ATOMIC_RELAXED);
    }
    return done;
}

void argmax(int is_bf16, const void* x, long stride, const void* bias, long bias_stride,
            int64_t* places, long rows, long size, int threads) {
    const Clock clock(Kind::choice);
    if (rows * size < SMALL) threads = 1;
    dispatch(is_bf16, [&](auto type) {
        using T = decltype(type);
        parallel(threads, rows, 1, [&](long begin, long end) {
            for (long row = begin; row < end; row++)
                places[row] = first_largest(
                    static_cast<const T*>(x) + row * stride,
                    bias ? static_cast<const T*>(bias) + row * bias_stride : nullptr, size);
        });
    });
}

void follow(int is_bf16, const void* base, const Biases* kept, int64_t* ids, int64_t* done,
            long requests, long slots, long size, int threads) {
    const Clock clock(Kind::choice);
    if (requests * size < SMALL) threads = 1;
    dispatch(is_bf16, [&](auto type) {
        using T = decltype(type);
        parallel(threads, requests, 1, [&](long begin, long end) {
            for (long r = begin; r < end; r++)
                done[r] = follow(static_cast<const T*>(base) + r * slots * size, *kept,
                                 ids + r * (slots + 1), done[r], slots, size);
        });
    });
}

}  // namespace dspark::DSPARK_LEVEL
