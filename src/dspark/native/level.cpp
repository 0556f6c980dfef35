// One level: all kernels, compiled for instructions that not every processor has. `DSPARK_LEVEL` is
// its name; the flags beside it say which instructions (compiling.py).
#include "choice.h"
#include "layers.h"

namespace dspark::DSPARK_LEVEL {

// Sums side by side, so many that none waits for another; sixteen registers hold twelve and more.
constexpr int AT_ONCE = DSPARK_BYTES == 32 ? 12 : 20;
#if defined(__x86_64__)
#define IN_A_REGISTER "+v"
#else
#define IN_A_REGISTER "+w"
#endif

// Multiplications and additions on registers alone. The compiler is kept from knowing the operand,
// or it would multiply once for all sums.
template <class W>
double multiplied(long rounds) {
    using Do = Product<W>;
    alignas(64) const W weights[64] = {};
    const typename Do::Input inputs[Do::STEP] = {};
    typename Do::Sum sums[AT_ONCE] = {};
    typename Do::Operand x = Do::input(inputs, 0), w = Do::weights(weights, 0);
    for (long round = 0; round < rounds; round++) {
#pragma GCC unroll 20
        for (int i = 0; i < AT_ONCE; i++) {
            asm volatile("" : IN_A_REGISTER(x));
            sums[i] = Do::add(sums[i], x, w);
        }
    }
    volatile float keep = 0;
#pragma GCC unroll 20  // a place known only at run time would keep the sums in memory
    for (int i = 0; i < AT_ONCE; i++) keep = keep + static_cast<float>(sums[i][0]);
    return 2.0 * AT_ONCE * LANES * (Do::STEP / Do::PARTS) * rounds;
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
