// Memory that one call leaves to the next.

#pragma once

#include <array>
#include <mutex>
#include <tuple>
#include <utility>

#include "common.h"

namespace adafuse {

// Buffers that no call uses. malloc takes 20 microseconds to find so much, where XLA's results have left a heap in
// pieces, and finds it elsewhere each time, out of the cache.
class Spare {
 public:
  // One for all threads. It is never destroyed: a call may outlive what is destroyed at the end of a process.
  static Spare& all() {
    static Spare* const spare = new Spare;
    return *spare;
  }

  // The smallest that has `count` floats, or none, and its size.
  std::pair<Floats, int64_t> take(int64_t count) {
    const std::lock_guard<std::mutex> lock(mutex_);
    Slot* best = nullptr;
    for (Slot& slot : slots_) {
      if (slot.second >= count && (best == nullptr || slot.second < best->second)) best = &slot;
    }
    return best == nullptr ? Slot{nullptr, 0} : std::exchange(*best, Slot{nullptr, 0});
  }

  // Keeps a buffer, instead of the smallest if all slots are full.
  void give(Floats buffer, int64_t size) {
    if (size > MOST) return;
    const std::lock_guard<std::mutex> lock(mutex_);
    Slot& smallest = *std::min_element(slots_.begin(), slots_.end(), [](const Slot& a, const Slot& b) {
      return a.second < b.second;
    });
    if (smallest.second < size) smallest = {std::move(buffer), size};
  }

 private:
  using Slot = std::pair<Floats, int64_t>;
  static constexpr int64_t MOST = 1 << 22;  // floats of a buffer
  std::mutex mutex_;
  std::array<Slot, 16> slots_;
};

// Floats for a call, as they come, at the start of a cache line.
class Scratch {
 public:
  explicit Scratch(int64_t count) {
#if !defined(__SANITIZE_ADDRESS__)  // which knows the ends of what is allocated alone
    std::tie(floats_, size_) = Spare::all().take(std::max<int64_t>(count, 1));
#endif
    if (floats_ == nullptr) floats_ = floats(count), size_ = count;
  }
  ~Scratch() { Spare::all().give(std::move(floats_), size_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  float* get() const { return floats_.get(); }
  int32_t* numbers() const { return reinterpret_cast<int32_t*>(floats_.get()); }  // instead of floats

 private:
  Floats floats_;
  int64_t size_ = 0;
};

}  // namespace adafuse
