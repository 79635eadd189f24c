// Residual additions and layer norms, in either order, in one pass over memory.
#pragma once

#include "abi.h"
#include "rows.h"
#include "threads.h"

namespace allsight {
namespace ALLSIGHT_ISA {

// work(residual, branch, sum) for every pixel: rows of `channels` values.
template <class T, class Work> int each_pixel(const allsight_add_layer_norm &call, Work work) {
    const int64_t c = call.channels;
    share(call.threads, call.pixels, [&](int64_t first, int64_t end) {
        for (int64_t pixel = first; pixel < end; ++pixel)
            work((const T *)call.residual + pixel * c, (const T *)call.branch + pixel * c, (T *)call.sum + pixel * c);
    });
    return ALLSIGHT_OK;
}

// sum = residual + scale * branch, out = norm(sum)
template <class T> int add_layer_norm_forward(const allsight_add_layer_norm &call) {
    const T *scale = (const T *)call.scale, *weight = (const T *)call.norm_weight, *bias = (const T *)call.norm_bias;
    const int64_t channels = call.channels;
    return each_pixel<T>(call, [&](const T *residual, const T *branch, T *sum) {
        T *out = (T *)call.out + (sum - (T *)call.sum);
        if (scale)
            each_part<T>(channels, [&](auto part) {
                part.store(sum, part.load(residual) + part.load(scale) * part.load(branch));
            });
        else
            each_part<T>(channels, [&](auto part) { part.store(sum, part.load(residual) + part.load(branch)); });
        layer_norm<T>(sum, channels, weight, bias, T(call.eps), [&](auto part, Whole<T> v) { part.store(out, v); });
    });
}

// sum = residual + scale * norm(branch)
template <class T> int layer_norm_add_forward(const allsight_add_layer_norm &call) {
    const T *scale = (const T *)call.scale, *weight = (const T *)call.norm_weight, *bias = (const T *)call.norm_bias;
    const int64_t channels = call.channels;
    return each_pixel<T>(call, [&](const T *residual, const T *branch, T *sum) {
        layer_norm<T>(branch, channels, weight, bias, T(call.eps), [&](auto part, Whole<T> v) {
            part.store(sum, part.load(residual) + (scale ? part.load(scale) * v : v));
        });
    });
}

} // namespace ALLSIGHT_ISA
} // namespace allsight
