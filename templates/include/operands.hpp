// The part of native kernels that never varies: what a sweep runs over, and what it reads at a place.
#pragma once

#include "accumulators.hpp"
#include "storage.hpp"
#include "window.hpp"

namespace symconv {

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
        clear(planes + windows.planes(channels) - windows.nowhere(), windows.nowhere());
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
    bool by_filter, by_tap; // whether an element tells the filter, and the tap k, that it belongs to: it is number k then
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

/// Whether the last filters are read in blocks as well; copies of the last one fill them up where the lanes are filters, else zeros.
#ifdef FLAT
constexpr bool WHOLE_BLOCKS = true;
#else
constexpr bool WHOLE_BLOCKS = LANES_ARE_FILTERS;
#endif

/// How weights lie for a tile of filters, to which the taps come: in blocks of filters, one tap after the other; filters that
/// are left over have a row of taps each.
template <int BLOCK> struct ByFilters {
    /// The values of a group.
    static int64_t size(const Windows& windows, int64_t count) { return padded_filters<BLOCK>(windows) * count; }
    /// From the taps of a filter to those of the next one.
    static int64_t step(const Windows&, int64_t count) { return count; }
    /// Where the filters from f on of a group begin.
    static int64_t at(const Windows& windows, int64_t count, int64_t group, int64_t f) { return group * size(windows, count) + f * count; }
    /// A value, seen from there.
    template <int F> static SYMCONV_INLINE real value(const real* packed, int64_t step, int64_t f, int i, int64_t k)
    {
        return one_of<F>(packed + f * step + k * F, i);
    }
    /// The values of a block of filters at a tap.
    static SYMCONV_INLINE const real* block(const real* packed, int64_t step, int64_t f, int64_t k) { return packed + f * step + k * BLOCK; }
};

/// How weights lie for a tile of taps, to which the filters come: in blocks of taps, one filter after the other.
template <int BLOCK> struct ByTaps {
    static int64_t size(const Windows& windows, int64_t count) { return ceil_div(count, BLOCK) * step(windows, count); }
    /// From a block of taps to the next one.
    static int64_t step(const Windows& windows, int64_t) { return windows.geometry.filters * BLOCK; }
    static int64_t at(const Windows& windows, int64_t count, int64_t group, int64_t f) { return group * size(windows, count) + f * BLOCK; }
    template <int F> static SYMCONV_INLINE real value(const real* packed, int64_t step, int64_t f, int i, int64_t k)
    {
        const uint64_t tap = uint64_t(k);
        return packed[int64_t(tap / BLOCK) * step + (f + i) * BLOCK + int64_t(tap % BLOCK)];
    }
};

/// A value for each filter, channel and tap, as sweeps read them.  PER_FILTER and PER_TAP say along what they vary;
/// element(group, f, k).
template <bool PER_FILTER, bool PER_TAP, int BLOCK, class Element>
inline real* laid_out(ByFilters<BLOCK>, const Windows& windows, int64_t count, Arena& arena, Element element)
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
                block[i] = f + i < filters || LANES_ARE_FILTERS ? element(group, least(f + i, filters - 1), k) : real(0);
        });
    spread(g.threads, arena.fills ? groups * left : 0, taps, [&](int64_t row, int64_t k) {
        const int64_t group = row / left, f = whole + row % left;
        packed[(group * padded + f) * taps + k] = f < filters || LANES_ARE_FILTERS ? element(group, least(f, filters - 1), k) : real(0);
    });
    return packed;
}

/// Filters whose taps are read side by side, to fill what is written line by line.
constexpr int64_t JOINT_ROWS = 16;

/// The same, in blocks of taps.
template <bool PER_FILTER, bool PER_TAP, int BLOCK, class Element>
inline real* laid_out(ByTaps<BLOCK> layout, const Windows& windows, int64_t count, Arena& arena, Element element)
{
    static_assert(PER_FILTER && PER_TAP, "what varies along one of them lies in a row");
    const Geometry& g = windows.geometry;
    const int64_t size = layout.size(windows, count), step = layout.step(windows, count);
    real* packed = arena.take<real>(g.groups * size);
    const int64_t joints = ceil_div(g.filters, JOINT_ROWS);
    spread(g.threads, arena.fills ? g.groups * joints : 0, ceil_div(count, BLOCK), [&](int64_t row, int64_t block) {
        const int64_t group = row / joints, first = row % joints * JOINT_ROWS;
        for (int64_t f = first; f < least(first + JOINT_ROWS, g.filters); ++f)
            for (int64_t k = block * BLOCK, end = k + BLOCK; k < end; ++k)
                packed[group * size + block * step + f * BLOCK + k % BLOCK] = k < count ? element(group, f, k) : real(0);
    });
    return packed;
}

/// The element of a weight or parameter for a filter and tap k, 0 where there is none.
SYMCONV_INLINE real value_of(const Tensor& tensor, const Elements& elements, int64_t group, int64_t f, int64_t k)
{
    return elements.places[k] < 0 ? real(0) : real(static_cast<const storage*>(tensor.data)[elements.at(group, f, k)]);
}

/// The elements of a weight or parameter.
template <bool PER_FILTER, bool PER_TAP, class Layout>
inline real* pack(Layout layout, const Tensor& tensor, const Elements& elements, const Windows& windows, int64_t count, Arena& arena)
{
    return laid_out<PER_FILTER, PER_TAP>(layout, windows, count, arena, [&](int64_t group, int64_t f, int64_t k) {
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

/// A vector of channels at one tap, where the lanes are channels: the filter, where its weights at the tap are, where the pixel
/// is in the planes of all blocks, and the window in the strip; `i` pixels and windows further on, vector `v` of the block.
struct ChannelPlace {
    int64_t f, weight, pixel, window;
    int i, v;
};

/// A vector of filters at one tap of a window, where the lanes are filters: vector `v` of those from f on, tap `k`, and the window
/// `i` places behind place `q` in the strip.
struct FilterPlace {
    int64_t f, k, q;
    int i, v;
};

/// One vector of a tile of the forward pass.
#ifdef SYMCONV_LANES_ARE_FILTERS
template <int F> SYMCONV_INLINE FilterPlace in_tile(int64_t f, int i, int64_t k, int64_t q, int v) { return {f, k, q, i, v}; }
#else
template <int F> SYMCONV_INLINE Place<F> in_tile(int64_t f, int i, int64_t k, int64_t q, int v) { return {f, i, k, q + v * WIDTH}; }
#endif

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
    /// V vectors side by side.
    template <int V> void add(Place<1> p, const vec (&values)[V]) const
    {
        real* first = to(p);
        if (at[p.k] < end)
            UNROLL for (int v = 0; v < V; ++v)
                store(first + v * WIDTH, load(first + v * WIDTH) + values[v]);
    }
    void add(Place<1> p, int64_t lane, real value) const
    {
        if (at[p.k] < end)
            to(p)[lane] += value;
    }

    vec operator()(FilterPlace p) const
    {
        const real* first = planes + at[p.k] + p.q;  // compilers are to add up what tiles share once
        return splat(first[p.i]);
    }

    real* to(ChannelPlace p) const
    {
        real* first = planes + p.pixel;
        return first + (p.i * CHANNEL_BLOCK + p.v * WIDTH);
    }
    vec operator()(ChannelPlace p) const { return load(to(p)); }
    void add(ChannelPlace p, vec value) const { store(to(p), load(to(p)) + value); }
};

/// A weight or parameter.
template <bool PER_FILTER, bool PER_TAP, class Layout> struct Bank {
    const real* packed;
    int64_t step;

    template <int F> vec operator()(Place<F> p) const
    {
        if constexpr (PER_FILTER && PER_TAP)
            return splat(Layout::template value<F>(packed, step, p.f, p.i, p.k));
        else if constexpr (PER_FILTER)
            return splat(packed[p.f + p.i]);
        else
            return splat(packed[PER_TAP ? p.k : 0]);
    }
    vec operator()(FilterPlace p) const
    {
        if constexpr (PER_FILTER)
            return load((PER_TAP ? Layout::block(packed, step, p.f, p.k) : packed + p.f) + p.v * WIDTH);
        else
            return splat(packed[PER_TAP ? p.k : 0]);
    }
    vec operator()(ChannelPlace p) const
    {
        const real* first = packed + (PER_TAP ? p.weight : PER_FILTER ? p.f : 0);
        return PER_TAP ? load(first + p.v * WIDTH) : splat(*first);
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

    vec operator()(FilterPlace p) const
    {
        static_assert(!BY_FILTER, "what each filter has for a window does not lie side by side");
        const T* first = data + (BY_PLACE ? at[p.k] * step : 0) + p.q;
        return splat(first[p.i]);
    }
    vec operator()(ChannelPlace p) const
    {
        const T* first = data + (BY_FILTER ? p.f * filter : 0) + p.window;
        return splat(first[p.i]);
    }
};

template <bool BY_FILTER, bool BY_PLACE> using Values = PerWindow<real, BY_FILTER, BY_PLACE>;
template <bool BY_FILTER, bool BY_PLACE> using Positions = PerWindow<integer, BY_FILTER, BY_PLACE>;

struct Number {
    real value;
    template <class At> vec operator()(At) const { return splat(value); }
};

/// A number for each k: an offset, the number of the channel or of the tap.
struct Numbers {
    const real* values;
    template <class At> vec operator()(At p) const { return splat(values[p.k]); }
};

/// The number of the filter.
struct Filter {
    int64_t first;
    template <int F> vec operator()(Place<F> p) const { return splat(real(first + p.f + p.i)); }
#ifdef SYMCONV_LANES_ARE_FILTERS
    vec operator()(FilterPlace p) const
    {
        return splat(real(first + p.f + p.v * WIDTH)) + converted(numbered(std::make_integer_sequence<int, WIDTH>{}));
    }
#endif
};

/// The scan position.
struct Scan {
    const int* at;
    template <class At> ivec operator()(At p) const { return splat_int(integer(at ? at[p.k] : p.k)); }
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
/// Taps outside the image read 0, and all count.
struct Inside {
    template <class At> Everywhere operator()(At) const { return {}; }
};

inline Inside make_inside(const real*, const Windows&, const Domain&, Arena&) { return {}; }
#endif

/// What the compiler knows.
template <bool VALUE> struct Known {
    static constexpr bool value = VALUE;
};

/// Whether a tap counts.  WHOLE: all do.
template <bool WHOLE, class Which, class At> SYMCONV_INLINE auto counts(const Which& which, At here)
{
    if constexpr (WHOLE)
        return Everywhere{};
    else
        return which(here);
}

}  // namespace symconv
