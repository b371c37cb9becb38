// The part of native kernels that never varies: how windows lie on an image.
//
// The windows of one image and one z lie in a line, row after row.  A row is as long as its windows reach, so that the
// pixel under a tap is always the same distance away:
//
//     pitch = width of the output + the largest column of a tap - zeros at the end of a row that also begin the next one
//
// A *strip* is a piece of that line.  For each channel the pixels that its windows see are copied into *planes*, one for
// each residue of the stride, with zeros around the image; a tap is then a shift into a plane, whatever the stride, the
// padding and the dilation were.  The few places at the end of each row that are no windows are computed and thrown away.
#pragma once

#include "math.hpp"

namespace symconv {

// -- What Python passes -----------------------------------------------------------------------------------------------

/// The windows of one call.  Axes are z, y, x; those that the image lacks have one element.
struct Geometry {
    int64_t batch, groups, filters, channels;  // filters and channels of a group
    int64_t image[3], size[3], kernel[3], stride[3], before[3], dilation[3];
    int64_t pitch;        // places of a row
    int64_t strip;        // windows of a strip, a multiple of the vectors of a tile
    int64_t filter_step;  // filters that are computed together
    int64_t by_filters;   // whether threads share out filters for the gradients of weights, and not images
    int64_t more_strips;  // that are at hand together with one
    int64_t more_images;  // whose gradients are at hand together with those of one
    int64_t margin;       // places around a strip where pixels look for windows that see them, 0 if they do not
    int64_t by_positions; // whether gradients go straight to the taps at the positions of maxima
    int64_t overwrites;   // whether gradients of images are written where nothing was added yet, and not added to zeros
    int64_t threads;      // of a CPU that share the work
};

/// What lies in the lanes of vectors: windows; or, in a forward pass, filters; or, in a backward pass, channels.
#if defined(SYMCONV_LANES_ARE_FILTERS)
constexpr bool LANES_ARE_FILTERS = true;
#else
constexpr bool LANES_ARE_FILTERS = false;
#endif

/// Vectors of channels or filters that lie side by side where they are the lanes; and the numbers of a block of channels.
constexpr int CHANNEL_VECTORS = 2;
#ifdef SYMCONV_LANES_ARE_CHANNELS
constexpr int CHANNEL_BLOCK = CHANNEL_VECTORS * WIDTH;
#else
constexpr int CHANNEL_BLOCK = 1;
#endif

/// Places behind those of an image that its last tile of pixels or windows may reach.
#if defined(SYMCONV_LANES_ARE_CHANNELS)
constexpr int SPARE_PLACES = IMAGE_ROW - 1;
#elif defined(SYMCONV_LANES_ARE_FILTERS)
constexpr int SPARE_PLACES = FORWARD_FILTERS - 1;
#else
constexpr int SPARE_PLACES = 0;
#endif

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
        pitch = geometry.pitch;
        length = (size[1] - 1) * pitch + size[2];
        strips = size[0] * line();
        plane = (geometry.strip + y.reach * pitch + x.reach + SPARE_PLACES + WIDTH - 1) / WIDTH * WIDTH;
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

    /// From the values of the windows of a strip to those for the next filter, channel or tap: a strip and a margin.
    int64_t row_length() const { return geometry.strip + geometry.margin; }

    /// The blocks of channels in which planes lie.
    int64_t blocks(int64_t channels) const { return ceil_div(channels, CHANNEL_BLOCK); }

    // How many numbers the planes of an image take: those of its blocks, and one full of zeros for taps that are not; more
    // than a vector of them, for what reads and writes whole vectors.
    int64_t planes(int64_t channels) const { return blocks(channels) * CHANNEL_BLOCK * channel + nowhere(); }
    int64_t nowhere() const { return (geometry.strip + SPARE_PLACES + WIDTH) / WIDTH * WIDTH; }
};

/// Zeros in rows of values, and around them.
template <class T> inline void clear_values(T* values, int64_t rows, const Windows& windows)
{
    const int64_t margin = windows.geometry.margin;
    each(rows * windows.row_length() + margin, [&](int64_t i) { values[i - margin] = 0; });
}

/// Room for rows of values, one for each window of a strip.  Before each row and behind the last one is a margin full of zeros,
/// where pixels look for windows beyond the strip; what is returned is where the first window of the first row is.
template <class T> inline T* take_values(const Windows& windows, int64_t rows, Arena& arena)
{
    T* values = arena.take<T>(rows * windows.row_length() + windows.geometry.margin + SPARE_PLACES);
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

}  // namespace symconv
