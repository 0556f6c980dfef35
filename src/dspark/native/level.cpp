// One level: all kernels, compiled for instructions that not every processor has. `DSPARK_LEVEL` is
// its name; the flags beside it say which instructions (build.py).
#include "choice.h"
#include "layers.h"

namespace dspark::DSPARK_LEVEL {

// Multiplications on registers alone, ten sums side by side so that none waits for another.
template <class W>
double multiplied(long rounds) {
    using Do = Product<W>;
    alignas(64) W weights[64] = {};
    typename Do::Input inputs[Do::STEP] = {};
    typename Do::Sum sums[10] = {};
    const typename Do::Operand w = Do::weights(weights, 0);
    for (long round = 0; round < rounds; round++) {
        typename Do::Operand x = Do::input(inputs, 0);
        asm volatile("" : "+m"(inputs));
#pragma GCC unroll 10
        for (int i = 0; i < 10; i++) sums[i] = Do::add(sums[i], x, w);
    }
    volatile float keep = 0;
    for (int i = 0; i < 10; i++) keep = keep + static_cast<float>(sums[i][0]);
    return 2.0 * 10 * LANES * (Do::STEP / Do::PARTS) * rounds;
}

double peak(int is_bf16, long rounds) {
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
