// As many numbers at a time as one register of the level holds, as compilers for any processor
// understand them.
//
// Every kernel adds up one output in an order that depends on that output alone: not on the rows
// beside it, on the tile it was worked out in or on the number of threads. So a request's numbers
// are the same, bit for bit, whatever else is in the batch. Between levels the order may differ.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#if defined(__AVX512F__)
#define DSPARK_BYTES 64
#elif defined(__AVX2__)
#define DSPARK_BYTES 32
#else
#define DSPARK_BYTES 16
#endif

#if defined(__AVX512BF16__) || defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
#define DSPARK_BF16_DOT 1  // the processor multiplies pairs of bfloat16
#else
#define DSPARK_BF16_DOT 0
#endif

#if defined(__AMX_BF16__)
#define DSPARK_TILES 1  // and tiles of them, and of bytes
#else
#define DSPARK_TILES 0
#endif

namespace dspark::DSPARK_LEVEL {

constexpr long LANES = DSPARK_BYTES / 4;
constexpr long PANEL = 16;  // outputs that lie together in a packed weight, at every level
constexpr int VECTORS = PANEL / LANES;
typedef float floats __attribute__((vector_size(DSPARK_BYTES)));
typedef int32_t ints __attribute__((vector_size(DSPARK_BYTES)));
typedef uint32_t words __attribute__((vector_size(DSPARK_BYTES)));
typedef uint16_t shorts __attribute__((vector_size(DSPARK_BYTES / 2)));

struct bf16 {
    uint16_t bits;
};

template <class To, class From>
inline To bits_of(From value) {
    static_assert(sizeof(To) == sizeof(From));
    To result;
    std::memcpy(&result, &value, sizeof(To));
    return result;
}

inline long smaller(long a, long b) { return a < b ? a : b; }

inline floats all(float value) { return value - floats{}; }

inline floats load(const float* at) {
    floats v;
    std::memcpy(&v, at, sizeof v);
    return v;
}

inline floats load(const bf16* at) {
    shorts v;
    std::memcpy(&v, at, sizeof v);
    return bits_of<floats>(__builtin_convertvector(v, words) << 16);
}

inline void store(float* at, floats v) { std::memcpy(at, &v, sizeof v); }

inline void store(bf16* at, floats v) {  // to the nearest, ties to even
#if defined(__AVX512BF16__)
    const __m256bh rounded = _mm512_cvtneps_pbh(bits_of<__m512>(v));
    std::memcpy(at, &rounded, sizeof rounded);
#else
    const words u = bits_of<words>(v);
    const words up = (u + 0x7fff + ((u >> 16) & 1)) >> 16;
    const words quiet = (u >> 16) | 64;  // rounding must not carry a NaN over to zero
    const shorts rounded = __builtin_convertvector(v == v ? up : quiet, shorts);
    std::memcpy(at, &rounded, sizeof rounded);
#endif
}

// The first `count` numbers; the rest are zeros, or are left alone.
template <class T>
inline floats load_some(const T* at, long count) {
    if (count >= LANES) return load(at);
    T whole[LANES] = {};
    if (count > 0) std::memcpy(whole, at, count * sizeof(T));
    return load(whole);
}

template <class T>
inline void store_some(T* at, floats v, long count) {
    if (count >= LANES) return store(at, v);
    T whole[LANES];
    store(whole, v);
    if (count > 0) std::memcpy(at, whole, count * sizeof(T));
}

inline float sum(floats v) {
    float parts[LANES];
    store(parts, v);
    for (long half = LANES / 2; half; half /= 2)
        for (long i = 0; i < half; i++) parts[i] += parts[i + half];
    return parts[0];
}

// Number i of vector j trades places with number j of vector i.
inline void turn_over(floats (&v)[LANES]) {
#if DSPARK_BYTES == 64
#define LOW(a, b) \
    __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23)
#define HIGH(a, b) \
    __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31)
    constexpr long SQUARE = 16;
#elif DSPARK_BYTES == 32  // two squares of 4 numbers a register, as its halves are apart
#define LOW(a, b) __builtin_shufflevector(a, b, 0, 8, 1, 9, 4, 12, 5, 13)
#define HIGH(a, b) __builtin_shufflevector(a, b, 2, 10, 3, 11, 6, 14, 7, 15)
    constexpr long SQUARE = 4;
    for (long i = 0; i < SQUARE; i++) {
        const floats a = v[i], b = v[i + SQUARE];
        v[i] = __builtin_shufflevector(a, b, 0, 1, 2, 3, 8, 9, 10, 11);
        v[i + SQUARE] = __builtin_shufflevector(a, b, 4, 5, 6, 7, 12, 13, 14, 15);
    }
#else
#define LOW(a, b) __builtin_shufflevector(a, b, 0, 4, 1, 5)
#define HIGH(a, b) __builtin_shufflevector(a, b, 2, 6, 3, 7)
    constexpr long SQUARE = 4;
#endif
#pragma GCC unroll 4
    for (long done = 1; done < SQUARE; done *= 2)
#pragma GCC unroll 2
        for (long first = 0; first < LANES; first += SQUARE) {
            floats next[SQUARE];
#pragma GCC unroll 8
            for (long i = 0; i < SQUARE / 2; i++) {
                const floats a = v[first + i], b = v[first + i + SQUARE / 2];
                next[2 * i] = LOW(a, b), next[2 * i + 1] = HIGH(a, b);
            }
#pragma GCC unroll 16
            for (long i = 0; i < SQUARE; i++) v[first + i] = next[i];
        }
#undef LOW
#undef HIGH
}

inline floats largest(floats a, floats b) { return a > b ? a : b; }
inline floats smallest(floats a, floats b) { return a < b ? a : b; }

// e^x within 2e-7 of its size; 0 below -87, no more than e^88; what is not a number stays none.
inline floats exp(floats x) {
    const floats within = smallest(largest(x, all(-87.0f)), all(88.0f));
    const floats scaled = within * 1.44269504f;
    const floats magic = all(12582912.0f);  // 1.5 · 2^23: adding it rounds to a whole number
    const floats whole = (scaled + magic) - magic;
    const floats low = (within - whole * 0.693145752f) - whole * 1.42860677e-6f;
    floats p = all(1.0f / 5040);
    p = p * low + 1.0f / 720;
    p = p * low + 1.0f / 120;
    p = p * low + 1.0f / 24;
    p = p * low + 1.0f / 6;
    p = p * low + 0.5f;
    p = p * low + 1.0f;
    p = p * low + 1.0f;
    const ints power = (__builtin_convertvector(whole, ints) + 127) << 23;
    const floats result = p * bits_of<floats>(power);
    return x == x ? (x < -87.0f ? floats{} : result) : x;
}

}  // namespace dspark::DSPARK_LEVEL
