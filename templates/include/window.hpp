// The part of the native CPU backend that never varies: windows on an image, and the strips in which they are visited.
//
// The windows of one image and one z lie in a line, row after row.  A row is as long as its windows reach, so that the
// pixel under a tap is always the same distance away:
//
//     pitch = width of the output + the largest column of a tap
//
// A *strip* is a piece of that line.  For each channel the pixels that its windows see are copied into *planes*, one for
// each residue of the stride, with zeros around the image; a tap is then a shift into a plane, whatever the stride, the
// padding and the dilation were.  The few places at the end of each row that are no windows are computed and thrown away.
#pragma once

#include <cstdint>

#include "math.hpp"
#include "vector.hpp"

// A loop nest on its own: all registers are for its tile.
#define APART __attribute__((noinline))
#define EXPORT extern "C" __attribute__((visibility("default")))
#define PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define UNROLL PRAGMA(clang loop unroll(full))
#else
#define UNROLL PRAGMA(GCC unroll 16)
#endif

namespace symconv {

// -- Numbers as tensors store them ------------------------------------------------------------------------------------

#if defined(SYMCONV_FLOAT16) || defined(SYMCONV_BFLOAT16)

inline uint32_t bits_of(float value)
{
    uint32_t bits;
    __builtin_memcpy(&bits, &value, 4);
    return bits;
}

inline float float_of(uint32_t bits)
{
    float value;
    __builtin_memcpy(&value, &bits, 4);
    return value;
}

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

// -- What Python passes -----------------------------------------------------------------------------------------------

/// The windows of one call.  Axes are z, y, x; those that the image lacks have one element.
struct Geometry {
    int64_t batch, groups, filters, channels;  // filters and channels of a group
    int64_t image[3], size[3], kernel[3], stride[3], before[3], dilation[3];
    int64_t strip;        // windows of a strip, a multiple of the vectors of a tile
    int64_t filter_step;  // filters that are computed together
};

/// A tensor: where it is, and the distances of its elements along n, channel, tap, z, y, x.
struct Tensor {
    void* data;
    int64_t channels;  // of an input: those that a group sees
    int64_t group;     // of an input: channels between those of one group and the next, 0 where all see the same
    int64_t step[6];
};

/// Memory that is handed out piece by piece.  Without a base it only counts.
struct Arena {
    char* base;
    int64_t used = 0;

    template <class T> T* take(int64_t count)
    {
        T* piece = base ? reinterpret_cast<T*>(base + used) : nullptr;
        used += (count * int64_t(sizeof(T)) + 63) / 64 * 64;
        return piece;
    }
};

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

// -- Windows ----------------------------------------------------------------------------------------------------------

/// The taps along one axis: tap t looks at residue `residue[t]` of the stride, `step[t]` windows further on.
struct Axis {
    int64_t residues = 0, reach = 0;
    int64_t *residue, *step, *first;  // first: where in the image a residue begins

    Axis(const Geometry& geometry, int axis, Arena& arena)
    {
        const int64_t stride = geometry.stride[axis], taps = geometry.kernel[axis], dilation = geometry.dilation[axis];
        residue = arena.take<int64_t>(taps), step = arena.take<int64_t>(taps), first = arena.take<int64_t>(taps);
        reach = (taps - 1) * dilation / stride;
        // The residues come back after `residues` taps, in the same order.
        while (residues < taps && (residues == 0 || residues * dilation % stride != 0))
            ++residues;
        for (int64_t t = 0; arena.base && t < taps; ++t) {
            residue[t] = t % residues;
            step[t] = t * dilation / stride;
            if (t < residues)
                first[t] = t * dilation % stride - geometry.before[axis];
        }
    }
};

/// What is the same for all strips of a call.
struct Windows {
    Geometry geometry;
    Axis y, x;
    int64_t taps;            // per window
    int64_t centre;          // the tap in the middle
    int64_t pitch, length;   // of a row, and of the line of windows
    int64_t strips;          // of one image: those of a line, times the lines
    int64_t plane, channel;  // values of a plane, and of all planes of a channel
    int* shift;              // of each tap in the planes of a channel

    Windows(const Geometry& given, Arena& arena) : geometry(given), y(given, 1, arena), x(given, 2, arena)
    {
        const int64_t *kernel = geometry.kernel, *size = geometry.size;
        taps = kernel[0] * kernel[1] * kernel[2];
        centre = ((kernel[0] - 1) / 2 * kernel[1] + (kernel[1] - 1) / 2) * kernel[2] + (kernel[2] - 1) / 2;
        pitch = size[2] + x.reach;
        length = (size[1] - 1) * pitch + size[2];
        strips = size[0] * line();
        plane = (geometry.strip + y.reach * pitch + x.reach + WIDTH - 1) / WIDTH * WIDTH;
        channel = kernel[0] * y.residues * x.residues * plane;
        shift = arena.take<int>(taps);
        if (!arena.base)
            return;
        for (int64_t t = 0; t < taps; ++t) {
            const int64_t tz = t / (kernel[1] * kernel[2]), ty = t / kernel[2] % kernel[1], tx = t % kernel[2];
            const int64_t number = (tz * y.residues + y.residue[ty]) * x.residues + x.residue[tx];
            shift[t] = int(number * plane + y.step[ty] * pitch + x.step[tx]);
        }
    }

    /// The strips of one line of windows.
    int64_t line() const { return ceil_div(length, geometry.strip); }

    /// How many strips further on no pixel is seen again.
    int64_t apart() const
    {
        const int64_t lines = (geometry.kernel[0] - 1) * geometry.dilation[0] / geometry.stride[0];
        return lines ? (lines + 1) * line() : ceil_div(y.reach * pitch + x.reach, geometry.strip) + 1;
    }

    /// The offset of a tap from the centre along an axis, in pixels of the image.
    int64_t offset(int64_t tap, int axis) const
    {
        const int64_t* kernel = geometry.kernel;
        const int64_t at[3] = {tap / (kernel[1] * kernel[2]), tap / kernel[2] % kernel[1], tap % kernel[2]};
        return (at[axis] - (kernel[axis] - 1) / 2) * geometry.dilation[axis];
    }

    // How many floats the planes of an image take: those of its channels, and one full of zeros for taps that are not.
    int64_t planes(int64_t channels) const { return channels * channel + nowhere(); }
    int64_t nowhere() const { return (geometry.strip + WIDTH) / WIDTH * WIDTH; }
};

/// One strip: an image, a line and a piece of it.
struct Strip {
    int64_t n, z, begin;

    Strip(const Windows& windows, int64_t n, int64_t number)
        : n(n), z(number / windows.line()), begin(number % windows.line() * windows.geometry.strip)
    {
    }

    /// How many places are computed, in steps of a tile.
    int64_t length(const Windows& windows, int64_t step) const
    {
        return ceil_div(least(windows.geometry.strip, windows.length - begin), step) * step;
    }

    /// Visit the rows of output pixels in this strip: visit(place in the strip, y, x, how many).
    template <class Visit> void rows(const Windows& windows, Visit visit) const
    {
        const int64_t end = least(begin + windows.geometry.strip, windows.length), width = windows.geometry.size[2];
        for (int64_t at = begin, y = begin / windows.pitch, x = begin % windows.pitch; at < end; ++y, x = 0) {
            const int64_t all = least(windows.pitch - x, end - at);
            if (x < width)
                visit(at - begin, y, x, least(all, width - x));
            at += all;
        }
    }

    /// Visit the rows of an image that the planes of one channel hold: visit(place in the planes, y, x, how many, before,
    /// inside).  Of so many values the first `before` lie outside, then come those at (z, y, x), `stride` apart.
    template <class Visit> void image_rows(const Windows& windows, Visit visit) const
    {
        const Geometry& g = windows.geometry;
        const int64_t pitch = windows.pitch, stride = g.stride[2];
        for (int64_t tz = 0, at = 0; tz < g.kernel[0]; ++tz) {
            const int64_t iz = z * g.stride[0] + tz * g.dilation[0] - g.before[0];
            for (int64_t ry = 0; ry < windows.y.residues; ++ry)
                for (int64_t rx = 0; rx < windows.x.residues; ++rx, at += windows.plane) {
                    const int64_t first = windows.x.first[rx];  // column x is pixel first + x * stride
                    const int64_t low = first < 0 ? ceil_div(-first, stride) : 0;
                    const int64_t high = first < g.image[2] ? ceil_div(g.image[2] - first, stride) : 0;
                    int64_t y = begin / pitch, x = begin % pitch;
                    for (int64_t j = 0; j < windows.plane; ++y, x = 0) {
                        const int64_t all = least(pitch - x, windows.plane - j);
                        const int64_t iy = y * g.stride[1] + windows.y.first[ry];
                        const bool inside = 0 <= iz && iz < g.image[0] && 0 <= iy && iy < g.image[1];
                        const int64_t from = least(most(low, x), x + all);
                        const int64_t to = inside ? least(most(high, from), x + all) : from;
                        visit(at + j, all, from - x, to - from, iz, iy, first + from * stride);
                        j += all;
                    }
                }
        }
    }
};

template <class To, class From> inline void copy(To* to, int64_t step, const From* from, int64_t stride, int64_t count)
{
    if (step == 1 && stride == 1)
        for (int64_t i = 0; i < count; ++i)
            to[i] = To(from[i]);
    else
        for (int64_t i = 0; i < count; ++i)
            to[i * step] = To(from[i * stride]);
}

inline void clear(real* values, int64_t count)
{
    for (int64_t i = 0; i < count; ++i)
        values[i] = 0;
}

/// Fill the planes of the channels from `first` on.
inline void fill(real* planes, const Tensor& image, int64_t first, const Windows& windows, const Strip& strip,
                 int64_t channels)
{
    const int64_t* step = image.step;
    for (int64_t c = 0; c < channels; ++c) {
        real* channel = planes + c * windows.channel;
        const storage* data = static_cast<const storage*>(image.data) + strip.n * step[0] + (first + c) * step[1];
        strip.image_rows(windows, [&](int64_t at, int64_t all, int64_t before, int64_t inside, int64_t z, int64_t y, int64_t x) {
            real* row = channel + at;
            for (int64_t i = 0; i < before; ++i)
                row[i] = 0;
            if (inside)
                copy(row + before, 1, data + z * step[3] + y * step[4] + x * step[5],
                     windows.geometry.stride[2] * step[5], inside);
            for (int64_t i = before + inside; i < all; ++i)
                row[i] = 0;
        });
    }
}

/// Room for the planes of an image, with the zeros behind them.
inline real* take_planes(const Windows& windows, int64_t channels, Arena& arena)
{
    real* planes = arena.take<real>(windows.planes(channels));
    if (arena.base)
        clear(planes + channels * windows.channel, windows.nowhere());
    return planes;
}

/// Planes of one channel that are 1 where the image is.
inline void fill_inside(real* planes, const Windows& windows, const Strip& strip)
{
    strip.image_rows(windows, [&](int64_t at, int64_t all, int64_t before, int64_t inside, int64_t, int64_t, int64_t) {
        for (int64_t i = 0; i < all; ++i)
            planes[at + i] = before <= i && i < before + inside;
    });
}

/// Add the planes of the channels from `first` on to an image of numbers as they are computed.
inline void add_planes(const real* planes, const Tensor& image, int64_t first, const Windows& windows,
                       const Strip& strip, int64_t channels)
{
    const int64_t* step = image.step;
    for (int64_t c = 0; c < channels; ++c) {
        const real* channel = planes + c * windows.channel;
        real* data = static_cast<real*>(image.data) + strip.n * step[0] + (first + c) * step[1];
        strip.image_rows(windows, [&](int64_t at, int64_t, int64_t before, int64_t inside, int64_t z, int64_t y, int64_t x) {
            if (!inside)
                return;
            real* row = data + z * step[3] + y * step[4] + x * step[5];
            const real* from = channel + at + before;
            const int64_t stride = windows.geometry.stride[2] * step[5];
            if (stride == 1)
                for (int64_t i = 0; i < inside; ++i)
                    row[i] += from[i];
            else
                for (int64_t i = 0; i < inside; ++i)
                    row[i * stride] += from[i];
        });
    }
}

/// The values of a strip from a tensor of one value per window, 0 where there is no window.
template <class T, class Value>
inline void read(Value* values, const Tensor& tensor, int64_t channel, int64_t tap, const Windows& windows, const Strip& strip)
{
    for (int64_t i = 0; i < windows.geometry.strip; ++i)
        values[i] = 0;
    const int64_t* step = tensor.step;
    const T* data = static_cast<const T*>(tensor.data) + strip.n * step[0] + channel * step[1] + tap * step[2];
    strip.rows(windows, [&](int64_t at, int64_t y, int64_t x, int64_t count) {
        copy(values + at, 1, data + strip.z * step[3] + y * step[4] + x * step[5], step[5], count);
    });
}

/// Put the values of a strip into a tensor of one value per window.
template <class T, class Value>
inline void write(const Value* values, const Tensor& tensor, int64_t channel, const Windows& windows, const Strip& strip)
{
    const int64_t* step = tensor.step;
    T* data = static_cast<T*>(tensor.data) + strip.n * step[0] + channel * step[1];
    strip.rows(windows, [&](int64_t at, int64_t y, int64_t x, int64_t count) {
        copy(data + strip.z * step[3] + y * step[4] + x * step[5], step[5], values + at, 1, count);
    });
}

/// Add the values of a strip to a tensor of numbers as they are computed, one per window.
inline void add(const real* values, const Tensor& tensor, int64_t channel, int64_t tap, const Windows& windows, const Strip& strip)
{
    const int64_t* step = tensor.step;
    real* data = static_cast<real*>(tensor.data) + strip.n * step[0] + channel * step[1] + tap * step[2];
    strip.rows(windows, [&](int64_t at, int64_t y, int64_t x, int64_t count) {
        real* row = data + strip.z * step[3] + y * step[4] + x * step[5];
        for (int64_t i = 0; i < count; ++i)
            row[i * step[5]] += values[at + i];
    });
}

/// -1 for the places of a strip that are windows, 0 for the others.
inline void fill_mask(integer* mask, const Windows& windows, const Strip& strip)
{
    for (int64_t i = 0; i < windows.geometry.strip; ++i)
        mask[i] = 0;
    strip.rows(windows, [&](int64_t at, int64_t, int64_t, int64_t count) {
        for (int64_t i = 0; i < count; ++i)
            mask[at + i] = -1;
    });
}

/// How many taps and channels count for each window of a strip.
inline void count_taps(real* values, const real* inside, int64_t channels, bool has_taps, const Windows& windows)
{
    for (int64_t i = 0; i < windows.geometry.strip; ++i) {
        values[i] = has_taps ? 0 : real(channels);
        for (int64_t t = 0; has_taps && t < windows.taps; ++t)
#ifdef SYMCONV_IGNORE
            values[i] += inside[windows.shift[t] + i] * real(channels);
#else
            values[i] += real(channels);
#endif
    }
    (void)inside;
}

// -- What a sweep runs over, and what it reads there --------------------------------------------------------------------

/// Taps, channels or both, in scan order: k = channel * taps + tap.  Without taps each k means the centre.
struct Domain {
    int64_t channels, taps, count;
    int *channel, *tap;

    Domain(const Windows& windows, int64_t channels, bool has_taps, Arena& arena)
        : channels(channels), taps(has_taps ? windows.taps : 1), count(channels * taps),
          channel(arena.take<int>(count)), tap(arena.take<int>(count))
    {
        for (int64_t k = 0; arena.base && k < count; ++k) {
            channel[k] = int(k / taps);
            tap[k] = has_taps ? int(k % taps) : int(windows.centre);
        }
    }
};

/// Where an operand is read: at the tap, `steps` taps further on, or at the centre; in its channel or the output's own.
struct Access {
    bool own, centre;
    int64_t steps;

    /// The tap that is read, -1 for none.
    int64_t tap(const Windows& windows, int64_t tap) const
    {
        const int64_t at = centre ? windows.centre : tap + steps;
        return 0 <= at && at < windows.taps ? at : -1;
    }
};

/// For each k where an image is read in its planes.
inline int* image_places(const Windows& windows, const Domain& domain, int64_t channels, Access access, Arena& arena)
{
    int* places = arena.take<int>(domain.count);
    for (int64_t k = 0; arena.base && k < domain.count; ++k) {
        const int64_t tap = access.tap(windows, domain.tap[k]);
        const int64_t channel = access.own || channels == 1 ? 0 : domain.channel[k];
        places[k] = int(tap < 0 ? channels * windows.channel : channel * windows.channel + windows.shift[tap]);
    }
    return places;
}

/// For each k the number of the channel or the tap of a value that has one of these axes.
inline int* axis_places(const Domain& domain, char axis, int64_t extent, Arena& arena)
{
    int* places = arena.take<int>(domain.count);
    for (int64_t k = 0; arena.base && k < domain.count; ++k)
        places[k] = extent == 1 ? 0 : axis == 'c' ? domain.channel[k] : domain.tap[k];
    return places;
}

/// For each k a number, as it enters a formula.
template <class Number> inline real* numbers_at(const Domain& domain, Arena& arena, Number number)
{
    real* values = arena.take<real>(domain.count);
    for (int64_t k = 0; arena.base && k < domain.count; ++k)
        values[k] = real(number(k));
    return values;
}

/// Where the elements of a weight or parameter are.  Its axes are o, c and t, those that it has.
struct Elements {
    int64_t group, filter;  // elements between groups and between filters
    int64_t first;          // of a bank: where its weight begins
    int* places;            // for each k, -1 where there is none

    Elements(const Windows& windows, const Domain& domain, bool o, bool c, bool t, Access access, int64_t number, Arena& arena)
        : places(arena.take<int>(domain.count))
    {
        const Geometry& g = windows.geometry;
        const int64_t taps = t ? windows.taps : 1, channels = c ? g.channels : 1, outputs = o ? g.groups * g.filters : 1;
        filter = (o ? channels * taps : 0) + (access.own ? taps : 0);
        group = o ? g.filters * channels * taps : 0;
        first = number * outputs * channels * taps;
        for (int64_t k = 0; arena.base && k < domain.count; ++k) {
            const int64_t tap = t ? access.tap(windows, domain.tap[k]) : 0;
            places[k] = tap < 0 ? -1 : int((c && !access.own ? domain.channel[k] * taps : 0) + tap);
        }
    }

    int64_t at(int64_t g, int64_t f, int64_t k) const { return first + g * group + f * filter + places[k]; }
};

/// The elements of a weight or parameter as sweeps read them: for blocks of `block` filters one k after the other, and
/// for the filters that are left row by row.  PER_FILTER and PER_TAP say along what they vary.
template <bool PER_FILTER, bool PER_TAP>
inline real* pack(const Tensor& tensor, const Elements& elements, const Windows& windows, int64_t count, int64_t block,
                  Arena& arena)
{
    const Geometry& g = windows.geometry;
    const int64_t filters = PER_FILTER ? g.filters : 1, groups = PER_FILTER ? g.groups : 1, taps = PER_TAP ? count : 1;
    real* packed = arena.take<real>(groups * filters * taps);
    if (!arena.base)
        return packed;
    const storage* data = static_cast<const storage*>(tensor.data);
    const int64_t whole = PER_TAP ? filters / block * block : 0;
    for (int64_t group = 0; group < groups; ++group)
        for (int64_t f = 0; f < filters; ++f) {
            const int64_t width = f < whole ? block : 1;
            real* row = packed + (group * filters + f / width * width) * taps + f % width;
            for (int64_t k = 0; k < taps; ++k)
                row[k * width] = elements.places[k] < 0 ? real(0) : real(data[elements.at(group, f, k)]);
        }
    return packed;
}

// -- Reading at a place -----------------------------------------------------------------------------------------------

/// A vector of windows at one tap: filter `f + i`, of a block of F from f on, tap `k` and place `q` in the strip.
template <int F> struct Place {
    int64_t f;
    int i;
    int64_t k, q;
};

/// An input in planes, or the gradient of one.
struct Image {
    real* planes;
    const int* at;
    int64_t own;  // values between the planes of filters, where it is read in the output's own channel

    template <int F> real* to(Place<F> p) const { return planes + at[p.k] + (p.f + p.i) * own + p.q; }
    template <int F> vec operator()(Place<F> p) const { return load(to(p)); }
    template <int F> void add(Place<F> p, vec value) const { store(to(p), load(to(p)) + value); }
};

template <bool PER_FILTER, bool PER_TAP> struct Bank {
    const real* packed;
    int64_t count;

    template <int F> vec operator()(Place<F> p) const
    {
        if constexpr (PER_FILTER && PER_TAP)
            return splat(packed[p.f * count + p.k * F + p.i]);
        else if constexpr (PER_FILTER)
            return splat(packed[p.f + p.i]);
        else
            return splat(packed[PER_TAP ? p.k : 0]);
    }
};

/// A value for each window, and for each channel or tap of it where there are places; or its gradient.
template <class T> struct PerWindow {
    T* data;
    int64_t filter;  // values between filters
    int64_t step;    // values between channels or taps
    const int* at;

    template <int F> T* to(Place<F> p) const
    {
        return data + (p.f + p.i) * filter + (at ? at[p.k] * step : 0) + p.q;
    }
    template <int F> auto operator()(Place<F> p) const
    {
        if constexpr (T(1) / T(2) == 0)  // a whole number
            return load_int(to(p));
        else
            return load(to(p));
    }
    template <int F> void add(Place<F> p, vec value) const { store(to(p), load(to(p)) + value); }
};

using Values = PerWindow<real>;
using Positions = PerWindow<integer>;

struct Number {
    real value;
    template <int F> vec operator()(Place<F>) const { return splat(value); }
};

/// A number for each k: an offset, the number of the channel or of the tap.
struct Numbers {
    const real* values;
    template <int F> vec operator()(Place<F> p) const { return splat(values[p.k]); }
};

/// The number of the filter.
struct Filter {
    int64_t first;
    template <int F> vec operator()(Place<F> p) const { return splat(real(first + p.f + p.i)); }
};

/// The scan position.
struct Scan {
    const int* at;
    template <int F> ivec operator()(Place<F> p) const { return splat_int(integer(at ? at[p.k] : p.k)); }
};

/// All count.
struct Everywhere {};
inline vec where(Everywhere, vec a, vec) { return a; }
inline ivec where(Everywhere, ivec a, ivec) { return a; }
inline ivec operator&(ivec mask, Everywhere) { return mask; }

/// Where taps are not told apart, all count.
struct Always {
    template <int F> Everywhere operator()(Place<F>) const { return {}; }
};

#ifdef SYMCONV_IGNORE
/// Whether the tap lies in the image; taps outside leave the window.
struct Inside {
    const real* planes;
    const int* at;
    template <int F> ivec operator()(Place<F> p) const { return load(planes + at[p.k] + p.q) != splat(0); }
};

inline Inside make_inside(const real* planes, const Windows& windows, const Domain& domain, Arena& arena)
{
    return {planes, image_places(windows, domain, 1, Access{false, false, 0}, arena)};
}
#else
/// Taps outside the image read 0.
using Inside = Always;

inline Inside make_inside(const real*, const Windows&, const Domain&, Arena&) { return {}; }
#endif

/// The gradient of a weight or parameter.
struct BankSink {
    real* total;  // of the group
    int64_t filter;
    const int* places;

    void add(int64_t f, int64_t k, real value) const
    {
        if (places[k] >= 0)
            total[f * filter + places[k]] += value;
    }
};

// -- Accumulators -----------------------------------------------------------------------------------------------------

/// Results of a function that has several.
template <int N> struct Results {
    vec value[N];
    vec operator[](int n) const { return value[n]; }
};

struct Sum {
    vec value = splat(0);
    template <class Mask> void add(Mask mask, ivec, vec v) { value = where(mask, value + v, value); }
    vec sum() const { return value; }
};

struct Product {
    vec value = splat(1);
    template <class Mask> void add(Mask mask, ivec, vec v) { value = where(mask, value * v, value); }
    vec product() const { return value; }
};

/// The maximum; NaN wins.
struct Max {
    vec value = splat(-__builtin_inf());
    template <class Mask> void add(Mask mask, ivec, vec v) { value = where(mask, maximum(value, v), value); }
    vec max() const { return value; }
};

/// The maximum and the scan position of the first tap that attains it; NaN wins.
struct FirstMax {
    vec value = splat(-__builtin_inf());
#ifdef SYMCONV_IGNORE
    ivec position = splat_int(0x7fffffff);  // nothing has been seen
#else
    ivec position = splat_int(0);  // of the first tap, which stands where all are -inf
#endif
    template <class Mask> void add(Mask mask, ivec here, vec v)
    {
        ivec better = ~(v <= value) & (value == value);
#ifdef SYMCONV_IGNORE
        better = where(mask, better | ((v == value) & (position > here)), splat_int(0));
#else
        (void)mask;
#endif
        value = where(better, v, value);
        position = where(better, here, position);
    }
    vec max() const { return value; }
    ivec argmax() const { return position; }
};

/// The maximum, made finite, and the sum of exp(value - maximum).
struct Exponentials {
    vec top = splat(-__builtin_inf()), total = splat(0);
    template <class Mask> void add(Mask mask, ivec, vec value)
    {
        const vec v = rounded(value);
        const vec higher = maximum(top, v), at = finite(higher);
        total = where(mask, total * exp(top - at) + exp(v - at), total);
        top = where(mask, higher, top);
    }
    /// What may be subtracted: never -inf or inf.
    static vec finite(vec v)
    {
        constexpr real LARGEST = sizeof(real) == 4 ? real(__FLT_MAX__) : real(__DBL_MAX__);
        return minimum(maximum(v, splat(-LARGEST)), splat(LARGEST));
    }
    vec peak() const { return finite(top); }
    vec exponentials() const { return total; }
};

/// The running mean (Welford); for a constant it is that constant.
struct Mean {
    vec total = splat(0), running = splat(0), count = splat(0);
    template <class Mask> void add(Mask mask, ivec, vec value)
    {
        const vec v = rounded(value);
        count = where(mask, count + splat(1), count);
        total = where(mask, total + v, total);
        running = where(mask, running + (v - running) / count, running);
    }
    vec mean() const
    {
        // Beside an infinite value the running mean is NaN; the sum knows better.
        return where(running - running == splat(0), running, total / maximum(count, splat(1)));
    }
};

/// The sum of weight*(a - mean(a))*(b - mean(b)) (West 1979); exactly 0 for constants.
struct Moment {
    vec value = splat(0), total = splat(0), mean_a = splat(0), mean_b = splat(0);
    template <class Mask> void add(Mask mask, ivec, vec a, vec b, vec weight)
    {
        const vec all = total + weight, share = where(all == splat(0), splat(0), weight / all);
        const vec by_a = rounded(a) - mean_a, by_b = rounded(b) - mean_b;
        value = where(mask, value + by_a * by_b * share * total, value);
        mean_a = where(mask, mean_a + by_a * share, mean_a);
        mean_b = where(mask, mean_b + by_b * share, mean_b);
        total = where(mask, all, total);
    }
    vec moment() const { return value; }
};

/// The value of a rank, counted from 0 for the smallest, and the position among the taps of the first one that has it.
/// NaN wins; it holds all the values.
struct FirstRank {
    vec* values;
    ivec* counts;
    vec* sorted;
    vec found;
    ivec position;
    int64_t count = 0;

    template <class Mask> void add(Mask mask, ivec, vec v)
    {
        const ivec yes = splat_int(-1);
        counts[count] = where(mask, yes, splat_int(0));
        values[count] = where(mask, v, splat(__builtin_inf()));
        ++count;
    }

    void choose(vec rank)
    {
        for (int64_t k = 0; k < count; ++k)
            sorted[k] = values[k];
        sort();
        found = sorted[0];
        ivec broken = splat_int(0), some = splat_int(0);
        for (int64_t k = 0; k < count; ++k) {
            found = where(rank == splat(real(k)), sorted[k], found);
            some |= counts[k];
            broken |= counts[k] & (values[k] != values[k]);
        }
        found = where(broken, splat(__builtin_nan("")), where(some, found, splat(0)));
        position = splat_int(-1);
        for (int64_t k = count; k-- > 0;) {
            const ivec here = counts[k] & ((values[k] == found) | ((values[k] != values[k]) & (found != found)));
            position = where(here, splat_int(integer(k)), position);
        }
    }

    /// Batcher's odd-even merge sort.
    void sort()
    {
        for (int64_t size = 1; size < count; size *= 2)
            for (int64_t step = size; step; step /= 2)
                for (int64_t start = step % size; start < count - step; start += 2 * step)
                    for (int64_t low = start; low < least(start + step, count - step); ++low)
                        if (low / (2 * size) == (low + step) / (2 * size)) {
                            const vec a = sorted[low], b = sorted[low + step];
                            sorted[low] = where(b < a, b, a);
                            sorted[low + step] = where(b < a, a, b);
                        }
    }

    vec rank() const { return found; }
    ivec argrank() const { return position; }
};

using Rank = FirstRank;

// -- Tiles ------------------------------------------------------------------------------------------------------------

template <int N> struct Size {
    static constexpr int value = N;
};

/// Cut `rows` times `length` places into tiles: body(rows of the tile, vectors of the tile, first row, first place).
/// The rows that are left one by one have more vectors each.
template <int ROWS, int VECTORS, int ROW, class Body> inline void tiles(int64_t rows, int64_t length, Body body)
{
    int64_t f = 0;
    if constexpr (ROWS > 1)
        for (; f + ROWS <= rows; f += ROWS)
            for (int64_t q = 0; q < length; q += VECTORS * WIDTH)
                body(Size<ROWS>{}, Size<VECTORS>{}, f, q);
    for (; f < rows; ++f) {
        int64_t q = 0;
        if constexpr (ROW > VECTORS)
            for (; q + ROW * WIDTH <= length; q += ROW * WIDTH)
                body(Size<1>{}, Size<ROW>{}, f, q);
        for (; q < length; q += VECTORS * WIDTH)
            body(Size<1>{}, Size<VECTORS>{}, f, q);
    }
}

// -- Threads ------------------------------------------------------------------------------------------------------------

#ifdef _OPENMP
extern "C" int omp_get_thread_num();
extern "C" int omp_get_num_threads();
#endif

inline void barrier()
{
#ifdef _OPENMP
#pragma omp barrier
#endif
}

/// work(thread, how many there are) in so many threads of the pool that PyTorch has.
template <class Work> inline void in_parallel(int64_t threads, Work work)
{
#ifdef _OPENMP
    if (threads > 1) {
#pragma omp parallel num_threads(int(threads))
        work(int64_t(omp_get_thread_num()), int64_t(omp_get_num_threads()));
        return;
    }
#endif
    (void)threads;
    work(int64_t(0), int64_t(1));
}

/// Elements of a gradient: the sum of what the threads have found, in their order.  Their totals lie `distance` bytes apart.
inline void add_totals(real* gradient, const char* totals, int64_t distance, int64_t begin, int64_t end, int64_t threads)
{
    for (int64_t i = begin; i < end; ++i)
        gradient[i] = 0;
    for (int64_t thread = 0; thread < threads; ++thread)
        for (int64_t i = begin; i < end; ++i)
            gradient[i] += reinterpret_cast<const real*>(totals + thread * distance)[i];
}

}  // namespace symconv
