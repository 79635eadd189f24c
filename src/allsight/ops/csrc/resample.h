// A window of an RGB picture of bytes, brought to another size bilinearly with antialiasing, in one pass.
//
// Down first, then across: each row of the result needs a few rows of the picture, and is finished while they are in
// the cache. All sums are of whole numbers, so every instruction set gives the same bytes.
#pragma once

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "abi.h"
#include "memory.h"
#include "resample_taps.h"

namespace allsight {
namespace ALLSIGHT_ISA {

ALLSIGHT_INLINE uint8_t to_byte(int32_t sum) {
    const int32_t value = sum >> kWeightBits;
    return (uint8_t)(value < 0 ? 0 : value > 255 ? 255 : value);
}

constexpr int32_t kHalf = 1 << (kWeightBits - 1);

// out[i] = sum over taps of weight * row of the tap, for bytes [first, end) of a row.
ALLSIGHT_APART void down_plain(const uint8_t *top, int64_t step, const Taps &taps, int64_t line, int64_t first,
                                int64_t end, uint8_t *out) {
    const int16_t *weights = taps.weights + line * taps.most;
    for (int64_t i = first; i < end; ++i) {
        int32_t sum = kHalf;
        for (int64_t tap = 0; tap < taps.count[line]; ++tap) sum += weights[tap] * top[tap * step + i];
        out[i] = to_byte(sum);
    }
}

ALLSIGHT_APART void across_plain(const uint8_t *line, const Taps &taps, int64_t first, int64_t end, uint8_t *out) {
    for (int64_t x = first; x < end; ++x) {
        const int16_t *weights = taps.weights + x * taps.most;
        for (int64_t c = 0; c < 3; ++c) {
            int32_t sum = kHalf;
            for (int64_t tap = 0; tap < taps.count[x]; ++tap) sum += weights[tap] * line[(taps.first[x] + tap) * 3 + c];
            out[x * 3 + c] = to_byte(sum);
        }
    }
}

#if defined(__AVX2__)

// 32 bytes of a row from `pairs` pairs of taps (0: as many as the taps say).
template <int pairs>
ALLSIGHT_INLINE void down_rows(const uint8_t *top, int64_t step, const int16_t *weights, int64_t count, int64_t bytes,
                               uint8_t *out) {
    const __m256i zero = _mm256_setzero_si256(), half = _mm256_set1_epi32(kHalf);
    const int64_t all = pairs ? pairs : (count + 1) / 2;
    __m256i weight[pairs ? pairs : 1];
    // Two weights side by side in all lanes, as `madd` multiplies them; that of a tap that is not there is zero.
    const auto weight_pair = [&](int64_t pair) {
        int32_t both;
        std::memcpy(&both, weights + 2 * pair, sizeof both);
        return _mm256_set1_epi32(both);
    };
    for (int pair = 0; pair < pairs; ++pair) weight[pair] = weight_pair(pair);
    // The last part overlaps the one before it: nothing past the window is read.
    for (int64_t i = 0; i < bytes; i += 32) {
        const int64_t at = i + 32 <= bytes ? i : bytes - 32;
        __m256i sums[4] = {half, half, half, half};
#pragma GCC unroll 4
        for (int64_t pair = 0; pair < all; ++pair) {
            const uint8_t *above = top + 2 * pair * step + at;
            const uint8_t *below = 2 * pair + 1 < count ? above + step : above;
            const __m256i a = _mm256_loadu_si256((const __m256i *)above);
            const __m256i b = _mm256_loadu_si256((const __m256i *)below);
            const __m256i w = pairs ? weight[pair] : weight_pair(pair);
            const __m256i low = _mm256_unpacklo_epi8(a, b), high = _mm256_unpackhi_epi8(a, b);
            sums[0] = _mm256_add_epi32(sums[0], _mm256_madd_epi16(_mm256_unpacklo_epi8(low, zero), w));
            sums[1] = _mm256_add_epi32(sums[1], _mm256_madd_epi16(_mm256_unpackhi_epi8(low, zero), w));
            sums[2] = _mm256_add_epi32(sums[2], _mm256_madd_epi16(_mm256_unpacklo_epi8(high, zero), w));
            sums[3] = _mm256_add_epi32(sums[3], _mm256_madd_epi16(_mm256_unpackhi_epi8(high, zero), w));
        }
        for (int k = 0; k < 4; ++k) sums[k] = _mm256_srai_epi32(sums[k], kWeightBits);
        const __m256i low = _mm256_packs_epi32(sums[0], sums[1]), high = _mm256_packs_epi32(sums[2], sums[3]);
        _mm256_storeu_si256((__m256i *)(out + at), _mm256_packus_epi16(low, high));
    }
}

ALLSIGHT_APART void down(const uint8_t *top, int64_t step, const Taps &taps, int64_t line, int64_t bytes,
                         uint8_t *out) {
    const int64_t count = taps.count[line];
    const int16_t *weights = taps.weights + line * taps.most;
    if (bytes < 32) return down_plain(top, step, taps, line, 0, bytes, out);
    if (count <= 2) return down_rows<1>(top, step, weights, count, bytes, out);
    if (count <= 4) return down_rows<2>(top, step, weights, count, bytes, out);
    if (count <= 6) return down_rows<3>(top, step, weights, count, bytes, out);
    return down_rows<0>(top, step, weights, count, bytes, out);
}

// The sums of a pixel in three lanes of each half, which are to be added: four taps at a time, two in each half.
template <int fours> ALLSIGHT_INLINE __m256i across_one(const uint8_t *line, const Taps &taps, int64_t x) {
    const __m256i spread = _mm256_setr_epi8(0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1, //
                                            6, -1, 9, -1, 7, -1, 10, -1, 8, -1, 11, -1, -1, -1, -1, -1);
    const uint8_t *at = line + taps.first[x] * 3;
    const int16_t *weights = taps.spread + x * taps.most * 4;
    const auto product = [&](int64_t four) {
        const __m256i pixels = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)(at + 12 * four)));
        const __m256i weight = _mm256_loadu_si256((const __m256i *)(weights + 16 * four));
        return _mm256_madd_epi16(_mm256_shuffle_epi8(pixels, spread), weight);
    };
    __m256i sums = product(0);
    for (int64_t four = 1; four < (fours ? fours : (taps.count[x] + 3) / 4); ++four)
        sums = _mm256_add_epi32(sums, product(four));
    return sums;
}

// Pixels x and x + 1, one in each half.
template <int fours> ALLSIGHT_INLINE __m256i across_two(const uint8_t *line, const Taps &taps, int64_t x) {
    const __m256i a = across_one<fours>(line, taps, x), b = across_one<fours>(line, taps, x + 1);
    const __m256i sums = _mm256_add_epi32(_mm256_permute2x128_si256(a, b, 0x20), _mm256_permute2x128_si256(a, b, 0x31));
    return _mm256_srai_epi32(_mm256_add_epi32(sums, _mm256_set1_epi32(kHalf)), kWeightBits);
}

// Eight pixels from x on, 24 bytes. Reads up to 16 bytes past the taps of a pixel, which `line` has.
template <int fours> ALLSIGHT_INLINE void across_eight(const uint8_t *line, const Taps &taps, int64_t x, uint8_t *out) {
    const __m128i dense = _mm_setr_epi8(0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, -1, -1, -1, -1);
    const __m256i low = _mm256_packs_epi32(across_two<fours>(line, taps, x), across_two<fours>(line, taps, x + 2));
    const __m256i high = _mm256_packs_epi32(across_two<fours>(line, taps, x + 4), across_two<fours>(line, taps, x + 6));
    // Even pixels in the lower half, odd ones in the upper.
    const __m256i all = _mm256_packus_epi16(low, high);
    const __m128i even = _mm256_castsi256_si128(all), odd = _mm256_extracti128_si256(all, 1);
    const __m128i rest = _mm_shuffle_epi8(_mm_unpackhi_epi32(even, odd), dense);
    const int32_t end = _mm_extract_epi32(rest, 2);
    _mm_storeu_si128((__m128i *)out, _mm_shuffle_epi8(_mm_unpacklo_epi32(even, odd), dense));
    _mm_storel_epi64((__m128i *)(out + 12), rest);
    std::memcpy(out + 20, &end, sizeof end);
}

template <int fours> ALLSIGHT_INLINE void across_row(const uint8_t *line, const Taps &taps, int64_t width, uint8_t *out) {
    if (width < 8) return across_plain(line, taps, 0, width, out);
    // The last eight overlap those before them.
    for (int64_t x = 0; x < width; x += 8) {
        const int64_t at = x + 8 <= width ? x : width - 8;
        across_eight<fours>(line, taps, at, out + at * 3);
    }
}

ALLSIGHT_APART void across(const uint8_t *line, const Taps &taps, int64_t width, uint8_t *out) {
    if (taps.most == 4) return across_row<1>(line, taps, width, out);
    across_row<0>(line, taps, width, out);
}

#else

ALLSIGHT_APART void down(const uint8_t *top, int64_t step, const Taps &taps, int64_t line, int64_t bytes,
                         uint8_t *out) {
    down_plain(top, step, taps, line, 0, bytes, out);
}

ALLSIGHT_APART void across(const uint8_t *line, const Taps &taps, int64_t width, uint8_t *out) {
    across_plain(line, taps, 0, width, out);
}

#endif

inline int resample_u8(const allsight_resample &call, const Taps &rows, const Taps &columns) {
    static thread_local Memory scratch;
    const int64_t bytes = call.width * 3;
    // `across` looks at whole groups of four taps, and 16 bytes at once.
    uint8_t *line = (uint8_t *)scratch.at_least(bytes + 64);
    if (!line) return ALLSIGHT_NO_MEMORY;
    for (int64_t y = 0; y < call.out_height; ++y) {
        const uint8_t *top = (const uint8_t *)call.pixels + rows.first[y] * call.row_step;
        down(top, call.row_step, rows, y, bytes, line);
        across(line, columns, call.out_width, (uint8_t *)call.out + y * call.out_width * 3);
    }
    return ALLSIGHT_OK;
}

} // namespace ALLSIGHT_ISA
} // namespace allsight
