// exp(x) for x <= 0, whole vectors at a time: to 2 units in the last place, NaN stays NaN, -inf gives 0.
#pragma once

#include "simd.h"

namespace allsight {
namespace ALLSIGHT_ISA {

// x = k ln 2 + r with |r| <= ln 2 / 2; ln 2 is split so that k times its upper part is exact.
ALLSIGHT_INLINE Whole<float> exp_nonpositive(Whole<float> x) {
    using V = Whole<float>;
    using I = WholeInt<float>;
    const I k = to_int<float>(x * 1.44269504088896341f - 0.5f); // truncation: rounds what is not positive
    const V whole = to_real<float>(k);
    const V r = (x - whole * 0.693359375f) - whole * -2.12194440e-4f;
    // Taylor's series, its tail fitted (coefficients of Cephes expf).
    V p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    const I power = (k + 127) << 23;
    V scale;
    std::memcpy(&scale, &power, sizeof scale);
    const V result = p * scale;
    return x < -87.0f ? V{} : result;
}

ALLSIGHT_INLINE Whole<double> exp_nonpositive(Whole<double> x) {
    using V = Whole<double>;
    using I = WholeInt<double>;
    using Long = Vec<int64_t, kLanes<double>>;
    const I k = to_int<double>(x * 1.44269504088896340736 - 0.5);
    const V whole = to_real<double>(k);
    const V r = (x - whole * 0.693145751953125) - whole * 1.42860682030941723212e-6;
    // Pade approximation (coefficients of Cephes exp).
    const V rr = r * r;
    const V p = r * ((rr * 1.26177193074810590878e-4 + 3.02994407707441961300e-2) * rr + 9.99999999999999999910e-1);
    const V q = ((rr * 3.00198505138664455042e-6 + 2.52448340349684104192e-3) * rr + 2.27265548208155028766e-1) * rr + 2.0;
    const V result = 1.0 + 2.0 * (p / (q - p));
    const Long power = (__builtin_convertvector(k, Long) + 1023) << 52;
    V scale;
    std::memcpy(&scale, &power, sizeof scale);
    return x < -708.0 ? V{} : result * scale;
}

// The largest (or the sum) over each `span` lanes of a vector, in every lane: halves are folded onto each other.
template <int span, class V, class Fold> ALLSIGHT_INLINE V fold(V v, Fold f) {
    if constexpr (span == 1)
        return v;
    else
        return fold<span / 2>(f(v, pick<Swapped<span / 2>>(v, v)), f);
}

// Softmax of runs of `length` logits each, which a vector holds one or several of, without a way through memory. `out` has
// room for a whole vector beyond the last run.
template <class T, int length> ALLSIGHT_INLINE void softmax_in_registers(const T *logits, T *out, int64_t runs) {
    using V = Whole<T>;
    constexpr int n = kLanes<T>;
    const int64_t count = runs * length;
    for (int64_t i = 0; i < count; i += n) {
        const V v = i + n <= count ? load<V>(logits + i) : load_some<V>(logits + i, count - i);
        const V e = exp_nonpositive(v - fold<length>(v, [](V a, V b) { return a > b ? a : b; }));
        store(out + i, e * (T(1) / fold<length>(e, [](V a, V b) { return a + b; })));
    }
}

// Softmax of `runs` runs of `length` logits, n lanes at a time; `length` >= n. The last vector of a run overlaps the
// one before it, so that it ends with the run. `out` has room for a whole vector beyond the last run.
template <class T, int n> ALLSIGHT_INLINE void softmax_in_lanes(const T *logits, T *out, int64_t runs, int64_t length) {
    using V = Vec<T, n>;
    const int64_t count = runs * length, tail = length - n;
    for (int64_t run = 0; run < count; run += length) {
        const T *from = logits + run;
        V most = load<V>(from + tail);
        for (int64_t i = 0; i < tail; i += n) {
            const V v = load<V>(from + i);
            most = v > most ? v : most;
        }
        most = fold<n>(most, [](V a, V b) { return a > b ? a : b; });
        for (int64_t i = 0; i < tail; i += n) store(out + run + i, load<V>(from + i) - most);
        store(out + run + tail, load<V>(from + tail) - most);
    }
    for (int64_t i = 0; i < count; i += kLanes<T>) store(out + i, exp_nonpositive(load<Whole<T>>(out + i)));
    for (int64_t run = 0; run < count; run += length) {
        T *at = out + run;
        V sums = {};
        int64_t i = 0;
        for (; i + n <= length; i += n) sums += load<V>(at + i);
        T total = fold<n>(sums, [](V a, V b) { return a + b; })[0];
        for (; i < length; ++i) total += at[i];
        const T factor = T(1) / total;
        const V last = load<V>(at + tail);
        for (i = 0; i < tail; i += n) store(at + i, load<V>(at + i) * factor);
        store(at + tail, last * factor);
    }
}

template <class T> ALLSIGHT_INLINE void softmax_runs(const T *logits, T *out, int64_t runs, int64_t length) {
    constexpr int n = kLanes<T>;
    if (length == 0) return;
    if constexpr (n >= 4) {
        if (length == n) return softmax_in_registers<T, n>(logits, out, runs);
        if (length == n / 2) return softmax_in_registers<T, n / 2>(logits, out, runs);
        if (length == n / 4) return softmax_in_registers<T, n / 4>(logits, out, runs);
        if (length > n) return softmax_in_lanes<T, n>(logits, out, runs, length);
    }
    if constexpr (n > 8)
        if (length > 8) return softmax_in_lanes<T, 8>(logits, out, runs, length);
    if constexpr (n > 4)
        if (length > 4) return softmax_in_lanes<T, 4>(logits, out, runs, length);
    // Few points: one lane a run.
    for (int64_t run = 0; run < runs; ++run) {
        const T *from = logits + run * length;
        T most = from[0];
        for (int64_t i = 1; i < length; ++i) most = from[i] > most ? from[i] : most;
        for (int64_t i = 0; i < length; ++i) out[run * length + i] = from[i] - most;
    }
    for (int64_t i = 0; i < runs * length; i += kLanes<T>) store(out + i, exp_nonpositive(load<Whole<T>>(out + i)));
    for (T *at = out; at < out + runs * length; at += length) {
        T total = 0;
        for (int64_t i = 0; i < length; ++i) total += at[i];
        for (int64_t i = 0; i < length; ++i) at[i] *= T(1) / total;
    }
}

// From the gradient by normalised weights to that by their logits: w (g - sum over the run of w g).
template <class T>
ALLSIGHT_INLINE void softmax_runs_backward(const T *weights, T *grad, int64_t runs, int64_t length) {
    for (int64_t run = 0; run < runs * length; run += length) {
        T total = 0;
        for (int64_t i = 0; i < length; ++i) total += weights[run + i] * grad[run + i];
        for (int64_t i = 0; i < length; ++i) grad[run + i] = weights[run + i] * (grad[run + i] - total);
    }
}

} // namespace ALLSIGHT_ISA
} // namespace allsight
