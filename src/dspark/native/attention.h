// Writes the keys and values of new rows into the cache, then attends: every row to its own
// request's positions.
//
// Cache of one layer: [slots, kv_heads, max_len, size]. Rows of one request that follow each other
// share the reading of keys and values. Positions are taken in chunks that begin at multiples of
// CHUNK: in each chunk a query has scores, their soft-max and a sum of values, all added up in the
// order of positions, and its chunks are put together in order. So none of a row's numbers depends
// on the rows beside it or on the threads.
#pragma once

#include "chunks.h"

namespace dspark::DSPARK_LEVEL {

constexpr long CHUNK = 128;        // positions
constexpr long MOST_QUERIES = 32;  // that share a reading of a key

template <class T>
struct Attention {
    const T *q, *k, *v;              // [rows, heads, size], strided by row
    T *keys, *values, *out;          // the cache; [rows, heads · size]
    const int64_t *slots, *positions;  // [rows]
    const int64_t *firsts, *stops;   // [rows]: positions a row sees
    long q_stride, k_stride, v_stride;
    long rows, heads, kv_heads, size, max_len;
    float scale;

    long groups() const { return heads / kv_heads; }  // queries that share keys and values
};

struct Span {
    long begin, end;  // positions
};

inline Span common(Span a, Span b) {
    return {a.begin > b.begin ? a.begin : b.begin, smaller(a.end, b.end)};
}

// Rows of one request that follow each other, and the key-value head they are attended with.
struct Unit {
    long row, rows, kv_head, queries;
    long first_chunk, chunks;
};

// The queries of a unit, widened, [queries, size].
template <class T>
const float* queries_of(const Attention<T>& job, const Unit& unit) {
    const long size = job.size, together = job.groups() * size;
    float* wide = scratch<float>(Use::queries, unit.queries * size);
    for (long r = 0; r < unit.rows; r++) {
        const T* q = job.q + (unit.row + r) * job.q_stride + unit.kv_head * together;
        for (long i = 0; i < together; i += LANES) store(wide + r * together + i, load(q + i));
    }
    return wide;
}

// One chunk of a unit: a part of each query into `parts`.
template <class T>
void attend_chunk(const Attention<T>& job, const Unit& unit, const float* q, long chunk,
                  float* parts) {
    const long size = job.size, groups = job.groups(), apart = part_size(size);
    const Span whole{chunk * CHUNK, (chunk + 1) * CHUNK};
    const auto seen = [&](long r) {
        const long row = unit.row + r;
        return common(whole, {job.firsts[row], job.stops[row]});
    };
    Span any{whole.end, whole.begin}, shared = whole;  // seen by one row, by all rows
    for (long r = 0; r < unit.rows; r++) {
        const Span mine = seen(r);
        shared = common(shared, mine);
        if (mine.begin < mine.end)
            any = {smaller(any.begin, mine.begin), any.end > mine.end ? any.end : mine.end};
    }
    if (shared.begin >= shared.end) shared = {whole.end, whole.end};
    for (long n = 0; n < unit.queries; n++)
        std::memset(parts + n * apart, 0, apart * sizeof(float));
    if (any.begin >= any.end) return;

    const long line = job.slots[unit.row] * job.kv_heads + unit.kv_head;
    const T* keys = job.keys + line * job.max_len * size;
    const T* values = job.values + line * job.max_len * size;
    const long length = (any.end - any.begin + BLOCK - 1) / BLOCK * BLOCK;
    float* scores = scratch<float>(Use::scores, unit.queries * length);
    float* turned = scratch<float>(Use::keys, size * BLOCK);
    for (long at = 0; any.begin + at < any.end; at += BLOCK) {
        turn_keys(keys + (any.begin + at) * size, smaller(any.end - any.begin - at, BLOCK), size,
                  turned);
        in_batches(unit.queries, [&](auto n, long done) {
            score<decltype(n)::value>(q + done * size, turned, size, job.scale,
                                      scores + done * length + at, length);
        });
    }
    const auto add = [&](long n, long count, Span span) {
        mix_all(values + span.begin * size, scores + n * length + span.begin - any.begin, length,
                span.end - span.begin, count, size, parts + n * apart, apart);
    };
    for (long n = 0; n < unit.queries; n++) {
        const Span mine = seen(n / groups);
        if (mine.begin >= mine.end) continue;
        float* of_query = scores + n * length;
        for (long i = 0; i < mine.begin - any.begin; i++) of_query[i] = -__builtin_inff();
        for (long i = mine.end - any.begin; i < length; i++) of_query[i] = -__builtin_inff();
        soft_max(of_query, length, parts[n * apart + size], parts[n * apart + size + 1]);
    }
    for (long r = 0; r < unit.rows; r++)
        add(r * groups, groups, common(seen(r), {whole.begin, shared.begin}));
    add(0, unit.queries, shared);
    for (long r = 0; r < unit.rows; r++)
        add(r * groups, groups, common(seen(r), {shared.end, whole.end}));
}

template <class T>
void join_all(const Attention<T>& job, const Unit& unit, float* parts, long apart) {
    const long size = job.size, groups = job.groups();
    for (long n = 0; n < unit.queries; n++) {
        const long head = (unit.row + n / groups) * job.heads + unit.kv_head * groups + n % groups;
        join(parts + n * part_size(size), apart, unit.chunks, size, job.out + head * size);
    }
}

template <class T>
void write(const Attention<T>& job, long row) {
    const long bytes = job.size * sizeof(T);
    for (long head = 0; head < job.kv_heads; head++) {
        const long place = (job.slots[row] * job.kv_heads + head) * job.max_len;
        const long to = (place + job.positions[row]) * job.size;
        std::memcpy(job.keys + to, job.k + row * job.k_stride + head * job.size, bytes);
        std::memcpy(job.values + to, job.v + row * job.v_stride + head * job.size, bytes);
    }
}

// Where the groups of rows begin that share their keys, and behind them the number of rows.
template <class T>
const int64_t* groups_of(const Attention<T>& job, long& count) {
    int64_t* begins = scratch<int64_t>(Use::groups, job.rows + 1);
    const long most = job.groups() < MOST_QUERIES ? MOST_QUERIES / job.groups() : 1;
    count = 0;
    for (long row = 0; row < job.rows; row++)
        if (!row || job.slots[row] != job.slots[row - 1] || row - begins[count - 1] == most)
            begins[count++] = row;
    begins[count] = job.rows;
    return begins;
}

template <class T>
Unit unit_of(const Attention<T>& job, const int64_t* begins, long index) {
    const long group = index / job.kv_heads, row = begins[group], end = begins[group + 1];
    Span seen{job.firsts[row], job.stops[row]};
    for (long r = row + 1; r < end; r++) {
        seen.begin = smaller(seen.begin, job.firsts[r]);
        seen.end = job.stops[r] > seen.end ? job.stops[r] : seen.end;
    }
    const long first = seen.begin / CHUNK;
    return {row, end - row, index % job.kv_heads, (end - row) * job.groups(), first,
            (seen.end + CHUNK - 1) / CHUNK - first};
}

template <class T>
void run(const Attention<T>& job, int threads) {
    for (long row = 0; row < job.rows; row++) write(job, row);
    long count, most = 0;  // groups of rows; chunks of one
    const int64_t* begins = groups_of(job, count);
    const long units = count * job.kv_heads, one = part_size(job.size);
    for (long u = 0; u < units; u += job.kv_heads) {
        const long chunks = unit_of(job, begins, u).chunks;
        most = chunks > most ? chunks : most;
    }
    if (most == 1 || units >= 4 * threads)
        return parallel(threads, units, 1, [&](long begin, long end) {
            for (long u = begin; u < end; u++) {
                const Unit unit = unit_of(job, begins, u);
                float* parts = scratch<float>(Use::parts, unit.chunks * unit.queries * one);
                const float* q = queries_of(job, unit);
                for (long c = 0; c < unit.chunks; c++)
                    attend_chunk(job, unit, q, unit.first_chunk + c,
                                 parts + c * unit.queries * one);
                join_all(job, unit, parts, unit.queries * one);
            }
        });
    // Too few groups to keep all threads busy: chunks are shared out as well.
    const long apart = job.rows * job.heads * one;
    float* parts = scratch<float>(Use::parts, most * apart);
    const auto of_unit = [&](const Unit& unit) {
        return parts + (unit.row * job.heads + unit.kv_head * unit.queries) * one;
    };
    parallel(threads, units * most, 1, [&](long begin, long end) {
        for (long u = begin; u < end; u++) {
            const Unit unit = unit_of(job, begins, u / most);
            const long c = u % most;
            if (c < unit.chunks)
                attend_chunk(job, unit, queries_of(job, unit), unit.first_chunk + c,
                             of_unit(unit) + c * apart);
        }
    });
    parallel(threads, units, 1, [&](long begin, long end) {
        for (long u = begin; u < end; u++) {
            const Unit unit = unit_of(job, begins, u);
            join_all(job, unit, of_unit(unit), apart);
        }
    });
}

int attend(int is_bf16, const void* q, long q_stride, const void* k, long k_stride, const void* v,
           long v_stride, void* keys, void* values, const int64_t* slots, const int64_t* positions,
           const int64_t* firsts, const int64_t* stops, void* out, long rows, long heads,
           long kv_heads, long size, long cache_slots, long max_len, float scale, int threads) {
    const Clock clock(Kind::attention);
    for (long row = 0; row < rows; row++)
        if (slots[row] < 0 || slots[row] >= cache_slots || positions[row] < 0 ||
            positions[row] >= max_len || firsts[row] < 0 || firsts[row] >= stops[row] ||
            stops[row] > max_len)
            return 1;
    dispatch(is_bf16, [&](auto type) {
        using T = decltype(type);
        run(Attention<T>{static_cast<const T*>(q), static_cast<const T*>(k),
                         static_cast<const T*>(v), static_cast<T*>(keys), static_cast<T*>(values),
                         static_cast<T*>(out), slots, positions, firsts, stops, q_stride, k_stride,
                         v_stride, rows, heads, kv_heads, size, max_len, scale},
            threads);
    });
    return 0;
}

// Heads of rows into a layer's cache, at places that lie inside of it.
void write_all(int is_bf16, const void* k, long k_stride, const void* v,
               long v_stride, void* keys, void* values, const int64_t* slots,
               const int64_t* positions, long rows, long kv_heads, long size, long max_len) {
    dispatch(is_bf16, [&](auto type) {
        using T = decltype(type);
        Attention<T> job{};
        job.k = static_cast<const T*>(k), job.v = static_cast<const T*>(v);
        job.keys = static_cast<T*>(keys), job.values = static_cast<T*>(values);
        job.slots = slots, job.positions = positions;
        job.k_stride = k_stride, job.v_stride = v_stride;
        job.kv_heads = kv_heads, job.size = size, job.max_len = max_len;
        for (long row = 0; row < rows; row++) write(job, row);
    });
}

}  // namespace dspark::DSPARK_LEVEL
