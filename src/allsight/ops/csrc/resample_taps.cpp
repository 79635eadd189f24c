#include "resample_taps.h"

#include <algorithm>
#include <cmath>

namespace allsight {

Taps TapTable::fill(int64_t size, int64_t new_size, bool is_mirrored) {
    const auto made = [&] { return Taps{most_, most_count_, first_.data(), count_.data(), weights_.data()}; };
    if (size == size_ && new_size == new_size_ && is_mirrored == is_mirrored_) return made();
    size_ = 0; // Nothing is made, should memory run out.
    const double scale = (double)size / (double)new_size, reach = std::max(scale, 1.0);
    // Taps lie less than `reach` from a middle.
    most_ = ((int64_t)std::ceil(2 * reach) + 1) / 2 * 2, most_count_ = 0;
    first_.resize(new_size), count_.resize(new_size), exact_.resize(most_);
    weights_.assign(new_size * most_, 0);
    for (int64_t i = 0; i < new_size; ++i) {
        const double middle = scale * ((double)i + 0.5);
        const int64_t begin = std::max<int64_t>(0, (int64_t)(middle - reach + 0.5));
        const int64_t end = std::min<int64_t>(size, (int64_t)(middle + reach + 0.5));
        const int64_t taps = std::min(end - begin, most_);
        const int64_t place = is_mirrored ? new_size - 1 - i : i;
        first_[place] = begin, count_[place] = taps;
        most_count_ = std::max(most_count_, taps);
        double sum = 0;
        for (int64_t tap = 0; tap < taps; ++tap) {
            const double x = std::fabs((double)(begin + tap) - middle + 0.5) / reach;
            sum += exact_[tap] = std::max(1 - x, 0.0);
        }
        int16_t *own = weights_.data() + place * most_;
        const double unit = (1 << kWeightBits) / sum;
        double before = 0.5 + (1 << kWeightBits);
        int64_t given = 1 << kWeightBits;
        for (int64_t tap = 0; tap < taps; ++tap) {
            // Differences of rounded sums: the weights sum to 1 exactly, so a picture of one colour keeps it. The
            // sums begin at 1, so that all are positive and rounding is cutting.
            before += exact_[tap] * unit;
            const int64_t until = tap + 1 < taps ? (int64_t)before : 2 << kWeightBits;
            own[tap] = (int16_t)(until - given);
            given = until;
        }
    }
    size_ = size, new_size_ = new_size, is_mirrored_ = is_mirrored;
    return made();
}

} // namespace allsight
