// y = x Wᵀ (+ bias) (+ residual), for rows few enough that reading W is what takes the time.
//
// W [out, in] lies in panels of 16 outputs: panel, input step, output, so that a panel is read in
// one run. A step is one input (float32) or a pair (bfloat16, as the processor multiplies them).
#include <algorithm>

#include "kernels.h"

namespace dspark {
namespace {

// Outputs worked out together, rows x panels: what the registers hold. Few rows leave room for more
// panels, and so for more of the weight on its way from memory at a time.
#if defined(__AVX512F__)
constexpr int ROWS = 12, PANELS = 2;
constexpr int SOME_ROWS = 8, PANELS_OF_SOME = 3, FEW_ROWS = 6, PANELS_OF_FEW = 4;
#else
constexpr int ROWS = 4, PANELS = 1;
constexpr int SOME_ROWS = 2, PANELS_OF_SOME = 2, FEW_ROWS = 1, PANELS_OF_FEW = 4;
#endif
constexpr int AHEAD = 4;  // steps of the next tile asked for early: its panels begin on new pages

template <class T>
struct Job {
    const T* weight;
    const T* x;
    const T* bias;
    const T* residual;
    T* y;
    long rows, out, in;
};

template <class T>
constexpr long STEP = 1;
template <>
constexpr long STEP<bf16> = 2;

inline void multiply(floats& sum, const float* x, const float* w) { sum += all(*x) * load(w); }

inline void multiply(floats& sum, const bf16* x, const bf16* w) {
    uint32_t pair;
    std::memcpy(&pair, x, sizeof pair);
#if DSPARK_BF16_DOT
    const __m512i pairs = _mm512_loadu_si512(w);
    sum = bits_of<floats>(_mm512_dpbf16_ps(
        bits_of<__m512>(sum), bits_of<__m512bh>(_mm512_set1_epi32(pair)), bits_of<__m512bh>(pairs)));
#else
    words pairs;
    std::memcpy(&pairs, w, sizeof pairs);
    sum += all(bits_of<float>(pair << 16)) * bits_of<floats>(pairs << 16);
    sum += all(bits_of<float>(pair & 0xffff0000u)) * bits_of<floats>(pairs & 0xffff0000u);
#endif
}

// M rows from `row` on, P panels from `panel` on.
template <class T, int M, int P>
void tile(const Job<T>& job, long row, long panel) {
    const long width = LANES * STEP<T>, steps = job.in / STEP<T>;
    const T* weight = job.weight + panel * steps * width;
    const T* x = job.x + row * job.in;
    floats sums[M][P] = {};
    for (long k = 0; k < steps; k++) {
#pragma GCC unroll 16
        for (int m = 0; m < M; m++) {
#pragma GCC unroll 4
            for (int p = 0; p < P; p++)
                multiply(sums[m][p], x + m * job.in + k * STEP<T>, weight + (p * steps + k) * width);
        }
    }
    for (int j = 0; j < AHEAD; j++)
        for (int p = 0; p < P; p++)
            __builtin_prefetch(weight + ((P + p) * steps + j) * width);
    for (int m = 0; m < M; m++) {
        for (int p = 0; p < P; p++) {
            const long column = (panel + p) * LANES, left = job.out - column;
            const long at = (row + m) * job.out + column;
            floats y = sums[m][p];
            if (job.bias) y += load_some(job.bias + column, left);
            if (job.residual) y += load_some(job.residual + at, left);
            store_some(job.y + at, y, left);
        }
    }
}

template <class T, int P, int M>
void some_rows(const Job<T>& job, long count, long row, long panel) {
    if constexpr (M > 1) {
        if (count < M) return some_rows<T, P, M - 1>(job, count, row, panel);
    }
    tile<T, M, P>(job, row, panel);
}

// All rows of as many panels as come in groups of P, at most M rows at a time; what is left.
template <class T, int M, int P>
long all_rows(const Job<T>& job, long panel, long end) {
    for (; panel + P <= end; panel += P)
        for (long row = 0; row < job.rows; row += M)
            some_rows<T, P, M>(job, std::min<long>(M, job.rows - row), row, panel);
    return panel;
}

template <class T>
void run(const Job<T>& job, int threads) {
    const long panels = (job.out + LANES - 1) / LANES;
#pragma omp parallel num_threads(threads)
    {
        auto [panel, end] = share_of(panels);
        if (job.rows <= FEW_ROWS) panel = all_rows<T, FEW_ROWS, PANELS_OF_FEW>(job, panel, end);
        if (job.rows <= SOME_ROWS) panel = all_rows<T, SOME_ROWS, PANELS_OF_SOME>(job, panel, end);
        panel = all_rows<T, ROWS, PANELS>(job, panel, end);
        all_rows<T, ROWS, 1>(job, panel, end);
    }
}

template <class T>
void lay_out(const T* weight, T* packed, long out, long in) {
    const long steps = in / STEP<T>;
#pragma omp parallel for
    for (long panel = 0; panel < (out + LANES - 1) / LANES; panel++)
        for (long k = 0; k < steps; k++)
            for (long lane = 0; lane < LANES; lane++)
                for (long s = 0; s < STEP<T>; s++) {
                    const long row = panel * LANES + lane;
                    packed[((panel * steps + k) * LANES + lane) * STEP<T> + s] =
                        row < out ? weight[row * in + k * STEP<T> + s] : T{};
                }
}

}  // namespace
}  // namespace dspark

using namespace dspark;

// weight [out, in] to packed [ceil(out / 16), in, 16]; missing outputs are zeros.
extern "C" void dspark_pack(int is_bf16, const void* weight, void* packed, long out, long in) {
    dispatch(is_bf16, [&](auto type) {
        using T = decltype(type);
        lay_out(static_cast<const T*>(weight), static_cast<T*>(packed), out, in);
    });
}

// x [rows, in], residual and y [rows, out], bias [out]; bias and residual may be null.
extern "C" void dspark_linear(int is_bf16, const void* packed, const void* x, const void* bias,
                              const void* residual, void* y, long rows, long out, long in,
                              int threads) {
    const Clock clock(Kind::linear);
    if (rows * out * in < SMALL) threads = 1;
    dispatch(is_bf16, [&](auto type) {
        using T = decltype(type);
        run(Job<T>{static_cast<const T*>(packed), static_cast<const T*>(x),
                   static_cast<const T*>(bias), static_cast<const T*>(residual),
                   static_cast<T*>(y), rows, out, in},
            threads);
    });
}
