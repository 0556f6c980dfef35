// Arithmetic of attention on some keys and values that follow each other: scores, soft-max, sums of
// values, and putting together what chunks of positions came to.
//
// Each score adds up along the head, each sum of values along the positions, one number after the
// other, for several queries and places side by side.
#pragma once

#include "kernels.h"

namespace dspark::DSPARK_LEVEL {

constexpr int BATCH = 6;           // queries whose sums are in registers at a time
constexpr int KEY_VECTORS = 2;     // and vectors of keys they are multiplied with
constexpr long BLOCK = KEY_VECTORS * LANES;
constexpr int VALUE_VECTORS = DSPARK_BYTES == 32 ? 2 : 4;  // as many as there are registers for

// Calls work with a number of queries known to the compiler, and the first of them.
template <int N>
struct Count {
    static constexpr int value = N;
};

template <class Do>
inline void in_batches(long count, const Do& work) {
    for (long done = 0, left = (count + BATCH - 1) / BATCH; left; left--) {
        const long now = (count - done + left - 1) / left;
        switch (now) {
            case 1: work(Count<1>{}, done); break;
            case 2: work(Count<2>{}, done); break;
            case 3: work(Count<3>{}, done); break;
            case 4: work(Count<4>{}, done); break;
            case 5: work(Count<5>{}, done); break;
            default: work(Count<6>{}, done);
        }
        done += now;
    }
}

// `count` keys as [size, BLOCK]; the places past them hold anything.
template <class T>
inline void turn_keys(const T* keys, long count, long size, float* turned) {
    for (; count > 0; count -= LANES, keys += LANES * size, turned += LANES) {
        const auto key = [&](long n) { return keys + smaller(n, count - 1) * size; };
        long i = 0;
        if constexpr (sizeof(T) == 2)
            for (; i + 2 * LANES <= size; i += 2 * LANES) {
                floats pairs[LANES];
                for (long n = 0; n < LANES; n++) std::memcpy(&pairs[n], key(n) + i, sizeof(floats));
                turn_over(pairs);
                for (long n = 0; n < LANES; n++) {
                    const words both = bits_of<words>(pairs[n]);
                    float* to = turned + (i + 2 * n) * BLOCK;
                    store(to, bits_of<floats>(both << 16));
                    store(to + BLOCK, bits_of<floats>(both & 0xffff0000u));
                }
            }
        for (; i < size; i += LANES) {
            floats lines[LANES];
            for (long n = 0; n < LANES; n++) lines[n] = load(key(n) + i);
            turn_over(lines);
            for (long n = 0; n < LANES; n++) store(turned + (i + n) * BLOCK, lines[n]);
        }
    }
}

// Scores of N queries with a block of keys.
template <int N>
inline void score(const float* q, const float* turned, long size, float scale, float* scores,
                  long stride) {
    floats sums[N][KEY_VECTORS] = {};
    for (long i = 0; i < size; i++) {
        floats key[KEY_VECTORS];
#pragma GCC unroll 2
        for (int k = 0; k < KEY_VECTORS; k++) key[k] = load(turned + i * BLOCK + k * LANES);
#pragma GCC unroll 8
        for (int n = 0; n < N; n++) {
            const floats query = all(q[n * size + i]);
#pragma GCC unroll 2
            for (int k = 0; k < KEY_VECTORS; k++) sums[n][k] += query * key[k];
        }
    }
    for (int n = 0; n < N; n++)
        for (int k = 0; k < KEY_VECTORS; k++)
            store(scores + n * stride + k * LANES, sums[n][k] * scale);
}

// Scores become weights; `top` and `total` are the largest score and the sum of the weights. Which
// lane the first one lies in does not matter: `sum` folds halves, and they turn with the lanes.
inline void soft_max(float* scores, long length, float& top, float& total) {
    floats tops = all(-__builtin_inff());
    for (long i = 0; i < length; i += LANES) tops = largest(tops, load(scores + i));
    top = tops[0];
    for (int i = 1; i < LANES; i++) top = tops[i] > top ? tops[i] : top;
    floats totals = {};
    for (long i = 0; i < length; i += LANES) {
        const floats weight = exp(load(scores + i) - top);
        totals += weight;
        store(scores + i, weight);
    }
    total = sum(totals);
}

// Adds `count` values to the sums of N queries, LANES · C numbers of each.
template <class T, int C, int N>
inline void mix(const T* values, const float* weights, long stride, long count, long size,
                float* out, long apart) {
    floats sums[N][C];
    for (int n = 0; n < N; n++)
        for (int c = 0; c < C; c++) sums[n][c] = load(out + n * apart + c * LANES);
    for (long i = 0; i < count; i++) {
        floats value[C];
#pragma GCC unroll 4
        for (int c = 0; c < C; c++) value[c] = load(values + i * size + c * LANES);
#pragma GCC unroll 8
        for (int n = 0; n < N; n++)
#pragma GCC unroll 4
            for (int c = 0; c < C; c++) sums[n][c] += all(weights[n * stride + i]) * value[c];
    }
    for (int n = 0; n < N; n++)
        for (int c = 0; c < C; c++) store(out + n * apart + c * LANES, sums[n][c]);
}

// Adds values to the sums of `queries` queries, whose lines lie `apart`, weights `stride`.
template <class T>
void mix_all(const T* values, const float* weights, long stride, long count, long queries,
             long size, float* out, long apart) {
    if (count <= 0) return;
    in_batches(queries, [&](auto n, long done) {
        constexpr int N = decltype(n)::value, C = VALUE_VECTORS;
        const float* w = weights + done * stride;
        float* to = out + done * apart;
        long at = 0;
        for (; at + C * LANES <= size; at += C * LANES)
            mix<T, C, N>(values + at, w, stride, count, size, to + at, apart);
        for (; at < size; at += LANES)
            mix<T, 1, N>(values + at, w, stride, count, size, to + at, apart);
    });
}

// What one chunk comes to for one query: its sum of values, then top and total (0 if unseen).
inline long part_size(long size) { return size + PANEL; }

// Puts the chunks of one query together; its parts lie `apart` numbers from each other.
template <class T>
void join(float* parts, long apart, long chunks, long size, T* out) {
    float top = -__builtin_inff(), total = 0;
    for (long c = 0; c < chunks; c++) {
        const float* end = parts + c * apart + size;
        if (end[1] != 0) top = end[0] > top ? end[0] : top;
    }
    for (long c = 0; c < chunks; c++) {
        float* end = parts + c * apart + size;
        end[0] = end[1] != 0 ? exp(all(end[0] - top))[0] : 0;
        total += end[0] * end[1];
    }
    const float factor = 1.0f / total;
    for (long i = 0; i < size; i += LANES) {
        floats sum = {};
        for (long c = 0; c < chunks; c++)
            sum += all(parts[c * apart + size]) * load(parts + c * apart + i);
        store(out + i, sum * factor);
    }
}

}  // namespace dspark::DSPARK_LEVEL
