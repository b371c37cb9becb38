// Numbers as tensors store them: floats, doubles, or halves that are computed with as floats.
#pragma once

#include "math.hpp"

namespace symconv {

#if defined(SYMCONV_FLOAT16) || defined(SYMCONV_BFLOAT16)

#if defined(SYMCONV_BFLOAT16)

/// The upper half of a float, rounded to nearest, ties to even.
struct storage {
    uint16_t bits;
    storage(float value)
    {
        const uint32_t all = bits_of(value);
        bits = value != value ? 0x7fc0 : uint16_t((all + 0x7fff + (all >> 16 & 1)) >> 16);
    }
    operator float() const { return float_of(uint32_t(bits) << 16); }
};

#else

/// IEEE binary16, rounded to nearest, ties to even.
struct storage {
    uint16_t bits;
    storage(float value)
    {
        const uint32_t all = bits_of(value), magnitude = all & 0x7fffffff;
        uint32_t half;
        if (magnitude > 0x7f800000)
            half = 0x7e00;
        else if (magnitude >= 0x477ff000)  // rounds beyond 65504
            half = 0x7c00;
        else if (magnitude < 0x38800000)  // subnormal: an addition aligns and rounds the bits
            half = bits_of(float_of(magnitude) + 0.5f) - 0x3f000000;
        else
            half = (magnitude - 0x38000000 + 0xfff + (magnitude >> 13 & 1)) >> 13;
        bits = uint16_t(half | (all >> 16 & 0x8000));
    }
    operator float() const
    {
        const uint32_t sign = uint32_t(bits & 0x8000) << 16, rest = uint32_t(bits & 0x7fff) << 13;
        if (rest >= 0x0f800000)  // inf and NaN
            return float_of(sign | 0x70000000 | rest);
        return float_of(sign | bits_of(float_of(rest) * 0x1p112f));
    }
};

#endif
#else
using storage = real;
#endif

}  // namespace symconv
