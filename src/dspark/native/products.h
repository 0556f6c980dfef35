// How a level multiplies weights of each type: what it reads of them and of the input at a time,
// and how it adds up.
//
// A step is as many inputs as lie together for each output (table.h, Weight). `PARTS` times a step
// an operand of weights and one of the input, repeated for every output, are multiplied and added.
#pragma once

#include "kernels.h"

namespace dspark::DSPARK_LEVEL {

template <class W>
struct Product;

template <>
struct Product<float> {
    using Input = float;
    using Sum = floats;
    using Operand = floats;
    static constexpr int STEP = 1, PARTS = 1;
    static Operand weights(const float* w, int) { return load(w); }
    static Operand input(const float* x, int) { return all(*x); }
    static Sum add(Sum sum, Operand x, Operand w) { return sum + x * w; }
};

#if defined(__AVX512BF16__)
template <>
struct Product<bf16> {
    using Input = bf16;
    using Sum = floats;
    using Operand = __m512bh;
    static constexpr int STEP = 2, PARTS = 1;
    static Operand weights(const bf16* w, int) { return bits_of<__m512bh>(_mm512_loadu_si512(w)); }
    static Operand input(const bf16* x, int) {
        int32_t pair;
        std::memcpy(&pair, x, sizeof pair);
        return bits_of<__m512bh>(_mm512_set1_epi32(pair));
    }
    static Sum add(Sum sum, Operand x, Operand w) {
        return bits_of<floats>(_mm512_dpbf16_ps(bits_of<__m512>(sum), x, w));
    }
};
#elif DSPARK_BF16_DOT
template <>
struct Product<bf16> {
    using Input = bf16;
    using Sum = floats;
    using Operand = bfloat16x8_t;
    static constexpr int STEP = 2, PARTS = 1;
    static Operand weights(const bf16* w, int) {
        return vreinterpretq_bf16_u16(vld1q_u16(reinterpret_cast<const uint16_t*>(w)));
    }
    static Operand input(const bf16* x, int) {
        uint32_t pair;
        std::memcpy(&pair, x, sizeof pair);
        return vreinterpretq_bf16_u32(vdupq_n_u32(pair));
    }
    static Sum add(Sum sum, Operand x, Operand w) {
        return bits_of<floats>(vbfdotq_f32(bits_of<float32x4_t>(sum), w, x));
    }
};
#else
#if DSPARK_BYTES == 32
alignas(32) constexpr uint32_t SECONDS[8] = {0xffff0000u, 0xffff0000u, 0xffff0000u, 0xffff0000u,
                                             0xffff0000u, 0xffff0000u, 0xffff0000u, 0xffff0000u};
#endif

template <>
struct Product<bf16> {  // widened: the first of a pair by a shift, the second by a mask
    using Input = float;
    using Sum = floats;
    using Operand = floats;
    static constexpr int STEP = 2, PARTS = 2;
    static Operand weights(const bf16* w, int part) {
        words pairs;
        std::memcpy(&pairs, w, sizeof pairs);
#if DSPARK_BYTES == 32
        if (part) {  // the mask stays in memory: six rows take every register
            floats second;
            asm("vandps %2, %1, %0" : "=x"(second) : "x"(pairs), "m"(SECONDS));
            return second;
        }
#endif
        return bits_of<floats>(part ? pairs & 0xffff0000u : pairs << 16);
    }
    static Operand input(const float* x, int part) { return all(x[part]); }
    static Sum add(Sum sum, Operand x, Operand w) { return sum + x * w; }
};
#endif

// Products of signed bytes, four for each output. Sums of int32 are exact, so every level finds the
// same. Inputs and weights lie within ±127.
template <>
struct Product<int8_t> {
    using Sum = ints;
    static constexpr int STEP = 4, PARTS = 1;
#if defined(__AVX512VNNI__)
    using Input = uint8_t;  // 128 more than the number, as the instruction wants it
    using Operand = __m512i;
    static constexpr int SHIFT = 128;
    static Operand weights(const int8_t* w, int) { return _mm512_loadu_si512(w); }
    static Operand input(const uint8_t* x, int) {
        int32_t four;
        std::memcpy(&four, x, sizeof four);
        return _mm512_set1_epi32(four);
    }
    static Sum add(Sum sum, Operand x, Operand w) {
        return bits_of<ints>(_mm512_dpbusd_epi32(bits_of<__m512i>(sum), x, w));
    }
#elif defined(__AVX512BW__)
    using Input = int8_t;
    using Operand = __m512i;
    static constexpr int SHIFT = 0;
    static Operand weights(const int8_t* w, int) { return _mm512_loadu_si512(w); }
    static Operand input(const int8_t* x, int) {
        int32_t four;
        std::memcpy(&four, x, sizeof four);
        return _mm512_set1_epi32(four);
    }
    static Sum add(Sum sum, Operand x, Operand w) {  // |w| times the input with the sign of w
        const __m512i zero = _mm512_setzero_si512();
        const __m512i signs = _mm512_mask_sub_epi8(x, _mm512_movepi8_mask(w), zero, x);
        const __m512i pairs = _mm512_maddubs_epi16(_mm512_abs_epi8(w), signs);
        return sum + bits_of<ints>(_mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
    }
#elif defined(__AVX2__)
    using Input = int8_t;
    using Operand = __m256i;
    static constexpr int SHIFT = 0;
    static Operand weights(const int8_t* w, int) {
        return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(w));
    }
    static Operand input(const int8_t* x, int) {
        int32_t four;
        std::memcpy(&four, x, sizeof four);
        return _mm256_set1_epi32(four);
    }
    static Sum add(Sum sum, Operand x, Operand w) {  // |w| times the input with the sign of w
        const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w));
        return sum + bits_of<ints>(_mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
    }
#elif defined(__ARM_NEON)
    using Input = int8_t;
    using Operand = int8x16_t;
    static constexpr int SHIFT = 0;
    static Operand weights(const int8_t* w, int) { return vld1q_s8(w); }
    static Operand input(const int8_t* x, int) {
        int32_t four;
        std::memcpy(&four, x, sizeof four);
        return vreinterpretq_s8_s32(vdupq_n_s32(four));
    }
    static Sum add(Sum sum, Operand x, Operand w) {
#if defined(__ARM_FEATURE_DOTPROD)
        return bits_of<ints>(vdotq_s32(bits_of<int32x4_t>(sum), w, x));
#else
        const int32x4_t low = vpaddlq_s16(vmull_s8(vget_low_s8(x), vget_low_s8(w)));
        const int32x4_t high = vpaddlq_s16(vmull_s8(vget_high_s8(x), vget_high_s8(w)));
        return sum + bits_of<ints>(vpaddq_s32(low, high));
#endif
    }
#endif
};

}  // namespace dspark::DSPARK_LEVEL
