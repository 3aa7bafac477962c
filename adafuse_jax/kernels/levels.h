// The loops of `KERNELS`, a header, for each kind of CPU, and the choice among them. Included inside a namespace that
// has `Loops`. With `PREFETCHES` defined they bring in what they need soon, into the cache that serves the CPU best.

#define NEAR 2
#if defined(ADAFUSE_X86)
#define TARGET __attribute__((target("avx512f")))
#define LANES 16
#define VECTORS 4
namespace avx512 {
#include KERNELS
}  // namespace avx512
#if defined(PREFETCHES)
#undef NEAR
#define NEAR 3
namespace zen5 {
#include KERNELS
}  // namespace zen5
#undef NEAR
#define NEAR 2
#endif
#undef TARGET
#undef LANES
#undef VECTORS
namespace avx2 {
#define TARGET __attribute__((target("avx2,fma")))
#define LANES 8
#define VECTORS 2
#include KERNELS
#undef TARGET
#undef LANES
#undef VECTORS
}  // namespace avx2
#endif

namespace baseline {
#define TARGET
#define LANES 4
#if defined(__aarch64__)
#define VECTORS 4
#else
#define VECTORS 2
#endif
#include KERNELS
#undef TARGET
#undef LANES
#undef VECTORS
}  // namespace baseline
#undef NEAR

// The code for a level of instructions; null where this CPU lacks them.
inline const Loops* choose(int64_t level) {
#if defined(ADAFUSE_X86)
  __builtin_cpu_init();
  if ((level == BEST || level == AVX512) && __builtin_cpu_supports("avx512f")) {
#if defined(PREFETCHES)
    if (is_zen5()) return &zen5::LOOPS;
#endif
    return &avx512::LOOPS;
  }
  if ((level == BEST || level == AVX2) && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    return &avx2::LOOPS;
  }
#endif
  return level == BEST || level == BASELINE ? &baseline::LOOPS : nullptr;
}
