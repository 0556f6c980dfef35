// What is done to each row by itself: norm, gate, rotation.
#pragma once


#include "kernels.h"

namespace dspark::DSPARK_LEVEL {

inline floats sigmoid(floats x) { return 1.0f / (1.0f + exp(-x)); }

inline floats activate(floats x, bool silu) {
    if (silu) return x * sigmoid(x);
    return x * sigmoid(1.59576912f * (x + 0.044715f * x * x * x));  // GELU; 2 · sqrt(2 / π)
}

template <class T>
void norm(const T* x, const T* weight, T* y, long size, float eps) {
    floats squares = {};
    for (long i = 0; i < size; i += LANES) {
        const floats v = load_some(x + i, size - i);
        squares += v * v;
    }
    const float factor = 1.0f / __builtin_sqrtf(sum(squares) / size + eps);
    for (long i = 0; i < size; i += LANES) {
        const long left = size - i;
        store_some(y + i, load_some(x + i, left) * factor * load_some(weight + i, left), left);
    }
}

template <class T>
void gate(const T* gate_up, T* y, long size, bool silu) {
    for (long i = 0; i < size; i += LANES) {
        const long left = size - i;
        const floats gated = activate(load_some(gate_up + i, left), silu);
        store_some(y + i, gated * load_some(gate_up + size + i, left), left);
    }
}

// One head: halves (a, b) become (a cos - b sin, b cos + a sin); `sin` carries the sign.
template <class T>
void rotate(const T* x, const T* cos, const T* sin, T* y, long half) {
    for (long i = 0; i < half; i += LANES) {
        const long left = half - i;
        const floats a = load_some(x + i, left), b = load_some(x + half + i, left);
        const floats low = a * load_some(cos + i, left) + b * load_some(sin + i, left);
        const floats high =
            b * load_some(cos + half + i, left) + a * load_some(sin + half + i, left);
        store_some(y + i, low, left);
        store_some(y + half + i, high, left);
    }
}

void norm(int is_bf16, const void* x, const void* weight, void* y, long rows, long size, float eps,
          int threads) {
    const Clock clock(Kind::norm);
    if (rows * size < SMALL) threads = 1;
    dispatch(is_bf16, [&](auto type) {
        using T = decltype(type);
        parallel(threads, rows, 8, [&](long begin, long end) {
            for (long row = begin; row < end; row++)
                norm(static_cast<const T*>(x) + row * size, static_cast<const T*>(weight),
                     static_cast<T*>(y) + row * size, size, eps);
        });
    });
}

void gate(int is_bf16, const void* gate_up, void* y, long rows, long size, int silu, int threads) {
    const Clock clock(Kind::elementwise);
    if (rows * size < SMALL) threads = 1;
    dispatch(is_bf16, [&](auto type) {
        using T = decltype(type);
        parallel(threads, rows, 8, [&](long begin, long end) {
            for (long row = begin; row < end; row++)
                gate(static_cast<const T*>(gate_up) + row * 2 * size,
                     static_cast<T*>(y) + row * size, size, silu);
        });
    });
}

void rotate(int is_bf16, const void* x, long stride, const void* cos, const void* sin, void* y,
            long rows, long heads, long size, int threads) {
    const Clock clock(Kind::elementwise);
    if (rows * heads * size < SMALL) threads = 1;
    dispatch(is_bf16, [&](auto type) {
        using T = decltype(type);
        parallel(threads, rows, 8, [&](long begin, long end) {
            for (long row = begin; row < end; row++)
                for (long head = 0; head < heads; head++)
                    rotate(static_cast<const T*>(x) + row * stride + head * size,
                           static_cast<const T*>(cos) + row * size,
                           static_cast<const T*>(sin) + row * size,
                           static_cast<T*>(y) + (row * heads + head) * size, size / 2);
        });
    });
}

}  // namespace dspark::DSPARK_LEVEL
