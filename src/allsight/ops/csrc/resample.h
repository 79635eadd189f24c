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

// Two weights side by side in all lanes, as `madd` multiplies them; that of a tap that is not there is zero.
ALLSIGHT_INLINE __m256i weight_pair(const int16_t *weights) {
    int32_t both;
    std::memcpy(&both, weights, sizeof both);
    return _mm256_set1_epi32(both);
}

// 32 bytes of a row from `pairs` pairs of taps (0: as many as the taps say).
template <int pairs>
ALLSIGHT_INLINE void down_rows(const uint8_t *top, int64_t step, const int16_t *weights, int64_t count, int64_t bytes,
                               uint8_t *out) {
    const __m256i zero = _mm256_setzero_si256(), half = _mm256_set1_epi32(kHalf);
    const int64_t all = pairs ? pairs : (count + 1) / 2;
    __m256i weight[pairs ? pairs : 1];
    for (int pair = 0; pair < pairs; ++pair) weight[pair] = weight_pair(weights + 2 * pair);
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
            const __m256i w = pairs ? weight[pair] : weight_pair(weights + 2 * pair);
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

// Lines `a` and `b` of bytes beside each other: the lower half of each vector belongs to `a`, the upper to `b`.
struct TwoLines {
    const uint8_t *a, *b;
    uint8_t *out_a, *out_b;
};

// Pixel x of both lines, each in three lanes of its half, from `pairs` pairs of taps (0: as many as the taps say).
template <int pairs> ALLSIGHT_INLINE __m256i across_one(const TwoLines &lines, const Taps &taps, int64_t x) {
    // Colours of two neighbours side by side, as `madd` multiplies them: of taps 0 and 1, and of taps 2 and 3.
    const __m256i first_two = _mm256_setr_epi8(0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1, //
                                               0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1);
    const __m256i next_two = _mm256_setr_epi8(6, -1, 9, -1, 7, -1, 10, -1, 8, -1, 11, -1, -1, -1, -1, -1, //
                                              6, -1, 9, -1, 7, -1, 10, -1, 8, -1, 11, -1, -1, -1, -1, -1);
    const uint8_t *a = lines.a + taps.first[x] * 3, *b = lines.b + taps.first[x] * 3;
    const int16_t *weights = taps.weights + x * taps.most;
    const int64_t all = pairs ? pairs : (taps.count[x] + 1) / 2;
    __m256i sums = _mm256_set1_epi32(kHalf);
    for (int64_t pair = 0; pair < all; pair += 2) {
        const __m256i pixels = _mm256_loadu2_m128i((const __m128i *)(b + 6 * pair), (const __m128i *)(a + 6 * pair));
        const __m256i w = weight_pair(weights + 2 * pair);
        sums = _mm256_add_epi32(sums, _mm256_madd_epi16(_mm256_shuffle_epi8(pixels, first_two), w));
        if (pair + 1 == all) break;
        const __m256i next = weight_pair(weights + 2 * pair + 2);
        sums = _mm256_add_epi32(sums, _mm256_madd_epi16(_mm256_shuffle_epi8(pixels, next_two), next));
    }
    return _mm256_srai_epi32(sums, kWeightBits);
}

// Four pixels of both lines from x on. Writes 12 bytes a line, and with `is_wide` four more, which come next.
template <int pairs, bool is_wide>
ALLSIGHT_INLINE void across_four(const TwoLines &lines, const Taps &taps, int64_t x) {
    const __m256i dense = _mm256_setr_epi8(0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, -1, -1, -1, -1, //
                                           0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, -1, -1, -1, -1);
    const __m256i low = _mm256_packs_epi32(across_one<pairs>(lines, taps, x), across_one<pairs>(lines, taps, x + 1));
    const __m256i high =
        _mm256_packs_epi32(across_one<pairs>(lines, taps, x + 2), across_one<pairs>(lines, taps, x + 3));
    const __m256i bytes = _mm256_shuffle_epi8(_mm256_packus_epi16(low, high), dense);
    const __m128i of_a = _mm256_castsi256_si128(bytes), of_b = _mm256_extracti128_si256(bytes, 1);
    uint8_t *out_a = lines.out_a + x * 3, *out_b = lines.out_b + x * 3;
    if (is_wide) {
        _mm_storeu_si128((__m128i *)out_a, of_a);
        _mm_storeu_si128((__m128i *)out_b, of_b);
        return;
    }
    const int32_t end_a = _mm_extract_epi32(of_a, 2), end_b = _mm_extract_epi32(of_b, 2);
    _mm_storel_epi64((__m128i *)out_a, of_a);
    _mm_storel_epi64((__m128i *)out_b, of_b);
    std::memcpy(out_a + 8, &end_a, sizeof end_a);
    std::memcpy(out_b + 8, &end_b, sizeof end_b);
}

template <int pairs> ALLSIGHT_INLINE void across_rows(const TwoLines &lines, const Taps &taps, int64_t width) {
    int64_t x = 0;
    for (; x + 6 <= width; x += 4) across_four<pairs, true>(lines, taps, x);
    // The last four overlap those before them.
    for (; x < width; x += 4) across_four<pairs, false>(lines, taps, x + 4 <= width ? x : width - 4);
}

// Reads up to 16 bytes past the taps of a pixel, which the lines have.
ALLSIGHT_APART void across(const uint8_t *a, const uint8_t *b, const Taps &taps, int64_t width, uint8_t *out_a,
                           uint8_t *out_b) {
    if (width < 4) {
        across_plain(a, taps, 0, width, out_a);
        return across_plain(b, taps, 0, width, out_b);
    }
    const TwoLines lines = {a, b, out_a, out_b};
    if (taps.most_count <= 2) return across_rows<1>(lines, taps, width);
    if (taps.most_count <= 4) return across_rows<2>(lines, taps, width);
    if (taps.most_count <= 6) return across_rows<3>(lines, taps, width);
    across_rows<0>(lines, taps, width);
}

#else

ALLSIGHT_APART void down(const uint8_t *top, int64_t step, const Taps &taps, int64_t line, int64_t bytes,
                         uint8_t *out) {
    down_plain(top, step, taps, line, 0, bytes, out);
}

ALLSIGHT_APART void across(const uint8_t *a, const uint8_t *b, const Taps &taps, int64_t width, uint8_t *out_a,
                           uint8_t *out_b) {
    across_plain(a, taps, 0, width, out_a);
    if (b != a) across_plain(b, taps, 0, width, out_b);
}

#endif

inline int resample_u8(const allsight_resample &call, const Taps &rows, const Taps &columns) {
    static thread_local Memory scratch;
    const int64_t bytes = call.width * 3, out_bytes = call.out_width * 3;
    // `across` looks at whole pairs of taps, and 16 bytes at once.
    const int64_t room = (bytes + 64 + 63) / 64 * 64;
    uint8_t *a = (uint8_t *)scratch.at_least(2 * room);
    if (!a) return ALLSIGHT_NO_MEMORY;
    const auto line_of = [&](int64_t y, uint8_t *line) {
        const uint8_t *top = (const uint8_t *)call.pixels + rows.first[y] * call.row_step;
        down(top, call.row_step, rows, y, bytes, line);
        return line;
    };
    // Two rows at a time; the last of an odd number is both.
    for (int64_t y = 0; y < call.out_height; y += 2) {
        uint8_t *out_a = (uint8_t *)call.out + y * out_bytes;
        line_of(y, a);
        const bool is_last = y + 1 == call.out_height;
        const uint8_t *b = is_last ? a : line_of(y + 1, a + room);
        across(a, b, columns, call.out_width, out_a, is_last ? out_a : out_a + out_bytes);
    }
    return ALLSIGHT_OK;
}

} // namespace ALLSIGHT_ISA
} // namespace allsight
