// DCNv3 and DCNv4, forward and backward.
#pragma once

#include <atomic>

#include "abi.h"
#include "sampling.h"
#include "threads.h"

namespace allsight {
namespace ALLSIGHT_ISA {

// One call, seen by a thread that handles the groups [first_group, first_group + num_groups) of output pixels.
template <class T> struct Dcnv3 {
    const allsight_dcnv3 &call;
    int64_t channels, values;
    const T *value, *offset, *mask, *taps;
    Run run;

    explicit Dcnv3(const allsight_dcnv3 &c)
        : call(c), channels(c.groups * c.group_channels), values(c.groups * c.points), value((const T *)c.value),
          offset((const T *)c.offset), mask((const T *)c.mask), taps((const T *)c.taps),
          run{c.points, c.width > 1 ? channels : 0, c.height > 1 ? c.width * channels : 0} {}

    int64_t image(int64_t batch) const { return batch * call.height * call.width * channels; }
    int64_t pixel(int64_t batch, int64_t row, int64_t column) const {
        return (batch * call.rows + row) * call.columns + column;
    }

    // Where the points of one output pixel lie and what they count; `lattice` are the taps, one per group and point.
    template <bool for_gradients>
    ALLSIGHT_INLINE void place_points(const Points<T> &at, const T *lattice, int64_t pixel, int64_t row, int64_t column,
                                      int64_t first_group, int64_t num_groups) const {
        using V = Whole<T>;
        constexpr int n = kLanes<T>;
        const int64_t count = num_groups * call.points, skip = first_group * call.points;
        const T *logits = mask + pixel * call.mask_step + skip;
        if (call.softmax)
            softmax_runs(logits, at.weight, num_groups, call.points);
        else
            std::memcpy(at.weight, logits, (size_t)count * sizeof(T));
        const Extent<T> x_extent = extent<T>(int32_t(call.width), int32_t(call.origin_w + column * call.stride_w));
        const Extent<T> y_extent = extent<T>(int32_t(call.height), int32_t(call.origin_h + row * call.stride_h));
        const WholeInt<T> start = {}, width = splat_int<T>(int32_t(call.width));
        const T scale = T(call.offset_scale);
        const T *shifts = offset + pixel * call.offset_step + 2 * skip;
        for (int64_t k = 0; k < count; k += n) {
            const int64_t left = 2 * (count - k);
            const V a = left >= n ? load<V>(shifts + 2 * k) : load_some<V>(shifts + 2 * k, left);
            const V b = left >= 2 * n ? load<V>(shifts + 2 * k + n)
                        : left > n    ? load_some<V>(shifts + 2 * k + n, left - n)
                                      : V{};
            const V x = scale * (load<V>(lattice + 2 * k) + pick<EverySecond<0>>(a, b));
            const V y = scale * (load<V>(lattice + 2 * k + n) + pick<EverySecond<1>>(a, b));
            at.template place<for_gradients>(k, x, x_extent, y, y_extent, start, width);
        }
    }

    // The rows of a map that an output row is the first to read, if its offsets are small; all of them at the start.
    ALLSIGHT_INLINE void fetch_rows(const T *map, int64_t row, bool is_first) const {
        constexpr int64_t reach = 4;
        const int64_t end = call.origin_h + row * call.stride_h + reach;
        const int64_t start = is_first || row == 0 ? end - 2 * reach : end - call.stride_h;
        const auto inside = [&](int64_t y) { return y < 0 ? 0 : y < call.height ? y : call.height; };
        fetch(map + inside(start) * call.width * channels, map + inside(end) * call.width * channels);
    }

    // The taps of all groups in the order `place_points` reads them: n of x, then n of y.
    void fill_lattice(T *lattice, int64_t count) const {
        constexpr int n = kLanes<T>;
        for (int64_t k = 0, point = 0; k < count; ++k, point = point + 1 < call.points ? point + 1 : 0) {
            const int64_t place = k / n * 2 * n + k % n;
            lattice[place] = taps[2 * point];
            lattice[place + n] = taps[2 * point + 1];
        }
    }
};

// Where a thread keeps the points of a pixel, and the taps; kept from call to call.
template <class T> struct Dcnv3Memory {
    Memory points, lattice;
};

// The same, in use by one call.
template <class T> struct Dcnv3Scratch {
    Points<T> at;
    T *lattice = nullptr;

    bool lie_in(Dcnv3Memory<T> &memory, const Dcnv3<T> &op, bool for_gradients) {
        if (!at.lie_in(memory.points, op.values, for_gradients)) return false;
        lattice = (T *)memory.lattice.at_least(2 * at.padded * (int64_t)sizeof(T));
        if (lattice) op.fill_lattice(lattice, op.values);
        return lattice != nullptr;
    }
};

// Rows [first, end) of the output pixels of all images.
template <class T, int n, int wide>
ALLSIGHT_APART void dcnv3_forward_of(const Dcnv3<T> op, const Dcnv3Scratch<T> scratch, int64_t first, int64_t end) {
    const allsight_dcnv3 &call = op.call;
    const Points<T> at = scratch.at;
    for (int64_t unit = first; unit < end; ++unit) {
        const int64_t batch = unit / call.rows, row = unit % call.rows;
        const T *image = op.value + op.image(batch);
        op.fetch_rows(image, row, unit == first);
        for (int64_t column = 0; column < call.columns; ++column) {
            const int64_t pixel = op.pixel(batch, row, column);
            op.template place_points<false>(at, scratch.lattice, pixel, row, column, 0, call.groups);
            T *out = (T *)call.out + pixel * op.channels;
            for (int64_t g = 0; g < call.groups; ++g)
                for (int64_t c = g * call.group_channels; c < (g + 1) * call.group_channels; c += n * wide)
                    mix<T, n, wide>(image + c, op.channels, at, g * call.points, &op.run, 1, out + c);
        }
    }
}

// Rows of output pixels are independent of each other.
template <class T> int dcnv3_forward(const allsight_dcnv3 &call) {
    const Dcnv3<T> op(call);
    std::atomic<int> status{ALLSIGHT_OK};
    with_lanes<T>(call.group_channels, [&](auto lanes, auto width) {
        share(call.threads, call.batch * call.rows, [&](int64_t first, int64_t end) {
            static thread_local Dcnv3Memory<T> memory;
            Dcnv3Scratch<T> scratch;
            if (scratch.lie_in(memory, op, false))
                dcnv3_forward_of<T, lanes.value, width.value>(op, scratch, first, end);
            else
                status = ALLSIGHT_NO_MEMORY;
        });
    });
    return status;
}

// Groups [from, to) of one image.
template <class T, int n, int wide>
ALLSIGHT_APART void dcnv3_backward_of(const Dcnv3<T> op, const Dcnv3Scratch<T> scratch, int64_t batch, int64_t from,
                                      int64_t to) {
    const allsight_dcnv3 &call = op.call;
    const Points<T> at = scratch.at;
    const int64_t points = call.points, count = (to - from) * points, image = op.image(batch);
    const T scale = T(call.offset_scale);
    T *grad_image = (T *)call.grad_value + image;
    clear(grad_image + from * call.group_channels, call.height * call.width, (to - from) * call.group_channels, op.channels);
    for (int64_t row = 0; row < call.rows; ++row) {
        op.fetch_rows(op.value + image, row, row == 0);
        for (int64_t column = 0; column < call.columns; ++column) {
            const int64_t pixel = op.pixel(batch, row, column);
            op.template place_points<true>(at, scratch.lattice, pixel, row, column, from, to - from);
            for (int64_t g = from; g < to; ++g) {
                const int64_t c = g * call.group_channels;
                spread<T, n, wide>(op.value + image + c, grad_image + c, op.channels,
                                   (const T *)call.grad_out + pixel * op.channels + c, call.group_channels, at,
                                   (g - from) * points, &op.run, 1);
            }
            at.differentiate(0, count);
            if (call.softmax) softmax_runs_backward(at.weight, at.grad, to - from, points);
            std::memcpy((T *)call.grad_mask + pixel * op.values + from * points, at.grad, (size_t)count * sizeof(T));
            T *grad_offset = (T *)call.grad_offset + 2 * (pixel * op.values + from * points);
            const T *grad_x = at.grad + at.padded, *grad_y = at.grad + 2 * at.padded;
            for (int64_t k = 0; k < count; ++k) {
                grad_offset[2 * k] = scale * grad_x[k];
                grad_offset[2 * k + 1] = scale * grad_y[k];
            }
        }
    }
}

// A thread owns some groups of some images: no two threads add to the same place, and the order of additions is that
// of the pixels whatever the number of threads.
template <class T> int dcnv3_backward(const allsight_dcnv3 &call) {
    const Dcnv3<T> op(call);
    std::atomic<int> status{ALLSIGHT_OK};
    with_lanes<T>(call.group_channels, [&](auto lanes, auto width) {
        constexpr int n = lanes.value, wide = width.value > 2 ? 2 : width.value;
        share_slices(call.threads, call.batch, call.groups, [&](auto each_image) {
            static thread_local Dcnv3Memory<T> memory;
            Dcnv3Scratch<T> scratch;
            if (!scratch.lie_in(memory, op, true)) {
                status = ALLSIGHT_NO_MEMORY;
                return;
            }
            each_image([&](int64_t batch, int64_t from, int64_t to) {
                dcnv3_backward_of<T, n, wide>(op, scratch, batch, from, to);
            });
        });
    });
    return status;
}

} // namespace ALLSIGHT_ISA
} // namespace allsight
