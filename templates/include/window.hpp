// The part of native kernels that never varies: windows on an image, and what a sweep reads at a place.
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

#include "accumulators.hpp"
#include "storage.hpp"

namespace symconv {

// -- What Python passes -----------------------------------------------------------------------------------------------

/// The windows of one call.  Axes are z, y, x; those that the image lacks have one element.
struct Geometry {
    int64_t batch, groups, filters, channels;  // filters and channels of a group
    int64_t image[3], size[3], kernel[3], stride[3], before[3], dilation[3];
    int64_t strip;        // windows of a strip, a multiple of the vectors of a tile
    int64_t filter_step;  // filters that are computed together
    int64_t by_filters;   // whether threads share out filters for the gradients of weights, and not images
    int64_t more_strips;  // that they sum together with a strip then
    int64_t margin;       // places around a strip where pixels look for windows that see them, 0 if they do not
    int64_t by_positions; // whether gradients go straight to the taps at the positions of maxima
    int64_t overwrites;   // whether gradients of images are written where nothing was added yet, and not added to zeros
    int64_t threads;      // of a CPU that share the work
};

/// A tensor: where it is, and the distances of its elements along n, channel, tap, z, y, x.
struct Tensor {
    void* data;
    int64_t channels;  // of an input: those that a group sees
    int64_t group;     // of an input: channels between those of one group and the next, 0 where all see the same
    int64_t step[6];
};

/// Memory that is handed out piece by piece.  Without a base it only counts; where it does not fill, others have done so.
struct Arena {
    char* base;
    bool fills;
    int64_t used = 0;

    explicit Arena(char* base, bool fills = true) : base(base), fills(base && fills) {}

    template <class T> T* take(int64_t count)
    {
        T* piece = base ? reinterpret_cast<T*>(base + used) : nullptr;
        used += (count * int64_t(sizeof(T)) + 63) / 64 * 64;
        return piece;
    }
};

inline void clear(real* values, int64_t count)
{
    each(count, [&](int64_t i) { values[i] = 0; });
}

// -- Windows ----------------------------------------------------------------------------------------------------------

/// The taps along one axis: tap t looks at residue t % `residues` of the stride, `step(t)` windows further on.
struct Axis {
    int64_t stride, before, dilation, residues = 0, reach;

    Axis(const Geometry& geometry, int axis)
        : stride(geometry.stride[axis]), before(geometry.before[axis]), dilation(geometry.dilation[axis])
    {
        const int64_t taps = geometry.kernel[axis];
        reach = step(taps - 1);
        // The residues come back after `residues` taps, in the same order.
        while (residues < taps && (residues == 0 || uint32_t(residues * dilation) % uint32_t(stride) != 0))
            ++residues;
    }

    int64_t step(int64_t tap) const { return uint32_t(tap * dilation) / uint32_t(stride); }
    /// Where in the image a residue begins.
    int64_t first(int64_t residue) const { return int64_t(uint32_t(residue * dilation) % uint32_t(stride)) - before; }
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

    Windows(const Geometry& given, Arena& arena) : geometry(given), y(given, 1), x(given, 2)
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
        each(arena.fills ? taps : 0, [&](int64_t t) {
            shift[t] = int(plane_of(t) * plane + step_of(t));
        });
    }

    /// The plane in which a tap is.
    int64_t plane_of(int64_t t) const
    {
        const uint32_t tap = uint32_t(t), down = uint32_t(geometry.kernel[1]), across = uint32_t(geometry.kernel[2]);
        const uint32_t row = tap / across, z = row / down;
        return (z * y.residues + row % down % uint32_t(y.residues)) * x.residues + tap % across % uint32_t(x.residues);
    }

    /// How far it is from the place of its window.
    int64_t step_of(int64_t t) const
    {
        const uint32_t tap = uint32_t(t), down = uint32_t(geometry.kernel[1]), across = uint32_t(geometry.kernel[2]);
        return y.step(tap / across % down) * pitch + x.step(tap % across);
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

    /// From the values of the windows of a strip to those for the next filter, channel or tap: a strip and its margins.
    int64_t row_length() const { return geometry.strip + 2 * geometry.margin; }

    // How many floats the planes of an image take: those of its channels, and one full of zeros for taps that are not; more
    // than a vector of them, for what reads and writes whole vectors.
    int64_t planes(int64_t channels) const { return channels * channel + nowhere(); }
    int64_t nowhere() const { return (geometry.strip + WIDTH) / WIDTH * WIDTH; }
};

/// Zeros in rows of values, and around them.
template <class T> inline void clear_values(T* values, int64_t rows, const Windows& windows)
{
    T* begin = values - windows.geometry.margin;
    each(rows * windows.row_length(), [&](int64_t i) { begin[i] = 0; });
}

/// Room for rows of values, one for each window of a strip.  Each row lies between two margins full of zeros, where pixels
/// look for windows beyond the strip; what is returned is where the first window of the first row is.
template <class T> inline T* take_values(const Windows& windows, int64_t rows, Arena& arena)
{
    T* values = arena.take<T>(rows * windows.row_length());
    if (!values || windows.geometry.margin == 0)
        return values;
    values += windows.geometry.margin;
    if (arena.fills)
        clear_values(values, rows, windows);
    return values;
}

/// One strip: an image, a line and a piece of it.
struct Strip {
    int64_t n = -1, z = -1, begin = -1;

    Strip() = default;
    Strip(const Windows& windows, int64_t n, int64_t number)
        : n(n), z(number / windows.line()), begin(number % windows.line() * windows.geometry.strip)
    {
    }

    /// How many places are computed, in steps of a tile.
    int64_t length(const Windows& windows, int64_t step) const
    {
        return ceil_div(least(windows.geometry.strip, windows.length - begin), step) * step;
    }

    /// Whether it lies where another one does, in this image or another.
    bool is_where(const Strip& other) const { return z == other.z && begin == other.begin; }
};

/// How many taps and channels count for each window of a strip.
inline void count_taps(real* values, const real* inside, int64_t channels, bool has_taps, const Windows& windows)
{
    vectors(1, windows.geometry.strip, [&](int64_t, int64_t q) {
#ifdef SYMCONV_IGNORE
        vec taps = splat(has_taps ? 0 : 1);
        for (int64_t t = 0; has_taps && t < windows.taps; ++t)
            taps += load(inside + windows.shift[t] + q);
#else
        const vec taps = splat(has_taps ? real(windows.taps) : 1);
#endif
        store(values + q, taps * real(channels));
    });
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
        each(arena.fills ? count : 0, [&](int64_t k) {
            channel[k] = int(k / taps);
            tap[k] = has_taps ? int(k % taps) : int(windows.centre);
        });
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
    each(arena.fills ? domain.count : 0, [&](int64_t k) {
        const int64_t tap = access.tap(windows, domain.tap[k]);
        const int64_t channel = access.own || channels == 1 ? 0 : domain.channel[k];
        places[k] = int(tap < 0 ? channels * windows.channel : channel * windows.channel + windows.shift[tap]);
    });
    return places;
}

/// Room for the planes of an image, with the zeros behind them.
inline real* take_planes(const Windows& windows, int64_t channels, Arena& arena)
{
    real* planes = arena.take<real>(windows.planes(channels));
    if (arena.fills)
        clear(planes + channels * windows.channel, windows.nowhere());
    return planes;
}

/// For each k the number of the channel or the tap of a value that has one of these axes.
inline int* axis_places(const Domain& domain, char axis, int64_t extent, Arena& arena)
{
    int* places = arena.take<int>(domain.count);
    each(arena.fills ? domain.count : 0,
         [&](int64_t k) { places[k] = extent == 1 ? 0 : axis == 'c' ? domain.channel[k] : domain.tap[k]; });
    return places;
}

/// For each k a number, as it enters a formula.
template <class Number> inline real* numbers_at(const Domain& domain, Arena& arena, Number number)
{
    real* values = arena.take<real>(domain.count);
    each(arena.fills ? domain.count : 0, [&](int64_t k) { values[k] = real(number(k)); });
    return values;
}

/// Where the elements of a weight or parameter are.  Its axes are o, c and t, those that it has.
struct Elements {
    int64_t group, filter;  // elements between groups and between filters
    int64_t first;          // of a bank: where its weight begins
    int64_t size;           // elements of one weight
    bool by_filter, by_tap; // whether an element tells the filter, and the tap k, that it belongs to
    int* places;            // for each k, -1 where there is none

    Elements(const Windows& windows, const Domain& domain, bool o, bool c, bool t, Access access, int64_t number, Arena& arena)
        : places(arena.take<int>(domain.count))
    {
        const Geometry& g = windows.geometry;
        const int64_t taps = t ? windows.taps : 1, channels = c ? g.channels : 1, outputs = o ? g.groups * g.filters : 1;
        filter = (o ? channels * taps : 0) + (access.own ? taps : 0);
        group = o ? g.filters * channels * taps : 0;
        size = outputs * channels * taps;
        first = number * size;
        by_filter = o && !access.own;
        by_tap = c && t && !access.own && !access.centre && access.steps == 0 && domain.count == channels * taps;
        each(arena.fills ? domain.count : 0, [&](int64_t k) {
            const int64_t tap = t ? access.tap(windows, domain.tap[k]) : 0;
            places[k] = tap < 0 ? -1 : int((c && !access.own ? domain.channel[k] * taps : 0) + tap);
        });
    }

    /// Whether only one filter and tap give to an element.
    bool few() const { return by_filter && by_tap; }
    int64_t at(int64_t g, int64_t f, int64_t k) const { return first + g * group + f * filter + places[k]; }
};

/// The filters of a group, up to a multiple of a block: so that blocks of weights are aligned.
template <int BLOCK> inline int64_t padded_filters(const Windows& windows)
{
    return ceil_div(windows.geometry.filters, BLOCK) * BLOCK;
}

/// Whether the last filters are read in blocks as well, which zeros fill up.
#ifdef FLAT
constexpr bool WHOLE_BLOCKS = true;
#else
constexpr bool WHOLE_BLOCKS = false;
#endif

/// A value for each filter, channel and tap, as sweeps read them: for blocks of BLOCK filters one k after the other, and
/// for the filters that are left row by row.  PER_FILTER and PER_TAP say along what they vary; element(group, f, k).
template <bool PER_FILTER, bool PER_TAP, int BLOCK, class Element>
inline real* laid_out(const Windows& windows, int64_t count, Arena& arena, Element element)
{
    const Geometry& g = windows.geometry;
    const int64_t filters = PER_FILTER ? g.filters : 1, groups = PER_FILTER ? g.groups : 1, taps = PER_TAP ? count : 1;
    const int64_t padded = PER_FILTER ? padded_filters<BLOCK>(windows) : 1;
    real* packed = arena.take<real>(groups * padded * taps);
    const int64_t whole = PER_FILTER && PER_TAP ? (WHOLE_BLOCKS ? padded : filters / BLOCK * BLOCK) : 0;
    const int64_t blocks = whole / BLOCK, left = (WHOLE_BLOCKS ? padded : filters) - whole;
    if constexpr (PER_FILTER && PER_TAP)
        spread(g.threads, arena.fills ? groups * blocks : 0, taps, [&](int64_t row, int64_t k) {
            const int64_t group = row / blocks, f = row % blocks * BLOCK;
            real* block = packed + (group * padded + f) * taps + k * BLOCK;
            UNROLL for (int i = 0; i < BLOCK; ++i)
                block[i] = f + i < filters ? element(group, f + i, k) : real(0);
        });
    spread(g.threads, arena.fills ? groups * left : 0, taps, [&](int64_t row, int64_t k) {
        const int64_t group = row / left, f = whole + row % left;
        packed[(group * padded + f) * taps + k] = f < filters ? element(group, f, k) : real(0);
    });
    return packed;
}

/// The element of a weight or parameter for a filter and tap k, 0 where there is none.
SYMCONV_INLINE real value_of(const Tensor& tensor, const Elements& elements, int64_t group, int64_t f, int64_t k)
{
    return elements.places[k] < 0 ? real(0) : real(static_cast<const storage*>(tensor.data)[elements.at(group, f, k)]);
}

/// The elements of a weight or parameter.
template <bool PER_FILTER, bool PER_TAP, int BLOCK>
inline real* pack(const Tensor& tensor, const Elements& elements, const Windows& windows, int64_t count, Arena& arena)
{
    return laid_out<PER_FILTER, PER_TAP, BLOCK>(windows, count, arena, [&](int64_t group, int64_t f, int64_t k) {
        return value_of(tensor, elements, group, f, k);
    });
}

// -- Reading at a place -----------------------------------------------------------------------------------------------

/// A vector of windows at one tap: filter `f + i`, of a block of F from f on, tap `k` and place `q` in the strip.
template <int F> struct Place {
    int64_t f;
    int i;
    int64_t k, q;
};

/// An input in planes, or the gradient of one; OWN: in the output's own channel, so that each filter has another one.
template <bool OWN> struct Image {
    real* planes;
    const int* at;
    int64_t own;  // values between the planes of filters
    int64_t end;  // behind all planes: what is read there are zeros

    template <int F> real* to(Place<F> p) const { return planes + at[p.k] + (OWN ? (p.f + p.i) * own : 0) + p.q; }
    template <int F> vec operator()(Place<F> p) const { return load(to(p)); }
    template <int F> void add(Place<F> p, vec value) const
    {
        if (at[p.k] < end)
            store(to(p), load(to(p)) + value);
    }
    void add(Place<1> p, int64_t lane, real value) const
    {
        if (at[p.k] < end)
            to(p)[lane] += value;
    }
};

template <bool PER_FILTER, bool PER_TAP> struct Bank {
    const real* packed;
    int64_t count;

    template <int F> vec operator()(Place<F> p) const
    {
        if constexpr (PER_FILTER && PER_TAP)
            return splat(one_of<F>(packed + p.f * count + p.k * F, p.i));
        else if constexpr (PER_FILTER)
            return splat(packed[p.f + p.i]);
        else
            return splat(packed[PER_TAP ? p.k : 0]);
    }
};

/// A value for each window; BY_FILTER: and for each filter; BY_PLACE: and for each channel or tap.  Or its gradient.
template <class T, bool BY_FILTER, bool BY_PLACE> struct PerWindow {
    T* data;
    int64_t filter;  // values between filters
    int64_t step;    // values between channels or taps
    const int* at;

    template <int F> T* to(Place<F> p) const
    {
        return data + (BY_FILTER ? (p.f + p.i) * filter : 0) + (BY_PLACE ? at[p.k] * step : 0) + p.q;
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

template <bool BY_FILTER, bool BY_PLACE> using Values = PerWindow<real, BY_FILTER, BY_PLACE>;
template <bool BY_FILTER, bool BY_PLACE> using Positions = PerWindow<integer, BY_FILTER, BY_PLACE>;

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

/// What the compiler knows.
template <bool VALUE> struct Known {
    static constexpr bool value = VALUE;
};

/// Whether a tap counts.  WHOLE: all do.
template <bool WHOLE, class Which, int F> SYMCONV_INLINE auto counts(const Which& which, Place<F> here)
{
    if constexpr (WHOLE)
        return Everywhere{};
    else
        return which(here);
}

}  // namespace symconv
