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
    int64_t most;            // the weights' row length, even
    int64_t most_count;      // taps of a pixel at most
    const int64_t *first;    // [pixels]
    const int64_t *count;    // [pixels]
    const int16_t *weights;  // [pixels, most]: whole numbers of 2^-kWeightBits that sum to 1, zero beyond the count
};

// A table and its memory, kept from call to call; a line like the one before it has the table already.
class TapTable {
  public:
    // With `is_mirrored` the pixels of the new line come in the reverse order.
    Taps fill(int64_t size, int64_t new_size, bool is_mirrored);

  private:
    int64_t size_ = 0, new_size_ = 0, most_ = 0, most_count_ = 0;
    bool is_mirrored_ = false;
    std::vector<int64_t> first_, count_;
    std::vector<int16_t> weights_;
    std::vector<double> exact_;
};

} // namespace allsight
