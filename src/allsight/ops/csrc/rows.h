// Loops over the channels of one pixel, layer norm over them, and activations: what the fused operators share.
#pragma once

#include <cmath>

#include "exponential.h"

namespace allsight {
namespace ALLSIGHT_ISA {

// A whole vector of a row, from channel `at` on.
template <class T> struct Full {
    using V = Whole<T>;
    int64_t at;
    ALLSIGHT_INLINE V load(const T *row) const { return ALLSIGHT_ISA::load<V>(row + at); }
    ALLSIGHT_INLINE void store(T *row, V v) const { ALLSIGHT_ISA::store(row + at, v); }
    ALLSIGHT_INLINE V only(V v) const { return v; }
};

// The last `count` channels of a row, fewer than a vector: neither read nor written beyond.
template <class T> struct Tail {
    using V = Whole<T>;
    int64_t at, count;
    ALLSIGHT_INLINE V load(const T *row) const { return load_some<V>(row + at, count); }
    ALLSIGHT_INLINE void store(T *row, V v) const { std::memcpy(row + at, &v, (size_t)count * sizeof(T)); }
    // The same with zeros in the lanes that are no channels.
    ALLSIGHT_INLINE V only(V v) const {
        T lanes[kLanes<T>];
        ALLSIGHT_ISA::store(lanes, v);
        return load_some<V>(lanes, count);
    }
};

template <class T, class Body> ALLSIGHT_INLINE void each_part(int64_t channels, Body body) {
    int64_t at = 0;
    for (; at + kLanes<T> <= channels; at += kLanes<T>) body(Full<T>{at});
    if (at < channels) body(Tail<T>{at, channels - at});
}

// The sum of term(part) over a row, in four chains of additions so that none waits for the other.
template <class T, class Term> ALLSIGHT_INLINE T sum_of_parts(int64_t channels, Term term) {
    using V = Whole<T>;
    constexpr int n = kLanes<T>;
    V a = {}, b = {}, c = {}, d = {};
    int64_t at = 0;
    for (; at + 4 * n <= channels; at += 4 * n) {
        a += term(Full<T>{at}), b += term(Full<T>{at + n});
        c += term(Full<T>{at + 2 * n}), d += term(Full<T>{at + 3 * n});
    }
    for (; at + n <= channels; at += n) a += term(Full<T>{at});
    if (at < channels) b += term(Tail<T>{at, channels - at});
    return fold<kLanes<T>>((a + b) + (c + d), [](V x, V y) { return x + y; })[0];
}

// Layer norm of one row: out(part, values) gets what comes out. Squares are taken of distances from the mean.
template <class T, class Out>
ALLSIGHT_INLINE void layer_norm(const T *row, int64_t channels, const T *weight, const T *bias, T eps, Out out) {
    using V = Whole<T>;
    const T mean = sum_of_parts<T>(channels, [&](auto part) { return part.load(row); }) / T(channels);
    const T variance = sum_of_parts<T>(channels, [&](auto part) {
        const V distance = part.only(part.load(row) - mean);
        return distance * distance;
    }) / T(channels);
    const T factor = T(1) / std::sqrt(variance + eps);
    each_part<T>(channels, [&](auto part) {
        out(part, (part.load(row) - mean) * factor * part.load(weight) + part.load(bias));
    });
}

enum Activation { kNone = 0, kRelu = 1, kSilu = 2, kGelu = 3 };

// GELU(x) = max(x, 0) - |x| / 2 erfc(|x| / sqrt 2), where erfc(z) = exp(-z^2) t P(t) with t = 1 / (1 + 0.3275911 z):
// the form of Abramowitz and Stegun 7.1.26 with P fitted anew to |x| erfc, which it meets within 4e-9.
ALLSIGHT_INLINE Whole<float> gelu(Whole<float> x) {
    using V = Whole<float>;
    V size = x < 0.0f ? -x : x;
    size = size < 20.0f ? size : splat<float>(20.0f);
    const V z = size * 0.70710678f, t = 1.0f / (1.0f + z * 0.3275911f);
    V p = t * -0.27280077f + 1.37974366f;
    p = p * t + -1.83265331f;
    p = p * t + 1.76873864f;
    p = p * t + -0.58610695f;
    p = p * t + 0.37918214f;
    p = p * t + 0.16389668f;
    return (x < 0.0f ? V{} : x) - 0.5f * size * exp_nonpositive(-z * z) * (t * p);
}

ALLSIGHT_INLINE Whole<double> gelu(Whole<double> x) {
    for (int lane = 0; lane < kLanes<double>; ++lane) x[lane] *= 0.5 * std::erfc(x[lane] * -0.70710678118654752440);
    return x;
}

// NaN stays NaN in all of them.
template <class T, int kind> ALLSIGHT_INLINE Whole<T> activate(Whole<T> x) {
    using V = Whole<T>;
    if constexpr (kind == kRelu) {
        return x < T(0) ? V{} : x;
    } else if constexpr (kind == kSilu) {
        const V small = exp_nonpositive(x < T(0) ? x : -x); // no power that overflows
        return x * (x < T(0) ? small : splat<T>(1)) / (T(1) + small);
    } else if constexpr (kind == kGelu) {
        return gelu(x);
    } else {
        return x;
    }
}

} // namespace ALLSIGHT_ISA
} // namespace allsight
