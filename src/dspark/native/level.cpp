// One level: all kernels, compiled for instructions that not every processor has. `DSPARK_LEVEL` is
// its name; the flags beside it say which instructions (compiling.py).
#include "choice.h"
#include "layers.h"

namespace dspark::DSPARK_LEVEL {

// Multiplications on registers alone, twelve sums side by side so that none waits for another.
template <class W>
double multiplied(long rounds) {
    using Do = Product<W>;
    constexpr int SUMS = 12;
    alignas(64) W weights[64] = {};
    typename Do::Input inputs[Do::STEP] = {};
    typename Do::Sum starts[SUMS] = {}, sums[SUMS];
    asm volatile("" : "+m"(inputs), "+m"(weights), "+m"(starts));  // nobody knows what they are
    const typename Do::Operand w = Do::weights(weights, 0), x = Do::input(inputs, 0);
#pragma GCC unroll 12
    for (int i = 0; i < SUMS; i++) sums[i] = starts[i];
    for (long round = 0; round < rounds; round++) {
#pragma GCC unroll 12
        for (int i = 0; i < SUMS; i++) sums[i] = Do::add(sums[i], x, w);
    }
#pragma GCC unroll 12
    for (int i = 0; i < SUMS; i++) starts[i] = sums[i];
    asm volatile("" : "+m"(starts));
    return 2.0 * SUMS * LANES * (Do::STEP / Do::PARTS) * rounds;
}

double peak(int is_bf16, long rounds) {
#if DSPARK_TILES
    if (is_bf16) return tile_peak(rounds);
#endif
    return is_bf16 ? multiplied<bf16>(rounds) : multiplied<float>(rounds);
}

}  // namespace dspark::DSPARK_LEVEL

#define TEXT_OF(name) #name
#define TEXT(name) TEXT_OF(name)
#define JOINED_OF(a, b) a##b
#define JOINED(a, b) JOINED_OF(a, b)

namespace here = dspark::DSPARK_LEVEL;

extern "C" {
extern const dspark::Table JOINED(dspark_, DSPARK_LEVEL);
const dspark::Table JOINED(dspark_, DSPARK_LEVEL) = {
    TEXT(DSPARK_LEVEL), here::pack,   here::linear, here::attend,     here::norm,         here::gate,
    here::rotate,       here::argmax, here::follow, here::all_layers, here::context_rows, here::peak,
};
}
