// A whole pre-norm decoder layer in one call: at one row its operations take less time than the
// interpreter needs to get from one to the next.
#include <vector>

#include "kernels.h"

namespace dspark {
namespace {

// Memory for what lies between the operations, kept by each thread that runs layers.
class Scratch {
   public:
    void* take(long bytes) {
        void* part = base_ + used_;
        used_ += (bytes + 63) / 64 * 64;
        return part;
    }
    void make_room(long bytes) {
        if (static_cast<long>(memory_.size()) < bytes + 64) memory_.resize(bytes + 64);
        base_ = memory_.data() + (64 - reinterpret_cast<uintptr_t>(memory_.data()) % 64) % 64;
        used_ = 0;
    }

   private:
    std::vector<char> memory_;
    char* base_ = nullptr;
    long used_ = 0;
};

void* ahead(void* base, long numbers, int is_bf16) {
    return static_cast<char*>(base) + numbers * (is_bf16 ? 2 : 4);
}

}  // namespace
}  // namespace dspark

using namespace dspark;

// x and y [rows, hidden]; keys and values are the layer's cache. Returns what dspark_attend does.
extern "C" int dspark_layer(const Layer* layer, const Batch* batch, const void* x, void* keys,
                            void* values, void* y) {
    static thread_local Scratch scratch;
    const int kind = layer->is_bf16, threads = batch->threads;
    const long rows = batch->rows, bytes = rows * (kind ? 2 : 4), size = layer->size;
    const long queries = layer->heads * size, rotated = queries + layer->kv_heads * size;
    const long width = rotated + layer->kv_heads * size;
    const long hidden = layer->hidden, inner = layer->inner;
    scratch.make_room(bytes * (2 * hidden + width + rotated + queries + 3 * inner) + 8 * 64);
    void* normed = scratch.take(bytes * hidden);
    void* qkv = scratch.take(bytes * width);
    void* qk = scratch.take(bytes * rotated);
    void* mixed = scratch.take(bytes * queries);
    void* between = scratch.take(bytes * hidden);
    void* gate_up = scratch.take(bytes * 2 * inner);
    void* gated = scratch.take(bytes * inner);

    dspark_norm(kind, x, layer->norm_in, normed, rows, hidden, layer->eps, threads);
    dspark_linear(kind, layer->qkv, normed, layer->qkv_bias, nullptr, qkv, rows, width, hidden,
                  threads);
    if (layer->norm_q)
        for (long row = 0; row < rows; row++) {
            void* q = ahead(qkv, row * width, kind);
            void* k = ahead(q, queries, kind);
            dspark_norm(kind, q, layer->norm_q, q, layer->heads, size, layer->eps, 1);
            dspark_norm(kind, k, layer->norm_k, k, layer->kv_heads, size, layer->eps, 1);
        }
    dspark_rotate(kind, qkv, width, batch->cos, batch->sin, qk, rows,
                  layer->heads + layer->kv_heads, size, threads);
    const int failed = dspark_attend(
        kind, qk, rotated, ahead(qk, queries, kind), rotated, ahead(qkv, rotated, kind), width,
        keys, values, batch->slots, batch->positions, batch->firsts, batch->stops, mixed, rows,
        layer->heads, layer->kv_heads, size, batch->cache_slots, batch->max_len, layer->scale,
        threads);
    if (failed) return failed;
    dspark_linear(kind, layer->out, mixed, layer->out_bias, x, between, rows, hidden, queries,
                  threads);
    dspark_norm(kind, between, layer->norm_mlp, normed, rows, hidden, layer->eps, threads);
    dspark_linear(kind, layer->gate_up, normed, layer->gate_up_bias, nullptr, gate_up, rows,
                  2 * inner, hidden, threads);
    dspark_gate(kind, gate_up, gated, rows, inner, layer->silu, threads);
    dspark_linear(kind, layer->down, gated, layer->down_bias, between, y, rows, hidden, inner,
                  threads);
    return 0;
}
