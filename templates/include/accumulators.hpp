// The running values of a sweep, each with what it yields.
#pragma once

#include "math.hpp"

namespace symconv {

/// All count.
struct Everywhere {};
inline vec where(Everywhere, vec a, vec) { return a; }
inline ivec where(Everywhere, ivec a, ivec) { return a; }
inline ivec operator&(ivec mask, Everywhere) { return mask; }
inline ivec operator&(Everywhere, ivec mask) { return mask; }
inline Everywhere operator&(Everywhere, Everywhere) { return {}; }

/// Results of a function that has several.
template <int N> struct Results {
    vec value[N];
    vec operator[](int n) const { return value[n]; }
};

struct Sum {
    vec value = splat(0);
    template <class Mask> void add(Mask mask, vec v) { value = where(mask, value + v, value); }
    vec sum() const { return value; }
};

struct Product {
    vec value = splat(1);
    template <class Mask> void add(Mask mask, vec v) { value = where(mask, value * v, value); }
    vec product() const { return value; }
};

#ifdef SYMCONV_FORGETS
/// The product, where nobody will ask for its factors.
struct Factors : Product {
    static vec nonzero() { return splat(0); }
    static vec zeros() { return splat(0); }
};
#else
/// The product, that of what is not 0, and how many zeros there are.
struct Factors : Product {
    vec others = splat(1), count = splat(0);
    template <class Mask> void add(Mask mask, vec v)
    {
        const ivec zero = v == splat(0);
        Product::add(mask, v);
        others = where(mask, where(zero, others, others * v), others);
        count = where(mask, where(zero, count + splat(1), count), count);
    }
    vec nonzero() const { return others; }
    vec zeros() const { return count; }
};
#endif

/// The maximum; NaN wins.
struct Max {
    vec value = splat(-infinity);
    template <class Mask> void add(Mask mask, vec v) { value = where(mask, maximum(value, v), value); }
    vec max() const { return value; }
};

#ifdef SYMCONV_FORGETS
/// The maximum, where nobody will ask for the position.
struct FirstMax : Max {
    template <class Mask> void add(Mask mask, ivec, vec v) { Max::add(mask, v); }
    static ivec argmax() { return splat_int(0); }
};
#else
/// The maximum and the scan position of the first tap that attains it; NaN wins.
struct FirstMax {
    vec value = splat(-infinity);
#ifdef SYMCONV_IGNORE
    ivec position = splat_int(0x7fffffff);  // nothing has been seen
#else
    ivec position = splat_int(0);  // of the first tap, which stands where all are -inf
#endif
    template <class Mask> void add(Mask mask, ivec here, vec v)
    {
        ivec better = ~(v <= value) & (value == value);
#ifdef SYMCONV_IGNORE
        better = where(mask, better | ((v == value) & (position > here)), splat_int(0));
#else
        (void)mask;
#endif
        value = where(better, v, value);
        position = where(better, here, position);
    }
    vec max() const { return value; }
    ivec argmax() const { return position; }
};
#endif

/// The maximum, made finite, and the sum of exp(value - maximum).
struct Exponentials {
    vec top = splat(-infinity), total = splat(0);
    template <class Mask> void add(Mask mask, vec value)
    {
        // One of the two is the maximum: exp(0), unless it is infinite.  So there is one exponential to compute.
        const vec higher = maximum(top, value), at = finite(higher);
        const vec by_top = less(top, at), by_value = less(value, at);
        const ivec greater = by_value > by_top;
        const vec most = where(greater, by_value, by_top), least = exp(where(greater, by_top, by_value));
        const vec at_most = larger(splat(0), most + splat(1));
        const vec of_top = where(greater, least, at_most), of_value = where(greater, at_most, least);
        total = where(mask, total * of_top + of_value, total);
        top = where(mask, higher, top);
    }
    vec peak() const { return finite(top); }
    vec exponentials() const { return total; }
};

/// The running mean (Welford); for a constant it is that constant.
struct Mean {
    vec total = splat(0), running = splat(0), count = splat(0);
    int seen = 0;  // where all count

    template <class Mask> void add(Mask mask, vec value)
    {
        count = where(mask, count + splat(1), count);
        total = where(mask, total + value, total);
        running = where(mask, running + less(value, running) / count, running);
    }
    void add(Everywhere, vec value)
    {
        total += value;
        running += less(value, running) * splat(inverse(++seen));
    }
    vec mean() const
    {
        // Beside an infinite value the running mean is NaN; the sum knows better.
        return where(running - running == splat(0), running, total / maximum(count + splat(real(seen)), splat(1)));
    }
};

/// Batcher's odd-even merge sort: pairs to be put in order, one after the other, to sort `n` values.
struct Network {
    int low[256] = {}, high[256] = {}, count = 0;

    constexpr explicit Network(int n)
    {
        for (int size = 1; size < n; size *= 2)
            for (int step = size; step; step /= 2)
                for (int start = step % size; start < n - step; start += 2 * step)
                    for (int at = start; at < start + step && at < n - step; ++at)
                        if (at / (2 * size) == (at + step) / (2 * size)) {
                            low[count] = at;
                            high[count++] = at + step;
                        }
    }
};
template <int N> constexpr Network NETWORK{N};

/// The pairs of a network from number FIRST on, written out: the values stay in registers.
template <int N, int FIRST = 0> SYMCONV_INLINE void put_in_order(vec* values)
{
    if constexpr (FIRST < NETWORK<N>.count) {
        constexpr int low = NETWORK<N>.low[FIRST], high = NETWORK<N>.high[FIRST];
        const vec a = values[low], b = values[high];
        values[low] = smaller(a, b);
        values[high] = larger(a, b);
        put_in_order<N, FIRST + 1>(values);
    }
}

/// The value of a rank, counted from 0 for the smallest, and the position among the taps of the first one that has it.
/// NaN wins; it holds all the values.  RANKED is how many there are if they are few, else 0: then the compiler knows how it
/// may put them in order, and where RANKED_IN_REGISTERS they wait in registers, else in memory.
struct FirstRank {
#if RANKED_IN_REGISTERS
    vec values[RANKED];
    ivec counts[RANKED];  // whether there is a value, where taps outside the image leave the window
    FirstRank(vec*, int64_t) {}
    static constexpr int64_t room(int64_t) { return 0; }
#else
    vec* values;
    ivec* counts;
    vec* sorted;
    FirstRank(vec* held, int64_t count) : values(held), counts(reinterpret_cast<ivec*>(held + count)), sorted(held + 2 * count) {}
    /// The vectors that so many values need.
    static constexpr int64_t room(int64_t count) { return 3 * count; }
#endif
    vec found = splat(0);
    ivec broken = splat_int(0), some = splat_int(0), position = splat_int(-1);
    int64_t count = 0;

    template <class Mask> void add(Mask mask, vec v)
    {
#ifdef SYMCONV_IGNORE
        counts[count] = where(mask, splat_int(-1), splat_int(0));
#endif
        values[count] = where(mask, v, splat(infinity));
        ++count;
    }

    SYMCONV_INLINE void choose(vec rank)
    {
        look();
#if RANKED
        if (RANKED_IN_REGISTERS || count == RANKED) {  // in registers there are always so many
            vec few[RANKED];
            UNROLL_RANKED for (int k = 0; k < RANKED; ++k)
                few[k] = values[k];
#ifndef SYMCONV_IGNORE
            constexpr int middle = (RANKED - 1) / 2;
            if (number_of(rank) == middle) {  // known here, so that only the pairs that decide it are compared
                put_in_order<RANKED>(few);
                found = few[middle];
                return settle();
            }
#endif
            put_in_order<RANKED>(few);
            pick(rank, few);
            return settle();
        }
#endif
#if !RANKED_IN_REGISTERS
        for (int64_t k = 0; k < count; ++k)
            sorted[k] = values[k];
        for (int64_t size = 1; size < count; size *= 2)
            for (int64_t step = size; step; step /= 2)
                for (int64_t start = step % size; start < count - step; start += 2 * step)
                    for (int64_t low = start; low < least(start + step, count - step); ++low)
                        if (low / (2 * size) == (low + step) / (2 * size)) {
                            const vec a = sorted[low], b = sorted[low + step];
                            sorted[low] = smaller(a, b);
                            sorted[low + step] = larger(a, b);
                        }
        pick(rank, sorted);
        settle();
#endif
    }

    /// A rank that is the same for all windows.
    int64_t number_of(vec rank) const { return least(most(int64_t(rank[0]), 0), count - 1); }

    /// Whether there are values, and whether some are NaN: those make no order.
    SYMCONV_INLINE void look()
    {
#ifdef SYMCONV_IGNORE
        UNROLL_RANKED for (int64_t k = 0; k < count; ++k) {
            some |= counts[k];
            broken |= counts[k] & (values[k] != values[k]);
        }
#else
        UNROLL_RANKED for (int64_t k = 0; k + 1 < count; k += 2)
            broken |= (values[k] != values[k]) | (values[k + 1] != values[k + 1]);  // one comparison
        if (count % 2)
            broken |= values[count - 1] != values[count - 1];
#endif
    }

    /// The value of a rank among sorted ones.
    SYMCONV_INLINE void pick(vec rank, const vec* in_order)
    {
#ifdef SYMCONV_IGNORE
        found = in_order[0];
        UNROLL_RANKED for (int64_t k = 0; k < count; ++k)
            found = where(rank == splat(real(k)), in_order[k], found);
#else
        found = in_order[number_of(rank)];
#endif
    }

    /// NaN where values were, 0 where there were none; and where the value that was found stands.
    SYMCONV_INLINE void settle()
    {
#ifdef SYMCONV_IGNORE
        found = where(some, found, splat(0));
#endif
#ifndef SYMCONV_FORGETS
        for_each_down([&](int64_t k, auto counted) {
            position = where((values[k] == found) & counted, splat_int(integer(k)), position);
        });
#endif
        if (UNLIKELY(any(broken))) {
            found = where(broken, splat(not_a_number), found);
#ifndef SYMCONV_FORGETS
            for_each_down([&](int64_t k, auto counted) {
                position = where(broken & (values[k] != values[k]) & counted, splat_int(integer(k)), position);
            });
#endif
        }
    }

    /// Visit the values from the last to the first: body(its number, where it counts).
    template <class Body> SYMCONV_INLINE void for_each_down(Body body) const
    {
        UNROLL_RANKED for (int64_t i = 1; i <= count; ++i) {
            const int64_t k = count - i;
#ifdef SYMCONV_IGNORE
            body(k, counts[k]);
#else
            body(k, Everywhere{});
#endif
        }
    }

    vec rank() const { return found; }
    ivec argrank() const { return position; }
};

using Rank = FirstRank;

}  // namespace symconv
