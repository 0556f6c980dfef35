// Whole pre-norm decoder layers in one call: at one row their operations take less time than the
// interpreter needs to get from one to the next.
#pragma once

#include "attention.h"
#include "linear.h"
#include "rowwise.h"

namespace dspark::DSPARK_LEVEL {

// Memory for what lies between the operations, kept by each thread that runs layers.
class Parts {
   public:
    explicit Parts(long bytes) : next_(scratch<char>(Use::layer, bytes)) {}
    void* take(long bytes) {
        char* part = next_;
        next_ += (bytes + 63) / 64 * 64;
        return part;
    }

   private:
    char* next_;
};

void* ahead(void* base, long numbers, int is_bf16) {
    return static_cast<char*>(base) + numbers * (is_bf16 ? 2 : 4);
}

// x and y [rows, hidden]; keys and values are the layer's cache. Returns what dspark_attend does.
int run_layer(const Layer* layer, const Batch* batch, const void* x, void* keys, void* values,
              void* y) {
    const int kind = layer->is_bf16, threads = batch->threads;
    const long rows = batch->rows, bytes = rows * (kind ? 2 : 4), size = layer->size;
    const long queries = layer->heads * size, rotated = queries + layer->kv_heads * size;
    const long width = rotated + layer->kv_heads * size;
    const long hidden = layer->hidden, inner = layer->inner;
    Parts parts(bytes * (2 * hidden + width + rotated + queries + 3 * inner) + 8 * 64);
    void* normed = parts.take(bytes * hidden);
    void* qkv = parts.take(bytes * width);
    void* qk = parts.take(bytes * rotated);
    void* mixed = parts.take(bytes * queries);
    void* between = parts.take(bytes * hidden);
    void* gate_up = parts.take(bytes * 2 * inner);
    void* gated = parts.take(bytes * inner);

    norm(kind, x, layer->norm_in, normed, rows, hidden, layer->eps, threads);
    linear(kind, layer->qkv, normed, layer->qkv_bias, nullptr, qkv, rows, threads);
    if (layer->norm_q)
        for (long row = 0; row < rows; row++) {
            void* q = ahead(qkv, row * width, kind);
            void* k = ahead(q, queries, kind);
            norm(kind, q, layer->norm_q, q, layer->heads, size, layer->eps, 1);
            norm(kind, k, layer->norm_k, k, layer->kv_heads, size, layer->eps, 1);
        }
    rotate(kind, qkv, width, batch->cos, batch->sin, qk, rows,
                  layer->heads + layer->kv_heads, size, threads);
    const int failed = attend(
        kind, qk, rotated, ahead(qk, queries, kind), rotated, ahead(qkv, rotated, kind), width,
        keys, values, batch->slots, batch->positions, batch->firsts, batch->stops, mixed, rows,
        layer->heads, layer->kv_heads, size, batch->cache_slots, batch->max_len, layer->scale,
        threads);
    if (failed) return failed;
    linear(kind, layer->out, mixed, layer->out_bias, x, between, rows, threads);
    norm(kind, between, layer->norm_mlp, normed, rows, hidden, layer->eps, threads);
    linear(kind, layer->gate_up, normed, layer->gate_up_bias, nullptr, gate_up, rows,
           threads);
    gate(kind, gate_up, gated, rows, inner, layer->silu, threads);
    linear(kind, layer->down, gated, layer->down_bias, between, y, rows, threads);
    return 0;
}

// Features of committed positions [rows, in] to keys and values of every draft layer's cache: one
// product and norm for all, one product for all layers' keys and values, norm, rotation.
int context_rows(const Context* context, const Batch* batch, const void* features,
                 void* const* keys, void* const* values) {
    const int kind = context->is_bf16, threads = batch->threads;
    const long rows = batch->rows, bytes = rows * (kind ? 2 : 4), hidden = context->hidden;
    const long part = context->kv_heads * context->size, width = 2 * part * context->layers;
    for (long row = 0; row < rows; row++)
        if (batch->slots[row] < 0 || batch->slots[row] >= batch->cache_slots ||
            batch->positions[row] < 0 || batch->positions[row] >= batch->max_len)
            return 1;
    Parts parts(bytes * (2 * hidden + width + part) + 4 * 64);
    void* joined = parts.take(bytes * hidden);
    void* normed = parts.take(bytes * hidden);
    void* kv = parts.take(bytes * width);
    void* rotated = parts.take(bytes * part);
    linear(kind, context->fc, features, nullptr, nullptr, joined, rows, threads);
    norm(kind, joined, context->norm, normed, rows, hidden, context->eps, threads);
    linear(kind, context->kv, normed, nullptr, nullptr, kv, rows, threads);
    for (long layer = 0; layer < context->layers; layer++) {
        void* k = ahead(kv, 2 * layer * part, kind);
        for (long row = 0; row < rows; row++) {
            void* mine = ahead(k, row * width, kind);
            norm(kind, mine, context->norms_k[layer], mine, context->kv_heads, context->size,
                        context->eps, 1);
        }
        rotate(kind, k, width, batch->cos, batch->sin, rotated, rows, context->kv_heads,
                      context->size, threads);
        write_all(kind, rotated, part, ahead(k, part, kind), width, keys[layer], values[layer],
                     batch->slots, batch->positions, rows, context->kv_heads, context->size,
                     batch->max_len);
    }
    return 0;
}

// Layers one after the other; each writes where `outs` says, and the next reads it there.
int all_layers(const Layer* layers, long count, const Batch* batch, const void* x,
               void* const* keys, void* const* values, void* const* outs) {
    for (long i = 0; i < count; i++) {
        const void* in = i ? outs[i - 1] : x;
        if (int failed = run_layer(&layers[i], batch, in, keys[i], values[i], outs[i]))
            return failed;
    }
    return 0;
}

}  // namespace dspark::DSPARK_LEVEL
