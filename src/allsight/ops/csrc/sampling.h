// Bilinear sampling at computed places: what all deformable operators share.
//
// An operator first turns the places of all points of one output pixel into `Points`, vectorised over the points;
// then channels are mixed group by group. The inner loops test no bounds: the cell of a point is moved inside its map
// and corners that lie outside get weight zero, so that four reads at fixed distances are safe for every place, huge,
// infinite and NaN ones included.
#pragma once

#include "exponential.h"
#include "memory.h"

namespace allsight {
namespace ALLSIGHT_ISA {

// The extent of a map along one axis, one lane per point: what placing needs to know of it.
template <class T> struct Extent {
    Whole<T> low, high;      // shifts beyond these are outside by more than a pixel
    WholeInt<T> center;      // what shifts are relative to
    WholeInt<T> before_last; // largest cell whose right neighbour is inside, -1 if the map is one pixel wide
};

template <class T> ALLSIGHT_INLINE Extent<T> extent(int32_t size, int32_t center) {
    return {splat<T>(T(-2 - center)), splat<T>(T(size + 1 - center)), splat_int<T>(center), splat_int<T>(size - 2)};
}

// The pixel left of points, which may lie outside the map, and how far right of it they are, from 0 to 1.
template <class T> struct Spot {
    WholeInt<T> cell;
    Whole<T> fraction;
};

// Find points at center + shift, pixels having integer centers and the map being surrounded by zeros. Only `shift` is
// split into integer and fraction, so that the precision does not depend on how large the map is. NaN is outside.
template <class T> ALLSIGHT_INLINE Spot<T> find(Whole<T> shift, const Extent<T> &map) {
    using V = Whole<T>;
    shift = shift > map.low ? shift : map.low; // also NaN
    shift = shift < map.high ? shift : map.high;
    const WholeInt<T> cut = to_int<T>(shift);
    const V cut_real = to_real<T>(cut);
    const V over = cut_real > shift ? splat<T>(1) : V{}; // truncation rounded up what is negative
    return {map.center + cut - to_int<T>(over), shift - (cut_real - over)};
}

// Sign bit of each lane: whether a spot or its right neighbour is outside.
template <class T> ALLSIGHT_INLINE WholeInt<T> is_at_edge(const Spot<T> &spot, const Extent<T> &map) {
    return spot.cell | (map.before_last - spot.cell);
}

// Weights of the pixels `base` and `base + 1`, and their derivatives by the place.
template <class T> struct Axis {
    WholeInt<T> base;
    Whole<T> near, far, d_near, d_far;
};

// At a pixel's center the derivative is the one to the right.
template <class T> ALLSIGHT_INLINE Axis<T> inside(const Spot<T> &spot) {
    const Whole<T> one = splat<T>(1);
    return {spot.cell, one - spot.fraction, spot.fraction, -one, one};
}

// The same for any spot; inside the map it gives the same bits.
template <class T> ALLSIGHT_INLINE Axis<T> anywhere(const Spot<T> &spot, const Extent<T> &map) {
    using V = Whole<T>;
    using I = WholeInt<T>;
    const V zero = {}, one = splat<T>(1), fraction = spot.fraction;
    const V has_neighbour = to_real<T>(map.before_last) >= zero ? one : zero;
    I base = spot.cell < 0 ? I{} : spot.cell;
    const I last = map.before_last < 0 ? I{} : map.before_last;
    base = base > last ? last : base;
    // The cell is the base, or the one before it (outside on the left), or the one after it (on the last pixel).
    const V step = to_real<T>(spot.cell - base);
    const V here = step == zero ? one : zero;
    const V before = step == -one ? one : zero;
    const V after = step == one ? has_neighbour : zero;
    const V here_far = here * has_neighbour;
    return {base, here * (one - fraction) + before * fraction, here_far * fraction + after * (one - fraction),
            before - here, here_far - after};
}

// All points of one output pixel as a structure of arrays, padded to whole vectors so that loops have no tails. Only
// says where they lie: loops keep a copy of it, since a store through one of the pointers might change another one
// that lay in memory.
template <class T> struct Points {
    int64_t padded = 0;
    int32_t *pixel = nullptr; // index of the upper left corner in its map
    T *weight = nullptr;      // how much each point counts
    T *corner = nullptr;      // [padded, 4] weights of its corners
    // Only for gradients: weights along the axes and their derivatives, [4, padded] each (left, right, top, bottom),
    // and the products <gradient, corner>, [padded, 4].
    T *along = nullptr, *slope = nullptr, *dots = nullptr;
    T *grad = nullptr; // [3, padded] gradients by weight, x and y

    // False if there is no memory.
    bool lie_in(Memory &memory, int64_t count, bool for_gradients) {
        padded = (count + 31) / 16 * 16; // room for a vector that starts at the last point
        const int64_t each = sizeof(int32_t) + (for_gradients ? 20 : 5) * sizeof(T);
        T *next = (T *)memory.at_least(padded * each);
        if (!next) return false;
        const auto take = [&](int rows) { return (next += rows * padded) - rows * padded; };
        weight = take(1), corner = take(4);
        if (for_gradients) along = take(4), slope = take(4), dots = take(4), grad = take(3);
        pixel = (int32_t *)next;
        return true;
    }

    // Place the points from `k` on at the centers of two extents + shifts; `weight` is there already.
    template <bool for_gradients>
    ALLSIGHT_INLINE void place(int64_t k, Whole<T> x_shift, const Extent<T> &x_map, Whole<T> y_shift,
                               const Extent<T> &y_map, WholeInt<T> start, WholeInt<T> width) const {
        const Spot<T> x = find<T>(x_shift, x_map), y = find<T>(y_shift, y_map);
        // Most points lie inside, where half of the work is not needed.
        if (any_negative(is_at_edge(x, x_map) | is_at_edge(y, y_map)))
            keep<for_gradients>(k, anywhere(x, x_map), anywhere(y, y_map), start, width);
        else
            keep<for_gradients>(k, inside(x), inside(y), start, width);
    }

    // Keep what `x` and `y` say of the points from `k` on.
    template <bool for_gradients>
    ALLSIGHT_INLINE void keep(int64_t k, const Axis<T> &x, const Axis<T> &y, WholeInt<T> start,
                              WholeInt<T> width) const {
        store(pixel + k, start + y.base * width + x.base);
        const Whole<T> w = load<Whole<T>>(weight + k), top = w * y.near, bottom = w * y.far;
        interleave_four<T>(corner + 4 * k, top * x.near, top * x.far, bottom * x.near, bottom * x.far);
        if constexpr (for_gradients) {
            store(along + k, x.near), store(along + padded + k, x.far);
            store(along + 2 * padded + k, y.near), store(along + 3 * padded + k, y.far);
            store(slope + k, x.d_near), store(slope + padded + k, x.d_far);
            store(slope + 2 * padded + k, y.d_near), store(slope + 3 * padded + k, y.d_far);
        }
    }

    // From the products of all points to their gradients by weight and by place.
    ALLSIGHT_INLINE void differentiate(int64_t first, int64_t end) const {
        using V = Whole<T>;
        constexpr int n = kLanes<T>;
        for (int64_t k = first; k < end; k += n) {
            const T *d = dots + 4 * k;
            const V a = load<V>(d), b = load<V>(d + n), c = load<V>(d + 2 * n), e = load<V>(d + 3 * n);
            const V even0 = pick<EverySecond<0>>(a, b), even1 = pick<EverySecond<0>>(c, e); // top left, bottom left
            const V odd0 = pick<EverySecond<1>>(a, b), odd1 = pick<EverySecond<1>>(c, e);
            const V top_left = pick<EverySecond<0>>(even0, even1), bottom_left = pick<EverySecond<1>>(even0, even1);
            const V top_right = pick<EverySecond<0>>(odd0, odd1), bottom_right = pick<EverySecond<1>>(odd0, odd1);
            const auto at = [&](const T *rows, int row) { return load<V>(rows + row * padded + k); };
            const V top = at(along, 0) * top_left + at(along, 1) * top_right;
            const V bottom = at(along, 0) * bottom_left + at(along, 1) * bottom_right;
            const V d_top = at(slope, 0) * top_left + at(slope, 1) * top_right;
            const V d_bottom = at(slope, 0) * bottom_left + at(slope, 1) * bottom_right;
            const V w = at(weight, 0);
            store(grad + k, at(along, 2) * top + at(along, 3) * bottom);
            store(grad + padded + k, w * (at(along, 2) * d_top + at(along, 3) * d_bottom));
            store(grad + 2 * padded + k, w * (at(slope, 2) * top + at(slope, 3) * bottom));
        }
    }
};

// Ask for values that points will soon read, a cache line at a time: the order in which points read a map that is not in
// the cache yet, a few lines here and there, is one that processors do not foresee.
template <class T> ALLSIGHT_INLINE void fetch(const T *from, const T *end) {
    for (; from < end; from += 64 / sizeof(T)) __builtin_prefetch(from);
}

// A run of points on one map, and how far right and lower corners lie from the left and upper ones, in values. Zero
// where the map is one pixel wide or high.
struct Run {
    int64_t points, right, down;
};

// Mix the samples of the points from `first` on into width * n channels. A sum is split into chains of additions, so
// that none waits for the other: one chain per corner, or one per two corners where that would need too many registers.
template <class T, int n, int width>
ALLSIGHT_INLINE void mix(const T *__restrict value, int64_t pixel_step, const Points<T> &at, int64_t first,
                         const Run *runs, int64_t num_runs, T *__restrict out) {
    using V = Vec<T, n>;
    constexpr int chains = width > 2 ? 2 : 4;
    V sum[chains][width] = {};
    for (int64_t run = 0; run < num_runs; ++run) {
        const int64_t right = runs[run].right, down = runs[run].down, end = first + runs[run].points;
        for (; first < end; ++first) {
            const T *upper = value + at.pixel[first] * pixel_step, *lower = upper + down;
            const Four<V> w = splat_four<V>(at.corner + 4 * first);
#pragma GCC unroll 4
            for (int i = 0; i < width; ++i) {
                sum[0][i] += w.a * load<V>(upper + i * n);
                sum[1][i] += w.b * load<V>(upper + right + i * n);
                sum[2 % chains][i] += w.c * load<V>(lower + i * n);
                sum[3 % chains][i] += w.d * load<V>(lower + right + i * n);
            }
        }
    }
    for (int i = 0; i < width; ++i) {
        V total = sum[0][i] + sum[1][i];
        if constexpr (chains == 4) total += sum[2][i] + sum[3][i];
        store(out + i * n, total);
    }
}

template <int value> using Number = std::integral_constant<int, value>;

// The transpose of `mix` for `count` points: add the gradient of a group's channels to the corners it came from, and
// leave <gradient, corner> of every point in `dots`, from which all other gradients follow. `at_once` says that the
// channels are one step wide: their gradient then stays in registers. Point after point, since the addresses of all
// corners of several points are more than there are registers for.
template <class T, int n, int width, int count, bool at_once>
ALLSIGHT_INLINE void spread_block(const T *__restrict value, T *__restrict grad_value, int64_t pixel_step,
                                  const T *__restrict grad, int64_t channels, const Points<T> &at, int64_t first,
                                  int64_t right, int64_t down) {
    using V = Vec<T, n>;
    constexpr int step = n * width;
    V dot[4 * count] = {}, g[width];
    if constexpr (at_once)
        for (int i = 0; i < width; ++i) g[i] = load<V>(grad + i * n);
#pragma GCC unroll 16
    for (int q = 0; q < count; ++q) {
        const Four<V> w = splat_four<V>(at.corner + 4 * (first + q));
        const int64_t start = at.pixel[first + q] * pixel_step;
        const auto corner = [&](int i, int64_t place, V weight, V &sum) {
            sum += g[i] * load<V>(value + place);
            store(grad_value + place, load<V>(grad_value + place) + weight * g[i]);
        };
        for (int64_t c = 0; c < (at_once ? step : channels); c += step) {
#pragma GCC unroll 4
            for (int i = 0; i < width; ++i) {
                if constexpr (!at_once) g[i] = load<V>(grad + c + i * n);
                const int64_t place = start + c + i * n;
                corner(i, place, w.a, dot[4 * q]), corner(i, place + right, w.b, dot[4 * q + 1]);
                corner(i, place + down, w.c, dot[4 * q + 2]), corner(i, place + right + down, w.d, dot[4 * q + 3]);
            }
        }
    }
    store_sums<T, n, 4 * count>(at.dots + 4 * first, dot);
}

// The same for all runs: blocks of as many points as fill the lanes of one sum, then what is left over.
template <class T, int n, int width, bool at_once>
ALLSIGHT_INLINE void spread_runs(const T *value, T *grad_value, int64_t pixel_step, const T *grad, int64_t channels,
                                 const Points<T> &at, int64_t first, const Run *runs, int64_t num_runs) {
    constexpr int block = n > 4 ? n / 4 : 1;
    for (int64_t run = 0; run < num_runs; ++run) {
        const int64_t right = runs[run].right, down = runs[run].down, end = first + runs[run].points;
        const auto take = [&](auto count) {
            spread_block<T, n, width, count.value, at_once>(value, grad_value, pixel_step, grad, channels, at, first,
                                                            right, down);
            first += count.value;
        };
        while (first + block <= end) take(Number<block>{});
        if constexpr (block > 2)
            if (first + 2 <= end) take(Number<2>{});
        while (first < end) take(Number<1>{});
    }
}

template <class T, int n, int width>
ALLSIGHT_INLINE void spread(const T *value, T *grad_value, int64_t pixel_step, const T *grad, int64_t channels,
                            const Points<T> &at, int64_t first, const Run *runs, int64_t num_runs) {
    if (channels == n * width)
        spread_runs<T, n, width, true>(value, grad_value, pixel_step, grad, channels, at, first, runs, num_runs);
    else
        spread_runs<T, n, width, false>(value, grad_value, pixel_step, grad, channels, at, first, runs, num_runs);
}

// Call body(lanes, width) with the widest vectors that `channels` can be cut into.
template <class T, class Body> ALLSIGHT_INLINE auto with_lanes(int64_t channels, Body body) {
    constexpr int whole = kLanes<T>;
    if (channels % (4 * whole) == 0) return body(Number<whole>{}, Number<4>{});
    if (channels % (2 * whole) == 0) return body(Number<whole>{}, Number<2>{});
    if (channels % whole == 0) return body(Number<whole>{}, Number<1>{});
    if constexpr (whole > 8)
        if (channels % 8 == 0) return body(Number<8>{}, Number<1>{});
    if constexpr (whole > 4)
        if (channels % 4 == 0) return body(Number<4>{}, Number<1>{});
    return body(Number<1>{}, Number<1>{});
}

} // namespace ALLSIGHT_ISA
} // namespace allsight
