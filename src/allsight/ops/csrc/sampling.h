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
    WholeInt<T> last;        // largest base whose right neighbour is inside, 0 if the map is one pixel wide
    Whole<T> has_neighbour;  // 0 if the map is one pixel wide
};

template <class T> ALLSIGHT_INLINE Extent<T> extent(int32_t size, int32_t center) {
    return {splat<T>(T(-2 - center)), splat<T>(T(size + 1 - center)), splat_int<T>(center),
            splat_int<T>(size > 2 ? size - 2 : 0), splat<T>(T(size > 1))};
}

// Weights of the pixels `base` and `base + 1`, and their derivatives by the place.
template <class T> struct Axis {
    WholeInt<T> base;
    Whole<T> near, far, d_near, d_far;
};

// Place points at center + shift, pixels having integer centers and the map being surrounded by zeros. Only `shift` is
// split into integer and fraction, so that the precision does not depend on how large the map is. At a pixel's center
// the derivative is the one to the right. NaN is outside.
template <class T> ALLSIGHT_INLINE Axis<T> place(Whole<T> shift, const Extent<T> &map) {
    using V = Whole<T>;
    using I = WholeInt<T>;
    shift = shift > map.low ? shift : map.low; // also NaN
    shift = shift < map.high ? shift : map.high;
    const V zero = {}, one = splat<T>(1);
    const I cut = to_int<T>(shift);
    const V cut_real = to_real<T>(cut);
    const V over = cut_real > shift ? one : zero; // truncation rounded up what is negative
    const V fraction = shift - (cut_real - over);
    const I cell = map.center + cut - to_int<T>(over);
    I base = cell < 0 ? I{} : cell;
    base = base > map.last ? map.last : base;
    // The cell is the base, or the one before it (outside on the left), or the one after it (on the last pixel).
    const V step = to_real<T>(cell - base);
    const V here = step == zero ? one : zero;
    const V before = step == -one ? one : zero;
    const V after = step == one ? map.has_neighbour : zero;
    const V here_far = here * map.has_neighbour;
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
    T *corner = nullptr;      // [4, padded] weights of its corners
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

    // Keep what `x` and `y` say of the points from `k` on; `weight` is there already.
    template <bool for_gradients>
    ALLSIGHT_INLINE void keep(int64_t k, const Axis<T> &x, const Axis<T> &y, WholeInt<T> start,
                              WholeInt<T> width) const {
        store(pixel + k, start + y.base * width + x.base);
        const Whole<T> w = load<Whole<T>>(weight + k), top = w * y.near, bottom = w * y.far;
        store(corner + k, top * x.near);
        store(corner + padded + k, top * x.far);
        store(corner + 2 * padded + k, bottom * x.near);
        store(corner + 3 * padded + k, bottom * x.far);
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
    const T *corner = at.corner;
    const int64_t padded = at.padded;
    for (int64_t run = 0; run < num_runs; ++run) {
        const int64_t right = runs[run].right, down = runs[run].down, end = first + runs[run].points;
        for (; first < end; ++first) {
            const T *upper = value + at.pixel[first] * pixel_step, *lower = upper + down;
            const T w0 = corner[first], w1 = corner[first + padded];
            const T w2 = corner[first + 2 * padded], w3 = corner[first + 3 * padded];
#pragma GCC unroll 4
            for (int i = 0; i < width; ++i) {
                sum[0][i] += w0 * load<V>(upper + i * n);
                sum[1][i] += w1 * load<V>(upper + right + i * n);
                sum[2 % chains][i] += w2 * load<V>(lower + i * n);
                sum[3 % chains][i] += w3 * load<V>(lower + right + i * n);
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
// leave <gradient, corner> of every point in `dots`, from which all other gradients follow.
template <class T, int n, int width, int count>
ALLSIGHT_INLINE void spread_block(const T *__restrict value, T *__restrict grad_value, int64_t pixel_step,
                                  const T *__restrict grad, int64_t channels, const Points<T> &at, int64_t first,
                                  int64_t right, int64_t down) {
    using V = Vec<T, n>;
    constexpr int num_sums = 4 * count > n ? 4 * count / n : 1;
    V dot[num_sums * n] = {};
    const T *__restrict corner = at.corner;
    const int64_t padded = at.padded;
    for (int64_t c = 0; c < channels; c += n * width) {
        V g[width];
#pragma GCC unroll 4
        for (int i = 0; i < width; ++i) g[i] = load<V>(grad + c + i * n);
#pragma GCC unroll 16
        for (int q = 0; q < count; ++q) {
            const int64_t start = at.pixel[first + q] * pixel_step + c;
#pragma GCC unroll 4
            for (int which = 0; which < 4; ++which) {
                const int64_t place = start + (which & 1 ? right : 0) + (which & 2 ? down : 0);
                const T *from = value + place;
                T *to = grad_value + place;
                const T w = corner[which * padded + first + q];
#pragma GCC unroll 4
                for (int i = 0; i < width; ++i) {
                    dot[4 * q + which] += g[i] * load<V>(from + i * n);
                    store(to + i * n, load<V>(to + i * n) + w * g[i]);
                }
            }
        }
    }
#pragma GCC unroll 4
    for (int s = 0; s < num_sums; ++s) store(at.dots + 4 * first + s * n, sums_of<T, n>(dot + s * n));
}

// The same for all runs: blocks of as many points as fill the lanes of one sum, then what is left over.
template <class T, int n, int width>
ALLSIGHT_INLINE void spread(const T *value, T *grad_value, int64_t pixel_step, const T *grad, int64_t channels,
                            const Points<T> &at, int64_t first, const Run *runs, int64_t num_runs) {
    constexpr int block = n > 4 ? n / 4 : 1;
    for (int64_t run = 0; run < num_runs; ++run) {
        const int64_t right = runs[run].right, down = runs[run].down, end = first + runs[run].points;
        const auto take = [&](auto count) {
            spread_block<T, n, width, count.value>(value, grad_value, pixel_step, grad, channels, at, first, right, down);
            first += count.value;
        };
        while (first + block <= end) take(Number<block>{});
        if constexpr (block > 2)
            if (first + 2 <= end) take(Number<2>{});
        while (first < end) take(Number<1>{});
    }
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
