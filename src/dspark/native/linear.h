// y = x Wᵀ (+ bias) (+ residual), for rows few enough that reading W is what takes the time.
//
// W [out, in] lies in panels of 16 outputs, so that a panel is read in one run.
#pragma once

#include "tiles.h"

namespace dspark::DSPARK_LEVEL {

// Outputs worked out together, rows x panels: what the registers hold. Few rows leave room for more
// panels, and so for more of the weight on its way from memory at a time.
#if DSPARK_BYTES == 64
constexpr int MOST_ROWS = 8;
constexpr int panels_beside(int rows) { return rows <= 6 ? 4 : 3; }
#elif DSPARK_BYTES == 32
constexpr int MOST_ROWS = 6;
constexpr int panels_beside(int rows) { return rows <= 1 ? 4 : rows <= 2 ? 2 : 1; }
#else
constexpr int MOST_ROWS = 6;
constexpr int panels_beside(int rows) { return rows <= 1 ? 4 : rows <= 2 ? 2 : 1; }
#endif
constexpr long AHEAD = DSPARK_BYTES == 64 ? 2048 : 4096;  // bytes asked for early, by measurement
constexpr int FIRST = 4;      // steps of the next tile asked for early: it begins on new pages

template <class W>
inline void ahead(const W* weight) {
    __builtin_prefetch(reinterpret_cast<const char*>(weight) + AHEAD);
}

// M rows from `row` on, P panels from `panel` on.
template <class W, class T, int M, int P>
void tile(const Job<W, T>& job, long row, long panel) {
    using Do = Product<W>;
    constexpr int V = P * VECTORS;
    const long width = PANEL * Do::STEP, steps = job.in / Do::STEP, apart = steps * width;
    const W* weight = job.weight + panel * apart;
    const typename Do::Input* x = job.x + row * job.in;
    typename Do::Sum sums[M][V] = {};
    for (long k = 0; k < steps; k++) {
#pragma GCC unroll 2
        for (int part = 0; part < Do::PARTS; part++) {
            typename Do::Operand w[V];
#pragma GCC unroll 16
            for (int v = 0; v < V; v++)
                w[v] = Do::weights(weight + (v / VECTORS) * apart + k * width +
                                       (v % VECTORS) * LANES * Do::STEP, part);
            if (!part) {
#pragma GCC unroll 16
                for (int p = 0; p < P; p++) ahead(weight + p * apart + k * width);
            }
#pragma GCC unroll 16
            for (int m = 0; m < M; m++) {
                const typename Do::Operand mine = Do::input(x + m * job.in + k * Do::STEP, part);
#pragma GCC unroll 16
                for (int v = 0; v < V; v++) sums[m][v] = Do::add(sums[m][v], mine, w[v]);
            }
        }
    }
    for (int j = 0; j < FIRST; j++)
        for (int p = 0; p < P; p++)
            __builtin_prefetch(weight + (P + p) * apart + j * width);
#pragma GCC unroll 16
    for (int m = 0; m < M; m++) {
#pragma GCC unroll 16
        for (int v = 0; v < V; v++)
            write_out(job, row + m, panel * PANEL + v * LANES, sums[m][v]);
    }
}

// All rows of P panels, in groups of M and M - 1 rows: groups of one size keep the processor busier
// than full ones and a rest.
template <class W, class T, int M, int P>
void groups(const Job<W, T>& job, long panel) {
    const long count = (job.rows + M - 1) / M, full = job.rows - count * (M - 1);
    long row = 0;
    for (long group = 0; group < full; group++, row += M) tile<W, T, M, P>(job, row, panel);
    if constexpr (M > 1)
        for (; row < job.rows; row += M - 1) tile<W, T, M - 1, P>(job, row, panel);
}

template <class W, class T, int M>
void panels(const Job<W, T>& job, long panel, long end) {
    constexpr int P = panels_beside(M);
    for (; panel + P <= end; panel += P) groups<W, T, M, P>(job, panel);
    if constexpr (P > 1)
        for (; panel < end; panel++) groups<W, T, M, 1>(job, panel);
}

// Goes on to M, the rows of the largest group.
template <class W, class T, int M>
void by_rows(const Job<W, T>& job, long rows, long panel, long end) {
    if constexpr (M > 1) {
        if (rows < M) return by_rows<W, T, M - 1>(job, rows, panel, end);
    }
    panels<W, T, M>(job, panel, end);
}

template <class T>
const float* widened(const T* x, long count) {
    float* wide = scratch<float>(Use::wide_input, count);
    for (long i = 0; i < count; i += LANES)
        store_some(wide + i, load_some(x + i, count - i), count - i);
    return wide;
}

#if DSPARK_TILES
// Whether the product is done. Sums of bytes are exact, so any way finds the same.
template <class W, class T>
bool run_by_tiles(const Job<W, T>& job, int threads) {
    if constexpr (sizeof(W) == 4) {
        return false;
    } else {
        if (!tiles_serve<W>(job.in) || (sizeof(W) == 1 && job.rows <= FEW_BYTES)) return false;
        if constexpr (sizeof(W) == 2) {
            if (job.rows <= FEW_BF16) {
                const float* x = widened(job.x, job.rows * job.in);
                if (job.rows == 1)
                    run_few<T, 1>(job, x, threads);
                else
                    run_few<T, 2>(job, x, threads);
                return true;
            }
        }
        run_tiles(job, threads);
        return true;
    }
}
#endif

template <class W, class T>
void run(const Job<W, T>& job, int threads) {
    if (job.rows * job.out * job.in < SMALL) threads = 1;
#if DSPARK_TILES
    if (run_by_tiles(job, threads)) return;
#endif
    const long groups = (job.rows + MOST_ROWS - 1) / MOST_ROWS;
    const long rows = (job.rows + groups - 1) / groups;  // of the largest group
    parallel(threads, (job.out + PANEL - 1) / PANEL, panels_beside(rows),
             [&](long begin, long end) { by_rows<W, T, MOST_ROWS>(job, rows, begin, end); });
}

template <class T>
inline void shrink(const T* x, typename Product<int8_t>::Input* y, float* scale, long size) {
    floats top = {};
    for (long i = 0; i < size; i += LANES) {
        const floats v = load_some(x + i, size - i);
        top = largest(top, largest(v, -v));
    }
    float most = 0;
    for (long lane = 0; lane < LANES; lane++) most = top[lane] > most ? top[lane] : most;
    *scale = most / 127.0f;
    const float factor = most > 0 ? 127.0f / most : 0.0f;
    const floats magic = all(12582912.0f);  // rounds to a whole number, ties to even
    for (long i = 0; i < size; i += LANES) {
        floats scaled = load_some(x + i, size - i) * factor;
        asm("" : "+m"(scaled));  // or compilers may join it to the sum, and ties fall otherwise
        const floats whole = (scaled + magic) - magic;
        const ints number = __builtin_convertvector(whole, ints);
        for (long lane = 0; lane < LANES && i + lane < size; lane++)
            y[i + lane] = static_cast<typename Product<int8_t>::Input>(
                number[lane] + Product<int8_t>::SHIFT);
    }
}

// What a product of T with weights of type W reads: x itself, or a copy as the level multiplies it.
template <class W, class T>
void give_input(Job<W, T>& job, const T* x) {
    if constexpr (sizeof(W) == 1) {
        auto* bytes = scratch<typename Product<int8_t>::Input>(Use::wide_input, job.rows * job.in);
        float* scales = scratch<float>(Use::scales, job.rows);
        for (long row = 0; row < job.rows; row++)
            shrink(x + row * job.in, bytes + row * job.in, scales + row, job.in);
        job.x = bytes, job.x_scales = scales;
    } else if constexpr (sizeof(typename Product<W>::Input) == sizeof(T)) {
        job.x = x;
    } else {
        job.x = widened(x, job.rows * job.in);
    }
}

template <class W, class T>
void multiply(const Weight* weight, const T* x, const T* bias, const T* residual, T* y, long rows,
              int threads) {
    Job<W, T> job{static_cast<const W*>(weight->data), nullptr, nullptr, weight->scales,
                  weight->sums, bias, residual, y, rows, weight->out, weight->in};
    give_input(job, x);
    run(job, threads);
}

void linear(int is_bf16, const Weight* weight, const void* x, const void* bias,
            const void* residual, void* y, long rows, int threads) {
    const Clock clock(Kind::linear);
    if (!rows) return;
    dispatch(is_bf16, [&](auto type) {
        using T = decltype(type);
        const auto go = [&](auto w) {
            multiply<decltype(w), T>(weight, static_cast<const T*>(x), static_cast<const T*>(bias),
                                     static_cast<const T*>(residual), static_cast<T*>(y), rows,
                                     threads);
        };
        if (weight->type == 2)
            go(int8_t{});
        else
            go(type);
    });
}

// ------------------------------------------------------------------------------------- packing

template <class W, class From>
void lay_out(const From* weight, const Weight* packed, int threads) {
    constexpr long step = Product<W>::STEP;
    const long out = packed->out, in = packed->in;
    W* data = static_cast<W*>(const_cast<void*>(packed->data));
    parallel(threads, (out + PANEL - 1) / PANEL, 1, [&](long begin, long end) {
        for (long panel = begin; panel < end; panel++)
            for (long lane = 0; lane < PANEL; lane++) {
                const long row = panel * PANEL + lane;
                W* to = data + panel * PANEL * in + lane * step;
                for (long k = 0; k < in; k += step)
                    for (long s = 0; s < step; s++)
                        to[k * PANEL + s] = row < out ? W(weight[row * in + k + s]) : W{};
            }
    });
}

// Rows of a weight as bytes with a scale each, then laid out like the others.
template <class From>
void lay_out_bytes(const From* weight, const Weight* packed, int threads) {
    const long out = packed->out, in = packed->in, whole = (out + PANEL - 1) / PANEL * PANEL;
    float* scales = const_cast<float*>(packed->scales);
    int32_t* sums = const_cast<int32_t*>(packed->sums);
    int8_t* bytes = scratch<int8_t>(Use::wide_input, out * in);
    auto* shifted = scratch<typename Product<int8_t>::Input>(Use::scores, in);
    for (long row = 0; row < whole; row++) {
        sums[row] = 0, scales[row] = 0;
        if (row >= out) continue;
        shrink(weight + row * in, shifted, scales + row, in);
        for (long k = 0; k < in; k++) {
            bytes[row * in + k] = static_cast<int8_t>(shifted[k] - Product<int8_t>::SHIFT);
            sums[row] += bytes[row * in + k];
        }
    }
    lay_out<int8_t>(bytes, packed, threads);
}

void pack(int from, const void* weight, const Weight* packed, int threads) {
    dispatch(from, [&](auto type) {
        const auto* numbers = static_cast<const decltype(type)*>(weight);
        if (packed->type == 2)
            lay_out_bytes(numbers, packed, threads);
        else
            lay_out<decltype(type)>(numbers, packed, threads);
    });
}

}  // namespace dspark::DSPARK_LEVEL
