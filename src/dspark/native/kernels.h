// What the kernels share: threads, number types, a clock by kind of work.
#pragma once

#include <omp.h>

#include <chrono>
#include <utility>

#include "vectors.h"

namespace dspark {

constexpr long SMALL = 1 << 16;  // multiplications that are not worth a second thread

enum class Kind { linear, attention, norm, choice, elementwise, count };

inline thread_local double spent[static_cast<int>(Kind::count)] = {};

// Adds the seconds of its life to its kind, for this thread's caller to read.
class Clock {
   public:
    explicit Clock(Kind kind) : kind_(kind), start_(std::chrono::steady_clock::now()) {}
    ~Clock() {
        const std::chrono::duration<double> life = std::chrono::steady_clock::now() - start_;
        spent[static_cast<int>(kind_)] += life.count();
    }

   private:
    Kind kind_;
    std::chrono::steady_clock::time_point start_;
};

// This thread's part of `count` things, inside a parallel region.
inline std::pair<long, long> share_of(long count) {
    const long thread = omp_get_thread_num(), threads = omp_get_num_threads();
    return {count * thread / threads, count * (thread + 1) / threads};
}

template <class Work>
inline void dispatch(int is_bf16, Work work) {
    if (is_bf16)
        work(bf16{});
    else
        work(float{});
}

// Weights of a pre-norm decoder layer, matrices packed; what a layer does not have is null.
struct Layer {
    const void *norm_in, *qkv, *qkv_bias, *norm_q, *norm_k, *out, *out_bias;
    const void *norm_mlp, *gate_up, *gate_up_bias, *down, *down_bias;
    long hidden, heads, kv_heads, size, inner;
    int is_bf16, silu;
    float eps, scale;
};

// Weights that turn features [in] into keys and values of `layers` draft layers.
struct Context {
    const void *fc, *norm, *kv;
    const void* const* norms_k;
    long in, hidden, layers, kv_heads, size;
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

}  // namespace dspark

extern "C" {
void dspark_pack(int is_bf16, const void* weight, void* packed, long out, long in);
void dspark_linear(int is_bf16, const void* packed, const void* x, const void* bias,
                   const void* residual, void* y, long rows, long out, long in, int threads);
int dspark_attend(int is_bf16, const void* q, long q_stride, const void* k, long k_stride,
                  const void* v, long v_stride, void* keys, void* values, const int64_t* slots,
                  const int64_t* positions, const int64_t* firsts, const int64_t* stops, void* out,
                  long rows, long heads, long kv_heads, long size, long cache_slots, long max_len,
                  float scale, int threads);
void dspark_write(int is_bf16, const void* k, long k_stride, const void* v, long v_stride,
                  void* keys, void* values, const int64_t* slots, const int64_t* positions,
                  long rows, long kv_heads, long size, long max_len);
void dspark_norm(int is_bf16, const void* x, const void* weight, void* y, long rows, long size,
                 float eps, int threads);
void dspark_gate(int is_bf16, const void* gate_up, void* y, long rows, long size, int silu,
                 int threads);
void dspark_rotate(int is_bf16, const void* x, long stride, const void* cos, const void* sin,
                   void* y, long rows, long heads, long size, int threads);
void dspark_argmax(int is_bf16, const void* x, long stride, const void* bias, long bias_stride,
                   int64_t* places, long rows, long size, int threads);
void dspark_follow(int is_bf16, const void* base, const dspark::Biases* kept, int64_t* ids,
                   int64_t* done, long requests, long slots, long size, int threads);
int dspark_layers(const dspark::Layer* layers, long count, const dspark::Batch* batch,
                  const void* x, void* const* keys, void* const* values, void* const* outs);
int dspark_context(const dspark::Context* context, const dspark::Batch* batch,
                   const void* features, void* const* keys, void* const* values);
void dspark_spent(double* seconds);
}
