// Whole pre-norm decoder layers in one call: at one row their operations take less time than the
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

// x and y [rows, hidden]; keys and values are the layer's cache. Returns what dspark_attend does.
int run_layer(const Layer* layer, const Batch* batch, const void* x, void* keys, void* values,
              void* y) {
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

}  // namespace
}  // namespace dspark

// Features of committed positions [rows, in] to keys and values of every draft layer's cache: one
// product and norm for all, one product for all layers' keys and values, norm, rotation.
extern "C" int dspark_context(const dspark::Context* context, const dspark::Batch* batch,
                              const void* features, void* const* keys, void* const* values) {
    using namespace dspark;
    static thread_local Scratch scratch;
    const int kind = context->is_bf16, threads = batch->threads;
    const long rows = batch->rows, bytes = rows * (kind ? 2 : 4), hidden = context->hidden;
    const long part = context->kv_heads * context->size, width = 2 * part * context->layers;
    for (long row = 0; row < rows; row++)
        if (batch->slots[row] < 0 || batch->slots[row] >= batch->cache_slots ||
            batch->positions[row] < 0 || batch->positions[row] >= batch->max_len)
            return 1;
    scratch.make_room(bytes * (2 * hidden + width + part) + 4 * 64);
    void* joined = scratch.take(bytes * hidden);
    void* normed = scratch.take(bytes * hidden);
    void* kv = scratch.take(bytes * width);
    void* rotated = scratch.take(bytes * part);
    dspark_linear(kind, context->fc, features, nullptr, nullptr, joined, rows, hidden, context->in,
                  threads);
    dspark_norm(kind, joined, context->norm, normed, rows, hidden, context->eps, threads);
    dspark_linear(kind, context->kv, normed, nullptr, nullptr, kv, rows, width, hidden, threads);
    for (long layer = 0; layer < context->layers; layer++) {
        void* k = ahead(kv, 2 * layer * part, kind);
        for (long row = 0; row < rows; row++) {
            void* mine = ahead(k, row * width, kind);
            dspark_norm(kind, mine, context->norms_k[layer], mine, context->kv_heads, context->size,
                        context->eps, 1);
        }
        dspark_rotate(kind, k, width, batch->cos, batch->sin, rotated, rows, context->kv_heads,
                      context->size, threads);
        dspark_write(kind, rotated, part, ahead(k, part, kind), width, keys[layer], values[layer],
                     batch->slots, batch->positions, rows, context->kv_heads, context->size,
                     batch->max_len);
    }
    return 0;
}

// Layers one after the other; each writes where `outs` says, and the next reads it there.
extern "C" int dspark_layers(const dspark::Layer* layers, long count, const dspark::Batch* batch,
                             const void* x, void* const* keys, void* const* values,
                             void* const* outs) {
    for (long i = 0; i < count; i++) {
        const void* in = i ? outs[i - 1] : x;
        if (int failed = dspark::run_layer(&layers[i], batch, in, keys[i], values[i], outs[i]))
            return failed;
    }
    return 0;
}
