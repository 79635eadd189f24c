#include "resample_taps.h"

#include <algorithm>
#include <cmath>

namespace allsight {

Taps TapTable::fill(int64_t size, int64_t new_size, bool with_spread) {
    const double scale = (double)size / (double)new_size, reach = std::max(scale, 1.0);
    // Taps lie less than `reach` from a middle.
    const int64_t most = ((int64_t)std::ceil(2 * reach) + 3) / 4 * 4;
    first.resize(new_size), count.resize(new_size), exact.resize(most);
    weights.assign(new_size * most, 0);
    if (with_spread) spread.assign(new_size * most * 4, 0);
    for (int64_t i = 0; i < new_size; ++i) {
        const double middle = scale * ((double)i + 0.5);
        const int64_t begin = std::max<int64_t>(0, (int64_t)(middle - reach + 0.5));
        const int64_t end = std::min<int64_t>(size, (int64_t)(middle + reach + 0.5));
        const int64_t taps = std::min(end - begin, most);
        first[i] = begin, count[i] = taps;
        double sum = 0;
        for (int64_t tap = 0; tap < taps; ++tap) {
            const double x = std::fabs((double)(begin + tap) - middle + 0.5) / reach;
            sum += exact[tap] = std::max(1 - x, 0.0);
        }
        int16_t *own = weights.data() + i * most;
        const double unit = (1 << kWeightBits) / sum;
        double before = 0.5 + (1 << kWeightBits);
        int64_t given = 1 << kWeightBits;
        for (int64_t tap = 0; tap < taps; ++tap) {
            // Differences of rounded sums: the weights sum to 1 exactly, so a picture of one colour keeps it. The
            // sums begin at 1, so that all are positive and rounding is cutting.
            before += exact[tap] * unit;
            const int64_t until = tap + 1 < taps ? (int64_t)before : 2 << kWeightBits;
            own[tap] = (int16_t)(until - given);
            given = until;
        }
        if (!with_spread) continue;
        for (int64_t tap = 0; tap < most; ++tap)
            for (int64_t c = 0; c < 3; ++c)
                spread[(i * most + tap / 4 * 4) * 4 + tap % 4 / 2 * 8 + c * 2 + tap % 2] = own[tap];
    }
    return {most, first.data(), count.data(), weights.data(), spread.data()};
}

} // namespace allsight
