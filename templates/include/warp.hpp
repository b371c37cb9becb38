// Vectors of numbers on a GPU, under the names of `vector.hpp`: the 32 threads of a warp hold one number of each vector.
//
// So a loop nest reads as it does for a CPU.  What is one register there is one register of each thread here; `load`
// and `store` reach the warp's 32 places side by side, `splat` is a number that all of them have.  The warps of a block
// are a *team*: they share the places, and wait for one another where one reads what another has written.
//
//     SYMCONV_REAL   float or double
//
// It is compiled by NVRTC with --device-as-default-execution-space, and for the CPU behind `emulation.hpp`.
#pragma once

#ifdef __CUDACC_RTC__
using int32_t = int;
using uint32_t = unsigned;
using uint16_t = unsigned short;
using int64_t = long long;
using uint64_t = unsigned long long;
#endif

#ifndef SYMCONV_REAL
#define SYMCONV_REAL float
#endif

#define SYMCONV_INLINE inline
#define APART
#define CALLED __noinline__
#define ONCE
#define UNROLL _Pragma("unroll")
// Loops over taps: so many loads are under way at a time.
#ifndef TAPS_AT_A_TIME
#define TAPS_AT_A_TIME 4
#endif
#define PRAGMA(text) _Pragma(#text)
#define UNROLL_TIMES(count) PRAGMA(unroll count)
#define UNROLL_TAPS UNROLL_TIMES(TAPS_AT_A_TIME)
// Values that are put in order wait in memory, also if they are few.
#ifndef RANKED
#define RANKED 0
#endif
#define RANKED_IN_REGISTERS 0
#define UNROLL_RANKED
#define UNROLL_RANKED_TAPS UNROLL_TAPS
#define UNLIKELY(condition) __builtin_expect(condition, 0)
#define SYMCONV_PASTED(a, b) a##b
#define SYMCONV_PASTE(a, b) SYMCONV_PASTED(a, b)
// C's function for one number; CUDA has it for both types under one name.
#ifndef SYMCONV_SCALAR
#define SYMCONV_SCALAR(name) ::name
#endif
#define SYMCONV_IS_float 1
#define SYMCONV_FLOAT SYMCONV_PASTE(SYMCONV_IS_, SYMCONV_REAL)

namespace symconv {

template <int BYTES> struct whole_number;
template <> struct whole_number<4> {
    using type = int32_t;
    using natural = uint32_t;
};
template <> struct whole_number<8> {
    using type = int64_t;
    using natural = uint64_t;
};

using real = SYMCONV_REAL;
using integer = whole_number<sizeof(real)>::type;
using natural = whole_number<sizeof(real)>::natural;

/// Numbers of a vector, and how many of them this thread holds.
constexpr int WIDTH = 32, LANES = 1;
constexpr real LARGEST = real(sizeof(real) == 4 ? 3.4028234663852886e38 : 1.7976931348623157e308);

// -- The threads that share a piece of work: those of a block ---------------------------------------------------------

SYMCONV_INLINE int lane() { return int(threadIdx.x) % WIDTH; }

#define TEAM int64_t(blockDim.x)
#define RANK int64_t(threadIdx.x)
#define WARPS int64_t(blockDim.x / WIDTH)
#define WARP int64_t(threadIdx.x / WIDTH)

/// How many values are put in order.
constexpr int64_t ranked_or(int64_t count) { return count; }

/// Wait for the team: what anyone has written before, everyone reads after.
SYMCONV_INLINE void meet() { __syncthreads(); }

/// body(0), body(1), ... body(count - 1), in any order; the team calls it together, and when it returns all is done.
template <class Body> SYMCONV_INLINE void each(int64_t count, Body body)
{
    if (count == 0)
        return;
    for (int64_t i = RANK; i < count; i += TEAM)
        body(i);
    meet();
}

/// body(row, first place) for each vector of `rows` times `length` places.
template <class Body> inline void vectors(int64_t rows, int64_t length, Body body)
{
    const int64_t across = length / WIDTH;
    for (int64_t i = WARP; i < rows * across; i += WARPS)
        body(i / across, i % across * WIDTH);
    meet();
}

/// body(row, column) for each of `rows` times `columns`, by all blocks of a launch together; nobody waits.
template <class Body> SYMCONV_INLINE void spread(int64_t, int64_t rows, int64_t columns, Body body)
{
    for (int64_t i = blockIdx.x * TEAM + RANK; i < rows * columns; i += gridDim.x * TEAM)
        body(i / columns, i % columns);
}

// -- Bits -------------------------------------------------------------------------------------------------------------

SYMCONV_INLINE uint32_t bits_of(float value) { return uint32_t(__float_as_int(value)); }
SYMCONV_INLINE float float_of(uint32_t bits) { return __int_as_float(int(bits)); }
SYMCONV_INLINE int32_t whole_bits(float value) { return __float_as_int(value); }
SYMCONV_INLINE int64_t whole_bits(double value) { return __double_as_longlong(value); }
SYMCONV_INLINE float number_of(int32_t bits) { return __int_as_float(bits); }
SYMCONV_INLINE double number_of(int64_t bits) { return __longlong_as_double(bits); }

/// a*b + c, rounded once.
SYMCONV_INLINE float fused(float a, float b, float c) { return ::fmaf(a, b, c); }

/// A constant that is no literal.
template <long long BITS> struct Constant {
    operator real() const { return real(__longlong_as_double(BITS)); }
    real operator-() const { return -real(*this); }
};
constexpr Constant<0x7ff0000000000000> infinity{};
constexpr Constant<0x7ff8000000000000> not_a_number{};

// -- One thread's number of a vector ----------------------------------------------------------------------------------

struct vec {
    real value;
    real& operator[](int) { return value; }
    real operator[](int) const { return value; }
};

/// Whole numbers, which wrap around, and masks: comparisons give -1 where they hold, else 0.
struct ivec {
    integer value;
    integer& operator[](int) { return value; }
    integer operator[](int) const { return value; }
};

constexpr integer SIGN_BIT = integer(1) << (sizeof(integer) * 8 - 2) << 1;

SYMCONV_INLINE integer wrapped(natural value) { return integer(value); }

#define SYMCONV_ARITHMETIC(op) \
    SYMCONV_INLINE vec operator op(vec a, vec b) { return {a.value op b.value}; } \
    template <class Number> SYMCONV_INLINE vec operator op(vec a, Number b) { return {a.value op real(b)}; } \
    template <class Number> SYMCONV_INLINE vec operator op(Number a, vec b) { return {real(a) op b.value}; }
#define SYMCONV_COMPARISON(op) \
    SYMCONV_INLINE ivec operator op(vec a, vec b) { return {-integer(a.value op b.value)}; } \
    template <class Number> SYMCONV_INLINE ivec operator op(vec a, Number b) { return {-integer(a.value op real(b))}; } \
    template <class Number> SYMCONV_INLINE ivec operator op(Number a, vec b) { return {-integer(real(a) op b.value)}; } \
    SYMCONV_INLINE ivec operator op(ivec a, ivec b) { return {-integer(a.value op b.value)}; } \
    SYMCONV_INLINE ivec operator op(ivec a, integer b) { return {-integer(a.value op b)}; }
#define SYMCONV_WHOLE(op) \
    SYMCONV_INLINE ivec operator op(ivec a, ivec b) { return {wrapped(natural(a.value) op natural(b.value))}; } \
    SYMCONV_INLINE ivec operator op(ivec a, integer b) { return {wrapped(natural(a.value) op natural(b))}; } \
    SYMCONV_INLINE ivec operator op(integer a, ivec b) { return {wrapped(natural(a) op natural(b.value))}; }

SYMCONV_ARITHMETIC(+)
SYMCONV_ARITHMETIC(-)
SYMCONV_ARITHMETIC(*)
SYMCONV_ARITHMETIC(/)
SYMCONV_COMPARISON(<)
SYMCONV_COMPARISON(<=)
SYMCONV_COMPARISON(>)
SYMCONV_COMPARISON(>=)
SYMCONV_COMPARISON(==)
SYMCONV_COMPARISON(!=)
SYMCONV_WHOLE(+)
SYMCONV_WHOLE(-)
SYMCONV_WHOLE(&)
SYMCONV_WHOLE(|)
SYMCONV_WHOLE(^)

SYMCONV_INLINE ivec operator<<(ivec a, int count) { return {wrapped(natural(a.value) << count)}; }
SYMCONV_INLINE ivec operator>>(ivec a, int count) { return {a.value >> count}; }
SYMCONV_INLINE ivec operator~(ivec a) { return {~a.value}; }
SYMCONV_INLINE vec operator-(vec a) { return {-a.value}; }
SYMCONV_INLINE vec& operator+=(vec& a, vec b) { return a = a + b; }
SYMCONV_INLINE ivec& operator|=(ivec& a, ivec b) { return a = a | b; }

SYMCONV_INLINE vec splat(real value) { return {value}; }
SYMCONV_INLINE ivec splat_int(integer value) { return {value}; }

/// a - b, each as it is rounded: the compiler fuses products with neither.
SYMCONV_INLINE vec less(vec a, vec b)
{
#if SYMCONV_FLOAT
    return {__fsub_rn(a.value, b.value)};
#else
    return {__dsub_rn(a.value, b.value)};
#endif
}

// -- Memory -----------------------------------------------------------------------------------------------------------

SYMCONV_INLINE vec load(const real* from) { return {from[lane()]}; }
SYMCONV_INLINE ivec load_int(const integer* from) { return {from[lane()]}; }
SYMCONV_INLINE void store(real* to, vec value) { to[lane()] = value.value; }
SYMCONV_INLINE void store_int(integer* to, ivec value) { to[lane()] = value.value; }

/// 1/n, for n of 1 and more.
SYMCONV_INLINE real inverse(int n) { return real(1) / real(n); }

/// Number i of an aligned block of N, which is loaded in pieces of 16 bytes: the compiler joins those of all i.
template <int N> SYMCONV_INLINE real one_of(const real* block, int i)
{
    constexpr int bytes = N * int(sizeof(real)), together = bytes % 16 == 0 ? 16 / int(sizeof(real)) : 1;
    struct alignas(together * sizeof(real)) Piece {
        real values[together];
    };
    const Piece piece = reinterpret_cast<const Piece*>(block)[i / together];
    return piece.values[i % together];
}

// -- Conversions and masks --------------------------------------------------------------------------------------------

SYMCONV_INLINE ivec bits(vec value) { return {whole_bits(value.value)}; }
SYMCONV_INLINE vec from_bits(ivec value) { return {number_of(value.value)}; }
SYMCONV_INLINE vec abs(vec z) { return {real(sizeof(real) == 4 ? ::fabsf(float(z.value)) : ::fabs(z.value))}; }
SYMCONV_INLINE vec converted(ivec value) { return {real(value.value)}; }

SYMCONV_INLINE vec where(ivec mask, vec a, vec b) { return mask.value ? a : b; }
template <class Number> SYMCONV_INLINE vec where(ivec mask, vec a, Number b) { return where(mask, a, splat(real(b))); }
template <class Number> SYMCONV_INLINE vec where(ivec mask, Number a, vec b) { return where(mask, splat(real(a)), b); }
SYMCONV_INLINE vec where(ivec mask, real a, real b) { return where(mask, splat(a), splat(b)); }
SYMCONV_INLINE ivec where(ivec mask, ivec a, ivec b) { return mask.value ? a : b; }

/// 1 where z > 0, -1 where z < 0, else 0: also for NaN, as torch.sign.
SYMCONV_INLINE vec sign(vec z) { return where(z > 0, 1, splat(0)) - where(z < 0, 1, splat(0)); }

/// Whether a mask holds for this thread's number.
SYMCONV_INLINE bool any(ivec mask) { return mask.value != 0; }

/// Whether this thread's number is greater than `bound`.
SYMCONV_INLINE bool any_greater(vec value, real bound) { return value.value > bound; }

// -- Sums -------------------------------------------------------------------------------------------------------------

/// The sum of a vector, or of each N numbers of it that lie side by side, by adding the upper half to the lower half until
/// one number is left: always in that order.
template <int N = WIDTH> SYMCONV_INLINE real total(vec value)
{
    real sum = value.value;
    for (int half = N / 2; half; half /= 2)
        sum += __shfl_xor_sync(0xffffffff, sum, half);
    return sum;
}

}  // namespace symconv
