// Vectors of numbers, by the vector extensions of GCC and Clang: +, -, *, / and comparisons work lane by lane, with
// scalars too.  A vector is what one register holds, so that a compiler that is told the instruction set has no choices
// left to make.
//
//     SYMCONV_REAL           float or double
//     SYMCONV_VECTOR_BYTES   16 (SSE, NEON), 32 (AVX2) or 64 (AVX-512)
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#if defined(__AVX2__) && __GNUC__ >= 11 && __GNUC__ < 16 && !defined(__clang__)
// The parts of immintrin.h that are used here: all of it takes half a second to read, as long as a kernel.
#define _IMMINTRIN_H_INCLUDED
#include <smmintrin.h>
#include <avxintrin.h>
#include <avx2intrin.h>
#include <fmaintrin.h>
#if defined(__AVX512F__)
#include <avx512fintrin.h>
#endif
#elif defined(__AVX2__) || defined(__AVX512F__)
#include <immintrin.h>
#endif

#include "threads.hpp"

#ifndef SYMCONV_REAL
#define SYMCONV_REAL float
#endif
#ifndef SYMCONV_VECTOR_BYTES
#define SYMCONV_VECTOR_BYTES 16
#endif

#define SYMCONV_INLINE inline __attribute__((always_inline))
// A loop nest on its own: all registers are for its tile.  A function that is called and not copied: it is long, or rare.
#define APART __attribute__((noinline, hot))
#define CALLED __attribute__((noinline))
// Runs once per call or thread, and is not worth the compiler's time; nor is what it alone calls, unless that says APART.
#define ONCE __attribute__((noinline, cold))
#define PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define UNROLL PRAGMA(clang loop unroll(full))
#else
#define UNROLL PRAGMA(GCC unroll 16)
#endif
// Loops over taps: an out-of-order core needs no more than one at a time.
#define UNROLL_TAPS
// Loops over values that are put in order: if they are few, and as many as the compiler is told, they stay in registers.
#ifndef RANKED
#define RANKED 0
#endif
#define RANKED_IN_REGISTERS (RANKED > 0)
#if !RANKED
#define UNROLL_RANKED
#elif defined(__clang__)
#define UNROLL_RANKED UNROLL
#else
#define UNROLL_RANKED PRAGMA(GCC unroll 32)
#endif
#define UNROLL_RANKED_TAPS UNROLL_RANKED
#define UNLIKELY(condition) __builtin_expect(condition, 0)
#define SYMCONV_PASTED(a, b) a##b
#define SYMCONV_PASTE(a, b) SYMCONV_PASTED(a, b)

// The preprocessor takes unknown names for 0: 1 for float, 0 for double.
#define SYMCONV_IS_float 1
#define SYMCONV_FLOAT SYMCONV_PASTE(SYMCONV_IS_, SYMCONV_REAL)

// SYMCONV_SCALAR(sqrt) is C's function for one number; without its header, which takes long to read in C++.
#if SYMCONV_FLOAT
#define SYMCONV_SCALAR(name) SYMCONV_PASTE(__builtin_##name, f)
#else
#define SYMCONV_SCALAR(name) __builtin_##name
#endif

// SYMCONV_X86(sqrt, v) is an instruction of the wide x86 sets; without them there are loops over the lanes.
#if SYMCONV_FLOAT
#define SYMCONV_SUFFIX _ps
#else
#define SYMCONV_SUFFIX _pd
#endif
#if SYMCONV_VECTOR_BYTES == 64 && defined(__AVX512F__) && defined(__AVX512DQ__)
// Under a mask of all lanes, which costs nothing: GCC 12 finds uninitialised variables in the plain forms.
#define SYMCONV_X86(name, ...) SYMCONV_PASTE(_mm512_maskz_##name, SYMCONV_SUFFIX)(-1, __VA_ARGS__)
#elif SYMCONV_VECTOR_BYTES == 32 && defined(__AVX2__) && defined(__FMA__)
#define SYMCONV_X86(name, ...) SYMCONV_PASTE(_mm256_##name, SYMCONV_SUFFIX)(__VA_ARGS__)
#endif

namespace symconv {

template <int BYTES> struct integer_of;
template <> struct integer_of<4> { using type = int32_t; };
template <> struct integer_of<8> { using type = int64_t; };

using real = SYMCONV_REAL;
using integer = integer_of<sizeof(real)>::type;

/// Numbers of a vector, and how many of them this thread holds: all.
constexpr int WIDTH = SYMCONV_VECTOR_BYTES / sizeof(real), LANES = WIDTH;
constexpr real infinity = __builtin_huge_valf(), not_a_number = __builtin_nanf("");
constexpr real LARGEST = sizeof(real) == 4 ? real(__FLT_MAX__) : real(__DBL_MAX__);

typedef real vec __attribute__((vector_size(SYMCONV_VECTOR_BYTES)));
/// Whole numbers, and masks: comparisons give -1 where they hold, else 0.
typedef integer ivec __attribute__((vector_size(SYMCONV_VECTOR_BYTES)));

constexpr integer SIGN_BIT = integer(1) << (sizeof(integer) * 8 - 2) << 1;

SYMCONV_INLINE vec splat(real value) { return value - vec{}; }  // -0 stays -0

/// A value as it is rounded: the compiler may not fuse the product that it comes from with what follows.
SYMCONV_INLINE vec rounded(vec value)
{
#if defined(__AVX512F__)
    asm("" : "+v"(value));
#elif defined(__x86_64__) && (SYMCONV_VECTOR_BYTES == 16 || defined(__AVX__))
    asm("" : "+x"(value));
#elif defined(__aarch64__) && SYMCONV_VECTOR_BYTES == 16
    asm("" : "+w"(value));
#endif
    return value;
}

/// a - b, rounded before anything is added to it.
SYMCONV_INLINE vec less(vec a, vec b) { return rounded(rounded(a) - b); }

SYMCONV_INLINE ivec splat_int(integer value) { return value + ivec{}; }

// -- Memory, aligned or not -------------------------------------------------------------------------------------------

/// What is loaded stays in a register: compilers would rather load it again for each operation that it is an operand of.
SYMCONV_INLINE vec load(const real* from)
{
    vec value;
    __builtin_memcpy(&value, from, sizeof value);
    return rounded(value);
}

SYMCONV_INLINE ivec load_int(const integer* from)
{
    ivec value;
    __builtin_memcpy(&value, from, sizeof value);
    return value;
}

SYMCONV_INLINE void store(real* to, vec value) { __builtin_memcpy(to, &value, sizeof value); }
SYMCONV_INLINE void store_int(integer* to, ivec value) { __builtin_memcpy(to, &value, sizeof value); }

template <int... I> SYMCONV_INLINE ivec numbered(std::integer_sequence<int, I...>) { return ivec{I...}; }

/// The lanes of a vector from one of them on; what stands in the others does not matter.
SYMCONV_INLINE vec from_lane(vec value, int64_t lane)
{
#if SYMCONV_VECTOR_BYTES == 32 && defined(SYMCONV_X86)  // in registers: what was just stored is slow to load in other pieces
    ivec lanes = numbered(std::make_integer_sequence<int, WIDTH>{}) + splat_int(integer(lane));
    if constexpr (sizeof(real) == 8)
        lanes = 2 * lanes | (2 * lanes + 1) << 32;  // the instruction counts in halves of a double
    return (vec)_mm256_permutevar8x32_ps((__m256)value, (__m256i)lanes);
#else
    real all[2 * WIDTH] = {};
    store(all, value);
    return load(all + lane);
#endif
}

/// The first values of a vector, where there may be no memory behind them; 0 stands for the others.
struct First {
    int64_t count;

#if SYMCONV_VECTOR_BYTES == 64 && defined(SYMCONV_X86)
    static_assert(WIDTH <= 16);
    uint16_t mask() const { return uint16_t((1u << count) - 1); }
    vec load(const real* from) const { return SYMCONV_PASTE(_mm512_maskz_loadu, SYMCONV_SUFFIX)(mask(), from); }
    void store(real* to, vec value) const { SYMCONV_PASTE(_mm512_mask_storeu, SYMCONV_SUFFIX)(to, mask(), value); }
#else
#if defined(SYMCONV_X86)
    __m256i mask() const { return (__m256i)(numbered(std::make_integer_sequence<int, WIDTH>{}) < splat_int(integer(count))); }
    vec load(const real* from) const { return SYMCONV_X86(maskload, from, mask()); }
#else
    vec load(const real* from) const
    {
        vec value = {};
        __builtin_memcpy(&value, from, count * sizeof(real));
        return value;
    }
#endif
    /// Two halves that overlap: a copy of unknown length takes longer.
    void store(real* to, vec value) const
    {
        constexpr int HALF = WIDTH / 2;
        if (count < HALF) {
            for (int i = 0; i < count; ++i)
                to[i] = value[i];
            return;
        }
        const vec rest = from_lane(value, count - HALF);
        __builtin_memcpy(to, &value, HALF * sizeof(real));
        __builtin_memcpy(to + count - HALF, &rest, HALF * sizeof(real));
    }
#endif

    /// What holds the lanes of `every_other`: the last one is the last of them.
    std::pair<First, First> doubled() const
    {
        const int64_t all = 2 * count - 1;
        return {First{all < WIDTH ? all : WIDTH}, First{all < WIDTH ? 0 : all - WIDTH + 1}};
    }
};

/// All values of a vector.
struct Whole {
    vec load(const real* from) const { return symconv::load(from); }
    void store(real* to, vec value) const { symconv::store(to, value); }
    std::pair<Whole, Whole> doubled() const { return {}; }
};

/// 1/1, 1/2, 1/3, ...
struct Inverses {
    real of[128] = {};
    constexpr Inverses()
    {
        for (int n = 1; n <= 128; ++n)
            of[n - 1] = real(1) / real(n);
    }
};
constexpr Inverses INVERSES;

/// 1/n, for n of 1 and more: small ones are looked up, because a division in each round of a loop takes longer than the rest.
SYMCONV_INLINE real inverse(int n) { return n <= 128 ? INVERSES.of[n - 1] : real(1) / real(n); }

/// Number i of an aligned block of N.
template <int N> SYMCONV_INLINE real one_of(const real* block, int i) { return block[i]; }

// -- The threads that share a piece of work: this one alone ------------------------------------------------------------

constexpr int64_t TEAM = 1, RANK = 0;

/// How many values are put in order: where that is known to the compiler, it is what they are.
constexpr int64_t ranked_or(int64_t count)
{
#if RANKED
    return (void)count, RANKED;
#else
    return count;
#endif
}

/// Wait for the team.
SYMCONV_INLINE void meet() {}

/// body(0), body(1), ... body(count - 1), in any order.
template <class Body> SYMCONV_INLINE void each(int64_t count, Body body)
{
    for (int64_t i = 0; i < count; ++i)
        body(i);
}

/// body(row, first place) for each vector of `rows` times `length` places.
template <class Body> SYMCONV_INLINE void vectors(int64_t rows, int64_t length, Body body)
{
    for (int64_t f = 0; f < rows; ++f)
        for (int64_t q = 0; q < length; q += WIDTH)
            body(f, q);
}

/// body(row, column) for each of `rows` times `columns`, by so many threads together if so many elements are worth waking them.
template <class Body> inline void spread(int64_t threads, int64_t rows, int64_t columns, int64_t elements, Body body)
{
    in_parallel(elements < 16384 ? 1 : threads, [&](int64_t thread, int64_t team) {
        for (int64_t row = rows * thread / team; row < rows * (thread + 1) / team; ++row)
            for (int64_t column = 0; column < columns; ++column)
                body(row, column);
    });
}
template <class Body> inline void spread(int64_t threads, int64_t rows, int64_t columns, Body body)
{
    spread(threads, rows, columns, rows * columns, body);
}

// -- Bits and conversions ---------------------------------------------------------------------------------------------

SYMCONV_INLINE ivec bits(vec value) { return (ivec)value; }
SYMCONV_INLINE vec from_bits(ivec value) { return (vec)value; }
SYMCONV_INLINE vec abs(vec z) { return from_bits(bits(z) & ~SIGN_BIT); }
SYMCONV_INLINE vec converted(ivec value) { return __builtin_convertvector(value, vec); }

inline uint32_t bits_of(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return bits;
}

inline float float_of(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

/// a*b + c, rounded once.
SYMCONV_INLINE float fused(float a, float b, float c)
{
#ifdef __FP_FAST_FMAF
    return __builtin_fmaf(a, b, c);
#else
    return float(double(a) * double(b) + double(c));  // the product is exact in float64
#endif
}

// -- Masks ------------------------------------------------------------------------------------------------------------

// Templates, so that a number of any type is an exact match: Clang would else turn the vector into an ivec as readily.
#define SYMCONV_NUMBER template <class Number, class = std::enable_if_t<std::is_arithmetic_v<Number>>> SYMCONV_INLINE

SYMCONV_INLINE vec where(ivec mask, vec a, vec b) { return mask ? a : b; }
SYMCONV_NUMBER vec where(ivec mask, vec a, Number b) { return where(mask, a, splat(real(b))); }
SYMCONV_NUMBER vec where(ivec mask, Number a, vec b) { return where(mask, splat(real(a)), b); }
SYMCONV_INLINE vec where(ivec mask, real a, real b) { return where(mask, splat(a), splat(b)); }
SYMCONV_INLINE ivec where(ivec mask, ivec a, ivec b) { return mask ? a : b; }
SYMCONV_NUMBER ivec where(ivec mask, ivec a, Number b) { return where(mask, a, splat_int(integer(b))); }
SYMCONV_NUMBER ivec where(ivec mask, Number a, ivec b) { return where(mask, splat_int(integer(a)), b); }

/// 1 where z > 0, -1 where z < 0, else 0: also for NaN, as torch.sign.
SYMCONV_INLINE vec sign(vec z)
{
#if SYMCONV_VECTOR_BYTES == 64 && defined(SYMCONV_X86)
    // One instruction that looks up what each kind of number becomes.  From the right, 4 bits each: NaN, NaN, 0, 1,
    // -inf, inf, negative and positive numbers; 8 stands for 0, 9 for -1, a for 1.
    return SYMCONV_PASTE(_mm512_fixupimm, SYMCONV_SUFFIX)(z, z, (__m512i)splat_int(integer(0xa9a9a888)), 0);
#else
    return where((z < 0) | (z > 0), from_bits(bits(splat(1)) | (bits(z) & SIGN_BIT)), splat(0));
#endif
}

/// Whether a mask holds anywhere.
SYMCONV_INLINE bool any(ivec mask)
{
#if SYMCONV_VECTOR_BYTES == 64 && defined(__AVX512F__)
    return _mm512_test_epi32_mask((__m512i)mask, (__m512i)mask);
#elif SYMCONV_VECTOR_BYTES == 32 && defined(__AVX2__)
    return _mm256_movemask_epi8((__m256i)mask);
#else
    int64_t words[sizeof mask / 8], all = 0;
    __builtin_memcpy(words, &mask, sizeof mask);
    for (int64_t word : words)
        all |= word;
    return all != 0;
#endif
}

/// Whether a number is greater than `bound` anywhere.
SYMCONV_INLINE bool any_greater(vec value, real bound)
{
#if SYMCONV_VECTOR_BYTES == 64 && defined(SYMCONV_X86)
    return SYMCONV_PASTE(SYMCONV_PASTE(_mm512_cmp, SYMCONV_SUFFIX), _mask)(value, splat(bound), _CMP_GT_OQ);
#else
    return any(value > bound);
#endif
}

// -- Sums -------------------------------------------------------------------------------------------------------------

/// Part of a vector: LANES numbers.
template <int LANES> struct part { typedef real type __attribute__((vector_size(LANES * sizeof(real)))); };

/// The sum of the lanes, by adding the upper half to the lower half until one number is left: always in that order.
template <int LANES = WIDTH> SYMCONV_INLINE real total(const typename part<LANES>::type& value)
{
    if constexpr (LANES == 2)
        return value[0] + value[1];
    else {
        typename part<LANES / 2>::type halves[2];
        __builtin_memcpy(halves, &value, sizeof value);
        return total<LANES / 2>(halves[0] + halves[1]);
    }
}

/// Lanes of two vectors, which are numbered one after the other.
template <int... LANE> SYMCONV_INLINE vec lanes_of(vec a, vec b)
{
#ifdef __clang__
    return __builtin_shufflevector(a, b, LANE...);
#else
    return __builtin_shuffle(a, b, ivec{LANE...});
#endif
}

template <int... I> SYMCONV_INLINE vec every_other(vec a, vec b, std::integer_sequence<int, I...>)
{
    return lanes_of<(2 * I < WIDTH ? 2 * I : 2 * I + 1)...>(a, b);
}

/// Every other one of 2*WIDTH - 1 numbers in memory; the vector b begins with the last of a.
SYMCONV_INLINE vec every_other(vec a, vec b) { return every_other(a, b, std::make_integer_sequence<int, WIDTH>{}); }

template <int HALF, int... I> SYMCONV_INLINE vec woven(vec a, vec b, std::integer_sequence<int, I...>)
{
    return lanes_of<(I % 2 * WIDTH + HALF * WIDTH / 2 + I / 2)...>(a, b);
}

/// The lanes of two vectors in turn, those of their lower (HALF 0) or upper halves.
template <int HALF> SYMCONV_INLINE vec woven(vec a, vec b)
{
    return woven<HALF>(a, b, std::make_integer_sequence<int, WIDTH>{});
}

/// For each PART lanes of two vectors, half as many: the upper half is added to the lower half.
template <int PART, int... I> SYMCONV_INLINE vec halved(vec a, vec b, std::integer_sequence<int, I...>)
{
    constexpr int half = PART / 2;
    return lanes_of<(I / half * PART + I % half)...>(a, b) + lanes_of<(I / half * PART + I % half + half)...>(a, b);
}

/// N vectors in one, each as WIDTH / N lanes.
template <int N> SYMCONV_INLINE vec folded(const vec* values)
{
    if constexpr (N == 1)
        return *values;
    else
        return halved<2 * WIDTH / N>(folded<N / 2>(values), folded<N / 2>(values + N / 2),
                                     std::make_integer_sequence<int, WIDTH>{});
}

/// The sum of each PART lanes, side by side.
template <int PART> SYMCONV_INLINE vec settled(vec value)
{
    if constexpr (PART == 1)
        return value;
    else
        return settled<PART / 2>(halved<PART>(value, value, std::make_integer_sequence<int, WIDTH>{}));
}

/// The totals of N vectors, a power of 2: the same numbers as `total` gives, sooner.
template <int N> SYMCONV_INLINE void totals(const vec* values, real* found)
{
    static_assert((N & (N - 1)) == 0);
    if constexpr (N == 1)
        *found = total(*values);
    else if constexpr (N > WIDTH) {
        totals<N / 2>(values, found);
        totals<N / 2>(values + N / 2, found + N / 2);
    } else {
        const vec sums = settled<WIDTH / N>(folded<N>(values));
        __builtin_memcpy(found, &sums, N * sizeof(real));
    }
}

}  // namespace symconv
