// Memory of one thread, kept from call to call: to allocate anew would cost more than the work on a small map.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>

namespace allsight {
namespace ALLSIGHT_ISA {

class Memory {
  public:
    Memory() = default;
    Memory(const Memory &) = delete;
    Memory &operator=(const Memory &) = delete;
    ~Memory() { std::free(memory_); }

    // At least `bytes` bytes, all of them finite numbers: zeros, or what an earlier call wrote. Null if there are none.
    void *at_least(int64_t bytes) {
        if (bytes > bytes_) {
            std::free(memory_);
            bytes_ = 0;
            const size_t room = (size_t)(bytes + 63) / 64 * 64;
            memory_ = std::aligned_alloc(64, room);
            if (!memory_) return nullptr;
            std::memset(memory_, 0, room);
            bytes_ = bytes;
        }
        return memory_;
    }

  private:
    void *memory_ = nullptr;
    int64_t bytes_ = 0;
};

} // namespace ALLSIGHT_ISA
} // namespace allsight
