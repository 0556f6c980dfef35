// The kernels of every level in a library against plain sums in double, and each row's numbers
// whatever is beside it; for processors that this machine only emulates. Prints a line a level and
// ends with 1 where one is wrong.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <vector>

#include "table.h"

extern "C" const dspark::Table* dspark_level(long place);

namespace {

using Floats = std::vector<float>;

uint32_t state = 1;
float number() {  // about -1 to 1
    state = state * 1664525u + 1013904223u;
    return static_cast<int32_t>(state) / 2147483648.0f;
}

Floats numbers(long count) {
    Floats found(count);
    for (float& x : found) x = number();
    return found;
}

uint16_t rounded(float x) {
    uint32_t u;
    std::memcpy(&u, &x, 4);
    return static_cast<uint16_t>((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}

float widened(uint16_t x) {
    const uint32_t u = static_cast<uint32_t>(x) << 16;
    float f;
    std::memcpy(&f, &u, 4);
    return f;
}

// Numbers as a kernel reads them, float32 or bfloat16, and as they are then.
struct Array {
    int is_bf16;
    Floats exact;
    std::vector<uint16_t> half;
    Array(int is_bf16_, Floats values) : is_bf16(is_bf16_), exact(std::move(values)) {
        if (!is_bf16) return;
        for (float& x : exact) {
            half.push_back(rounded(x));
            x = widened(half.back());
        }
    }
    const void* data() const { return is_bf16 ? static_cast<const void*>(half.data()) : exact.data(); }
    void* data() { return is_bf16 ? static_cast<void*>(half.data()) : exact.data(); }
    float at(long i) const { return is_bf16 ? widened(half[i]) : exact[i]; }
};

int wrong = 0;

void expect(bool fine, const char* level, const char* what) {
    if (fine) return;
    std::printf("%s: wrong: %s\n", level, what);
    wrong++;
}

bool near(double found, double exact, int is_bf16, double scale) {
    return std::fabs(found - exact) <= (is_bf16 ? 1.0 / 128 : 1e-5) * (std::fabs(exact) + 0.02 * scale);
}

// Rows as the kernels round them to bytes: whole numbers within 127 times a factor.
Floats bytes_of(const Array& x, long rows, long in) {
    Floats found(rows * in);
    for (long row = 0; row < rows; row++) {
        float most = 0;
        for (long k = 0; k < in; k++) most = std::fmax(most, std::fabs(x.at(row * in + k)));
        for (long k = 0; k < in; k++)
            found[row * in + k] = std::nearbyint(x.at(row * in + k) * (127.0f / most)) * (most / 127.0f);
    }
    return found;
}

void products(const dspark::Table* level, int is_bf16, int type, int threads) {
    const long out = 83, in = 96, most = 13, whole = 96;
    const Array w(is_bf16, numbers(out * in)), x(is_bf16, numbers(most * in));
    const Array residual(is_bf16, numbers(most * out)), bias(is_bf16, numbers(out));
    std::vector<char> packed(whole * in * 4);
    Floats scales(whole);
    std::vector<int32_t> sums(whole);
    const dspark::Weight weight{packed.data(), scales.data(), sums.data(), out, in, type};
    level->pack(is_bf16, w.data(), &weight, threads);
    Array alone(is_bf16, Floats(most * out)), y = alone;
    const long size = is_bf16 ? 2 : 4;
    for (long row = 0; row < most; row++)
        level->linear(is_bf16, &weight, static_cast<const char*>(x.data()) + row * in * size, bias.data(),
                      static_cast<const char*>(residual.data()) + row * out * size,
                      static_cast<char*>(alone.data()) + row * out * size, 1, threads);
    for (long rows = 1; rows <= most; rows++) {
        level->linear(is_bf16, &weight, x.data(), bias.data(), residual.data(), y.data(), rows, threads);
        expect(!std::memcmp(y.data(), alone.data(), rows * out * size), level->name, "a row depends on others");
    }
    const Floats own = type == 2 ? bytes_of(x, most, in) : x.exact;
    const Floats weights = type == 2 ? bytes_of(w, out, in) : w.exact;
    for (long row = 0; row < most; row++)
        for (long o = 0; o < out; o++) {
            double sum = bias.at(o) + residual.at(row * out + o);
            for (long k = 0; k < in; k++) sum += double(own[row * in + k]) * weights[o * in + k];
            expect(near(alone.at(row * out + o), sum, is_bf16, 10), level->name, "product");
        }
}

void attention(const dspark::Table* level, int is_bf16, int threads) {
    const long rows = 7, heads = 6, kv = 2, size = 32, slots = 2, most = 40;
    const Array q(is_bf16, numbers(rows * heads * size)), k(is_bf16, numbers(rows * kv * size));
    const Array v(is_bf16, numbers(rows * kv * size));
    Array keys(is_bf16, numbers(slots * kv * most * size)), values(is_bf16, numbers(slots * kv * most * size));
    Array out(is_bf16, Floats(rows * heads * size));
    std::vector<int64_t> slot(rows), place(rows), first(rows), stop(rows);
    for (long r = 0; r < rows; r++) {
        slot[r] = r % 2, place[r] = 20 + r, first[r] = r == 3 ? 15 : 0, stop[r] = place[r] + 1;
    }
    const int failed = level->attend(
        is_bf16, q.data(), heads * size, k.data(), kv * size, v.data(), kv * size, keys.data(), values.data(),
        slot.data(), place.data(), first.data(), stop.data(), out.data(), rows, heads, kv, size, slots, most,
        0.2f, threads);
    expect(!failed, level->name, "attention refused");
    for (long r = 0; r < rows; r++)
        for (long h = 0; h < heads; h++) {
            const long base = (slot[r] * kv + h / (heads / kv)) * most;
            std::vector<double> weights;
            double total = 0;
            for (long p = first[r]; p < stop[r]; p++) {
                double score = 0;
                for (long i = 0; i < size; i++)
                    score += double(q.at((r * heads + h) * size + i)) * keys.at((base + p) * size + i);
                weights.push_back(std::exp(0.2 * score));
                total += weights.back();
            }
            for (long i = 0; i < size; i++) {
                double mixed = 0;
                for (long p = first[r]; p < stop[r]; p++)
                    mixed += weights[p - first[r]] / total * values.at((base + p) * size + i);
                expect(near(out.at((r * heads + h) * size + i), mixed, is_bf16, 1), level->name, "attention");
            }
        }
    place[2] = most;
    expect(level->attend(is_bf16, q.data(), heads * size, k.data(), kv * size, v.data(), kv * size, keys.data(),
                         values.data(), slot.data(), place.data(), first.data(), stop.data(), out.data(), rows,
                         heads, kv, size, slots, most, 0.2f, threads) == 1,
           level->name, "a row outside of the cache");
}

void by_row(const dspark::Table* level, int is_bf16, int threads) {
    const long rows = 5, size = 70;
    const Array x(is_bf16, numbers(rows * 2 * size)), weight(is_bf16, numbers(size));
    Array y(is_bf16, Floats(rows * size));
    level->norm(is_bf16, x.data(), weight.data(), y.data(), rows, size, 1e-5f, threads);
    for (long r = 0; r < rows; r++) {
        double squares = 0;
        for (long i = 0; i < size; i++) squares += double(x.at(r * size + i)) * x.at(r * size + i);
        for (long i = 0; i < size; i++)
            expect(near(y.at(r * size + i), x.at(r * size + i) / std::sqrt(squares / size + 1e-5) * weight.at(i),
                        is_bf16, 1), level->name, "norm");
    }
    level->gate(is_bf16, x.data(), y.data(), rows, size, 1, threads);
    for (long r = 0; r < rows; r++)
        for (long i = 0; i < size; i++) {
            const double g = x.at(r * 2 * size + i), up = x.at(r * 2 * size + size + i);
            expect(near(y.at(r * size + i), g / (1 + std::exp(-g)) * up, is_bf16, 1), level->name, "gate");
        }
    int64_t places[rows];
    level->argmax(is_bf16, x.data(), 2 * size, nullptr, 0, places, rows, 2 * size, threads);
    for (long r = 0; r < rows; r++) {
        long best = 0;
        for (long i = 1; i < 2 * size; i++)
            if (x.at(r * 2 * size + i) > x.at(r * 2 * size + best)) best = i;
        expect(places[r] == best, level->name, "first largest");
    }
}

}  // namespace

int main() {
    long count = 0;
    for (; const dspark::Table* level = dspark_level(count); count++) {
        const int before = wrong;
        for (int is_bf16 : {0, 1})
            for (int threads : {1, 3}) {
                products(level, is_bf16, is_bf16, threads);
                products(level, is_bf16, 2, threads);
                attention(level, is_bf16, threads);
                by_row(level, is_bf16, threads);
            }
        std::printf("%s: %s\n", level->name, wrong == before ? "right" : "wrong");
    }
    return wrong || !count;
}
