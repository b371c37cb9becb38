// The part of the CUDA backend that never varies: how a block of threads reads and writes a strip, and how its warps
// share the work.  What is written here for a team is in `rows.hpp` and `strip.hpp` for the one thread of a CPU.
#pragma once

#include "operands.hpp"

namespace symconv {

// -- Strips -------------------------------------------------------------------------------------------------------------

/// A place in a line of windows: a row and a column, and whether a window is there.
struct Position {
    int64_t y, x;
    bool is_window;

    Position(const Strip& strip, const Windows& windows, int64_t place)
    {
        // A line is shorter than 2**31, and whole numbers of 32 bits divide much faster.
        const uint32_t at = uint32_t(strip.begin + place), pitch = uint32_t(windows.pitch);
        y = at / pitch;
        x = at % pitch;
        is_window = place < windows.geometry.strip && at < windows.length && x < windows.geometry.size[2];
    }
};

/// The pixel of a place in the planes of a channel, and whether the image has it.
struct Pixel {
    int64_t z, y, x;
    bool inside;

    Pixel(const Strip& strip, const Windows& windows, int64_t place)
    {
        const Geometry& g = windows.geometry;
        const uint32_t plane = uint32_t(windows.plane), number = uint32_t(place) / plane;
        const uint32_t across = uint32_t(windows.x.residues), row = number / across, down = uint32_t(windows.y.residues);
        const Position at(strip, windows, uint32_t(place) % plane);
        z = strip.z * g.stride[0] + int64_t(row / down) * g.dilation[0] - g.before[0];
        y = at.y * g.stride[1] + windows.y.first(row % down);
        x = at.x * g.stride[2] + windows.x.first(number % across);
        inside = 0 <= z && z < g.image[0] && 0 <= y && y < g.image[1] && 0 <= x && x < g.image[2];
    }

    int64_t of(const Tensor& image) const { return z * image.step[3] + y * image.step[4] + x * image.step[5]; }
};

/// Fill the planes of the channels from `first` on.
inline void fill(real* planes, const Tensor& image, int64_t first, const Windows& windows, const Strip& strip,
                 int64_t channels)
{
    const storage* data = static_cast<const storage*>(image.data) + strip.n * image.step[0] + first * image.step[1];
    const int plane = int(windows.channel), count = int(channels);
    const int64_t step = image.step[1];
    each(plane, [&](int64_t i) {
        const Pixel pixel(strip, windows, i);
        const storage* from = data + pixel.of(image);
        UNROLL_TIMES(8) for (int channel = 0; channel < count; ++channel)
            planes[channel * plane + int(i)] = pixel.inside ? real(from[channel * step]) : real(0);
    });
}

/// Planes of one channel that are 1 where the image is.
inline void fill_inside(real* planes, const Windows& windows, const Strip& strip)
{
    each(windows.channel, [&](int64_t i) { planes[i] = Pixel(strip, windows, i).inside; });
}

/// Add the planes of the channels from `first` on to an image of numbers as they are computed.
inline void add_planes(const real* planes, const Tensor& image, int64_t first, const Windows& windows,
                       const Strip& strip, int64_t channels)
{
    real* data = static_cast<real*>(image.data) + strip.n * image.step[0] + first * image.step[1];
    const int64_t plane = windows.channel;
    each(plane, [&](int64_t i) {
        const Pixel pixel(strip, windows, i);
        real* to = data + pixel.of(image);
        if (pixel.inside)
            UNROLL_TIMES(8) for (int64_t channel = 0; channel < channels; ++channel)
                to[channel * image.step[1]] += planes[channel * plane + i];
    });
}

/// The element of a tensor of one value per window.
inline int64_t element_at(const Tensor& tensor, int64_t channel, int64_t n, int64_t line, int64_t y, int64_t x)
{
    const int64_t* step = tensor.step;
    return n * step[0] + channel * step[1] + line * step[3] + y * step[4] + x * step[5];
}

/// Where a tensor of one value per window, or one for each tap of it, has the value of a window.
inline int64_t element(const Tensor& tensor, int64_t channel, int64_t tap, const Strip& strip, const Position& at)
{
    return element_at(tensor, channel, strip.n, strip.z, at.y, at.x) + tap * tensor.step[2];
}

/// The values of a strip from a tensor of one value per window, 0 where there is no window.
template <class T, class Value>
inline void read(Value* values, const Tensor& tensor, int64_t channel, int64_t tap, const Windows& windows, const Strip& strip)
{
    each(windows.geometry.strip, [&](int64_t i) {
        const Position at(strip, windows, i);
        values[i] = at.is_window ? Value(static_cast<const T*>(tensor.data)[element(tensor, channel, tap, strip, at)]) : Value(0);
    });
}

/// Put the values of a strip into a tensor of one value per window.
template <class T, class Value>
inline void write(const Value* values, const Tensor& tensor, int64_t channel, const Windows& windows, const Strip& strip)
{
    each(windows.geometry.strip, [&](int64_t i) {
        const Position at(strip, windows, i);
        if (at.is_window)
            static_cast<T*>(tensor.data)[element(tensor, channel, 0, strip, at)] = T(values[i]);
    });
}

/// Add the values of a strip to a tensor of numbers as they are computed, one per window.
inline void add(const real* values, const Tensor& tensor, int64_t channel, int64_t tap, const Windows& windows, const Strip& strip)
{
    each(windows.geometry.strip, [&](int64_t i) {
        const Position at(strip, windows, i);
        if (at.is_window)
            static_cast<real*>(tensor.data)[element(tensor, channel, tap, strip, at)] += values[i];
    });
}

/// -1 for the places of a strip that are windows, 0 for the others.
inline void fill_mask(integer* mask, const Windows& windows, const Strip& strip)
{
    each(windows.geometry.strip, [&](int64_t i) { mask[i] = -integer(Position(strip, windows, i).is_window); });
}

// -- Tiles, shared by the warps of a block -----------------------------------------------------------------------------

template <int N> struct Size {
    static constexpr int value = N;
};

/// Which windows see nothing outside the image: nobody asks here, because each thread has windows of its own.
struct WholeWindows {
    WholeWindows() = default;
    WholeWindows(const Windows&, Arena&) {}
    void tell(const Windows&, const Strip&) {}
};

/// Cut `rows` times `length` places into tiles: body(rows of the tile, vectors of the tile, first row, first place).
template <int ROWS, int VECTORS, int ROW, class Body> inline void tiles(int64_t rows, int64_t length, Body body)
{
    const int64_t across = length / (VECTORS * WIDTH), whole = ROWS > 1 ? rows / ROWS : 0;
    for (int64_t i = WARP; i < whole * across; i += WARPS)
        body(Size<ROWS>{}, Size<VECTORS>{}, i / across * ROWS, i % across * (VECTORS * WIDTH));
    for (int64_t i = WARP; i < (rows - whole * ROWS) * across; i += WARPS)
        body(Size<1>{}, Size<VECTORS>{}, whole * ROWS + i / across, i % across * (VECTORS * WIDTH));
    meet();
}

/// The same, as `strip.hpp` has it: body(rows of the tile, vectors of the tile, whether its windows see nothing outside, ...).
template <int ROWS, int VECTORS, int ROW, class Body>
inline void told_tiles(const WholeWindows&, int64_t rows, int64_t length, Body body)
{
    tiles<ROWS, VECTORS, ROW>(rows, length, [&](auto F, auto V, int64_t f, int64_t q) { body(F, V, Known<false>{}, f, q); });
}

/// Cut the taps of a domain into tiles of `TAPS`: body(taps of the tile, vectors of the tile, first tap, first place).
/// The body meets the team after each of its taps, so that no two warps add to one pixel under different taps.  Channels
/// are the work of different warps unless they are `joint`: seen as one by an image of one channel.
template <int TAPS, int VECTORS, int ROW, class Body>
inline void tap_tiles(const Domain& domain, int64_t length, int64_t, bool joint, Body body)
{
    const int64_t across = length / (VECTORS * WIDTH), columns = least(across, WARPS), down = joint ? 1 : WARPS / columns;
    const int64_t row = WARP / columns, column = WARP % columns;
    const auto turn = [&](auto size, int64_t channel, int64_t tap) {
        for (int64_t first = 0; first < across; first += columns)
            if (row < down && channel < domain.channels && first + column < across)
                body(size, Size<VECTORS>{}, channel * domain.taps + tap, (first + column) * (VECTORS * WIDTH));
            else
                for (int i = 0; i < size.value; ++i)
                    meet();
    };
    for (int64_t channel = row; channel - row < domain.channels; channel += down) {
        int64_t tap = 0;
        if constexpr (TAPS > 1)
            for (; tap + TAPS <= domain.taps; tap += TAPS)
                turn(Size<TAPS>{}, channel, tap);
        for (; tap < domain.taps; ++tap)
            turn(Size<1>{}, channel, tap);
    }
}

/// How `filters` times `count` elements of weights are cut: into tiles, each for some filters and taps, and where there are
/// fewer tiles than warps, into slices of the windows.
template <int FILTERS, int TAPS> struct BankTiles {
    int64_t across, count, slices;

    /// Of a range of up to `step` filters; the slices are the same for all ranges.
    BankTiles(int64_t filters, int64_t step, int64_t taps)
        : across(taps / TAPS + taps % TAPS), count(down(filters) * across), slices(most(1, WARPS / (down(step) * across)))
    {
    }

    static int64_t down(int64_t filters) { return filters / FILTERS + filters % FILTERS; }
};

/// Cut weights: body(filters of the tile, taps of the tile, first filter, first tap, slice, its first place, its end).
template <int FILTERS, int TAPS, class Body>
inline void bank_tiles(int64_t filters, int64_t step, int64_t taps, int64_t length, Body body)
{
    const BankTiles<FILTERS, TAPS> tiles(filters, step, taps);
    const int64_t all = length / WIDTH, whole = filters / FILTERS, complete = taps / TAPS;
    for (int64_t i = WARP; i < tiles.count * tiles.slices; i += WARPS) {
        const int64_t slice = i / tiles.count, row = i % tiles.count / tiles.across, column = i % tiles.count % tiles.across;
        const int64_t begin = all * slice / tiles.slices * WIDTH, end = all * (slice + 1) / tiles.slices * WIDTH;
        const int64_t f = row < whole ? row * FILTERS : whole * FILTERS + row - whole;
        const int64_t k = column < complete ? column * TAPS : complete * TAPS + column - complete;
        const auto filled = [&](auto height) {
            if (column < complete)
                body(height, Size<TAPS>{}, f, k, slice, begin, end);
            else
                body(height, Size<1>{}, f, k, slice, begin, end);
        };
        if (row < whole)
            filled(Size<FILTERS>{});
        else
            filled(Size<1>{});
    }
    meet();
}

// -- The gradients of weights -------------------------------------------------------------------------------------------

/// What a block has found for each filter and tap, in each slice of the windows.
struct BankSink {
    real* sums;
    int64_t filters, count;

    /// What a tile of F filters and K taps has found.
    template <int F, int K> void add(int64_t slice, int64_t f, int64_t k, const vec (&found)[F][K]) const
    {
        give<F, K>(slice, f, k, found, [](int, int) { return real(1); });
    }

    /// The same, each times a factor.
    template <int F, int K> void add(int64_t slice, int64_t f, int64_t k, const vec (&found)[F][K], const real (&factors)[F][K]) const
    {
        give<F, K>(slice, f, k, found, [&](int i, int j) { return factors[i][j]; });
    }

    template <int F, int K, class Factor> void give(int64_t slice, int64_t f, int64_t k, const vec (&found)[F][K], Factor factor) const
    {
        UNROLL for (int i = 0; i < F; ++i)
            UNROLL for (int j = 0; j < K; ++j) {
                const real value = factor(i, j) * total(found[i][j]);
                if (lane() == 0)
                    sums[(slice * filters + f + i) * count + k + j] += value;
            }
    }

    /// A sum where nothing was before, by one thread.
    void put(int64_t slice, int64_t f, int64_t k, real value) const { sums[(slice * filters + f) * count + k] = value; }
};

/// Where the blocks have left their sums: `shares` blocks for each range of `step` filters of a group.
struct Shares {
    int64_t shares, step, distance;  // distance: bytes between the sums of one block and the next

    int64_t ranges(const Geometry& g) const { return ceil_div(g.filters, step); }
};

/// What the blocks and slices have found for one element of a weight or parameter: terms from `first` on, each `step`th,
/// in a fixed order.
inline real gathered(int64_t element, const Elements& elements, const BankSink& sink, int64_t slices, const Windows& windows,
                     const Shares& of, int first, int step)
{
    const Geometry& g = windows.geometry;
    const int64_t each_filter = elements.by_filter ? 1 : g.groups * g.filters;
    const int64_t each_tap = elements.by_tap ? 1 : sink.count;
    const uint32_t terms = uint32_t(of.shares * slices);
    const int64_t place = element - elements.first;
    real sum = 0;
    if (place < 0 || place >= elements.size)
        return sum;
    for (int64_t round = first; round < each_filter * each_tap * terms; round += step) {
        const uint32_t i = uint32_t(round), term = i % terms, slice = term % uint32_t(slices), share = term / uint32_t(slices);
        const uint32_t at = i / terms, number = elements.by_filter ? uint32_t(place) / uint32_t(elements.filter) : at / uint32_t(each_tap);
        const uint32_t group = number / uint32_t(g.filters), f = number % uint32_t(g.filters);
        const uint32_t k = elements.by_tap ? uint32_t(place) % uint32_t(sink.count) : at % uint32_t(each_tap);
        if (elements.places[k] < 0 || elements.at(group, f, k) != element)
            continue;
        const int64_t block = (group * of.ranges(g) + f / uint32_t(of.step)) * of.shares + share;
        const char* sums = reinterpret_cast<const char*>(sink.sums) + block * of.distance;
        sum += reinterpret_cast<const real*>(sums)[(slice * sink.filters + f % uint32_t(of.step)) * sink.count + k];
    }
    return sum;
}

/// Put the sums of `count` elements in place: sum(element, first, step) gives those of its terms from `first` on, each
/// `step`th.  Where each element has few terms it is the work of a thread, else of a warp.
template <class Sum> inline void gather(const Tensor& to, int64_t count, bool few, Sum sum)
{
    real* data = static_cast<real*>(to.data);
    const int64_t threads = gridDim.x * TEAM, thread = blockIdx.x * TEAM + RANK;
    if (few)
        for (int64_t element = thread; element < count; element += threads)
            data[element] = sum(element, 0, 1);
    else
        for (int64_t element = thread / WIDTH; element < count; element += threads / WIDTH) {
            const real value = total(splat(sum(element, lane(), WIDTH)));
            if (lane() == 0)
                data[element] = value;
        }
}

}  // namespace symconv
