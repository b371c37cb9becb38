// What flat kernels are made of: those that sweep once over all channels and taps.  Such a kernel is computed like a
// product of matrices.  The warps of a block, or their threads, hold tiles of results in registers, while what they are made of
// passes by in *stages*: the planes of some channels, or the values of some filters, in shared memory, where all warps read them.
// Where there is more than one stage there are two buffers: the next is under way while the block computes with this one.
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

/// body(part, parts, place) for `length` places, each shared by `parts` threads, so that all have something to do; nobody
/// waits.
template <class Body> SYMCONV_INLINE void each_place(int length, Body body)
{
    const int team = int(TEAM), parts = length < team ? team / length : 1;
    const int part = parts == 1 ? 0 : int(uint32_t(RANK) / uint32_t(length));
    for (int place = int(RANK) - part * length; place < length && part < parts; place += parts == 1 ? team : length)
        body(part, parts, place);
}

template <class T> constexpr bool IS_WHOLE = false;
template <> constexpr bool IS_WHOLE<int32_t> = true;

/// Copy a number to shared memory, or 0 where there is none.  The copy is under way until `near_is_there`: so threads
/// have many of them under way at a time, and no registers are taken.
template <class T> SYMCONV_INLINE void put_near(int to, const T* from, bool there)
{
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    if constexpr (sizeof(T) == sizeof(real)) {
        const uint32_t address = uint32_t(__cvta_generic_to_shared(near_memory + to));
        asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;"
                     :: "r"(address), "l"(from), "n"(sizeof(real)), "r"(there ? int(sizeof(real)) : 0) : "memory");
        return;
    }
#endif
    if constexpr (IS_WHOLE<T>)  // kept by its bits
        near_memory[to] = from_bits(splat_int(there ? integer(*from) : 0))[0];
    else
        near_memory[to] = there ? real(*from) : real(0);
}

/// Wait until all copies of the team are there.
SYMCONV_INLINE void near_is_there()
{
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_all;" ::: "memory");
#endif
    meet();  // and the others have waited for theirs
}

/// Whole numbers below 2**32 divided by a number that stays the same; the quotient of small ones is found in float32.
struct Divider {
    uint32_t by;
    float inverse;
    bool small;

    Divider(int64_t by, int64_t most) : by(uint32_t(by)), inverse(1.0f / float(by)), small(most < (1 << 22)) {}

    void divide(uint32_t n, int& quotient, int& rest) const
    {
        if (small) {
            quotient = int(float(int(n)) * inverse);  // off by one at most
            rest = int(n) - quotient * int(by);
            if (rest < 0)
                --quotient, rest += int(by);
            else if (rest >= int(by))
                ++quotient, rest -= int(by);
        } else {
            quotient = int(n / by);
            rest = int(n - uint32_t(quotient) * by);
        }
    }
};

/// Where the line of windows is cut into rows.
inline Divider rows_of(const Windows& windows)
{
    return Divider(windows.pitch, windows.length + (windows.y.reach + 1) * windows.pitch);
}

/// A place in a line of windows that may lie before or behind it, and whether a window is there.
struct Seen {
    int y = 0, x = 0;
    bool is_window;

    Seen(const Windows& windows, const Divider& rows, int64_t place)
    {
        is_window = place >= 0 && place < windows.length;
        if (is_window)
            rows.divide(uint32_t(place), y, x);
        is_window = is_window && x < int(windows.geometry.size[2]);
    }
};

/// The pixels of plane `number` along a line of windows.
struct Plane {
    Divider rows;
    int z, first_y, first_x, stride_y, stride_x, height, width;
    bool there;

    Plane(const Windows& windows, int64_t line, int number) : rows(rows_of(windows))
    {
        const Geometry& g = windows.geometry;
        const int across = int(windows.x.residues), down = int(windows.y.residues), row = number / across;
        z = int(line * g.stride[0] + row / down * g.dilation[0] - g.before[0]);
        there = 0 <= z && z < g.image[0];
        first_y = int(windows.y.first(row % down)), first_x = int(windows.x.first(number % across));
        stride_y = int(g.stride[1]), stride_x = int(g.stride[2]);
        height = int(g.image[1]), width = int(g.image[2]);
    }
};

/// The pixel at a place of a plane, and whether the image has it.
struct PlanePixel {
    int z, y, x;
    bool inside;

    PlanePixel(const Plane& plane, int64_t place) : z(plane.z)
    {
        int row, column;
        plane.rows.divide(uint32_t(place), row, column);
        y = row * plane.stride_y + plane.first_y;
        x = column * plane.stride_x + plane.first_x;
        inside = plane.there && 0 <= y && y < plane.height && 0 <= x && x < plane.width;
    }

    int64_t of(const Tensor& image) const { return z * image.step[3] + y * image.step[4] + x * image.step[5]; }
};

/// Put the planes of `channels` channels from `first` on into shared memory.  They are there after `near_is_there`.
inline void stage_planes(int to, const Tensor& image, int64_t first, int channels, const Windows& windows, const Strip& strip)
{
    const storage* data = static_cast<const storage*>(image.data) + strip.n * image.step[0] + first * image.step[1];
    const int length = int(windows.plane), all = int(windows.channel);
    for (int number = 0; number * length < all; ++number) {
        const Plane plane(windows, strip.z, number);
        each_place(length, [&](int part, int parts, int i) {
            const PlanePixel pixel(plane, strip.begin + i);
            const storage* from = data + (pixel.inside ? pixel.of(image) : 0);
            UNROLL_TIMES(4) for (int channel = part; channel < channels; channel += parts)
                put_near(to + channel * all + number * length + i, from + channel * image.step[1], pixel.inside);
        });
    }
}

/// Put a plane that is 1 where the image is into shared memory.
inline void stage_inside(int to, const Windows& windows, const Strip& strip)
{
    const int length = int(windows.plane);
    for (int number = 0; number * length < windows.channel; ++number) {
        const Plane plane(windows, strip.z, number);
        for (int i = int(RANK); i < length; i += int(TEAM))
            near_memory[to + number * length + i] = PlanePixel(plane, strip.begin + i).inside;
    }
}

/// A value for each filter, channel and tap, for tiles of C channels: [group, tile, tap, filter, C].  PER_FILTER and PER_TAP
/// say along what it varies; element(group, f, k).
template <bool PER_FILTER, bool PER_TAP, int C, class Element>
inline real* pack_channels(const Windows& windows, Arena& arena, Element element)
{
    const Geometry& g = windows.geometry;
    const int64_t tiles = ceil_div(g.channels, C), taps = windows.taps, filters = g.filters;
    real* packed = arena.take<real>(g.groups * tiles * taps * filters * C);
    spread(g.threads, arena.fills ? g.groups * tiles * taps : 0, filters * C, [&](int64_t row, int64_t column) {
        const int64_t group = row / (tiles * taps), tile = row / taps % tiles, t = row % taps;
        const int64_t c = tile * C + column % C, f = column / C, k = PER_TAP ? c * taps + t : 0;
        packed[row * filters * C + column] =
            c < g.channels ? element(PER_FILTER ? group : 0, PER_FILTER ? f : 0, k) : real(0);
    });
    return packed;
}

}  // namespace symconv
