// What flat kernels are made of: those that sweep once over all channels and taps.  Such a kernel is computed like a
// product of matrices.  Each warp of a block holds a tile of results in registers, while what they are made of passes by
// in *stages*: the planes of some channels, or the values of some filters, in shared memory, where all warps read them.
#pragma once

#include "block.hpp"

namespace symconv {

/// Shared memory of a block, so much as the launch asks for.
extern __shared__ real near_memory[];

/// So many numbers of it are for `Windows`: read from there they take no registers.
constexpr int FOR_WINDOWS = 512 / sizeof(real);
static_assert(sizeof(Windows) <= 512);

inline const Windows& near_windows(const Windows& made)
{
    Windows& there = *reinterpret_cast<Windows*>(near_memory);
    if (RANK == 0)
        there = made;
    meet();
    return there;
}

/// Hands it out, in numbers.
struct Near {
    int used = FOR_WINDOWS;

    int take(int64_t count)
    {
        const int place = used;
        used += int(count);
        return place;
    }

    /// A table of whole numbers: entry(0), entry(1), ...  It is there when the team has met.
    template <class Entry> int table(int count, Entry entry)
    {
        const int place = take(count);
        for (int i = int(RANK); i < count; i += int(TEAM))
            reinterpret_cast<int*>(near_memory + place)[i] = entry(i);
        return place;
    }
};

/// Where the planes of a channel have a tap.
SYMCONV_INLINE int shift_of(const Windows& windows, int64_t tap)
{
    return int(windows.plane_of(tap) * windows.plane + windows.step_of(tap));
}

/// N numbers that all threads of a warp read, from an aligned block.
template <int N> SYMCONV_INLINE void read_block(vec* to, const real* block)
{
    constexpr int bytes = N * int(sizeof(real)), together = bytes % 16 == 0 ? 16 / int(sizeof(real)) : 1;
    struct alignas(together * sizeof(real)) Piece {
        real values[together];
    };
    UNROLL for (int i = 0; i < N / together; ++i) {
        const Piece piece = reinterpret_cast<const Piece*>(block)[i];
        UNROLL for (int j = 0; j < together; ++j)
            to[i * together + j] = splat(piece.values[j]);
    }
}

SYMCONV_INLINE vec near_value(int place) { return load(near_memory + place); }
SYMCONV_INLINE int near_entry(int table, int i) { return reinterpret_cast<const int*>(near_memory + table)[i]; }
/// Whether this thread's place of a mask is set.
SYMCONV_INLINE ivec near_mask(int place) { return near_value(place) != splat(0); }

/// body(part, parts, place) for `length` places, each shared by `parts` threads, so that all have something to do.
template <class Body> SYMCONV_INLINE void each_place(int length, Body body)
{
    const int parts = int(most(1, TEAM / length));
    for (int i = int(RANK); i < length * parts; i += int(TEAM))
        body(int(uint32_t(i) / uint32_t(length)), parts, int(uint32_t(i) % uint32_t(length)));
    meet();
}

/// Put the planes of `channels` channels from `first` on into shared memory.
inline void stage_planes(int to, const Tensor& image, int64_t first, int channels, const Windows& windows, const Strip& strip)
{
    const storage* data = static_cast<const storage*>(image.data) + strip.n * image.step[0] + first * image.step[1];
    const int plane = int(windows.channel);
    each_place(plane, [&](int part, int parts, int i) {
        const Pixel pixel(strip, windows, i);
        const storage* from = data + pixel.of(image);
        UNROLL_TIMES(8) for (int channel = part; channel < channels; channel += parts)
            near_memory[to + channel * plane + i] = pixel.inside ? real(from[channel * image.step[1]]) : real(0);
    });
}

/// Put a plane that is 1 where the image is into shared memory.
inline void stage_inside(int to, const Windows& windows, const Strip& strip)
{
    each(windows.channel, [&](int64_t i) { near_memory[to + i] = Pixel(strip, windows, i).inside; });
}

/// A place in a line of windows that may lie before or behind it, and whether a window is there.
struct Seen {
    int64_t y, x;
    bool is_window;

    Seen(const Windows& windows, int64_t place)
    {
        const uint32_t at = place < 0 ? 0 : uint32_t(place), pitch = uint32_t(windows.pitch);
        y = at / pitch;
        x = at % pitch;
        is_window = place >= 0 && at < windows.length && x < windows.geometry.size[2];
    }
};

/// The pixel of plane `number` at a place of a line, and whether the image has it.
struct LinePixel {
    int64_t z, y, x;
    bool inside;

    LinePixel(const Windows& windows, int64_t line, int64_t number, uint32_t place)
    {
        const Geometry& g = windows.geometry;
        const uint32_t pitch = uint32_t(windows.pitch);
        z = line * g.stride[0] - g.before[0];
        y = int64_t(place / pitch) * g.stride[1] + windows.y.first(number / windows.x.residues);
        x = int64_t(place % pitch) * g.stride[2] + windows.x.first(number % windows.x.residues);
        inside = 0 <= z && z < g.image[0] && 0 <= y && y < g.image[1] && 0 <= x && x < g.image[2];
    }

    int64_t of(const Tensor& image) const { return z * image.step[3] + y * image.step[4] + x * image.step[5]; }
};

/// The element of a tensor of one value per window.
inline int64_t element_at(const Tensor& tensor, int64_t channel, int64_t n, int64_t line, int64_t y, int64_t x)
{
    const int64_t* step = tensor.step;
    return n * step[0] + channel * step[1] + line * step[3] + y * step[4] + x * step[5];
}

/// The elements of a weight or parameter for tiles of C channels: [group, tile, tap, filter, C].
template <bool PER_FILTER, bool PER_TAP, int C>
inline real* pack_channels(const Tensor& tensor, const Elements& elements, const Windows& windows, Arena& arena)
{
    const Geometry& g = windows.geometry;
    const int64_t tiles = ceil_div(g.channels, C), taps = windows.taps, filters = g.filters;
    real* packed = arena.take<real>(g.groups * tiles * taps * filters * C);
    const storage* data = static_cast<const storage*>(tensor.data);
    spread(arena.fills ? g.groups * tiles * taps : 0, filters * C, [&](int64_t row, int64_t column) {
        const int64_t group = row / (tiles * taps), tile = row / taps % tiles, t = row % taps;
        const int64_t c = tile * C + column % C, f = column / C, k = PER_TAP ? c * taps + t : 0;
        const int64_t place = c < g.channels ? elements.places[k] : -1;
        packed[row * filters * C + column] =
            place < 0 ? real(0) : real(data[PER_FILTER ? elements.at(group, f, k) : elements.at(0, 0, k)]);
    });
    return packed;
}

}  // namespace symconv
