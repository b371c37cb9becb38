// The part of the native CPU backend that never varies: weights that lie in memory as they are counted are packed a vector
// at a time.  Any others are packed one by one, see `operands.hpp`.
#pragma once

#include "operands.hpp"
#include "rows.hpp"

namespace symconv {

/// The elements of rows in turn: all first ones, then all second ones.  Each round weaves the rows of the first half between
/// those of the second one.
template <int N> SYMCONV_INLINE void weave_rows(vec (&rows)[N])
{
    UNROLL for (int round = 1; round < N; round *= 2) {
        vec woven_rows[N];
        UNROLL for (int i = 0; i < N / 2; ++i) {
            woven_rows[2 * i] = woven<0>(rows[i], rows[i + N / 2]);
            woven_rows[2 * i + 1] = woven<1>(rows[i], rows[i + N / 2]);
        }
        UNROLL for (int i = 0; i < N; ++i)
            rows[i] = woven_rows[i];
    }
}

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
    static_assert((BLOCK & (BLOCK - 1)) == 0, "rows are woven in pairs");
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

/// The weights of all groups in blocks of filters; filters that are left over have a row each.
template <int BLOCK>
APART void put_weights(ByFilters<BLOCK> layout, real* packed, const ValueOf& value, const Windows& windows, int64_t count)
{
    const Geometry& g = windows.geometry;
    const int64_t blocks = g.filters / BLOCK, rows = blocks + g.filters % BLOCK, filter = value.elements.filter;
    spread(g.threads, g.groups * rows, ceil_div(count, WIDTH), BLOCK * WIDTH, [&](int64_t row, int64_t vector) {
        const int64_t group = row / rows, block = row % rows, k = vector * WIDTH, taps = least(count - k, WIDTH);
        const int64_t f = block < blocks ? block * BLOCK : block + blocks * (BLOCK - 1);
        real* to = packed + layout.at(windows, count, group, f);
        if (block < blocks)
            put_taps<BLOCK>(to + k * BLOCK, value.taps(group, f) + k, filter, taps);
        else
            copy(to + k, 1, value.taps(group, f) + k, 1, taps);
    });
}

/// The same, in blocks of taps.
template <int BLOCK>
APART void put_weights(ByTaps<BLOCK> layout, real* packed, const ValueOf& value, const Windows& windows, int64_t count)
{
    constexpr int64_t JOINT = 16;  // filters whose taps are read side by side, to fill what is written line by line
    const Geometry& g = windows.geometry;
    const int64_t joints = ceil_div(g.filters, JOINT);
    spread(g.threads, g.groups * joints, ceil_div(count, BLOCK), BLOCK * JOINT, [&](int64_t row, int64_t block) {
        const int64_t group = row / joints, first = row % joints * JOINT, k = block * BLOCK, taps = least(count - k, BLOCK);
        real* to = packed + layout.at(windows, count, group, first) + block * layout.step(windows, count);
        for (int64_t f = first; f < least(first + JOINT, g.filters); ++f, to += BLOCK) {
            const storage* from = value.taps(group, f) + k;
            if (taps == BLOCK)
                UNROLL for (int64_t j = 0; j < BLOCK; ++j)
                    to[j] = real(from[j]);
            else
                for (int64_t j = 0; j < BLOCK; ++j)
                    to[j] = j < taps ? real(from[j]) : real(0);
        }
    });
}

/// The elements of a weight or parameter, as sweeps read them.
template <bool PER_FILTER, bool PER_TAP, class Layout>
inline real* pack(Layout layout, const Tensor& tensor, const Elements& elements, const Windows& windows, int64_t count, Arena& arena)
{
    const ValueOf value{tensor, elements};
    if constexpr (PER_FILTER && PER_TAP)
        if (elements.few()) {
            real* packed = arena.take<real>(windows.geometry.groups * layout.size(windows, count));
            if (arena.fills)
                put_weights(layout, packed, value, windows, count);
            return packed;
        }
    return laid_out<PER_FILTER, PER_TAP>(layout, windows, count, arena, value);
}

}  // namespace symconv
