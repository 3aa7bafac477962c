// What all sources share.

#pragma once

#include <algorithm>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <new>
#include <string>

#include "parallel.h"
#include "xla/ffi/api/ffi.h"

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define ADAFUSE_X86 1
#endif

// Before a loop over what is held in registers: GCC may leave it in memory where it unrolls by its own choice.
#define UNROLL _Pragma("GCC unroll 8")

// Of functions that only bring lines into the cache, an effect that GCC doesn't see: it leaves calls out.
#define FETCHES __attribute__((always_inline)) inline

// The lanes of two vectors by their numbers, those of the second behind those of the first. Older ones of GCC don't
// have __builtin_shufflevector.
#if defined(__clang__)
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (Mask){__VA_ARGS__})
#endif

namespace adafuse {

constexpr int GROUP = 16;  // channels come in such groups
constexpr int PANEL = 64;  // outputs whose weights lie side by side
constexpr int64_t CHUNK = 1 << 19;  // floats of both factors of the weights' gradient at a time: in the last cache

enum Level : int64_t { BEST = 0, BASELINE = 1, AVX2 = 2, AVX512 = 3 };

// Transformed tiles: floats from one frequency, tile and group of channels to the next.
struct Spectra {
  float* data;
  int64_t step, tile, group;
  float* at(int64_t frequency, int64_t t, int64_t channel) const {
    return data + frequency * step + t * tile + channel / GROUP * group + channel % GROUP;
  }
};

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Memory for floats, as it comes, at the start of a cache line.
struct Free {
  void operator()(float* memory) const { ::operator delete[](memory, std::align_val_t{64}); }
};
using Floats = std::unique_ptr<float[], Free>;
inline Floats floats(int64_t count) {
  return Floats(static_cast<float*>(::operator new[](count * sizeof(float), std::align_val_t{64})));
}
inline Floats zeros(int64_t count) {
  Floats memory = floats(count);
  std::fill_n(memory.get(), count, 0.0f);
  return memory;
}

// Runs f(workers, parallel) on a pool, where parallel(n, job) runs job(i, worker) for all i below n.
template <class Function>
xla::ffi::Error on_pool(xla::ffi::ThreadPool& pool, Function f) {
  const int64_t workers = std::max<int64_t>(1, std::min<int64_t>(pool.num_threads(), 256));
  try {
    Team team(pool, workers);
    f(workers, [&](int64_t count, const Team::Job& job) { team.run(count, job); });
  } catch (const std::exception& error) {  // no memory: nothing else throws
    return xla::ffi::Error(xla::ffi::ErrorCode::kResourceExhausted, std::string("adafuse_jax: ") + error.what());
  }
  return xla::ffi::Error::Success();
}

inline xla::ffi::Error wrong(const std::string& what) {
  return xla::ffi::Error::InvalidArgument("adafuse_jax: " + what);
}

}  // namespace adafuse
