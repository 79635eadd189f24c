// Multi-scale deformable attention, forward and backward.
#pragma once

#include <atomic>

#include "abi.h"
#include "sampling.h"
#include "threads.h"

namespace allsight {
namespace ALLSIGHT_ISA {

// What does not change from query to query; one lane per point of all heads.
template <class T> struct MsDeformAttn {
    const allsight_ms_deform_attn &call;
    int64_t channels, values; // of all heads
    const T *value, *locations, *weights;

    explicit MsDeformAttn(const allsight_ms_deform_attn &c)
        : call(c), channels(c.heads * c.head_channels), values(c.heads * c.levels * c.points),
          value((const T *)c.value), locations((const T *)c.locations), weights((const T *)c.weights) {}
};

// Where a thread keeps the points of a query, and what it knows of the maps; kept from call to call.
template <class T> struct MsDeformAttnMemory {
    Memory points, runs, maps;
};

// The same, in use by one call: places of the points of some heads, and a table of the maps they lie on.
template <class T> struct MsDeformAttnScratch {
    Points<T> at;
    Run *runs = nullptr;                         // one a level
    int32_t *width = nullptr, *height = nullptr; // of the map of each point
    int32_t *start = nullptr;                    // its first pixel

    bool lie_in(MsDeformAttnMemory<T> &memory, const MsDeformAttn<T> &op, bool for_gradients) {
        const allsight_ms_deform_attn &call = op.call;
        if (!at.lie_in(memory.points, op.values, for_gradients)) return false;
        runs = (Run *)memory.runs.at_least((call.levels + 1) * (int64_t)sizeof(Run));
        width = (int32_t *)memory.maps.at_least(3 * at.padded * (int64_t)sizeof(int32_t));
        if (!runs || !width) return false;
        height = width + at.padded, start = height + at.padded;
        int64_t first = 0;
        for (int64_t level = 0; level < call.levels; ++level) {
            const int64_t rows = call.shapes[2 * level], columns = call.shapes[2 * level + 1];
            runs[level] = {call.points, columns > 1 ? op.channels : 0, rows > 1 ? columns * op.channels : 0};
            for (int64_t head = 0; head < call.heads; ++head) {
                for (int64_t point = 0; point < call.points; ++point) {
                    const int64_t k = (head * call.levels + level) * call.points + point;
                    width[k] = int32_t(columns), height[k] = int32_t(rows), start[k] = int32_t(first);
                }
            }
            first += rows * columns;
        }
        return true;
    }

    // Where the points of one query lie and what they count, for the heads from `first_head` on.
    template <bool for_gradients>
    ALLSIGHT_INLINE void place_points(const MsDeformAttn<T> &op, int64_t query, int64_t first_head,
                                      int64_t num_heads) const {
        using V = Whole<T>;
        using I = WholeInt<T>;
        constexpr int n = kLanes<T>;
        const int64_t length = op.call.levels * op.call.points, count = num_heads * length;
        const int64_t skip = query * op.values + first_head * length;
        if (op.call.softmax)
            softmax_runs(op.weights + skip, at.weight, num_heads, length);
        else
            std::memcpy(at.weight, op.weights + skip, (size_t)count * sizeof(T));
        const T *xy = op.locations + 2 * skip;
        for (int64_t k = 0; k < count; k += n) {
            const int64_t left = 2 * (count - k);
            const V a = left >= n ? load<V>(xy + 2 * k) : load_some<V>(xy + 2 * k, left);
            const V b = left >= 2 * n ? load<V>(xy + 2 * k + n)
                        : left > n    ? load_some<V>(xy + 2 * k + n, left - n)
                                      : V{};
            const I columns = load<I>(width + k), rows = load<I>(height + k);
            const V x = pick<EverySecond<0>>(a, b) * to_real<T>(columns) - T(0.5);
            const V y = pick<EverySecond<1>>(a, b) * to_real<T>(rows) - T(0.5);
            at.template place<for_gradients>(k, x, map_of(columns), y, map_of(rows), load<I>(start + k), columns);
        }
    }

  private:
    static ALLSIGHT_INLINE Extent<T> map_of(WholeInt<T> size) {
        return {splat<T>(-2), to_real<T>(size) + splat<T>(1), WholeInt<T>{}, size - 2};
    }
};

// Queries [first, end) of all images.
template <class T, int n, int wide>
ALLSIGHT_APART void ms_deform_attn_forward_of(const MsDeformAttn<T> op, const MsDeformAttnScratch<T> scratch,
                                              int64_t first, int64_t end) {
    const allsight_ms_deform_attn &call = op.call;
    const Points<T> at = scratch.at;
    const int64_t length = call.levels * call.points;
    for (int64_t query = first; query < end; ++query) {
        const T *image = op.value + query / call.queries * call.pixels * op.channels;
        scratch.template place_points<false>(op, query, 0, call.heads);
        T *out = (T *)call.out + query * op.channels;
        for (int64_t head = 0; head < call.heads; ++head)
            for (int64_t c = head * call.head_channels; c < (head + 1) * call.head_channels; c += n * wide)
                mix<T, n, wide>(image + c, op.channels, at, head * length, scratch.runs, call.levels, out + c);
    }
}

// Queries are independent of each other.
template <class T> int ms_deform_attn_forward(const allsight_ms_deform_attn &call) {
    const MsDeformAttn<T> op(call);
    std::atomic<int> status{ALLSIGHT_OK};
    with_lanes<T>(call.head_channels, [&](auto lanes, auto width) {
        share(call.threads, call.batch * call.queries, [&](int64_t first, int64_t end) {
            static thread_local MsDeformAttnMemory<T> memory;
            MsDeformAttnScratch<T> scratch;
            if (scratch.lie_in(memory, op, false))
                ms_deform_attn_forward_of<T, lanes.value, width.value>(op, scratch, first, end);
            else
                status = ALLSIGHT_NO_MEMORY;
        });
    });
    return status;
}

// Heads [from, to) of all queries of one image.
template <class T, int n, int wide>
ALLSIGHT_APART void ms_deform_attn_backward_of(const MsDeformAttn<T> op, const MsDeformAttnScratch<T> scratch,
                                               int64_t batch, int64_t from, int64_t to) {
    const allsight_ms_deform_attn &call = op.call;
    const Points<T> at = scratch.at;
    const int64_t length = call.levels * call.points, count = (to - from) * length;
    const int64_t image = batch * call.pixels * op.channels;
    T *grad_image = (T *)call.grad_value + image;
    clear(grad_image + from * call.head_channels, call.pixels, (to - from) * call.head_channels, op.channels);
    for (int64_t query = batch * call.queries; query < (batch + 1) * call.queries; ++query) {
        scratch.template place_points<true>(op, query, from, to - from);
        for (int64_t head = from; head < to; ++head) {
            const int64_t c = head * call.head_channels;
            spread<T, n, wide>(op.value + image + c, grad_image + c, op.channels,
                               (const T *)call.grad_out + query * op.channels + c, call.head_channels, at,
                               (head - from) * length, scratch.runs, call.levels);
        }
        at.differentiate(0, count);
        if (call.softmax) softmax_runs_backward(at.weight, at.grad, to - from, length);
        const int64_t skip = query * op.values + from * length;
        std::memcpy((T *)call.grad_weights + skip, at.grad, (size_t)count * sizeof(T));
        T *grad = (T *)call.grad_locations + 2 * skip;
        for (int64_t k = 0; k < count; ++k) {
            grad[2 * k] = T(scratch.width[k]) * at.grad[at.padded + k];
            grad[2 * k + 1] = T(scratch.height[k]) * at.grad[2 * at.padded + k];
        }
    }
}

// A thread owns some heads of some images, as the groups of dcnv3_backward.
template <class T> int ms_deform_attn_backward(const allsight_ms_deform_attn &call) {
    const MsDeformAttn<T> op(call);
    std::atomic<int> status{ALLSIGHT_OK};
    with_lanes<T>(call.head_channels, [&](auto lanes, auto width) {
        constexpr int n = lanes.value, wide = width.value > 2 ? 2 : width.value;
        share_slices(call.threads, call.batch, call.heads, [&](auto each_image) {
            static thread_local MsDeformAttnMemory<T> memory;
            MsDeformAttnScratch<T> scratch;
            if (!scratch.lie_in(memory, op, true)) {
                status = ALLSIGHT_NO_MEMORY;
                return;
            }
            each_image([&](int64_t batch, int64_t from, int64_t to) {
                ms_deform_attn_backward_of<T, n, wide>(op, scratch, batch, from, to);
            });
        });
    });
    return status;
}

} // namespace ALLSIGHT_ISA
} // namespace allsight
