// What the levels have in common: the records of their arguments, the table of their functions, and
// what one piece of code does for all of them (threads, memory, times).
#pragma once

#include <cstdint>

namespace dspark {

enum class Kind { linear, attention, norm, choice, elementwise, count };

// A weight of a product, packed: [panel][step][16 outputs][inputs of a step]. A step is one input
// (float32), two (bfloat16) or four (int8).
struct Weight {
    const void* data;
    const float* scales;      // of each output, int8 only
    const int32_t* sums;      // of each output's weights, int8 only
    long out, in;
    int type;                 // 0 float32, 1 bfloat16, 2 int8
};

// Weights of a pre-norm decoder layer; what a layer does not have is null.
struct Layer {
    const Weight *qkv, *out, *gate_up, *down;
    const void *norm_in, *qkv_bias, *norm_q, *norm_k, *out_bias, *norm_mlp, *gate_up_bias;
    const void* down_bias;
    long hidden, heads, kv_heads, size, inner;
    int is_bf16, silu;
    float eps, scale;
};

// Weights that turn features into keys and values of `layers` draft layers.
struct Context {
    const Weight *fc, *kv;
    const void* norm;
    const void* const* norms_k;
    long hidden, layers, kv_heads, size;
    int is_bf16;
    float eps;
};

// Rows of one forward: rotary tables [rows, size], where each belongs and what it sees.
struct Batch {
    const void *cos, *sin;
    const int64_t *slots, *positions, *firsts, *stops;
    long rows, cache_slots, max_len;
    int threads;
};

// Transition biases kept by token: rows [kept, size], where each token's row lies (-1: nowhere),
// and when a row was last used. `target_ids` [size] is null where both vocabularies are one.
struct Biases {
    const void* rows;
    const int64_t *place_of, *target_ids;
    int64_t* used;
    int64_t turn;
};

// One level: instructions that a processor may have, and the kernels made of them.
struct Table {
    const char* name;
    // weight [out, in] of `from` (0 float32, 1 bfloat16) to a packed one; missing outputs are zero.
    void (*pack)(int from, const void* weight, const Weight* packed, int threads);
    // x [rows, in], residual and y [rows, out], bias [out]; bias and residual may be null.
    void (*linear)(int is_bf16, const Weight* weight, const void* x, const void* bias,
                   const void* residual, void* y, long rows, int threads);
    // Writes new keys and values into the cache and attends. 0, or 1 where a row lies outside of
    // the cache (nothing is touched then).
    int (*attend)(int is_bf16, const void* q, long q_stride, const void* k, long k_stride,
                  const void* v, long v_stride, void* keys, void* values, const int64_t* slots,
                  const int64_t* positions, const int64_t* firsts, const int64_t* stops, void* out,
                  long rows, long heads, long kv_heads, long size, long cache_slots, long max_len,
                  float scale, int threads);
    // x and y [rows, size], weight [size].
    void (*norm)(int is_bf16, const void* x, const void* weight, void* y, long rows, long size,
                 float eps, int threads);
    // gate_up [rows, 2 · size], y [rows, size].
    void (*gate)(int is_bf16, const void* gate_up, void* y, long rows, long size, int silu,
                 int threads);
    // x [rows, heads, size], strided by row; cos and sin [rows, size]; y [rows, heads, size].
    void (*rotate)(int is_bf16, const void* x, long stride, const void* cos, const void* sin,
                   void* y, long rows, long heads, long size, int threads);
    // x and bias [rows, size], strided by row, bias may be null; places [rows] of the first largest
    // sum of each row, -1 where there is none.
    void (*argmax)(int is_bf16, const void* x, long stride, const void* bias, long bias_stride,
                   int64_t* places, long rows, long size, int threads);
    // base [requests, slots, size]; ids [requests, slots + 1], the anchor first; done [requests]
    // slots that have a token already, in and out. All done when each is `slots`.
    void (*follow)(int is_bf16, const void* base, const Biases* kept, int64_t* ids, int64_t* done,
                   long requests, long slots, long size, int threads);
    // Layers one after the other; each writes where `outs` says, and the next reads it there.
    int (*layers)(const Layer* layers, long count, const Batch* batch, const void* x,
                  void* const* keys, void* const* values, void* const* outs);
    // Features of committed positions [rows, in] to keys and values of every draft layer's cache.
    int (*context)(const Context* context, const Batch* batch, const void* features,
                   void* const* keys, void* const* values);
    // What the processor can do at most, for the roofline: multiplications and additions of
    // `rounds` rounds on registers, counted as two each.
    double (*peak)(int is_bf16, long rounds);
};

// What a thread keeps memory for.
enum class Use { wide_input, scales, layer, queries, keys, scores, parts, groups, count };

typedef void (*Work)(const void* context, long begin, long end);

}  // namespace dspark

// Made once, for all levels (shared.cpp).
extern "C" {
// Runs work on 0 … count - 1 in ranges of whole grains, on so many threads at most.
void dspark_parallel(int threads, long count, long grain, dspark::Work work, const void* context);
// Memory of this thread, aligned to 64 bytes, until it next asks for the same `use`.
void* dspark_scratch(dspark::Use use, long bytes);
// Seconds of this thread by kind of work.
double* dspark_times();
}
