// The GPU's own approximations of exp, log, sin, cos and tan, for `fast_math=True`: each takes a few
// instructions.  In float64 there are none.
//
// Errors as the CUDA C++ Programming Guide states them (section "Intrinsic Functions"), in units in the last place
// unless said otherwise.
//
//     exp        2 + |1.173*z|
//     log        2**-21.41 absolute between 1/2 and 2, 3 elsewhere
//     sin, cos   2**-21.41 and 2**-21.19 absolute between -pi and pi, larger beyond
//     tan        that of sin over cos
#pragma once

#if SYMCONV_FLOAT
namespace symconv {

#define SYMCONV_INTRINSIC(name) \
    SYMCONV_INLINE vec name(vec z) \
    { \
        for (int lane = 0; lane < LANES; ++lane) \
            z[lane] = ::__##name##f(z[lane]); \
        return z; \
    }

SYMCONV_INTRINSIC(exp)
SYMCONV_INTRINSIC(log)
SYMCONV_INTRINSIC(sin)
SYMCONV_INTRINSIC(cos)
SYMCONV_INTRINSIC(tan)

}  // namespace symconv
#endif
