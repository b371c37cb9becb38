// The functions of formulas, on vectors, each under its name in formulas.  A vector is a register of a CPU, see
// `vector.hpp`, or what the threads of a GPU's warp hold, see `warp.hpp`.
//
// In float32 most are branch-free polynomials, inline: a call in an inner loop would spill every accumulator to the
// stack.  The polynomials are minimax fits (Lawson's iteration), rounded coefficient by coefficient; arguments are
// reduced after Cody and Waite, *Software Manual for the Elementary Functions* (1980).  Everything else comes from
// Sleef, where SYMCONV_SLEEF says that it can be linked, else from libm.
//
// Largest errors in units in the last place, denormal numbers included:
//
//     float32   exp, log: 1.5;  sinh, cosh, sinc, xlogx: 3;  the rest: 2, without fused multiply-add 2.5
//     float64   sigmoid, softplus, sinc, xlogx: 3;  tanh, the inverse functions, sinh, cosh, erf: 2;  the rest: 1.5
//
// Compile with -fno-math-errno -fno-trapping-math -ffp-contract=fast.  A product and a sum may then round once or
// twice, so where a single rounding is essential, `fma` says so.
#pragma once

#ifdef SYMCONV_CUDA
#include "warp.hpp"
#ifdef SYMCONV_FAST_MATH
#include "intrinsics.hpp"
#endif
#else
#include "vector.hpp"
#endif

namespace symconv {

// -- Whole numbers ----------------------------------------------------------------------------------------------------

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

// -- Signs and exact functions ----------------------------------------------------------------------------------------

/// `magnitude`, whose sign is that of z or +, with the sign of z: -0 is easily lost.
SYMCONV_INLINE vec with_sign(vec magnitude, vec z) { return from_bits(bits(magnitude) | (bits(z) & SIGN_BIT)); }

SYMCONV_INLINE vec square(vec z) { return z * z; }

SYMCONV_INLINE vec sqrt(vec z)
{
#ifdef SYMCONV_X86
    return SYMCONV_X86(sqrt, z);
#else
    for (int lane = 0; lane < LANES; ++lane)
        z[lane] = SYMCONV_SCALAR(sqrt)(z[lane]);
    return z;
#endif
}

SYMCONV_INLINE vec rsqrt(vec z) { return 1 / sqrt(z); }

/// To the nearest whole number, halves to the even one.
SYMCONV_INLINE vec round(vec z)
{
#if defined(SYMCONV_X86) && SYMCONV_VECTOR_BYTES == 64
    return SYMCONV_X86(roundscale, z, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#elif defined(SYMCONV_X86)
    return SYMCONV_X86(round, z, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
    // From here on floating-point numbers have no fractions: adding it rounds.
    constexpr real whole = sizeof(real) == 4 ? 0x1p23f : real(0x1p52);
    const vec magnitude = abs(z);
    return where(magnitude < whole, with_sign((magnitude + whole) - whole, z), z);
#endif
}

SYMCONV_INLINE vec floor(vec z)
{
    const vec nearest = round(z);
    return nearest - where(nearest > z, 1, splat(0));
}

SYMCONV_INLINE vec ceil(vec z)
{
    const vec nearest = round(z);
    return with_sign(nearest + where(nearest < z, 1, splat(0)), z);
}

/// The larger and the smaller one; b where one of them is NaN.
#ifdef SYMCONV_X86
SYMCONV_INLINE vec larger(vec a, vec b) { return SYMCONV_X86(max, a, b); }
SYMCONV_INLINE vec smaller(vec a, vec b) { return SYMCONV_X86(min, a, b); }
#else
SYMCONV_INLINE vec larger(vec a, vec b) { return where(a > b, a, b); }
SYMCONV_INLINE vec smaller(vec a, vec b) { return where(a < b, a, b); }
#endif

/// z, and the bound where it is beyond; NaN stays.
SYMCONV_INLINE vec bounded(real low, vec z, real high) { return smaller(splat(high), larger(splat(low), z)); }

/// The larger and the smaller one; NaN wins.
SYMCONV_INLINE vec maximum(vec a, vec b) { return where(a != a, a, larger(a, b)); }
SYMCONV_INLINE vec minimum(vec a, vec b) { return where(a != a, a, smaller(a, b)); }
SYMCONV_INLINE vec clip(vec z, vec low, vec high) { return minimum(maximum(z, low), high); }

SYMCONV_INLINE vec relu(vec z) { return larger(vec{}, z); }

/// 1 where a > b, 1/2 at a tie, else 0.
SYMCONV_INLINE vec share(vec a, vec b) { return where(a > b, 1, where(a == b, real(0.5), splat(0))); }
SYMCONV_INLINE vec heaviside(vec z) { return share(z, vec{}); }

SYMCONV_INLINE vec positive(vec z) { return where(z > 0, 1, splat(0)); }
SYMCONV_INLINE vec is_zero(vec z) { return where(z == 0, 1, splat(0)); }
SYMCONV_INLINE vec same(ivec a, ivec b) { return where(a == b, 1, splat(0)); }
SYMCONV_INLINE vec same(vec a, vec b) { return where(a == b, 1, splat(0)); }

/// 1 / r, and 0 where r is 0.
SYMCONV_INLINE vec reciprocal(vec r) { return where(r == 0, 0, 1 / r); }

/// r, and 0 where r is -inf: what may be subtracted from a logarithm.
SYMCONV_INLINE vec shift(vec r) { return where(r == -infinity, 0, r); }

/// r, and the largest or the smallest number where r is infinite: what may be subtracted from infinities.
SYMCONV_INLINE vec finite(vec r) { return bounded(-LARGEST, r, LARGEST); }

/// z to a whole power, by repeated squaring.
template <int N> SYMCONV_INLINE vec ipow(vec z)
{
    if constexpr (N < 0)
        return 1 / ipow<-N>(z);
    else if constexpr (N == 0)
        return splat(1);
    else if constexpr (N == 1)
        return z;
    else if constexpr (N % 2 == 1)
        return z * ipow<N - 1>(z);
    else
        return square(ipow<N / 2>(z));
}

/// c[0] + c[1]*z + c[2]*z**2 + ..., after Horner.
template <int N> SYMCONV_INLINE vec polynomial(vec z, const real (&c)[N])
{
    vec value = splat(c[N - 1]);
    for (int k = N - 2; k >= 0; --k)
        value = value * z + c[k];
    return value;
}

// -- Functions from a library, u10 (1 unit in the last place) or u05 (1/2) in the names of Sleef ----------------------

#if defined(SYMCONV_SLEEF) && defined(SYMCONV_X86)
#if SYMCONV_VECTOR_BYTES == 64
#define SYMCONV_SLEEF_SET avx512f
#define SYMCONV_SLEEF_LANES SYMCONV_PASTE(SYMCONV_SLEEF_64_, SYMCONV_REAL)
#else
#define SYMCONV_SLEEF_SET avx2
#define SYMCONV_SLEEF_LANES SYMCONV_PASTE(SYMCONV_SLEEF_32_, SYMCONV_REAL)
#endif
#define SYMCONV_SLEEF_64_float f16
#define SYMCONV_SLEEF_64_double d8
#define SYMCONV_SLEEF_32_float f8
#define SYMCONV_SLEEF_32_double d4
// Sleef_exp, f16, _u10, avx512f
#define SYMCONV_SLEEF_NAME(name, bound) \
    SYMCONV_PASTE(SYMCONV_PASTE(Sleef_##name, SYMCONV_SLEEF_LANES), SYMCONV_PASTE(_##bound, SYMCONV_SLEEF_SET))
#define SYMCONV_LIBRARY(name, bound) \
    extern "C" vec SYMCONV_SLEEF_NAME(name, bound)(vec); \
    SYMCONV_INLINE vec name(vec z) { return SYMCONV_SLEEF_NAME(name, bound)(z); }
#define SYMCONV_LIBRARY_2(name, bound) \
    extern "C" vec SYMCONV_SLEEF_NAME(name, bound)(vec, vec); \
    SYMCONV_INLINE vec name(vec a, vec b) { return SYMCONV_SLEEF_NAME(name, bound)(a, b); }
#else
#define SYMCONV_LIBRARY(name, bound) \
    inline CALLED vec name(vec z) \
    { \
        for (int lane = 0; lane < LANES; ++lane) \
            z[lane] = SYMCONV_SCALAR(name)(z[lane]); \
        return z; \
    }
#define SYMCONV_LIBRARY_2(name, bound) \
    inline CALLED vec name(vec a, vec b) \
    { \
        for (int lane = 0; lane < LANES; ++lane) \
            a[lane] = SYMCONV_SCALAR(name)(a[lane], b[lane]); \
        return a; \
    }
#endif

SYMCONV_LIBRARY(asin, u10)
SYMCONV_LIBRARY(acos, u10)
SYMCONV_LIBRARY(atan, u10)
SYMCONV_LIBRARY(erf, u10)
SYMCONV_LIBRARY_2(atan2, u10)
SYMCONV_LIBRARY_2(hypot, u05)

#if !SYMCONV_FLOAT

SYMCONV_LIBRARY(exp, u10)
SYMCONV_LIBRARY(log, u10)
SYMCONV_LIBRARY(expm1, u10)
SYMCONV_LIBRARY(log1p, u10)
SYMCONV_LIBRARY(sin, u10)
SYMCONV_LIBRARY(cos, u10)
SYMCONV_LIBRARY(tan, u10)
SYMCONV_LIBRARY(sinh, u10)
SYMCONV_LIBRARY(cosh, u10)
SYMCONV_LIBRARY(tanh, u10)
SYMCONV_LIBRARY_2(pow, u10)

SYMCONV_INLINE vec quotient(vec a, double b, vec c) { return a / (b + c); }

#else

// -- float32: exponentials and logarithms -----------------------------------------------------------------------------

/// a*b + c, rounded once.
SYMCONV_INLINE vec fma(vec a, vec b, vec c)
{
#if defined(SYMCONV_X86)
    return SYMCONV_X86(fmadd, a, b, c);
#else
    for (int lane = 0; lane < LANES; ++lane)
        c[lane] = fused(a[lane], b[lane], c[lane]);
    return c;
#endif
}
SYMCONV_INLINE vec fma(vec a, float b, vec c) { return fma(a, splat(b), c); }

/// 1/z, of which at least 14 bits are right: with a Newton step that is less work than a division.
SYMCONV_INLINE vec rough_inverse(vec z)
{
#if defined(SYMCONV_X86) && SYMCONV_VECTOR_BYTES == 64
    return SYMCONV_X86(rcp14, z);
#else
    return 1 / z;
#endif
}

/// a/(b + c) for 0 <= c, with the rounding errors of the sum and of the quotient put right.
SYMCONV_INLINE vec quotient(vec a, float b, vec c)
{
    const vec sum = b + c, lost = (b - sum) + c, inverse = rough_inverse(sum), value = a * inverse;
    return value + inverse * (fma(value, -sum, a) - value * lost);
}

/// At this size floats are whole numbers: z + WHOLE rounds z, and its lowest bits are the whole number's.
constexpr float WHOLE = 0x1.8p23f;
constexpr float LOG2_E = 0x1.715476p0f;
constexpr float LN2 = 0x1.62e43p-1f, LN2_REST = -0x1.05c61p-29f;

/// z = n*ln 2 + rest with |rest| <= ln(2)/2, and n as the lowest bits of a whole number.
SYMCONV_INLINE vec divided_by_ln2(vec z, ivec& n, vec& whole)
{
    const vec rounded = z * LOG2_E + WHOLE;
    n = bits(rounded);
    whole = rounded - WHOLE;
    return fma(whole, -LN2_REST, fma(whole, -LN2, z));
}

/// (exp(r) - 1 - r)/r**2 for |r| <= ln(2)/2; its error is 1e-8 of expm1(r).
SYMCONV_INLINE vec exp_tail(vec r)
{
    return polynomial(r, {0x1.fffffep-2f, 0x1.5554b2p-3f, 0x1.5556f6p-5f, 0x1.1226ep-7f, 0x1.6b995ep-10f});
}

/// 2**n, for n as the lowest bits of a whole number.
SYMCONV_INLINE vec power_of_two(ivec n) { return from_bits((n << 23) + (127 << 23)); }

/// exp(z - excess), where `excess` is far smaller than z.
SYMCONV_INLINE vec exp_less(vec z, vec excess)
{
    // Beyond these bounds the result is inf or 0; NaN stays.
    const vec inside = bounded(-104, z, 89);
    ivec n;
    vec whole;
    const vec r = divided_by_ln2(inside, n, whole) - excess;
    const vec value = 1 + r * (1 + r * exp_tail(r));
#if defined(SYMCONV_X86) && SYMCONV_VECTOR_BYTES == 64
    return SYMCONV_X86(scalef, value, whole);
#else
    // In two steps, since 2**n need not be a normal number.
    const ivec half = (n << 9) >> 10;
    return value * power_of_two(half) * power_of_two(n - half);
#endif
}

#ifndef SYMCONV_FAST_MATH
SYMCONV_INLINE vec exp(vec z) { return exp_less(z, vec{}); }
#endif

SYMCONV_INLINE vec expm1(vec z)
{
    // 2**n*(expm1(r) + 1) - 1, halved so that 2**n does not overflow; below -18 it is -1.
    const vec inside = bounded(-18, z, 89);
    ivec n;
    vec whole;
    const vec r = divided_by_ln2(inside, n, whole);
    const vec value = r + r * r * exp_tail(r), half = power_of_two(n - 1);
    return with_sign(2 * (half * value + (half - 0.5f)), z);
}

/// log(1 + m) for -1/3 <= m <= 1/3; its error is 5e-9 of it.
SYMCONV_INLINE vec log1p_near_zero(vec m)
{
    const vec tail = polynomial(m, {0x1.555506p-2f, -0x1.fffefap-3f, 0x1.99d05cp-3f, -0x1.559c2ep-3f, 0x1.1ed452p-3f,
                                    -0x1.f33c6ap-4f, 0x1.1e72a2p-3f, -0x1.07aa5cp-3f});
    return m + m * m * (m * tail - 0.5f);
}

/// The bits of 2**k - those of 1, where 2/3 <= z/2**k < 4/3.
SYMCONV_INLINE ivec exponent_bits(vec z) { return (bits(z) - 0x3f2aaaab) & integer(0xff800000); }

/// `inside` where 0 < z < inf, and what a logarithm is elsewhere: -inf at 0, NaN below and for NaN, inf at inf.
SYMCONV_INLINE vec log_edges(vec z, vec inside)
{
    return where(z > 0, where(z < infinity, inside, z), where(z == 0, -infinity, not_a_number));
}

#ifndef SYMCONV_FAST_MATH
SYMCONV_INLINE vec log(vec z)
{
    const ivec denormal = z < 0x1p-126f;
    const vec normal = where(denormal, z * 0x1p23f, z);
    const ivec exponent = exponent_bits(normal);
    const vec m = from_bits(bits(normal) - exponent) - 1;
    const vec k = converted(exponent) * 0x1p-23f - where(denormal, 23, splat(0));
    return log_edges(z, k * LN2 + log1p_near_zero(m));
}
#endif

SYMCONV_INLINE vec log1p(vec z)
{
    // 1 + z = 2**k*(1 + m) with m = z/2**k + (1/2**k - 1), which is rounded only once.
    const vec sum = 1 + z;
    const ivec exponent = exponent_bits(sum);
    const vec quarter = from_bits(0x40800000 - exponent);  // 4/2**k: never denormal
    const vec m = from_bits(bits(z) - exponent) + (0.25f * quarter - 1);
    return with_sign(log_edges(sum, converted(exponent) * (0x1p-23f * LN2) + log1p_near_zero(m)), z);
}

SYMCONV_INLINE vec tanh(vec z)
{
    const vec t = expm1(smaller(splat(20), 2 * abs(z)));
    return with_sign(quotient(t, 2, t), z);
}

/// exp(|z|)/2, which overflows no sooner than cosh: exp(1.375)/2 happens to be almost a float.
SYMCONV_INLINE vec half_exp(vec z) { return exp(abs(z) - 1.375f) * 0x1.fa3ff4p0f; }

SYMCONV_INLINE vec cosh(vec z)
{
    const vec half = half_exp(z);
    return half + 0.25f / half;
}

SYMCONV_INLINE vec sinh(vec z)
{
    const vec half = half_exp(z), r = abs(z), s = r * r;
    const vec small = r + r * s * polynomial(s, {0x1.555556p-3f, 0x1.1110e2p-7f, 0x1.a02132p-13f, 0x1.75b2c8p-19f});
    return with_sign(where(r < 1, small, half - 0.25f / half), z);
}

/// log(z) as a sum of two floats, for normal z > 0: 2 atanh((m - 1)/(m + 1)) + k ln 2 with z = 2**k m.
SYMCONV_INLINE vec log_twofold(vec z, vec& rest)
{
    const ivec denormal = z < 0x1p-126f;
    const vec normal = where(denormal, z * 0x1p23f, z);
    const ivec exponent = (bits(normal) - 0x3f3504f3) & integer(0xff800000);
    const vec m = from_bits(bits(normal) - exponent);
    const vec k = converted(exponent) * 0x1p-23f - where(denormal, 23, splat(0));
    // q = (m - 1)/(m + 1), and each power of it, as the sum of a float and its rounding error (Dekker 1971).
    const vec inverse = 1 / (m + 1), difference = m - 1;
    const vec q = inverse * difference, q_rest = inverse * fma(q, -difference, fma(q, -2, difference));
    const vec q2 = q * q, q2_rest = q * (q_rest + q_rest) + fma(q, q, -q2);
    const vec q3 = q2 * q, q3_rest = q2 * q_rest + (q2_rest * q + fma(q2, q, -q3));
    const vec tail = polynomial(q2, {0x1.555554p-2f, 0x1.999c26p-3f, 0x1.23d3e4p-3f, 0x1.f13ac8p-4f});
    const vec small = tail * q3 + (tail * q3_rest + q_rest);
    const vec large = fma(k, LN2, 2 * q), lost = 2 * q - fma(k, -LN2, large);
    const vec correction = k * LN2_REST + (2 * small + lost), sum = large + correction;
    rest = (large - sum) + correction;
    return sum;
}

/// As pow of C: 1 for a**0 and 1**p even if the other is NaN, NaN for a negative base and no whole exponent.
SYMCONV_INLINE vec pow(vec a, vec p)
{
    const vec base = abs(a);
    vec rest;
    const vec log_base = log_twofold(base, rest);
    const vec product = log_base * p, product_rest = rest * p + fma(log_base, p, -product);
    const vec power = exp_less(product, where(abs(product) < 104.0f, -product_rest, 0));

    const ivec whole = round(p) == p, odd = whole & (round(0.5f * p) != 0.5f * p);
    const vec towards = where(base > 1, p, where(base < 1, -p, 0));  // inf, 0 or 1 in the limit
    const vec limit = where(towards > 0, infinity, where(towards < 0, 0, splat(1)));
    vec value = where((base == 0) | (base == infinity) | (abs(p) == infinity), limit, power);
    value = from_bits(bits(value) | (bits(a) & SIGN_BIT & odd));
    value = where((a < 0) & (base < infinity) & ~whole, not_a_number, value);
    value = where((a != a) | (p != p), a + p, value);
    return where((a == 1) | (p == 0), 1, value);
}

// -- float32: trigonometric functions ---------------------------------------------------------------------------------
#ifndef SYMCONV_FAST_MATH

/// pi/2 in three parts, each cut off and not rounded: so none is negative, and -0 stays -0.
constexpr float HALF_PI = 0x1.921fb4p0f, HALF_PI_2 = 0x1.4442dp-24f, HALF_PI_3 = 0x1.846988p-48f;
constexpr float INVERSE_PI = 0x1.45f306p-2f;

/// The largest argument for which three parts of pi are enough.
constexpr float NEAR = 1e5f;

/// z - n*unit*pi/2 for a unit of 1 or 2.  The first step is exact, and so is what later ones cancel.
SYMCONV_INLINE vec less_half_pis(vec z, vec n, float unit)
{
    return fma(n, -unit * HALF_PI_3, fma(n, -unit * HALF_PI_2, fma(n, -unit * HALF_PI, z)));
}

/// sin(r) for |r| <= pi/2; its error is 7e-9 of it.
SYMCONV_INLINE vec sin_near_zero(vec r)
{
    const vec s = r * r;
    const vec factor = polynomial(s, {-0x1.55554cp-3f, 0x1.110ed6p-7f, -0x1.9f6fc2p-13f, 0x1.5db3e4p-19f});
    return with_sign(fma(r * s, factor, r), r);
}

/// z/(2 pi) modulo 1, in units of 2**-64, for 1 <= |z| < inf (Payne, Hanek 1983).
SYMCONV_INLINE uint64_t turns_of(float z)
{
    // The bits of 1/(2 pi), from 32 before its point on.
    constexpr uint32_t inverse[] = {0, 0x28be60db, 0x9391054a, 0x7f09d5f4, 0x7d4d3770, 0x36d8a566, 0x4f10e410, 0x7f9458ea};
    const uint32_t shown = bits_of(z), power = (shown >> 23 & 255) - 126, mantissa = shown << 8 | 0x80000000;
    // 96 of these count: those before give whole turns, those behind less than a unit.
    uint32_t words[3];
    for (int i = 0; i < 3; ++i) {
        const uint64_t pair = uint64_t(inverse[power / 32 + i]) << 32 | inverse[power / 32 + i + 1];
        words[i] = uint32_t(pair << power % 32 >> 32);
    }
    const uint64_t low = uint64_t(mantissa) * words[1] + (uint64_t(mantissa) * words[2] >> 32);
    const uint64_t turns = (uint64_t(mantissa * words[0]) << 32) + low;
    return shown >> 31 ? 0 - turns : turns;
}

/// An argument without its multiples of a unit, one or two half pis.
struct Reduced {
    vec r, rest;  // rest: what r has lost by rounding
    ivec odd;     // the highest bit alone: whether there were an odd number of multiples
};

/// For arguments beyond NEAR, turned on by `ahead` (2**64 are a whole turn): so rare that it may be slow, but not wrong.  No
/// library is called, and few registers are used, so that callers keep what they have in the others.
template <int UNIT> static CALLED Reduced reduced_far(vec z, uint64_t ahead)
{
    Reduced found{z - z, vec{}, ivec{}};  // NaN for what is not finite
    for (int lane = 0; lane < LANES; ++lane) {
        const float from = float(z[lane]), size = from < 0 ? -from : from;
        if (size > NEAR && size < infinity) {
            const uint64_t turns = turns_of(from) + ahead;
            const int64_t fraction = int64_t(turns << (3 - UNIT)) >> (3 - UNIT);
            const double r = double(fraction) * 0x1.921fb54442d18p-62;  // half a pi
            found.r[lane] = float(r);
            found.rest[lane] = float(r - double(float(r)));
            found.odd[lane] = int32_t((turns - uint64_t(fraction)) << (2 - UNIT) >> 32);
        }
    }
    return found;
}

SYMCONV_INLINE Reduced chosen(ivec mask, const Reduced& a, const Reduced& b)
{
    return {where(mask, a.r, b.r), where(mask, a.rest, b.rest), where(mask, a.odd, b.odd)};
}

/// Multiples are counted from 2**15 on: of up to 2**15 in either direction, only the lowest 16 bits of `COUNT + n` differ.
constexpr float COUNT = WHOLE + 0x1p15f;

/// Arguments of any size, looked at one by one.
struct Unlimited {
    /// Put right what was reduced from z by `counted - COUNT` multiples of a unit.
    template <int UNIT> void settle(Reduced& reduced, vec z, vec, uint64_t ahead)
    {
        if (UNLIKELY(any_greater(abs(z), NEAR)))
            reduced = chosen(abs(z) > NEAR, reduced_far<UNIT>(z, ahead), reduced);
    }
    static constexpr bool exceeded() { return false; }
};

#ifndef SYMCONV_CUDA
/// Arguments that are hoped to be small: a loop asks once, after all of them, whether they were.
struct Limited {
    ivec seen{};

    template <int> void settle(Reduced&, vec, vec counted, uint64_t) { seen |= bits(counted) ^ bits(splat(COUNT)); }
    bool exceeded() const { return any((seen & ~0xffff) != 0); }
};
#endif

/// sin(r) or -sin(r), for |r| <= pi/2.
SYMCONV_INLINE vec sin_of(const Reduced& z)
{
    return from_bits(bits(sin_near_zero(z.r)) ^ z.odd);
}

template <class Range> SYMCONV_INLINE vec sin(vec z, Range& range)
{
    const vec counted = z * INVERSE_PI + COUNT;
    Reduced reduced{less_half_pis(z, counted - COUNT, 2), vec{}, bits(counted) << 31};
    range.template settle<2>(reduced, z, counted, 0);
    return sin_of(reduced);
}

template <class Range> SYMCONV_INLINE vec cos(vec z, Range& range)
{
    // From the nearest zero of the cosine, (n + 1/2)*pi.
    const vec counted = (z * INVERSE_PI - 0.5f) + COUNT;
    Reduced reduced{less_half_pis(z, 2 * (counted - COUNT) + 1, 1), vec{}, ~bits(counted) << 31};
    range.template settle<2>(reduced, z, counted, uint64_t(1) << 62);
    return sin_of(reduced);
}

template <class Range> SYMCONV_INLINE vec tan(vec z, Range& range)
{
    const vec counted = z * (2 * INVERSE_PI) + COUNT, n = counted - COUNT;
    // Where the tangent is steep, what rounding takes from r counts; where r is small, r - first would round.
    const vec first = fma(n, -HALF_PI, z), second = fma(n, -HALF_PI_2, first);
    const vec lost_there = where(second * second > 0.0625f, fma(n, -HALF_PI_2, first - second), 0);
    Reduced reduced{second, lost_there - n * HALF_PI_3, bits(counted) << 31};
    range.template settle<1>(reduced, z, counted, 0);
    const vec r = reduced.r, s = r * r;
    const vec tail = reduced.rest + r * s * polynomial(s, {0x1.5554d4p-2f, 0x1.112ffcp-3f, 0x1.b53f46p-5f, 0x1.926d1p-6f,
                                                        0x1.7cc744p-9f, 0x1.37c2eep-7f});
    const vec value = with_sign(r + tail, r);
    // For odd n it is -1/(r + tail): a Newton step puts the rounding of the sum right, too.
    const vec inverse = -rough_inverse(value);
    const vec better = inverse + inverse * (inverse * tail + fma(inverse, r, splat(1)));
    return where(reduced.odd != 0, better, value);
}

#endif
#endif

#if !SYMCONV_FLOAT

/// The functions of a library have no limits.
struct Unlimited {
    static constexpr bool exceeded() { return false; }
};
using Limited = Unlimited;
template <class Range> SYMCONV_INLINE vec sin(vec z, Range&) { return sin(z); }
template <class Range> SYMCONV_INLINE vec cos(vec z, Range&) { return cos(z); }
template <class Range> SYMCONV_INLINE vec tan(vec z, Range&) { return tan(z); }

#elif !defined(SYMCONV_FAST_MATH)

SYMCONV_INLINE vec sin(vec z)
{
    Unlimited range;
    return sin(z, range);
}

SYMCONV_INLINE vec cos(vec z)
{
    Unlimited range;
    return cos(z, range);
}

SYMCONV_INLINE vec tan(vec z)
{
    Unlimited range;
    return tan(z, range);
}

#endif

// -- Functions of other functions -------------------------------------------------------------------------------------

/// 1/(1 + exp(-z)), from the side where the exponential does not overflow.
SYMCONV_INLINE vec sigmoid(vec z)
{
    const vec e = exp(-abs(z));
    return quotient(where(z < 0, e, 1), 1, e);
}

/// log(1 + exp(z)).
SYMCONV_INLINE vec softplus(vec z) { return relu(z) + log1p(exp(-abs(z))); }

/// z*log(z), and 0 at 0.
SYMCONV_INLINE vec xlogx(vec z) { return where(z == 0, 0, z * log(z)); }

/// sin(pi z)/(pi z): exactly 0 at whole numbers.
SYMCONV_INLINE vec sinc(vec z)
{
    // The minimax polynomial of sinc(r) for |r| <= 1/2.
#if SYMCONV_FLOAT
    constexpr real c[] = {1, -0x1.a51a66p0f, 0x1.9f9ca6p-1f, -0x1.86a584p-3f, 0x1.abb33ap-6f, -0x1.22632cp-9f};
#else
    constexpr real c[] = {1, -0x1.a51a6625307d3p0, 0x1.9f9cb402bc44bp-1, -0x1.86a8e4720c581p-3, 0x1.ac6805ce54427p-6,
                          -0x1.33816a53f322ap-9, 0x1.3746f82e913e8p-13, -0x1.d413f9b1dc9ddp-18, 0x1.0d8f0e65053bcp-22,
                          -0x1.7130c2a1d9cddp-28};
#endif
    const vec whole = round(z), half = real(0.5) * whole, r = z - whole;
    const vec value = polynomial(r * r, c) * where(round(half) == half, r, -r) / z;
    return where(z == 0, 1, value);
}

}  // namespace symconv
