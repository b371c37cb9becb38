// The part of the native CPU backend that never varies: weights that lie in memory as sweeps count them are packed a vector
// at a time.  Others are packed one by one, see `operands.hpp`.
#pragma once

#include "operands.hpp"
#include "rows.hpp"

namespace symconv {

/// Up to a vector of numbers from memory; 0 stands for the others.
template <class From> inline vec load_row(const From* from, int64_t count)
{
    if constexpr (std::is_same_v<From, real>)
        return count < WIDTH ? First{count}.load(from) : load(from);
    else {
        real row[WIDTH] = {};
        copy(row, 1, from, 1, least(count, WIDTH));
        return load(row);
    }
}

/// A vector of taps of each filter of a block, one tap after the other; the filters' rows lie `filter` elements apart.
template <int BLOCK> inline void put_taps(real* to, const storage* from, int64_t filter, int64_t count)
{
    vec rows[BLOCK];
    UNROLL for (int i = 0; i < BLOCK; ++i)
        rows[i] = load_row(from + i * filter, count);
    weave_rows(rows);
    const int64_t values = count * BLOCK;
    UNROLL for (int i = 0; i < BLOCK; ++i)
        if (values >= (i + 1) * WIDTH)
            store(to + i * WIDTH, rows[i]);
        else if (values > i * WIDTH)
            First{values - i * WIDTH}.store(to + i * WIDTH, rows[i]);
}

/// The same for a block of several vectors of filters.  Where there are fewer it ends with copies of the last one, which give
/// nothing that is not finite elsewhere.
template <int BLOCK> inline void put_vectors(real* to, const storage* from, int64_t filter, int64_t filters, int64_t count)
{
    for (int first = 0; first < BLOCK; first += WIDTH) {
        vec rows[WIDTH];
        UNROLL for (int i = 0; i < WIDTH; ++i)
            rows[i] = load_row(from + least(first + i, filters - 1) * filter, count);
        weave_rows(rows);
        UNROLL for (int i = 0; i < WIDTH; ++i)
            if (i < count)
                store(to + i * BLOCK + first, rows[i]);
    }
}

/// A weight with an element for each filter, channel and tap, as it lies in memory: the taps of one filter after the other.
struct Taps {
    const storage* data;
    const Elements& elements;

    const storage* of(int64_t group, int64_t f) const { return data + elements.first + group * elements.group + f * elements.filter; }
};

/// In blocks of filters; those that are left over have a row each, unless blocks are whole.
template <int BLOCK> APART void put_blocks(ByFilters<BLOCK> layout, real* packed, Taps from, const Windows& windows, int64_t count)
{
    const Geometry& g = windows.geometry;
    const int64_t blocks = WHOLE_BLOCKS ? ceil_div(g.filters, BLOCK) : g.filters / BLOCK;
    const int64_t rows = WHOLE_BLOCKS ? blocks : blocks + g.filters % BLOCK;
    spread(g.threads, g.groups * rows, ceil_div(count, WIDTH), g.groups * g.filters * count, [&](int64_t row, int64_t vector) {
        const int64_t group = row / rows, block = row % rows, k = vector * WIDTH, taps = least(count - k, WIDTH);
        const int64_t f = block < blocks ? block * BLOCK : blocks * BLOCK + block - blocks;
        real* to = packed + layout.at(windows, count, group, f);
        if constexpr (WHOLE_BLOCKS)
            put_vectors<BLOCK>(to + k * BLOCK, from.of(group, f) + k, from.elements.filter, g.filters - f, taps);
        else if (block < blocks)
            put_taps<BLOCK>(to + k * BLOCK, from.of(group, f) + k, from.elements.filter, taps);
        else
            copy(to + k, 1, from.of(group, f) + k, 1, taps);
    });
}

/// In blocks of taps.
template <int BLOCK> APART void put_blocks(ByTaps<BLOCK> layout, real* packed, Taps from, const Windows& windows, int64_t count)
{
    const Geometry& g = windows.geometry;
    const int64_t joints = ceil_div(g.filters, JOINT_ROWS);
    spread(g.threads, g.groups * joints, ceil_div(count, BLOCK), g.groups * g.filters * count, [&](int64_t row, int64_t block) {
        const int64_t group = row / joints, first = row % joints * JOINT_ROWS, k = block * BLOCK, taps = least(count - k, BLOCK);
        real* to = packed + layout.at(windows, count, group, first) + block * layout.step(windows, count);
        for (int64_t f = first; f < least(first + JOINT_ROWS, g.filters); ++f, to += BLOCK) {
            const storage* row_of_taps = from.of(group, f) + k;
            if (taps == BLOCK)
                UNROLL for (int64_t j = 0; j < BLOCK; ++j)
                    to[j] = real(row_of_taps[j]);
            else
                for (int64_t j = 0; j < BLOCK; ++j)
                    to[j] = j < taps ? real(row_of_taps[j]) : real(0);
        }
    });
}

/// How weights lie where the lanes of vectors are channels: in blocks of channels, of which each filter has its taps one after
/// the other, with all channels of the block at each.
struct ByChannels {
    static int64_t size(const Windows& windows, int64_t count) { return windows.blocks(count / windows.taps) * step(windows, count); }
    /// From a block of channels to the next one.
    static int64_t step(const Windows& windows, int64_t) { return place(windows, 1, 0, 0); }
    static int64_t at(const Windows& windows, int64_t count, int64_t group, int64_t f)
    {
        return group * size(windows, count) + place(windows, 0, f, 0);
    }
    /// Where the weights of a filter are for a block of channels at a tap.
    static int64_t place(const Windows& windows, int64_t block, int64_t f, int64_t tap)
    {
        return ((block * windows.geometry.filters + f) * windows.taps + tap) * CHANNEL_BLOCK;
    }
};

/// How weights lie that a forward pass reads.
#ifdef SYMCONV_LANES_ARE_FILTERS
using ForwardLayout = ByFilters<FORWARD_VECTORS * WIDTH>;
#elif defined(FORWARD_FILTERS)
using ForwardLayout = ByFilters<FORWARD_FILTERS>;
#endif

/// How the weights lie of which a backward pass makes gradients.
#ifdef SYMCONV_LANES_ARE_CHANNELS
using GradientLayout = ByChannels;
#elif defined(IMAGE_TAPS)
using GradientLayout = ByTaps<IMAGE_TAPS>;
#endif

/// In blocks of channels; the last one ends with copies of the last channel.
template <bool PER_FILTER, bool PER_TAP, class Element>
inline real* laid_out(ByChannels layout, const Windows& windows, int64_t count, Arena& arena, Element element)
{
    static_assert(PER_FILTER && PER_TAP, "what varies along one of them lies in a row");
    const Geometry& g = windows.geometry;
    const int64_t taps = windows.taps, channels = count / taps, blocks = windows.blocks(channels), size = layout.size(windows, count);
    real* packed = arena.take<real>(g.groups * size);
    spread(g.threads, arena.fills ? g.groups * blocks : 0, g.filters * taps, [&](int64_t row, int64_t column) {
        const int64_t group = row / blocks, block = row % blocks, f = column / taps, t = column % taps;
        real* to = packed + group * size + layout.place(windows, block, f, t);
        for (int64_t i = 0; i < CHANNEL_BLOCK; ++i)
            to[i] = element(group, f, least(block * CHANNEL_BLOCK + i, channels - 1) * taps + t);
    });
    return packed;
}

/// The same a vector at a time: all lanes at one tap, then at the next.
inline APART void put_blocks(ByChannels layout, real* packed, Taps from, const Windows& windows, int64_t count)
{
    const Geometry& g = windows.geometry;
    const int64_t taps = windows.taps, channels = count / taps, blocks = windows.blocks(channels);
    spread(g.threads, g.groups * blocks, g.filters, g.groups * g.filters * count, [&](int64_t row, int64_t f) {
        const int64_t group = row / blocks, block = row % blocks, first = block * CHANNEL_BLOCK;
        const storage* filter = from.of(group, f);
        real* to = packed + group * layout.size(windows, count) + layout.place(windows, block, f, 0);
        for (int64_t c = 0; c < CHANNEL_BLOCK; c += WIDTH)
            for (int64_t t = 0; t < taps; t += WIDTH) {
                const int64_t together = least(taps - t, WIDTH);
                vec rows[WIDTH];
                UNROLL for (int i = 0; i < WIDTH; ++i)
                    rows[i] = load_row(filter + least(first + c + i, channels - 1) * taps + t, together);
                weave_rows(rows);
                UNROLL for (int i = 0; i < WIDTH; ++i)
                    if (i < together)
                        store(to + (t + i) * CHANNEL_BLOCK + c, rows[i]);
            }
    });
}

/// Such a weight, as sweeps read it: what `pack` gives, sooner.
template <class Layout>
inline real* pack_taps(Layout layout, const Tensor& tensor, const Elements& elements, const Windows& windows, int64_t count, Arena& arena)
{
    real* packed = arena.take<real>(windows.geometry.groups * layout.size(windows, count));
    if (arena.fills)
        put_blocks(layout, packed, Taps{static_cast<const storage*>(tensor.data), elements}, windows, count);
    return packed;
}

}  // namespace symconv
