// Depth-wise convolution, layer norm and activation in one pass over a channels-last map.
#pragma once

#include <atomic>

#include "abi.h"
#include "memory.h"
#include "rows.h"
#include "sampling.h"
#include "threads.h"

namespace allsight {
namespace ALLSIGHT_ISA {

// Output pixels that are computed side by side, at most; the weights are then loaded once for all of them.
constexpr int64_t kMostPixels = 8;

// One call, seen by one thread.
template <class T> struct DepthwiseNormAct {
    const allsight_depthwise_norm_act &call;
    int64_t channels, kernel, reach;
    const T *norm_weight, *norm_bias;
    // In scratch memory: what the pixels of a block see, tap row by tap row; weights with the tap as slow index; what
    // stands for pixels outside the map; results of a block before the norm.
    const T **window = nullptr;
    T *weight = nullptr, *zeros = nullptr, *block = nullptr;
    const T *bias = nullptr;

    explicit DepthwiseNormAct(const allsight_depthwise_norm_act &c)
        : call(c), channels(c.channels), kernel(c.kernel), reach(c.kernel / 2), norm_weight((const T *)c.norm_weight),
          norm_bias((const T *)c.norm_bias) {}

    bool prepare(Memory &scratch) {
        const int64_t pointers = kernel * (kMostPixels + kernel - 1), taps = kernel * kernel;
        const int64_t values = (taps + 1 + kMostPixels) * channels;
        // Values first: they begin where memory is aligned.
        T *memory = (T *)scratch.at_least(values * (int64_t)sizeof(T) + 8 + pointers * (int64_t)sizeof(T *));
        if (!memory) return false;
        weight = memory, zeros = weight + taps * channels, block = zeros + channels;
        window = (const T **)(memory + (values + 1) / 2 * 2);
        const T *given = (const T *)call.weight;
        if (call.weight_channel_step == 1) {
            for (int64_t tap = 0; tap < taps; ++tap)
                std::memcpy(weight + tap * channels, given + tap * call.weight_tap_step, (size_t)channels * sizeof(T));
        } else {
            for (int64_t c = 0; c < channels; ++c)
                for (int64_t tap = 0; tap < taps; ++tap)
                    weight[tap * channels + c] = given[c * call.weight_channel_step + tap * call.weight_tap_step];
        }
        std::memset(zeros, 0, (size_t)channels * sizeof(T));
        bias = call.bias ? (const T *)call.bias : zeros;
        return true;
    }

    // What `pixels` output pixels from `column` on see through the tap rows [first, end).
    void look(const T *image, int64_t row, int64_t column, int64_t pixels, int64_t first, int64_t end) {
        const int64_t span = pixels + kernel - 1, left = column - reach;
        const bool is_inside = left >= 0 && left + span <= call.width;
        for (int64_t tap = first; tap < end; ++tap) {
            const T **at = window + tap * span, *line = image + (row + tap - reach) * call.width * channels;
            if (is_inside)
                for (int64_t i = 0; i < span; ++i) at[i] = line + (left + i) * channels;
            else
                for (int64_t i = 0; i < span; ++i)
                    at[i] = left + i >= 0 && left + i < call.width ? line + (left + i) * channels : zeros;
        }
    }

    // n lanes; size: of the kernel if it is known to the compiler, else 0.
    template <int n, int pixels, int size> void convolve(int64_t first, int64_t end) const {
        using V = Vec<T, n>;
        const int64_t taps = size ? size : kernel, span = pixels + taps - 1;
        for (int64_t c = 0; c < channels; c += n) {
            V sum[pixels];
            for (int p = 0; p < pixels; ++p) sum[p] = load<V>(bias + c);
            for (int64_t tap = first; tap < end; ++tap) {
                const T *const *at = window + tap * span, *w = weight + tap * taps * channels + c;
                if constexpr (size != 0) {
                    V factor[size];
#pragma GCC unroll 5
                    for (int t = 0; t < size; ++t) factor[t] = load<V>(w + t * channels);
#pragma GCC unroll 12
                    for (int i = 0; i < pixels + size - 1; ++i) {
                        const V seen = load<V>(at[i] + c);
#pragma GCC unroll 5
                        for (int t = 0; t < size; ++t)
                            if (i - t >= 0 && i - t < pixels) sum[i - t] += seen * factor[t];
                    }
                } else {
                    for (int64_t t = 0; t < taps; ++t) {
                        const V factor = load<V>(w + t * channels);
#pragma GCC unroll 8
                        for (int p = 0; p < pixels; ++p) sum[p] += load<V>(at[p + t] + c) * factor;
                    }
                }
            }
            for (int p = 0; p < pixels; ++p) store(block + p * channels + c, sum[p]);
        }
    }

    template <int kind> void finish(int pixels, T *out) const {
        for (int p = 0; p < pixels; ++p) {
            layer_norm<T>(block + p * channels, channels, norm_weight, norm_bias, T(call.eps),
                          [&](auto part, Whole<T> v) { part.store(out + p * channels, activate<T, kind>(v)); });
        }
    }

    __attribute__((noinline)) void finish(int pixels, T *out) const {
        switch (call.act) {
        case kGelu: return finish<kGelu>(pixels, out);
        case kSilu: return finish<kSilu>(pixels, out);
        case kRelu: return finish<kRelu>(pixels, out);
        default: return finish<kNone>(pixels, out);
        }
    }

    template <int n, int pixels, int size>
    ALLSIGHT_INLINE void block_at(const T *image, T *line, int64_t row, int64_t column) {
        const int64_t above = reach - row, below = call.height + reach - row;
        const int64_t first = above > 0 ? above : 0, end = below < kernel ? below : kernel;
        look(image, row, column, pixels, first, end);
        convolve<n, pixels, size>(first, end);
        finish(pixels, line + column * channels);
    }

    // One row of the output. The last block overlaps the one before it: a pixel comes out alike in every block.
    template <int n, int size> void row_at(const T *image, T *line, int64_t row) {
        int64_t column = 0;
        if constexpr (size == 3)
            for (; column + 8 <= call.width; column += 8) block_at<n, 8, size>(image, line, row, column);
        for (; column < call.width && call.width >= 4; column += 4)
            block_at<n, 4, size>(image, line, row, column + 4 <= call.width ? column : call.width - 4);
        for (; column < call.width; ++column) block_at<n, 1, size>(image, line, row, column);
    }
};

template <class T, int n> int depthwise_norm_act_in_lanes(const allsight_depthwise_norm_act &call) {
    std::atomic<int> status{ALLSIGHT_OK};
    share(call.threads, call.batch * call.height, [&](int64_t first, int64_t end) {
        static thread_local Memory scratch;
        DepthwiseNormAct<T> op(call);
        if (!op.prepare(scratch)) {
            status = ALLSIGHT_NO_MEMORY;
            return;
        }
        for (int64_t unit = first; unit < end; ++unit) {
            const T *image = (const T *)call.x + unit / call.height * call.height * call.width * call.channels;
            T *line = (T *)call.out + unit * call.width * call.channels;
            if (call.kernel == 3)
                op.template row_at<n, 3>(image, line, unit % call.height);
            else if (call.kernel == 5)
                op.template row_at<n, 5>(image, line, unit % call.height);
            else
                op.template row_at<n, 0>(image, line, unit % call.height);
        }
    });
    return status;
}

template <class T> int depthwise_norm_act_forward(const allsight_depthwise_norm_act &call) {
    return with_lanes<T>(call.channels, [&](auto n, auto) { return depthwise_norm_act_in_lanes<T, n.value>(call); });
}

} // namespace ALLSIGHT_ISA
} // namespace allsight
