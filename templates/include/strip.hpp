// The part of the native CPU backend that never varies: how a strip is cut into tiles, and how threads share strips.
#pragma once

#include <new>

#include "packing.hpp"

/// What runs once per call is not worth the compiler's time: its loops are elsewhere.
#define EXPORT extern "C" __attribute__((visibility("default"), cold))

namespace symconv {

// -- Strips -----------------------------------------------------------------------------------------------------------

#ifdef SYMCONV_IGNORE
/// The vectors of a strip whose windows see nothing outside the image: their sweeps need not ask at each tap.
struct WholeWindows {
    bool* whole = nullptr;

    WholeWindows() = default;
    WholeWindows(const Windows& windows, Arena& arena) : whole(arena.take<bool>(windows.geometry.strip / WIDTH)) {}

    /// The windows along an axis that see nothing outside: from the first of them to where they end.
    struct Inner {
        int64_t begin, end;

        Inner(const Geometry& g, int axis) : begin(ceil_div(g.before[axis], g.stride[axis])), end(0)
        {
            const int64_t last = g.image[axis] - 1 + g.before[axis] - (g.kernel[axis] - 1) * g.dilation[axis];
            if (last >= 0)
                end = last / g.stride[axis] + 1;
        }
        bool has(int64_t window) const { return begin <= window && window < end; }
    };

    /// Tell it of the windows of a strip; what lies between them does not matter.
    void tell(const Windows& windows, const Strip& strip)
    {
        const Geometry& g = windows.geometry;
        const Inner deep(g, 0), down(g, 1), across(g, 2);
        const auto set = [&](int64_t begin, int64_t end, bool value) {
            for (int64_t i = begin / WIDTH; begin < end && i * WIDTH < end; ++i)
                whole[i] = value;
        };
        set(0, g.strip, true);
        rows(strip, windows, [&](int64_t at, int64_t y, int64_t x, int64_t count) {
            if (!deep.has(strip.z) || !down.has(y))
                return set(at, at + count, false);
            set(at, at + most(least(across.begin - x, count), 0), false);
            set(at + most(least(across.end - x, count), 0), at + count, false);
        });
    }

    /// Whether the windows of V vectors from q on see nothing outside.
    template <int V> bool has(int64_t q) const
    {
        bool all = true;
        for (int v = 0; v < V; ++v)
            all &= whole[q / WIDTH + v];
        return all;
    }
};
#else
/// All taps count.
struct WholeWindows {
    WholeWindows() = default;
    WholeWindows(const Windows&, Arena&) {}
    void tell(const Windows&, const Strip&) {}
};
#endif

/// Values that are computed from others which are laid out in the same way: value(i) is a vector of those from i on.
template <bool PER_FILTER, bool PER_TAP, class Layout, class Value>
inline real* computed(Layout layout, const Windows& windows, int64_t count, Arena& arena, Value value)
{
    const int64_t taps = PER_TAP ? count : 1;
    const int64_t all = PER_FILTER ? windows.geometry.groups * layout.size(windows, taps) : taps;
    real* values = arena.take<real>(all);
    vectors(1, arena.fills ? all : 0, [&](int64_t, int64_t i) { store(values + i, value(i)); });
    return values;
}

// -- Pixels that look for the windows that see them ---------------------------------------------------------------------

/// The taps that look into each plane, plane after plane: those from begin[plane] on.
struct Looks {
    /// One of them: its windows begin `step` places before the pixel; `weight`: from a filter's weights for tap 0 to those for it,
    /// where lanes are channels: innermost loops have no time to find it.
    struct Look {
        int64_t tap, step, weight;
    };
    int64_t planes;
    int64_t* begin;
    Look* all;

    Looks(const Windows& windows, Arena& arena)
        : planes(windows.channel / windows.plane), begin(arena.take<int64_t>(planes + 1)), all(arena.take<Look>(windows.taps))
    {
        if (!arena.fills)
            return;
        int64_t count = 0;
        for (int64_t plane = 0; plane < planes; ++plane) {
            begin[plane] = count;
            for (int64_t t = 0; t < windows.taps; ++t)
                if (windows.plane_of(t) == plane)
                    all[count++] = {t, windows.step_of(t), t * CHANNEL_BLOCK};
        }
        begin[planes] = count;
    }
};

/// What a place gives to a pixel; MASKED: 0 where it is no window.
template <bool MASKED> SYMCONV_INLINE vec given(const integer* is_window, vec value)
{
    return MASKED ? where(load_int(is_window), value, splat(0)) : value;
}

/// The same for all lanes.
template <bool MASKED> SYMCONV_INLINE vec given(bool is_window, vec value) { return MASKED && !is_window ? splat(0) : value; }

/// Which places are windows; without a MASK all are taken for one.
template <bool MASKED> SYMCONV_INLINE auto windows_at(const integer* is_window)
{
    if constexpr (MASKED)
        return load_int(is_window);
    else
        return Everywhere{};
}

/// Whether one of some sums is infinite or no number; or all are finite and their own sum is not: callers compute them again.
template <int V> SYMCONV_INLINE bool any_not_finite(const vec (&sums)[V])
{
    vec all = sums[0];
    UNROLL for (int v = 1; v < V; ++v)
        all += sums[v];
    return any(~(abs(all) <= LARGEST));
}
template <int F, int K> SYMCONV_INLINE bool any_not_finite(const vec (&sums)[F][K])
{
    vec all[K];
    UNROLL for (int j = 0; j < K; ++j) {
        all[j] = sums[0][j];
        UNROLL for (int i = 1; i < F; ++i)
            all[j] += sums[i][j];
    }
    return any_not_finite(all);
}

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

/// The same: body(rows of the tile, vectors of the tile, whether its windows see nothing outside, first row, first place).
template <int ROWS, int VECTORS, int ROW, class Body>
inline void told_tiles(const WholeWindows& whole, int64_t rows, int64_t length, Body body)
{
    tiles<ROWS, VECTORS, ROW>(rows, length, [&](auto F, auto V, int64_t f, int64_t q) {
#ifdef SYMCONV_IGNORE
        if (!whole.has<V.value>(q))
            return body(F, V, Known<false>{}, f, q);
#endif
        body(F, V, Known<true>{}, f, q);
    });
    (void)whole;
}

/// Cut rows of places into tiles, of half the size where a row has no more left: body(places of the tile, first place).  A tile may go
/// on in the next row; the one after it begins behind it.
template <int PLACES, class Body> struct RowTiles {
    static constexpr int HALF = (PLACES + 1) / 2;
    Body body;
    int64_t at = 0;

    explicit RowTiles(Body body) : body(body) {}

    /// The places of a row, behind those before.
    void operator()(int64_t begin, int64_t end)
    {
        for (at = most(at, begin); at < end;)
            if (end - at <= HALF) {
                body(Size<HALF>{}, at);
                at += HALF;
            } else {
                body(Size<PLACES>{}, at);
                at += PLACES;
            }
    }
};
template <int PLACES, class Body> inline RowTiles<PLACES, Body> row_tiles(Body body) { return RowTiles<PLACES, Body>(body); }

/// The same for a pass whose lanes may be filters.  Then tiles are of ROWS windows at VECTORS vectors of filters.
template <int ROWS, int VECTORS, int ROW, class Body>
inline void told_tiles(const WholeWindows& whole, const WindowRows& window_rows, int64_t rows, int64_t length, Body body)
{
    if constexpr (LANES_ARE_FILTERS)
        for (int64_t f = 0; f < rows; f += VECTORS * WIDTH) {
            auto row = row_tiles<ROWS>([&](auto F, int64_t q) { body(F, Size<VECTORS>{}, Known<true>{}, f, q); });
            for (const auto [begin, end] : window_rows)
                row(begin, end);
        }
    else
        told_tiles<ROWS, VECTORS, ROW>(whole, rows, length, body);
}

/// A tile in smaller ones, a vector at a time if lanes are windows, a window at a time if they are filters: body(rows of the tile,
/// vectors of the tile, first place).
template <int F, int V, class Body> inline void small_tiles(int64_t q, Body body)
{
    if constexpr (LANES_ARE_FILTERS)
        for (int i = 0; i < F; ++i)
            body(Size<1>{}, Size<V>{}, q + i);
    else
        for (int v = 0; v < V; ++v)
            body(Size<F>{}, Size<1>{}, q + v * WIDTH);
}

/// Put what a tile has found into the values of its windows, which have a row for each filter: found(i, v), vectors of the tile.
template <int F, int V, class Value, class Found>
SYMCONV_INLINE void put_tile(Value* values, const Windows& windows, int64_t f, int64_t q, Found found)
{
    static_assert(sizeof(Value) == sizeof(real));
    const int64_t row = windows.row_length();
    real* const first = reinterpret_cast<real*>(values) + f * row + q;  // whole numbers are moved as they are
    const auto moved = [&](int i, int v) { return reinterpret_cast<vec>(found(i, v)); };
    if constexpr (LANES_ARE_FILTERS) {
        const int64_t count = least(F, windows.geometry.strip - q);  // a tile may end behind the strip
        UNROLL for (int v = 0; v < V; ++v)
            UNROLL for (int window = 0; window < F; window += WIDTH) {
                const First together{most(least(count - window, WIDTH), 0)};
                vec rows[WIDTH];
                UNROLL for (int i = 0; i < WIDTH; ++i)
                    rows[i] = window + i < F ? moved(window + i, v) : splat(0);
                weave_rows(rows);
                UNROLL for (int i = 0; i < WIDTH; ++i)
                    together.store(first + (v * WIDTH + i) * row + window, rows[i]);
            }
    } else
        UNROLL for (int i = 0; i < F; ++i)
            UNROLL for (int v = 0; v < V; ++v)
                store(first + i * row + v * WIDTH, moved(i, v));
}

/// Cut the taps of a domain into tiles: body(taps of the tile, vectors of the tile, first tap, first place).  Where few
/// filters give to a pixel, tap after tap in long rows: taps of a tile add to the same pixels, and would wait for each other.
template <int TAPS, int VECTORS, int ROW, class Body>
inline void tap_tiles(const Domain& domain, int64_t length, int64_t filters, bool, Body body)
{
    if (filters < 4)
        tiles<1, VECTORS, ROW>(domain.count, length, body);
    else
        tiles<TAPS, VECTORS, ROW>(domain.count, length, body);
}

/// Cut the planes of all channels into tiles: body(vectors of the tile, channel, plane, first place).
template <int VECTORS, class Body> inline void pixel_tiles(const Windows& windows, const Looks& looks, int64_t channels, Body body)
{
    for (int64_t channel = 0; channel < channels; ++channel)
        for (int64_t plane = 0; plane < looks.planes; ++plane)
            tiles<1, 1, VECTORS>(1, windows.plane, [&](auto, auto V, int64_t, int64_t p) { body(V, channel, plane, p); });
}

/// Cut filters into tiles, those that are left one by one: body(filters of the tile, first filter).
template <int FILTERS, class Body> inline void filter_tiles(int64_t filters, Body body)
{
    int64_t f = 0;
    if constexpr (FILTERS > 1)
        for (; f + FILTERS <= filters; f += FILTERS)
            body(Size<FILTERS>{}, f);
    for (; f < filters; ++f)
        body(Size<1>{}, f);
}

/// Cut weights: body(filters of the tile, taps of the tile, first filter, first tap, slice, its first place, its end).
template <int FILTERS, int TAPS, class Body>
inline void bank_tiles(int64_t filters, int64_t, int64_t taps, int64_t length, Body body)
{
    const auto row = [&](auto height, int64_t f) {
        int64_t k = 0;
        if constexpr (TAPS > 1 && CHANNEL_BLOCK == 1)  // where lanes are channels windows in the lanes have one tap: themselves
            for (; k + TAPS <= taps; k += TAPS)
                body(height, Size<TAPS>{}, f, k, int64_t(0), int64_t(0), length);
        for (; k < taps; ++k)
            body(height, Size<1>{}, f, k, int64_t(0), int64_t(0), length);
    };
    filter_tiles<FILTERS>(filters, row);
}

/// Cut the pixels of the planes of all channels into tiles, where the lanes are channels: body(strip, pixels of the tile, block, plane,
/// first place), for all strips that are at hand before the weights of the next block come.
template <int PIXELS, class Pass, class Body> inline void channel_tiles(const Pass& first, int64_t channels, Body body)
{
    for (int64_t plane = 0; plane < first.shared.looks.planes; ++plane)
        for (int64_t block = 0; block < first.windows.blocks(channels); ++block)
            for (const Pass* at = &first; at; at = at->next)
                at->plane_rows.pixels(first.windows, plane, row_tiles<PIXELS>([&](auto P, int64_t p) { body(*at, P, block, plane, p); }));
}

/// Cut weights into tiles, where the lanes are channels: body(filters of the tile, taps of the tile, first filter, first tap,
/// block), and found(filter, number) for those at hand when all their taps and channels are there.
template <int FILTERS, int TAPS, class Body, class Found>
inline void channel_bank_tiles(const Windows& windows, int64_t filters, int64_t channels, Body body, Found found)
{
    const auto all_taps = [&](auto height, int64_t f) {
        for (int64_t block = 0; block < windows.blocks(channels); ++block) {
            int64_t t = 0;
            for (; t + TAPS <= windows.taps; t += TAPS)
                body(height, Size<TAPS>{}, f, t, block);
            for (; t < windows.taps; ++t)
                body(height, Size<1>{}, f, t, block);
        }
        for (int i = 0; i < height.value; ++i)
            found(f + i, i);
    };
    filter_tiles<FILTERS>(filters, all_taps);
}

/// Room for what sweeps find of the gradients of some filters' weights, in blocks of channels as `ByChannels` has them.
struct FoundByChannels {
    real* found;
    int64_t taps, row;  // from a tap to the next

    FoundByChannels() = default;
    FoundByChannels(int64_t filters, const Windows& windows, Arena& arena)
        : taps(windows.taps), row(windows.blocks(windows.geometry.channels) * CHANNEL_BLOCK)
    {
        found = arena.take<real>(CHANNEL_BLOCK > 1 ? filters * taps * row : 0);
    }

    /// What is found for a filter, one of those at hand: vector `v` of a block of channels at a tap.
    real* at(int64_t filter, int64_t tap, int64_t block, int v) const
    {
        return found + (filter * taps + tap) * row + block * CHANNEL_BLOCK + v * WIDTH;
    }
};

/// Filters whose values are held together where threads share out filters for the gradients of weights.
constexpr int64_t JOINT_FILTERS = 16;

/// Visit the taps at the positions of each window of a filter, each of them once: body(place of its vector, its lane).
template <int N, class Body>
inline void at_positions(const integer* const (&positions)[N], const integer* is_window, int64_t f, int64_t length,
                         const Domain& taps, Body body)
{
    for (int64_t q = 0; q < length; ++q)
        for (int i = 0; i < N; ++i) {
            const int64_t k = positions[i][q];
            bool wanted = is_window[q] && 0 <= k && k < taps.count;
            for (int j = 0; j < i; ++j)
                wanted = wanted && positions[j][q] != k;
            if (wanted)
                body(Place<1>{f, 0, k, q / WIDTH * WIDTH}, q % WIDTH);
        }
}

/// Room for the total of a gradient.
inline real* cleared(Arena& arena, int64_t elements)
{
    real* total = arena.take<real>(elements);
    if (arena.fills)
        clear(total, elements);
    return total;
}

/// The gradient of a weight or parameter.
struct BankSink {
    real* total;  // of the group
    const Elements* elements;

    /// What a tile of F filters and K taps has found.
    template <int F, int K> void add(int64_t, int64_t f, int64_t k, const vec (&sums)[F][K]) const
    {
        real found[F][K];
        totals<F * K>(sums[0], found[0]);
        add_found(f, k, found);
    }

    /// The same, each times a factor: times the total, because 0*inf in a lane without a window is NaN.
    template <int F, int K> void add(int64_t, int64_t f, int64_t k, const vec (&sums)[F][K], const real (&factors)[F][K]) const
    {
        real found[F][K];
        totals<F * K>(sums[0], found[0]);
        UNROLL for (int i = 0; i < F; ++i)
            UNROLL for (int j = 0; j < K; ++j)
                found[i][j] *= factors[i][j];
        add_found(f, k, found);
    }

    /// What the windows of a strip have found for the taps of a filter.
    void add(int64_t f, const real* sums, int64_t count) const
    {
        for (int64_t k = 0; k < count; ++k)
            if (elements->places[k] >= 0)
                total[f * elements->filter + elements->places[k]] += sums[k];
    }

    /// What the windows of a strip have found for filter f, number `filter` of those at hand.
    void add(int64_t f, const FoundByChannels& found, int64_t filter, int64_t channels) const
    {
        const int64_t taps = found.taps;
        real* const first = total + f * elements->filter;
        if (taps == 1)
            return add_row(first, 1, found.at(filter, 0, 0, 0), channels);
        for (int64_t c = 0; c < channels; c += WIDTH)
            for (int64_t t = 0; t < taps; t += WIDTH) {
                const First together{least(taps - t, WIDTH)};
                vec rows[WIDTH];
                UNROLL for (int i = 0; i < WIDTH; ++i)
                    rows[i] = i < together.count ? load(found.at(filter, t + i, 0, 0) + c) : splat(0);
                weave_rows(rows);
                UNROLL for (int i = 0; i < WIDTH; ++i)
                    if (real* to = first + (c + i) * taps + t; c + i < channels)
                        together.store(to, together.load(to) + rows[i]);
            }
    }

    template <int F, int K> void add_found(int64_t f, int64_t k, const real (&found)[F][K]) const
    {
        real* const first = total + f * elements->filter;
        if constexpr (K > 1)
            if (elements->by_tap) {  // those of the taps lie side by side
                UNROLL for (int i = 0; i < F; ++i)
                    add_row(first + i * elements->filter + k, 1, found[i], K);
                return;
            }
        UNROLL for (int j = 0; j < K; ++j)
            if (const int64_t place = elements->places[k + j]; place >= 0)
                UNROLL for (int i = 0; i < F; ++i)
                    first[i * elements->filter + place] += found[i][j];
    }
};

// -- Several strips at hand --------------------------------------------------------------------------------------------

/// Passes for so many strips, whose planes are at hand together: made(the first of them), for that one made(nullptr).
template <class Pass, class Made> inline Pass* joint_strips(int64_t count, Arena& arena, Made made)
{
    Pass* parts = arena.take<Pass>(count);
    const Pass first = made(static_cast<const Pass*>(nullptr));
    for (int64_t i = 0; i < count; ++i) {
        const Pass part = i == 0 ? first : made(&first);
        if (parts)
            new (parts + i) Pass(part);
    }
    return parts;
}

// -- Threads ------------------------------------------------------------------------------------------------------------

/// Elements of a gradient: the sum of what the threads have found, in their order.  Their totals lie `distance` bytes apart.
inline APART void add_totals(real* gradient, const char* totals, int64_t distance, int64_t begin, int64_t end, int64_t threads)
{
    for (int64_t i = begin; i < end; ++i)
        gradient[i] = 0;
    for (int64_t thread = 0; thread < threads; ++thread)
        for (int64_t i = begin; i < end; ++i)
            gradient[i] += reinterpret_cast<const real*>(totals + thread * distance)[i];
}

}  // namespace symconv
