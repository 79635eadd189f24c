// Which pixels of a line make up each pixel of the resized line, and with which weights.
//
// Source: the bilinear filter of Pillow (python-pillow/Pillow:src/libImaging/Resample.c), a triangle that is stretched
// by the factor of reduction, so that every pixel counts.
#pragma once

#include <cstdint>
#include <vector>

namespace allsight {

constexpr int kWeightBits = 14;

struct Taps {
    int64_t most;            // taps of a pixel at most, rounded up to a multiple of four; the weights' row length
    const int64_t *first;    // [pixels]
    const int64_t *count;    // [pixels]
    const int16_t *weights;  // [pixels, most]: whole numbers of 2^-kWeightBits that sum to 1, zero beyond the count
    const int16_t *spread;   // [pixels, most / 4, 16]: for `madd` over four pixels of three bytes; see across_1
};

// Memory of a table, kept from call to call.
struct TapTable {
    std::vector<int64_t> first, count;
    std::vector<int16_t> weights, spread;
    std::vector<double> exact;

    Taps fill(int64_t size, int64_t new_size, bool with_spread);
};

} // namespace allsight
