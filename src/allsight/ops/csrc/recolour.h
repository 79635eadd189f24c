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

template <bool turns> ALLSIGHT_INLINE Colours recoloured(const allsight_recolour &call, Colours at) {
    const int32_t shift = int32_t(call.shift), first = int32_t(call.first_factor), last = int32_t(call.last_factor);
    const auto each = [&](auto change) { at = {change(at.red), change(at.green), change(at.blue)}; };
    each([&](Levels v) { return cut((v << kLevelBits) + shift); });
    if (first != kUnit) each([&](Levels v) { return cut(times(v, first)); });
    if constexpr (turns) at = turned(at, int32_t(call.turn), int32_t(call.saturation));
    if (last != kUnit) each([&](Levels v) { return cut(times(v, last)); });
    each([&](Levels v) { return (v + (1 << (kLevelBits - 1))) >> kLevelBits; });
    return at;
}

// 16 pixels at a time pass through three planes of bytes.
constexpr int kBlock = 16;
using Plane = Bytes;

// Of three vectors of pixels side by side, the bytes of one channel: those in the first two, then all of them.
template <int channel> struct InFirstTwo {
    static constexpr int of(int lane) { return (3 * lane + channel) % 32; }
};
template <int channel> struct OrInThird {
    static constexpr int of(int lane) { return 3 * lane + channel < 32 ? lane : 3 * lane + channel - 16; }
};

// Of the planes of red and green, the bytes that vector `part` of pixels has of them; then all of it.
template <int part> struct RedAndGreen {
    static constexpr int of(int lane) { return (16 * part + lane) % 3 % 2 * 16 + (16 * part + lane) / 3; }
};
template <int part> struct AndBlue {
    static constexpr int of(int lane) { return (16 * part + lane) % 3 < 2 ? lane : 16 + (16 * part + lane) / 3; }
};

template <int channel> ALLSIGHT_INLINE Plane plane_of(Plane a, Plane b, Plane c) {
    return pick<OrInThird<channel>>(pick<InFirstTwo<channel>>(a, b), c);
}
template <int part> ALLSIGHT_INLINE Plane part_of(Plane red, Plane green, Plane blue) {
    return pick<AndBlue<part>>(pick<RedAndGreen<part>>(red, green), blue);
}

// 16 pixels, 48 bytes.
template <bool turns>
ALLSIGHT_INLINE void recolour_block(const allsight_recolour &call, const uint8_t *from, uint8_t *to) {
    constexpr int n = kLanes<float>;
    const Plane a = load<Plane>(from), b = load<Plane>(from + 16), c = load<Plane>(from + 32);
    uint8_t planes[3][kBlock];
    store(planes[0], plane_of<0>(a, b, c)), store(planes[1], plane_of<1>(a, b, c));
    store(planes[2], plane_of<2>(a, b, c));
    Levels changed[3][kBlock / n];
    for (int i = 0; i < kBlock; i += n) {
        const Colours before = {load_bytes(planes[0] + i), load_bytes(planes[1] + i), load_bytes(planes[2] + i)};
        const Colours after = recoloured<turns>(call, before);
        changed[0][i / n] = after.red, changed[1][i / n] = after.green, changed[2][i / n] = after.blue;
    }
    const Plane red = to_bytes(changed[call.red]), green = to_bytes(changed[call.green]);
    const Plane blue = to_bytes(changed[call.blue]);
    store(to, part_of<0>(red, green, blue)), store(to + 16, part_of<1>(red, green, blue));
    store(to + 32, part_of<2>(red, green, blue));
}

template <bool turns> ALLSIGHT_APART void recolour_all(const allsight_recolour &call) {
    const uint8_t *from = (const uint8_t *)call.pixels;
    uint8_t *to = (uint8_t *)call.out;
    int64_t i = 0;
    for (; i + kBlock <= call.count; i += kBlock) recolour_block<turns>(call, from + 3 * i, to + 3 * i);
    if (i == call.count) return;
    uint8_t last[3 * kBlock] = {};
    const size_t bytes = size_t(3 * (call.count - i));
    std::memcpy(last, from + 3 * i, bytes);
    recolour_block<turns>(call, last, last);
    std::memcpy(to + 3 * i, last, bytes);
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
