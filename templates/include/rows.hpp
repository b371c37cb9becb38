// The part of the native CPU backend that never varies: how a thread reads and writes a strip, row by row.
#pragma once

#include "storage.hpp"
#include "window.hpp"

namespace symconv {

// -- Rows of numbers --------------------------------------------------------------------------------------------------

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

/// The elements of rows in turn: all first ones, then all second ones.  Each round weaves the rows of the first half between
/// those of the second one.
template <int N> SYMCONV_INLINE void weave_rows(vec (&rows)[N])
{
    static_assert((N & (N - 1)) == 0, "as many rows as rounds can halve");
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

// -- Rows of the image, and planes ------------------------------------------------------------------------------------

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

/// The rows of an image that the planes of one channel hold for a strip, as many as are alike at once.
struct PlaneRows {
    ImageRows* found = nullptr;
    int64_t count = 0;
    real* block = nullptr;  // room for the planes of a block of channels

    PlaneRows() = default;
    /// `beside`: those of another strip, with which they share the room for a block.
    PlaneRows(const Windows& windows, Arena& arena, const PlaneRows* beside = nullptr)
        : found(arena.take<ImageRows>(MOST * windows.channel / windows.plane)),
          block(beside ? beside->block : arena.take<real>(CHANNEL_BLOCK > 1 ? windows.planes(1) : 0))
    {
    }

    /// Find them.
    void tell(const Windows& windows, const Strip& strip)
    {
        const Geometry& g = windows.geometry;
        const int64_t pitch = windows.pitch, y0 = strip.begin / pitch, x0 = strip.begin % pitch;
        count = 0;
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
                        found[count++] = {plane, at, rows, all, from - x, to - from, z, down.pixel(y), across.pixel(from), down.has(y)};
                        at += rows == 1 ? all : rows * pitch;
                        y += rows;
                    }
                }
            }
        }
    }

    const ImageRows* begin() const { return found; }
    const ImageRows* end() const { return found + count; }

    /// visit(first place, end) for the rows of pixels of a plane that windows of the strip see.
    template <class Visit> void pixels(const Windows& windows, int64_t plane, Visit visit) const
    {
        const int64_t seen = windows.geometry.strip + windows.y.reach * windows.pitch + windows.x.reach;
        for (const ImageRows& each : *this)
            for (int64_t row = 0; each.plane == plane && row < each.rows; ++row) {
                const int64_t begin = each.at + row * windows.pitch + each.before;
                visit(begin, least(begin + each.inside, seen));
            }
    }

private:
    /// In a plane: the end of a row, rows above the image, of it and below it, and the beginning of a row.
    static constexpr int64_t MOST = 5;
};

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

/// Fill the planes of the channels from `first` on with image n, one channel after the other; the zeros of `fill_outside` stay.
inline void fill_planes(real* planes, const Tensor& image, int64_t n, int64_t first, const Windows& windows, const PlaneRows& plane_rows,
                 int64_t channels)
{
    // Numbers of their own, so that the compiler need not think that a row was written over them.
    const int64_t pitch = windows.pitch, down = windows.geometry.stride[1] * image.step[4], across = windows.geometry.stride[2] * image.step[5];
    const storage* data = static_cast<const storage*>(image.data) + n * image.step[0] + first * image.step[1];
    for (int64_t c = 0; c < channels; ++c, planes += windows.channel, data += image.step[1])
        for (const ImageRows& rows : plane_rows) {
            real* to = planes + rows.place(windows) + rows.before;
            const storage* from = data + place_of(rows, image.step);
            const int64_t count = rows.inside;
            for (int64_t left = count ? rows.rows : 0; left > 0; --left, to += pitch, from += down)
                fill_row(to, from, across, count);
        }
}

/// Fill the planes of some channels, one after the other, with zeros where no image is.
inline void clear_outside(real* planes, const Windows& windows, const PlaneRows& plane_rows, int64_t channels)
{
    for (int64_t c = 0; c < channels; ++c)
        for (const ImageRows& rows : plane_rows)
            for (int64_t row = 0; row < rows.rows; ++row) {
                real* begin = planes + c * windows.channel + rows.place(windows) + row * windows.pitch;
                clear(begin, rows.before);
                clear(begin + rows.before + rows.inside, rows.all - rows.before - rows.inside);
            }
}

/// The same for planes as sweeps read them; those in blocks get their zeros when they are filled.
inline void fill_outside(real* planes, const Windows& windows, const PlaneRows& plane_rows, int64_t channels)
{
    if constexpr (CHANNEL_BLOCK == 1)
        clear_outside(planes, windows, plane_rows, channels);
}

/// Move planes between two orders: one channel after the other, and vectors of CHANNEL_BLOCK channels at one place after the other.
template <bool TO_BLOCK> inline void reorder(real* apart, real* block, const Windows& windows)
{
    for (int64_t place = 0; place < windows.channel; place += WIDTH)
        for (int v = 0; v < CHANNEL_VECTORS; ++v) {
            real* const of_channels = apart + v * WIDTH * windows.channel + place;
            real* const of_places = block + place * CHANNEL_BLOCK + v * WIDTH;
            vec rows[WIDTH];
            UNROLL for (int i = 0; i < WIDTH; ++i)
                rows[i] = load(TO_BLOCK ? of_channels + i * windows.channel : of_places + i * CHANNEL_BLOCK);
            weave_rows(rows);
            UNROLL for (int i = 0; i < WIDTH; ++i)
                store(TO_BLOCK ? of_places + i * CHANNEL_BLOCK : of_channels + i * windows.channel, rows[i]);
        }
}

/// Fill planes as sweeps read them.  Where lanes are channels they lie in blocks: the last block ends with copies of the last
/// channel, which give nothing that is not finite elsewhere.
inline void fill(real* planes, const Tensor& image, int64_t n, int64_t first, const Windows& windows, const PlaneRows& plane_rows,
                 int64_t channels)
{
    if constexpr (CHANNEL_BLOCK == 1)
        return fill_planes(planes, image, n, first, windows, plane_rows, channels);
    else {
        clear_outside(plane_rows.block, windows, plane_rows, CHANNEL_BLOCK);
        for (int64_t c = 0; c < channels; c += CHANNEL_BLOCK, planes += CHANNEL_BLOCK * windows.channel) {
            const int64_t count = least(CHANNEL_BLOCK, channels - c);
            fill_planes(plane_rows.block, image, n, first + c, windows, plane_rows, count);
            for (int64_t i = count * windows.channel; i < CHANNEL_BLOCK * windows.channel; ++i)
                plane_rows.block[i] = plane_rows.block[i - windows.channel];
            reorder<true>(plane_rows.block, planes, windows);
        }
    }
}

/// Planes of one channel that are 1 where the image is.
inline void fill_inside(real* planes, const Windows& windows, const PlaneRows& plane_rows)
{
    for (const ImageRows& rows : plane_rows)
        for (int64_t row = 0; row < rows.rows; ++row)
            for (int64_t i = 0; i < rows.all; ++i)
                planes[rows.place(windows) + row * windows.pitch + i] = rows.before <= i && i < rows.before + rows.inside;
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

/// Add the planes of the channels from `first` on to image n of numbers as they are computed, or write them where they are
/// `fresh`; `row` is room for the pixels of a row, where the stride is more than 1.
inline void add_channels(const real* planes, real* row, const Tensor& image, int64_t n, int64_t first,
                       const Windows& windows, const PlaneRows& plane_rows, int64_t channels, Fresh fresh)
{
    const int64_t *step = image.step, *stride = windows.geometry.stride;
    for (int64_t c = 0; c < channels; ++c)
        for (const ImageRows& rows : plane_rows) {
            if (!rows.in_image || rows.plane % windows.x.residues)  // the planes of other residues come with the first
                continue;
            const int64_t start = rows.x - rows.before * stride[2];  // the pixel of the first place
            const int64_t from = most(-start, 0), to = least(windows.geometry.image[2] - start, rows.all * stride[2]);
            real* data = static_cast<real*>(image.data) + n * step[0] + (first + c) * step[1] + rows.z * step[3] + rows.y * step[4];
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
        }
}

/// The same for planes as sweeps read them.
inline void add_planes(real* planes, real* row, const Tensor& image, int64_t n, int64_t first, const Windows& windows,
                       const PlaneRows& plane_rows, int64_t channels, Fresh fresh)
{
    if constexpr (CHANNEL_BLOCK == 1)
        add_channels(planes, row, image, n, first, windows, plane_rows, channels, fresh);
    else
        for (int64_t c = 0; c < channels; c += CHANNEL_BLOCK, planes += CHANNEL_BLOCK * windows.channel) {
            reorder<false>(plane_rows.block, planes, windows);
            add_channels(plane_rows.block, row, image, n, first + c, windows, plane_rows, least(CHANNEL_BLOCK, channels - c), fresh);
        }
}

// -- Rows of windows, and what has one value per window ---------------------------------------------------------------

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

/// The rows of windows in a strip, for sweeps that visit one window at a time.
struct WindowRows {
    struct Row {
        int begin, end;  // places in the strip
    };
    Row* found = nullptr;
    int64_t count = 0;

    WindowRows() = default;
    WindowRows(const Windows& windows, Arena& arena) : found(arena.take<Row>(windows.geometry.strip / windows.pitch + 2)) {}

    void tell(const Windows& windows, const Strip& strip)
    {
        count = 0;
        rows(strip, windows, [&](int64_t at, int64_t, int64_t, int64_t in_row) { found[count++] = {int(at), int(at + in_row)}; });
    }
    const Row* begin() const { return found; }
    const Row* end() const { return found + count; }
};

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

}  // namespace symconv
