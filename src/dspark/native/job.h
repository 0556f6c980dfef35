// One product with a packed weight: what it reads, and how a sum becomes a result.
#pragma once

#include "products.h"

namespace dspark::DSPARK_LEVEL {

// W: type of the weight, T: of residual and result.
template <class W, class T>
struct Job {
    const W* weight;
    const typename Product<W>::Input* x;
    const float* x_scales;   // int8: of each row
    const float* w_scales;   // int8: of each output
    const int32_t* w_sums;   // int8: of each output's weights
    const T* bias;
    const T* residual;
    T* y;
    long rows, out, in;
};

template <class W, class T>
inline floats finished(const Job<W, T>&, long, long, floats sum) {
    return sum;
}

// Exact sums of int8 products, scaled back.
template <class T>
inline floats finished(const Job<int8_t, T>& job, long row, long column, ints sum) {
    ints weights;  // packed: whole panels
    std::memcpy(&weights, job.w_sums + column, sizeof weights);
    sum -= weights * Product<int8_t>::SHIFT;
    const floats scale = load(job.w_scales + column) * job.x_scales[row];
    return __builtin_convertvector(sum, floats) * scale;
}

// Results from `column` on of one row: as many sums as a register holds.
template <class W, class T, class Sum>
inline void write_out(const Job<W, T>& job, long row, long column, Sum sum) {
    const long left = job.out - column, at = row * job.out + column;
    floats y = finished(job, row, column, sum);
    if (job.bias) y += load_some(job.bias + column, left);
    if (job.residual) y += load_some(job.residual + at, left);
    store_some(job.y + at, y, left);
}

}  // namespace dspark::DSPARK_LEVEL
