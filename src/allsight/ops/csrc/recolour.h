// Changes of brightness, contrast, hue and saturation of an RGB picture of bytes, all in one pass.
//
// Values are whole numbers of 1/128 of a level, factors and turns of 2^-14. The one division is of two of them as
// floats, which is exact to the last bit everywhere: every instruction set gives the same bytes.
#pragma once

#include "abi.h"
#include "simd.h"

namespace allsight {
namespace ALLSIGHT_ISA {

using Levels = WholeInt<float>;
struct Colours {
    Levels red, green, blue;
};

constexpr int kLevelBits = 7, kUnitBits = 14;
constexpr int32_t kUnit = 1 << kUnitBits, kMostLevel = 255 << kLevelBits;

ALLSIGHT_INLINE Levels smaller(Levels a, Levels b) { return a < b ? a : b; }
ALLSIGHT_INLINE Levels larger(Levels a, Levels b) { return a > b ? a : b; }
ALLSIGHT_INLINE Levels cut(Levels v) { return smaller(larger(v, Levels{}), splat_int<float>(kMostLevel)); }
ALLSIGHT_INLINE Levels times(Levels v, int32_t factor) { return (v * factor + kUnit / 2) >> kUnitBits; }

// A turn around the circle of hues, in sixths of it, and a factor on the saturation. Of a colour with the largest value
// v and the chroma c, red is v - c * between(k, 4 - k, 0 and 1) for k = hue + 5 modulo 6, green with 3, blue with 1.
ALLSIGHT_INLINE Colours turned(const Colours &at, int32_t turn, int32_t saturation) {
    using V = Whole<float>;
    const Levels most = larger(larger(at.red, at.green), at.blue), least = smaller(smaller(at.red, at.green), at.blue);
    const Levels chroma = most - least, none = {};
    const Levels is_red = most == at.red, is_green = most == at.green;
    const Levels over = is_red ? at.green - at.blue : is_green ? at.blue - at.red : at.red - at.green;
    const Levels start = is_red ? none : is_green ? splat_int<float>(2 * kUnit) : splat_int<float>(4 * kUnit);
    const V share = to_real<float>(over) / to_real<float>(chroma == none ? splat_int<float>(1) : chroma);
    Levels hue = start + to_int<float>(share * float(kUnit)) + turn;
    hue = hue < none ? hue + 6 * kUnit : hue;
    hue = hue >= 6 * kUnit ? hue - 6 * kUnit : hue;
    const Levels strength = smaller(times(chroma, saturation), most);
    const auto channel = [&](int32_t place) {
        Levels k = hue + place * kUnit;
        k = k >= 6 * kUnit ? k - 6 * kUnit : k;
        const Levels share_of_it = larger(smaller(smaller(k, 4 * kUnit - k), splat_int<float>(kUnit)), Levels{});
        return most - ((strength * share_of_it + kUnit / 2) >> kUnitBits);
    };
    return {channel(5), channel(3), channel(1)};
}

template <bool turns> ALLSIGHT_INLINE void recolour(const allsight_recolour &call, Levels *values) {
    const int32_t shift = int32_t(call.shift), first = int32_t(call.first_factor), last = int32_t(call.last_factor);
    Colours at = {values[0], values[1], values[2]};
    const auto each = [&](auto change) { at = {change(at.red), change(at.green), change(at.blue)}; };
    each([&](Levels v) { return cut(times(cut((v << kLevelBits) + shift), first)); });
    if constexpr (turns) at = turned(at, int32_t(call.turn), int32_t(call.saturation));
    each([&](Levels v) { return (cut(times(v, last)) + (1 << (kLevelBits - 1))) >> kLevelBits; });
    values[0] = at.red, values[1] = at.green, values[2] = at.blue;
}

template <bool turns> ALLSIGHT_APART void recolour_all(const allsight_recolour &call) {
    constexpr int n = kLanes<float>;
    const uint8_t *from = (const uint8_t *)call.pixels;
    uint8_t *to = (uint8_t *)call.out;
    const int64_t red = call.red, green = call.green, blue = call.blue;
    for (int64_t i = 0; i < call.count; i += n) {
        const int64_t left = call.count - i < n ? call.count - i : n;
        alignas(64) int32_t lanes[3][n] = {};
        const uint8_t *in = from + 3 * i;
        if (left == n) {
#pragma GCC unroll 16
            for (int j = 0; j < n; ++j)
                for (int c = 0; c < 3; ++c) lanes[c][j] = in[3 * j + c];
        } else {
            for (int64_t j = 0; j < left; ++j)
                for (int c = 0; c < 3; ++c) lanes[c][j] = in[3 * j + c];
        }
        Levels values[3] = {load<Levels>(lanes[0]), load<Levels>(lanes[1]), load<Levels>(lanes[2])};
        recolour<turns>(call, values);
        for (int c = 0; c < 3; ++c) store(lanes[c], values[c]);
        uint8_t *out = to + 3 * i;
        for (int64_t j = 0; j < left; ++j) {
            out[3 * j] = (uint8_t)lanes[red][j];
            out[3 * j + 1] = (uint8_t)lanes[green][j];
            out[3 * j + 2] = (uint8_t)lanes[blue][j];
        }
    }
}

inline int recolour_u8(const allsight_recolour &call) {
    if (call.turn != 0 || call.saturation != kUnit)
        recolour_all<true>(call);
    else
        recolour_all<false>(call);
    return ALLSIGHT_OK;
}

} // namespace ALLSIGHT_ISA
} // namespace allsight
