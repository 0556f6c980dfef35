// Writes the keys and values of new rows into the cache, then attends: every row to its own
// request's positions.
//
// Cache of one layer: [slots, kv_heads, max_len, size]. Scores of a query are all kept, so the
// softmax is the plain one; its sums run over positions in order, whatever the batch.
#pragma once


#include "kernels.h"

namespace dspark::DSPARK_LEVEL {

constexpr long TOGETHER = 4;  // query heads that share a reading of values

template <class T>
struct Attention {
    const T *q, *k, *v;              // [rows, heads, size], strided by row
    T *keys, *values, *out;          // the cache; [rows, heads · size]
    const int64_t *slots, *positions;  // [rows]
    const int64_t *firsts, *stops;   // [rows]: positions a row sees
    long q_stride, k_stride, v_stride;
    long rows, heads, kv_heads, size, max_len;
    float scale;
};

#if defined(__AVX512BF16__)
using WideQuery = bf16;  // as it is

inline floats add_pairs(floats sum, const bf16* q, const bf16* k) {
    return bits_of<floats>(_mm512_dpbf16_ps(bits_of<__m512>(sum),
                                            bits_of<__m512bh>(_mm512_loadu_si512(q)),
                                            bits_of<__m512bh>(_mm512_loadu_si512(k))));
}
#else
using WideQuery = float;  // widened once: of each two vectors the even numbers, then the odd ones

inline floats add_pairs(floats sum, const float* q, const bf16* k) {
    words pairs;
    std::memcpy(&pairs, k, sizeof pairs);
    sum += load(q) * bits_of<floats>(pairs << 16);
    return sum + load(q + LANES) * bits_of<floats>(pairs & 0xffff0000u);
}
#endif

// Adds the products of one query with N keys that follow each other, all sums side by side.
template <int N, class Q, class T>
inline void add_products(floats* sums, const Q* q, const T* keys, long size) {
    long i = 0;
    if constexpr (sizeof(T) == 2)
        for (; i + 2 * LANES <= size; i += 2 * LANES)
#pragma GCC unroll 16
            for (int n = 0; n < N; n++) sums[n] = add_pairs(sums[n], q + i, keys + n * size + i);
    for (; i < size; i += LANES)
#pragma GCC unroll 16
        for (int n = 0; n < N; n++) sums[n] += load(q + i) * load(keys + n * size + i);
}

inline const float* query(const float* q, long, long) { return q; }

// `count` queries as keys of bfloat16 are multiplied with them.
inline const WideQuery* query(const bf16* q, [[maybe_unused]] long count,
                              [[maybe_unused]] long size) {
#if defined(__AVX512BF16__)
    return q;
#else
    float* wide = scratch<float>(QUERY, count * size);
    for (long g = 0; g < count; g++, q += size) {
        float* to = wide + g * size;
        long i = 0;
        for (; i + 2 * LANES <= size; i += 2 * LANES)
            for (long lane = 0; lane < LANES; lane++) {
                to[i + lane] = bits_of<float>(uint32_t(q[i + 2 * lane].bits) << 16);
                to[i + LANES + lane] = bits_of<float>(uint32_t(q[i + 2 * lane + 1].bits) << 16);
            }
        for (; i < size; i += LANES) store(to + i, load(q + i));
    }
    return wide;
#endif
}

// Scores of one query with a vector of keys that follow each other; those past `count` are -inf.
template <class Q, class T>
inline floats scores_of(const Q* q, const T* keys, long count, long size, float scale) {
    floats sums[LANES] = {};
    if (count >= LANES) {
        add_products<LANES>(sums, q, keys, size);
        return sums_of(sums) * scale;
    }
    for (int i = 0; i < count; i++) add_products<1>(sums + i, q, keys + i * size, size);
    floats scores = sums_of(sums) * scale;
    for (long i = count; i < LANES; i++) scores[i] = -__builtin_inff();
    return scores;
}

// Scores become weights that sum to one but for the factor returned. Whole vectors of `length`.
inline float soft_max(float* scores, long length) {
    floats top = all(-__builtin_inff());
    for (long i = 0; i < length; i += LANES) top = largest(top, load(scores + i));
    float highest = top[0];
    for (int i = 1; i < LANES; i++) highest = top[i] > highest ? top[i] : highest;
    floats total = {};
    for (long i = 0; i < length; i += LANES) {
        const floats weight = exp(load(scores + i) - highest);
        total += weight;
        store(scores + i, weight);
    }
    return 1.0f / sum(total);
}

// Mix LANES · C numbers of the values for G queries, whose weights lie `stride` apart.
template <class T, int C, int G>
void mix(const T* values, const float* weights, long stride, const float* factors, long count,
         long size, T* out) {
    floats sums[G][C] = {};
    for (long i = 0; i < count; i++) {
#pragma GCC unroll 4
        for (int c = 0; c < C; c++) {
            const floats value = load(values + i * size + c * LANES);
#pragma GCC unroll 4
            for (int g = 0; g < G; g++) sums[g][c] += all(weights[g * stride + i]) * value;
        }
    }
    for (int g = 0; g < G; g++)
        for (int c = 0; c < C; c++) store(out + g * size + c * LANES, sums[g][c] * factors[g]);
}

template <class T, int G>
void mix_all(const T* values, const float* weights, long stride, const float* factors, long count,
             long size, T* out) {
    long at = 0;
    for (; at + 4 * LANES <= size; at += 4 * LANES)
        mix<T, 4, G>(values + at, weights, stride, factors, count, size, out + at);
    for (; at < size; at += LANES)
        mix<T, 1, G>(values + at, weights, stride, factors, count, size, out + at);
}

// `count` query heads from `head` on, of one row; they share one key-value head.
template <class T>
void attend(const Attention<T>& job, long row, long head, long count) {
    const long kv_head = head / (job.heads / job.kv_heads), size = job.size;
    const long first = job.firsts[row], length = job.stops[row] - first;
    const long start = ((job.slots[row] * job.kv_heads + kv_head) * job.max_len + first) * size;
    const long stride = (length + LANES - 1) / LANES * LANES;
    float* scores = scratch<float>(SCORES, count * stride);
    const auto* q = query(job.q + row * job.q_stride + head * size, count, size);
    for (long i = 0; i < length; i += LANES)
        for (long g = 0; g < count; g++)
            store(&scores[g * stride + i],
                  scores_of(q + g * size, job.keys + start + i * size, length - i, size, job.scale));
    float factors[TOGETHER];
    for (long g = 0; g < count; g++) factors[g] = soft_max(&scores[g * stride], stride);
    T* out = job.out + (row * job.heads + head) * size;
    const T* values = job.values + start;
    switch (count) {
        case 1: return mix_all<T, 1>(values, scores, stride, factors, length, size, out);
        case 2: return mix_all<T, 2>(values, scores, stride, factors, length, size, out);
        case 3: return mix_all<T, 3>(values, scores, stride, factors, length, size, out);
        default: return mix_all<T, 4>(values, scores, stride, factors, length, size, out);
    }
}

template <class T>
void write(const Attention<T>& job, long row) {
    const long bytes = job.size * sizeof(T);
    for (long head = 0; head < job.kv_heads; head++) {
        const long place = (job.slots[row] * job.kv_heads + head) * job.max_len;
        const long to = (place + job.positions[row]) * job.size;
        std::memcpy(job.keys + to, job.k + row * job.k_stride + head * job.size, bytes);
        std::memcpy(job.values + to, job.v + row * job.v_stride + head * job.size, bytes);
    }
}

template <class T>
void run(const Attention<T>& job, int threads) {
    const long groups = job.heads / job.kv_heads;
    // One head at a time where there is little to share out, else all that share their values.
    long together = smaller(groups, TOGETHER);
    while (groups % together || (together > 1 && job.rows * job.heads / together < 4 * threads))
        together--;
    for (long row = 0; row < job.rows; row++) write(job, row);
    parallel(threads, job.rows * job.heads / together, 1, [&](long begin, long end) {
        for (long unit = begin; unit < end; unit++) {
            const long first = unit * together;
            attend(job, first / job.heads, first % job.heads, together);
        }
    });
}

int attend(int is_bf16, const void* q, long q_stride, const void* k, long k_stride, const void* v,
           long v_stride, void* keys, void* values, const int64_t* slots, const int64_t* positions,
           const int64_t* firsts, const int64_t* stops, void* out, long rows, long heads,
           long kv_heads, long size, long cache_slots, long max_len, float scale, int threads) {
    const Clock clock(Kind::attention);
    for (long row = 0; row < rows; row++)
        if (slots[row] < 0 || slots[row] >= cache_slots || positions[row] < 0 ||
            positions[row] >= max_len || firsts[row] < 0 || firsts[row] >= stops[row] ||
            stops[row] > max_len)
            return 1;
    dispatch(is_bf16, [&](auto type) {
        using T = decltype(type);
        run(Attention<T>{static_cast<const T*>(q), static_cast<const T*>(k),
                         static_cast<const T*>(v), static_cast<T*>(keys), static_cast<T*>(values),
                         static_cast<T*>(out), slots, positions, firsts, stops, q_stride, k_stride,
                         v_stride, rows, heads, kv_heads, size, max_len, scale},
            threads);
    });
    return 0;
}

// Heads of rows into a layer's cache, at places that lie inside of it.
void write_all(int is_bf16, const void* k, long k_stride, const void* v,
               long v_stride, void* keys, void* values, const int64_t* slots,
               const int64_t* positions, long rows, long kv_heads, long size, long max_len) {
    dispatch(is_bf16, [&](auto type) {
        using T = decltype(type);
        Attention<T> job{};
        job.k = static_cast<const T*>(k), job.v = static_cast<const T*>(v);
        job.keys = static_cast<T*>(keys), job.values = static_cast<T*>(values);
        job.slots = slots, job.positions = positions;
        job.k_stride = k_stride, job.v_stride = v_stride;
        job.kv_heads = kv_heads, job.size = size, job.max_len = max_len;
        for (long row = 0; row < rows; row++) write(job, row);
    });
}

}  // namespace dspark::DSPARK_LEVEL
