// Products by tiles (AMX): sixteen rows of the input times sixteen outputs at a time.
//
// A packed weight is made of tiles already: as many steps of a panel as fill sixteen lines of 64
// bytes. Each sum depends on its own row and output alone, and one or two rows are added up by
// vectors in the tiles' order. So rows do not depend on their company here either.
#pragma once

#include "job.h"

namespace dspark::DSPARK_LEVEL {

#if DSPARK_TILES

constexpr long LINE = 64;           // bytes of a tile's line
constexpr long LINES = 16;          // lines of a tile, at most
constexpr int SUMS = 4;             // tile registers 0 to 3; inputs are in 4 and 5, weights in 6 and 7
constexpr long TILE_AHEAD = 1024;   // bytes asked for early, by measurement
constexpr long FEW_BF16 = 2, FEW_BYTES = 8;  // rows that vectors multiply faster, by measurement

template <class W>
inline constexpr long TILE_INPUTS = LINE / static_cast<long>(sizeof(W));

// Whether a weight falls into whole tiles.
template <class W>
inline bool tiles_serve(long in) {
    return sizeof(W) < 4 && in % TILE_INPUTS<W> == 0;
}

struct alignas(64) TileShapes {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t bytes[16] = {};
    uint8_t lines[16] = {};

    explicit TileShapes(long input_rows) {
        for (int tile = 0; tile < 8; tile++) bytes[tile] = LINE, lines[tile] = LINES;
        for (int tile = 0; tile < SUMS + 2; tile++) lines[tile] = static_cast<uint8_t>(input_rows);
    }
};

// The intrinsics do not say what they read: all of it is written before.
inline void use_shapes(const TileShapes& shapes) {
    asm volatile("" : : "r"(&shapes) : "memory");
    _tile_loadconfig(&shapes);
}

inline void ahead_of_tile(const char* weight) {
#pragma GCC unroll 16
    for (long line = 0; line < LINES; line++)
        __builtin_prefetch(weight + TILE_AHEAD + line * LINE);
}

// The intrinsics take numbers of registers, as macros do.
#define ADD_PRODUCT(sums, x, w)           \
    do {                                  \
        if constexpr (sizeof(W) == 1)     \
            _tile_dpbusd(sums, x, w);     \
        else                              \
            _tile_dpbf16ps(sums, x, w);   \
    } while (0)

// R groups of rows, the second `second` rows behind the first, times P panels.
template <class W, class T, int R, int P>
void tile_sums(const Job<W, T>& job, long row, long second, long panel, char* sums) {
    static_assert(R * P <= SUMS && R <= 2 && (R == 1 || P <= 2));
    const long count = job.in / TILE_INPUTS<W>, apart = count * LINES * LINE;
    const long stride = job.in * static_cast<long>(sizeof(typename Product<W>::Input));
    const char* w = reinterpret_cast<const char*>(job.weight) + panel * apart;
    const char* x = reinterpret_cast<const char*>(job.x) + row * stride;
    const char* x2 = x + second * stride;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (long k = 0; k < count; k++, w += LINES * LINE, x += LINE, x2 += LINE) {
        _tile_loadd(4, x, stride);
        if constexpr (R == 2) _tile_loadd(5, x2, stride);
        _tile_loadd(6, w, LINE);
        ahead_of_tile(w);
        ADD_PRODUCT(0, 4, 6);
        if constexpr (R == 2) ADD_PRODUCT(2, 5, 6);
        if constexpr (P > 1) {
            _tile_loadd(7, w + apart, LINE);
            ahead_of_tile(w + apart);
            ADD_PRODUCT(1, 4, 7);
            if constexpr (R == 2) ADD_PRODUCT(3, 5, 7);
        }
        if constexpr (P > 2) {
            _tile_loadd(6, w + 2 * apart, LINE);
            ahead_of_tile(w + 2 * apart);
            ADD_PRODUCT(2, 4, 6);
            _tile_loadd(7, w + 3 * apart, LINE);
            ahead_of_tile(w + 3 * apart);
            ADD_PRODUCT(3, 4, 7);
        }
    }
    _tile_stored(0, sums, LINE);
    if constexpr (P > 1) _tile_stored(1, sums + LINES * LINE, LINE);
    if constexpr (R == 2 || P > 2) _tile_stored(2, sums + 2 * LINES * LINE, LINE);
    if constexpr (R * P > 2) _tile_stored(3, sums + 3 * LINES * LINE, LINE);
}
#undef ADD_PRODUCT

// From `row` on `height` rows, and as many again `second` rows further where R is 2; P panels.
template <class W, class T, int R, int P>
void tile_block(const Job<W, T>& job, long row, long second, long height, long panel) {
    alignas(64) char sums[SUMS * LINES * LINE];
    tile_sums<W, T, R, P>(job, row, second, panel, sums);
    for (int group = 0; group < R; group++)
        for (int p = 0; p < P; p++)
            for (long m = 0; m < height; m++) {
                typename Product<W>::Sum sum;
                std::memcpy(&sum, sums + ((group * 2 + p) * LINES + m) * LINE, sizeof sum);
                write_out(job, row + group * second + m, (panel + p) * PANEL, sum);
            }
}

// All rows of P panels in groups of `height` rows; the last begins earlier where they do not fit,
// and finds the same again for the rows it shares.
template <class W, class T, int P>
void tile_rows(const Job<W, T>& job, long height, long panel) {
    const auto within = [&](long row) { return smaller(row, job.rows - height); };
    long row = 0;
    if constexpr (P <= 2)
        for (; row + height < job.rows; row += 2 * height)
            tile_block<W, T, 2, P>(job, row, within(row + height) - row, height, panel);
    for (; row < job.rows; row += height)
        tile_block<W, T, 1, P>(job, within(row), 0, height, panel);
}

template <class W, class T>
void run_tiles(const Job<W, T>& job, int threads) {
    const long groups = (job.rows + LINES - 1) / LINES, height = (job.rows + groups - 1) / groups;
    const TileShapes shapes(height);
    parallel(threads, (job.out + PANEL - 1) / PANEL, groups == 1 ? 4 : 2, [&](long panel, long end) {
        use_shapes(shapes);
        if (groups == 1)
            for (; panel + 4 <= end; panel += 4) tile_rows<W, T, 4>(job, height, panel);
        for (; panel + 2 <= end; panel += 2) tile_rows<W, T, 2>(job, height, panel);
        for (; panel < end; panel++) tile_rows<W, T, 1>(job, height, panel);
        _tile_release();
    });
}

// What tiles can do at most: multiplications and additions of `rounds` rounds on registers.
inline double tile_peak(long rounds) {
    const TileShapes shapes(LINES);
    use_shapes(shapes);
    for (long round = 0; round < rounds; round++) {
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_release();
    return 2.0 * SUMS * LINES * PANEL * TILE_INPUTS<bf16> * static_cast<double>(rounds);
}

// ------------------------------------------------------------------------------ one or two rows

// A tile's instruction adds up, line by line, the first inputs of all pairs and the second ones
// apart, then both together to what there was. It takes numbers too small to be normal for zero.
class FlushedDenormals {
   public:
    FlushedDenormals() : before_(_mm_getcsr()) { _mm_setcsr(before_ | 0x8040); }
    ~FlushedDenormals() { _mm_setcsr(before_); }

   private:
    unsigned before_;
};

// M rows, widened to `x`, times P panels, in the order of tiles.
template <class T, int M, int P>
void as_tiles(const Job<bf16, T>& job, const float* x, long panel) {
    const long apart = PANEL * job.in;
    const bf16* weight = job.weight + panel * apart;
    floats sums[M][P] = {};
    for (long k = 0; k < job.in; k += TILE_INPUTS<bf16>) {
        floats first[M][P] = {}, second[M][P] = {};
        for (long i = k; i < k + TILE_INPUTS<bf16>; i += 2) {
#pragma GCC unroll 4
            for (int p = 0; p < P; p++) {
                const bf16* at = weight + p * apart + i * PANEL;
                __builtin_prefetch(reinterpret_cast<const char*>(at) + 2048);
                words pairs;
                std::memcpy(&pairs, at, sizeof pairs);
                const __m512 w1 = bits_of<__m512>(pairs << 16);
                const __m512 w2 = bits_of<__m512>(pairs & 0xffff0000u);
#pragma GCC unroll 2
                for (int m = 0; m < M; m++) {
                    const float* mine = x + m * job.in + i;
                    first[m][p] = bits_of<floats>(_mm512_fmadd_ps(
                        _mm512_set1_ps(mine[0]), w1, bits_of<__m512>(first[m][p])));
                    second[m][p] = bits_of<floats>(_mm512_fmadd_ps(
                        _mm512_set1_ps(mine[1]), w2, bits_of<__m512>(second[m][p])));
                }
            }
        }
#pragma GCC unroll 2
        for (int m = 0; m < M; m++)
#pragma GCC unroll 4
            for (int p = 0; p < P; p++) sums[m][p] += first[m][p] + second[m][p];
    }
    for (int m = 0; m < M; m++)
        for (int p = 0; p < P; p++) write_out(job, m, (panel + p) * PANEL, sums[m][p]);
}

template <class T, int M>
void run_few(const Job<bf16, T>& job, const float* x, int threads) {
    parallel(threads, (job.out + PANEL - 1) / PANEL, 4, [&](long panel, long end) {
        const FlushedDenormals flushed;
        for (; panel + 4 <= end; panel += 4) as_tiles<T, M, 4>(job, x, panel);
        for (; panel < end; panel++) as_tiles<T, M, 1>(job, x, panel);
    });
}

#endif  // DSPARK_TILES

}  // namespace dspark::DSPARK_LEVEL
