// The part of the native CPU backend that never varies: how a thread reads and writes a strip, and how threads share them.
#pragma once

#include <new>

#include "window.hpp"

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace symconv {

// -- Strips -------------------------------------------------------------------------------------------------------------

/// Visit the rows of output pixels in a strip: visit(place in the strip, y, x, how many).
template <class Visit> inline void rows(const Strip& strip, const Windows& windows, Visit visit)
{
    const int64_t begin = strip.begin, end = least(begin + windows.geometry.strip, windows.length), width = windows.geometry.size[2];
    for (int64_t at = begin, y = begin / windows.pitch, x = begin % windows.pitch; at < end; ++y, x = 0) {
        const int64_t all = least(windows.pitch - x, end - at);
        if (x < width)
            visit(at - begin, y, x, least(all, width - x));
        at += all;
    }
}

/// The places along an axis of a plane where the image is.
struct ImageRange {
    int64_t stride, first, begin, end;

    ImageRange(const Axis& axis, int64_t residue, int64_t image)
        : stride(axis.stride), first(axis.first(residue)), begin(place(0)), end(most(begin, place(image)))
    {
    }
    int64_t place(int64_t pixel) const { return pixel > first ? ceil_div(pixel - first, stride) : 0; }
    int64_t pixel(int64_t place) const { return first + place * stride; }
    bool has(int64_t place) const { return begin <= place && place < end; }
};

/// Rows of the planes of a channel that are alike, a pitch apart.  Of the `all` places of a row the first `before` lie outside
/// the image, then come `inside` that are pixels, a stride apart in either direction.
struct ImageRows {
    int64_t plane, at;    // the number of a plane, and the place of the first row in it
    int64_t rows;         // how many
    int64_t all, before, inside;
    int64_t z, y, x;      // the first pixel of the first row, or where it would be
    bool in_image;        // whether z and y lie there, even if none of the places does

    /// Where the first one is in the planes of a channel.
    int64_t place(const Windows& windows) const { return plane * windows.plane + at; }
};

/// Visit the rows of an image that the planes of one channel hold, as many as are alike at once.
template <class Visit> inline void image_rows(const Strip& strip, const Windows& windows, Visit visit)
{
    const Geometry& g = windows.geometry;
    const int64_t pitch = windows.pitch, y0 = strip.begin / pitch, x0 = strip.begin % pitch;
    for (int64_t tz = 0, plane = 0; tz < g.kernel[0]; ++tz) {
        const int64_t z = strip.z * g.stride[0] + tz * g.dilation[0] - g.before[0];
        for (int64_t ry = 0; ry < windows.y.residues; ++ry) {
            const ImageRange down(windows.y, ry, 0 <= z && z < g.image[0] ? g.image[1] : 0);
            for (int64_t rx = 0; rx < windows.x.residues; ++rx, ++plane) {
                const ImageRange across(windows.x, rx, g.image[2]);
                for (int64_t y = y0, x = x0, at = 0; at < windows.plane; x = 0) {
                    const int64_t left = windows.plane - at, all = least(pitch - x, left);
                    const int64_t alike = (y < down.begin ? down.begin : y < down.end ? down.end : y + left) - y;
                    const int64_t rows = all < pitch ? 1 : least(alike, left / pitch);
                    const int64_t from = least(most(across.begin, x), x + all);
                    const int64_t to = down.has(y) ? least(most(across.end, from), x + all) : from;
                    visit(ImageRows{plane, at, rows, all, from - x, to - from, z, down.pixel(y), across.pixel(from), down.has(y)});
                    at += rows == 1 ? all : rows * pitch;
                    y += rows;
                }
            }
        }
    }
}

/// Put value(i, vector), a vector of those from i on, into a row; `vector` loads as much as there is of other rows.  The last
/// one ends where the row ends, so that some values may be in two.
template <class Value> SYMCONV_INLINE void put_row(real* to, int64_t count, Value value)
{
    if (count < WIDTH)
        return First{count}.store(to, value(0, First{count}));
    for (int64_t i = 0; i < count; i += WIDTH) {
        const int64_t from = least(i, count - WIDTH);
        store(to + from, value(from, Whole{}));
    }
}

/// put(i, sum(i, vector), vector) for the vectors of a row that is added to, as in `put_row`.
template <class Sum, class Put> SYMCONV_INLINE void add_vectors(int64_t count, Sum sum, Put put)
{
    if (count < WIDTH)
        return put(0, sum(0, First{count}), First{count});
    const auto last = sum(count - WIDTH, Whole{});  // nothing is added twice: the sum is taken before any is put
    for (int64_t i = 0; i + WIDTH < count; i += WIDTH)
        put(i, sum(i, Whole{}), Whole{});
    put(count - WIDTH, last, Whole{});
}

/// Every `stride`-th value of a row, one after the other.
template <class To, class From> inline void copy(To* to, int64_t step, const From* from, int64_t stride, int64_t count)
{
    if constexpr (std::is_same_v<To, real> && std::is_same_v<From, real>) {
        if (step == 1 && stride == 1)
            return put_row(to, count, [&](int64_t i, auto vector) { return vector.load(from + i); });
        if (step == 1 && stride == 2)
            return put_row(to, count, [&](int64_t i, auto vector) {
                const auto [lower, upper] = vector.doubled();
                return every_other(lower.load(from + 2 * i), upper.load(from + 2 * i + WIDTH - 1));
            });
    }
    if (step == 1 && stride == 1)
        for (int64_t i = 0; i < count; ++i)
            to[i] = To(from[i]);
    else
        for (int64_t i = 0; i < count; ++i)
            to[i * step] = To(from[i * stride]);
}

/// Add a row to another one, whose numbers are `step` apart.
inline void add_row(real* to, int64_t step, const real* from, int64_t count)
{
    if (step == 1)
        add_vectors(
            count, [&](int64_t i, auto vector) { return vector.load(to + i) + vector.load(from + i); },
            [&](int64_t i, vec sum, auto vector) { vector.store(to + i, sum); });
    else
        for (int64_t i = 0; i < count; ++i)
            to[i * step] += from[i];
}

/// Write a row over another one, whose numbers are `step` apart.
inline void write_row(real* to, int64_t step, const real* from, int64_t count) { copy(to, step, from, 1, count); }

/// Where the first of some rows is in a channel of an image.
inline int64_t place_of(const ImageRows& rows, const int64_t (&step)[6])
{
    return rows.z * step[3] + rows.y * step[4] + rows.x * step[5];
}

/// Copy a row into a plane, and for a short one some zeros behind it: zeros belong there, or what later rows bring, of this
/// plane, the next one or the next channel; behind the last channel there is room for a vector of zeros.
template <class From> inline void fill_row(real* to, const From* from, int64_t stride, int64_t count)
{
    if constexpr (std::is_same_v<From, real>)
        if (stride == 1 && count < WIDTH)
            return store(to, First{count}.load(from));
    copy(to, 1, from, stride, count);
}

/// Fill the planes of the channels from `first` on with the image; the zeros of `fill_outside` stay.
inline void fill(real* planes, const Tensor& image, int64_t first, const Windows& windows, const Strip& strip,
                 int64_t channels)
{
    const int64_t *step = image.step, *stride = windows.geometry.stride;
    for (int64_t c = 0; c < channels; ++c) {
        real* channel = planes + c * windows.channel;
        const storage* data = static_cast<const storage*>(image.data) + strip.n * step[0] + (first + c) * step[1];
        image_rows(strip, windows, [&](const ImageRows& rows) {
            if (!rows.inside)
                return;
            real* to = channel + rows.place(windows) + rows.before;
            const storage* from = data + place_of(rows, image.step);
            for (int64_t row = 0; row < rows.rows; ++row)
                fill_row(to + row * windows.pitch, from + row * stride[1] * step[4], stride[2] * step[5], rows.inside);
        });
    }
}

/// Fill the planes of some channels with zeros where no image is.
inline void fill_outside(real* planes, const Windows& windows, const Strip& strip, int64_t channels)
{
    for (int64_t c = 0; c < channels; ++c)
        image_rows(strip, windows, [&](const ImageRows& rows) {
            for (int64_t row = 0; row < rows.rows; ++row) {
                real* begin = planes + c * windows.channel + rows.place(windows) + row * windows.pitch;
                clear(begin, rows.before);
                clear(begin + rows.before + rows.inside, rows.all - rows.before - rows.inside);
            }
        });
}

/// Planes of one channel that are 1 where the image is.
inline void fill_inside(real* planes, const Windows& windows, const Strip& strip)
{
    image_rows(strip, windows, [&](const ImageRows& rows) {
        for (int64_t row = 0; row < rows.rows; ++row)
            for (int64_t i = 0; i < rows.all; ++i)
                planes[rows.place(windows) + row * windows.pitch + i] = rows.before <= i && i < rows.before + rows.inside;
    });
}

/// The places of each plane to which no other strip or group has added: they are written.
struct Fresh {
    int64_t begin = 0, end = 0;

    /// Those of strip `number`, after those from `first` on; `between`: and after all before `first` and from `last` on.  Groups
    /// that share the channels of an image come one after the other.
    Fresh(const Windows& windows, const Tensor& image, int64_t group, int64_t number, int64_t first, int64_t last, bool between)
    {
        const int64_t strip = windows.geometry.strip;
        if (!windows.geometry.overwrites || (group > 0 && image.group == 0))
            return;
        begin = number > (between ? 0 : first) ? windows.plane - strip : 0;
        end = between && last < windows.strips ? most((last - number) * strip, begin) : most(windows.plane, begin);
    }
};

/// Put places of the planes of each residue side by side, as the pixels of a row; those that no plane has are 0, and may be
/// added: no other thread adds to pixels between those of a strip at the same time.
inline void weave(real* row, const real* planes, const Windows& windows, int64_t count)
{
    const int64_t stride = windows.x.stride, residues = windows.x.residues;
    if (stride == 2 && residues == 2) {
        for (int64_t i = 0; i < count; i += WIDTH) {
            const vec even = load(planes + i), odd = load(planes + windows.plane + i);
            store(row + 2 * i, woven<0>(even, odd));
            store(row + 2 * i + WIDTH, woven<1>(even, odd));
        }
        return;
    }
    if (residues < stride)
        clear(row, count * stride);
    for (int64_t residue = 0; residue < residues; ++residue)
        for (int64_t i = 0, at = windows.x.first(residue) + windows.x.before; i < count; ++i)
            row[i * stride + at] = planes[residue * windows.plane + i];
}

/// Add the planes of the channels from `first` on to an image of numbers as they are computed, or write them where they are
/// `fresh`; `row` is room for the pixels of a row, where the stride is more than 1.
inline void add_planes(const real* planes, real* row, const Tensor& image, int64_t first, const Windows& windows,
                       const Strip& strip, int64_t channels, Fresh fresh)
{
    const int64_t *step = image.step, *stride = windows.geometry.stride;
    for (int64_t c = 0; c < channels; ++c)
        image_rows(strip, windows, [&](const ImageRows& rows) {
            if (!rows.in_image || rows.plane % windows.x.residues)  // the planes of other residues come with the first
                return;
            const int64_t start = rows.x - rows.before * stride[2];  // the pixel of the first place
            const int64_t from = most(-start, 0), to = least(windows.geometry.image[2] - start, rows.all * stride[2]);
            real* data = static_cast<real*>(image.data) + strip.n * step[0] + (first + c) * step[1] + rows.z * step[3] + rows.y * step[4];
            for (int64_t at = rows.at; at < rows.at + rows.rows * windows.pitch && from < to; at += windows.pitch) {
                const real* pixels = planes + c * windows.channel + rows.place(windows) + at - rows.at;
                if (stride[2] > 1) {
                    weave(row, pixels, windows, rows.all);
                    pixels = row;
                }
                const int64_t low = least(most((fresh.begin - at) * stride[2], from), to);
                const int64_t high = least(most((fresh.end - at) * stride[2], low), to);
                const auto part = [&](int64_t begin, int64_t end, auto put) {
                    if (begin < end)
                        put(data + (start + begin) * step[5], step[5], pixels + begin, end - begin);
                };
                part(from, low, add_row);
                part(low, high, write_row);
                part(high, to, add_row);
                data += stride[1] * step[4];
            }
        });
}

/// 0 at the places of a strip that are no windows, in each of some rows.
template <class Value> inline void clear_gaps(Value* values, int64_t count, const Windows& windows, const Strip& strip)
{
    for (int64_t f = 0; f < count; ++f, values += windows.row_length()) {
        int64_t end = 0;  // of the windows of a row
        const auto clear_until = [&](int64_t begin) {
            for (; end < begin; ++end)
                values[end] = 0;
        };
        rows(strip, windows, [&](int64_t at, int64_t, int64_t, int64_t windows_in_row) {
            clear_until(at);
            end = at + windows_in_row;
        });
        clear_until(windows.geometry.strip);
    }
}

/// The values of a strip from a tensor of one value per window; what lies between the windows stays.
template <class T, class Value>
inline void read(Value* values, const Tensor& tensor, int64_t channel, int64_t tap, const Windows& windows, const Strip& strip)
{
    const int64_t* step = tensor.step;
    const T* data = static_cast<const T*>(tensor.data) + strip.n * step[0] + channel * step[1] + tap * step[2];
    rows(strip, windows, [&](int64_t at, int64_t y, int64_t x, int64_t count) {
        copy(values + at, 1, data + strip.z * step[3] + y * step[4] + x * step[5], step[5], count);
    });
}

/// Put the values of a strip into a tensor of one value per window.
template <class T, class Value>
inline void write(const Value* values, const Tensor& tensor, int64_t channel, const Windows& windows, const Strip& strip)
{
    const int64_t* step = tensor.step;
    T* data = static_cast<T*>(tensor.data) + strip.n * step[0] + channel * step[1];
    rows(strip, windows, [&](int64_t at, int64_t y, int64_t x, int64_t count) {
        copy(data + strip.z * step[3] + y * step[4] + x * step[5], step[5], values + at, 1, count);
    });
}

/// Put value(q), vectors of a strip from q on, into a tensor of one value per window; `values` is room for them.  The last
/// vector of a row may reach behind the strip, where other values of this thread lie: what it finds there is not put anywhere.
template <class T, class Value>
inline void write_each(real* values, const Tensor& tensor, int64_t channel, const Windows& windows, const Strip& strip, Value value)
{
    const int64_t* step = tensor.step;
    T* data = static_cast<T*>(tensor.data) + strip.n * step[0] + channel * step[1] + strip.z * step[3];
    rows(strip, windows, [&](int64_t at, int64_t y, int64_t x, int64_t count) {
        T* row = data + y * step[4] + x * step[5];
        if constexpr (std::is_same_v<T, real>)
            if (step[5] == 1)
                return put_row(row, count, [&](int64_t i, auto) { return value(at + i); });
        for (int64_t i = 0; i < count; i += WIDTH)
            store(values + i, value(at + i));
        copy(row, step[5], values, 1, count);
    });
}

/// Add the values of a strip to a tensor of numbers as they are computed, one per window.
inline void add(const real* values, const Tensor& tensor, int64_t channel, int64_t tap, const Windows& windows, const Strip& strip)
{
    const int64_t* step = tensor.step;
    real* data = static_cast<real*>(tensor.data) + strip.n * step[0] + channel * step[1] + tap * step[2];
    rows(strip, windows, [&](int64_t at, int64_t y, int64_t x, int64_t count) {
        add_row(data + strip.z * step[3] + y * step[4] + x * step[5], step[5], values + at, count);
    });
}

/// -1 for the places of a strip that are windows, 0 for the others.
inline void fill_mask(integer* mask, const Windows& windows, const Strip& strip)
{
    for (int64_t i = 0; i < windows.geometry.strip; ++i)
        mask[i] = 0;
    rows(strip, windows, [&](int64_t at, int64_t, int64_t, int64_t count) {
        for (int64_t i = 0; i < count; ++i)
            mask[at + i] = -1;
    });
}

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
template <bool PER_FILTER, bool PER_TAP, int BLOCK, class Value>
inline real* computed(const Windows& windows, int64_t count, Arena& arena, Value value)
{
    const int64_t rows = PER_FILTER ? windows.geometry.groups * padded_filters<BLOCK>(windows) : 1;
    const int64_t all = rows * (PER_TAP ? count : 1);
    real* values = arena.take<real>(all);
    vectors(1, arena.fills ? all : 0, [&](int64_t, int64_t i) { store(values + i, value(i)); });
    return values;
}

// -- Pixels that look for the windows that see them ---------------------------------------------------------------------

/// The taps that look into each plane, plane after plane: tap j for j from begin[plane] on, whose windows begin step[j]
/// places before the pixel.
struct Looks {
    int64_t planes;
    int *begin, *tap, *step;

    Looks(const Windows& windows, Arena& arena)
        : planes(windows.channel / windows.plane),
          begin(arena.take<int>(planes + 1)), tap(arena.take<int>(windows.taps)), step(arena.take<int>(windows.taps))
    {
        if (!arena.fills)
            return;
        int count = 0;
        for (int64_t plane = 0; plane < planes; ++plane) {
            begin[plane] = count;
            for (int64_t t = 0; t < windows.taps; ++t)
                if (windows.plane_of(t) == plane) {
                    tap[count] = int(t);
                    step[count++] = int(windows.step_of(t));
                }
        }
        begin[planes] = count;
    }
};

/// What a place gives to a pixel; MASKED: 0 where it is no window.
template <bool MASKED> SYMCONV_INLINE vec given(const integer* is_window, vec value)
{
    return MASKED ? where(load_int(is_window), value, splat(0)) : value;
}

/// Whether one of some sums is infinite or no number.
template <int V> SYMCONV_INLINE bool any_not_finite(const vec (&sums)[V])
{
    ivec found = {};
    UNROLL for (int v = 0; v < V; ++v)
        found |= ~(abs(sums[v]) <= LARGEST);
    return any(found);
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

/// Cut weights: body(filters of the tile, taps of the tile, first filter, first tap, slice, its first place, its end).
template <int FILTERS, int TAPS, class Body>
inline void bank_tiles(int64_t filters, int64_t, int64_t taps, int64_t length, Body body)
{
    const auto row = [&](auto height, int64_t f) {
        int64_t k = 0;
        if constexpr (TAPS > 1)
            for (; k + TAPS <= taps; k += TAPS)
                body(height, Size<TAPS>{}, f, k, int64_t(0), int64_t(0), length);
        for (; k < taps; ++k)
            body(height, Size<1>{}, f, k, int64_t(0), int64_t(0), length);
    };
    int64_t f = 0;
    if constexpr (FILTERS > 1)
        for (; f + FILTERS <= filters; f += FILTERS)
            row(Size<FILTERS>{}, f);
    for (; f < filters; ++f)
        row(Size<1>{}, f);
}

/// Filters whose values are held together where the gradients of weights sum several strips.
constexpr int64_t JOINT_FILTERS = 32;

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
    int64_t filter;
    const int* places;

    /// What a tile of F filters and K taps has found.
    template <int F, int K> void add(int64_t, int64_t f, int64_t k, const vec (&sums)[F][K]) const
    {
        give<F, K>(f, k, sums, [](int, int) { return real(1); });
    }

    /// The same, each times a factor: times the total, because 0*inf in a lane without a window is NaN.
    template <int F, int K> void add(int64_t, int64_t f, int64_t k, const vec (&sums)[F][K], const real (&factors)[F][K]) const
    {
        give<F, K>(f, k, sums, [&](int i, int j) { return factors[i][j]; });
    }

    /// What the windows of a strip have found for the taps of a filter.
    void add(int64_t f, const real* sums, int64_t count) const
    {
        for (int64_t k = 0; k < count; ++k)
            if (places[k] >= 0)
                total[f * filter + places[k]] += sums[k];
    }

    template <int F, int K, class Factor> void give(int64_t f, int64_t k, const vec (&sums)[F][K], Factor factor) const
    {
        real found[F][K];
        totals<F * K>(sums[0], found[0]);
        UNROLL for (int j = 0; j < K; ++j)
            if (places[k + j] >= 0)
                UNROLL for (int i = 0; i < F; ++i)
                    total[(f + i) * filter + places[k + j]] += factor(i, j) * found[i][j];
    }
};

// -- Threads ------------------------------------------------------------------------------------------------------------

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
