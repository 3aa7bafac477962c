// Two convolutions with temporal fusion in between, computing no more than is needed (paper, Eqs. 3 and 5):
// the first gives, of each frame, the channels that are kept there or reused at the next; the second reads the
// channels that aren't skipped, a reused one where it lies, in the frame before. float32, channels last.
//
// One source for all CPUs: vectors as GCC and Clang write them, compiled for several kinds of CPU, of which the
// running one's is chosen at each call. No compiler flag may name a CPU. See pair.py for the call.

#include <algorithm>
#include <cstdint>
#include <exception>
#include <functional>
#include <initializer_list>
#include <string>
#include <vector>

#include "parallel.h"
#include "xla/ffi/api/ffi.h"

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define ADAFUSE_X86 1
#endif

namespace adafuse {

constexpr int PANEL = 64;       // outputs whose weights lie side by side
constexpr int LANE_GROUP = 16;  // outputs are computed in such groups
constexpr int64_t CACHED = 96 * 1024;  // floats of weights that go over all pixels before the next ones do

enum Action : int8_t { SKIP = 0, REUSE = 1, KEEP = 2 };  // as on the policy's last axis

struct Conv {
  int64_t height, width, pitch;  // of the input; floats from one pixel to the next
  int64_t kernel, stride;        // padded by half the kernel
  int64_t out_height, out_width;
};

// Channels to read from one frame: `columns[j]` of a pixel times the weights' row `rows[j]`.
struct Source {
  const float* base;
  const int32_t *columns, *rows;
  int64_t count;
};

// Up to 64 outputs of a convolution, over the taps from `tap_begin` to `tap_end`.
struct Panel {
  const Conv& conv;
  const Source* sources;
  int num_sources;
  const float* zeros;    // a pixel of the border
  const float* weights;  // of the first tap: `channels` rows of 64
  int64_t channels, tap_begin, tap_end;
  const float* bias;
  bool first, last, relu;  // whether the sum begins here, and ends here
  float* out;
  int64_t out_pitch;
};

#if defined(ADAFUSE_X86)
namespace avx512 {
#define TARGET __attribute__((target("avx512f")))
#define LANES 16
#define VECTORS 4
#include "tile.h"
#undef TARGET
#undef LANES
#undef VECTORS
}  // namespace avx512
namespace avx2 {
#define TARGET __attribute__((target("avx2,fma")))
#define LANES 8
#define VECTORS 2
#include "tile.h"
#undef TARGET
#undef LANES
#undef VECTORS
}  // namespace avx2
#endif

// What every CPU of the architecture has: NEON on AArch64 (32 registers), SSE2 on x86 (16).
namespace baseline {
#define TARGET
#define LANES 4
#if defined(__aarch64__)
#define VECTORS 4
#else
#define VECTORS 2
#endif
#include "tile.h"
#undef TARGET
#undef LANES
#undef VECTORS
}  // namespace baseline

using Run = void (*)(const Panel&, int64_t, int64_t, int);

enum Level : int64_t { BEST = 0, BASELINE = 1, AVX2 = 2, AVX512 = 3 };

// The code for a level of instructions; null where this CPU lacks them.
inline Run choose(int64_t level) {
#if defined(ADAFUSE_X86)
  __builtin_cpu_init();
  if ((level == BEST || level == AVX512) && __builtin_cpu_supports("avx512f")) return avx512::run;
  if ((level == BEST || level == AVX2) && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    return avx2::run;
  }
#endif
  return level == BEST || level == BASELINE ? baseline::run : nullptr;
}

// A clip, as the handler has checked it. With t as in Eq. 3, `scratch` holds each frame's needed channels one
// after the other.
struct Pair {
  int64_t batch, frames;
  Conv conv1, conv2;
  int64_t in_features, width, features;
  const float *x, *weights1, *bias1;  // (B, T, H, W, in), (taps, in, width), (width)
  const float *weights2, *bias2;      // (panels, taps, width, 64), (panels * 64)
  const int8_t* actions;              // (B, T, width)
  float *scratch, *out;               // (B, T, h, w, width up to 16), (B, T, y, x, features up to 16)
};

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t pad(int64_t channels) { return divide_up(channels, LANE_GROUP) * LANE_GROUP; }
inline int64_t out_size(int64_t size, int64_t kernel, int64_t stride) {
  return (size + 2 * (kernel / 2) - kernel) / stride + 1;
}

// What a frame needs, and what it reads.
struct Frame {
  std::vector<int32_t> needed;                 // channels of conv1, in the order of the scratch's columns
  std::vector<int32_t> kept, kept_at;          // channels, and columns of this frame
  std::vector<int32_t> reused, reused_at;      // channels, and columns of the frame before
};

inline std::vector<Frame> plan(const Pair& p) {
  std::vector<Frame> frames(p.batch * p.frames);
  std::vector<int32_t> before(p.width), now(p.width);  // column of each channel; -1: not computed
  for (int64_t b = 0; b < p.batch; ++b) {
    for (int64_t t = 0; t < p.frames; ++t) {
      Frame& frame = frames[b * p.frames + t];
      const int8_t* actions = p.actions + (b * p.frames + t) * p.width;
      const int8_t* next = t + 1 < p.frames ? actions + p.width : nullptr;
      for (int64_t c = 0; c < p.width; ++c) {
        const bool needed = actions[c] == KEEP || (next && next[c] == REUSE);
        now[c] = needed ? static_cast<int32_t>(frame.needed.size()) : -1;
        const int32_t channel = static_cast<int32_t>(c);
        if (needed) frame.needed.push_back(channel);
        if (actions[c] == KEEP) {
          frame.kept.push_back(channel);
          frame.kept_at.push_back(now[c]);
        } else if (actions[c] == REUSE && t > 0) {  // before the first frame all is zero
          frame.reused.push_back(channel);
          frame.reused_at.push_back(before[c]);
        }
      }
      std::swap(before, now);
    }
  }
  return frames;
}

struct Job {
  int64_t frame, panel, begin, end;  // pixels
};

// Panels of all frames, cut into pieces of pixels where there are too few for all workers.
template <class Panels>
std::vector<Job> jobs_of(int64_t frames, Panels panels, int64_t pixels, int64_t workers) {
  int64_t count = 0;
  for (int64_t f = 0; f < frames; ++f) count += panels(f);
  const int64_t wanted = workers > 1 ? divide_up(2 * workers, std::max<int64_t>(count, 1)) : 1;
  const int64_t pieces = std::max<int64_t>(1, std::min(wanted, pixels / 48));
  std::vector<Job> jobs;
  jobs.reserve(count * pieces);
  for (int64_t f = 0; f < frames; ++f) {
    for (int64_t panel = 0; panel < panels(f); ++panel) {
      for (int64_t i = 0; i < pieces; ++i) {
        jobs.push_back({f, panel, pixels * i / pieces, pixels * (i + 1) / pieces});
      }
    }
  }
  return jobs;
}

// Taps at a time, so that their weights stay in the cache.
inline int64_t taps_at_once(int64_t rows_a_tap, int64_t taps) {
  return std::max<int64_t>(1, std::min(taps, CACHED / (std::max<int64_t>(rows_a_tap, 1) * PANEL)));
}

// `parallel(n, f)` runs f(job, worker) for all jobs below n, where no two at a time have the same worker, below
// `workers`.
template <class Parallel>
void run_pair(const Pair& p, Run run, int64_t workers, Parallel parallel) {
  const std::vector<Frame> frames = plan(p);
  const int64_t total = p.batch * p.frames;
  const int64_t taps1 = p.conv1.kernel * p.conv1.kernel, taps2 = p.conv2.kernel * p.conv2.kernel;
  const int64_t pixels1 = p.conv1.out_height * p.conv1.out_width;
  const int64_t pixels2 = p.conv2.out_height * p.conv2.out_width;
  const int64_t frame1 = p.conv1.height * p.conv1.width * p.in_features, frame2 = pixels1 * p.conv2.pitch;
  const int64_t step1 = taps_at_once(p.in_features, taps1);
  const int64_t packed = step1 * p.in_features * PANEL;
  const std::vector<float> zeros(std::max(p.in_features, p.conv2.pitch), 0.0f);
  std::vector<int32_t> all(p.in_features);
  for (int64_t i = 0; i < p.in_features; ++i) all[i] = static_cast<int32_t>(i);
  // The needed columns of the weights, one after the other; what lies beyond them is computed in vain.
  std::vector<float> packs(workers * packed, 0.0f);

  const auto panels1 = [&](int64_t f) {
    return divide_up(static_cast<int64_t>(frames[f].needed.size()), PANEL);
  };
  const std::vector<Job> jobs1 = jobs_of(total, panels1, pixels1, workers);
  parallel(static_cast<int64_t>(jobs1.size()), [&](int64_t i, int64_t worker) {
    const Job& job = jobs1[i];
    const std::vector<int32_t>& needed = frames[job.frame].needed;
    const int64_t first = job.panel * PANEL;
    const int64_t count = std::min<int64_t>(PANEL, static_cast<int64_t>(needed.size()) - first);
    float* pack = packs.data() + worker * packed;
    float bias[PANEL] = {0.0f};
    for (int64_t j = 0; j < count; ++j) bias[j] = p.bias1[needed[first + j]];
    const Source source{p.x + job.frame * frame1, all.data(), all.data(), p.in_features};
    for (int64_t tap = 0; tap < taps1; tap += step1) {
      const int64_t end = std::min(taps1, tap + step1);
      for (int64_t row = 0; row < (end - tap) * p.in_features; ++row) {
        const float* from = p.weights1 + (tap * p.in_features + row) * p.width;
        for (int64_t j = 0; j < count; ++j) pack[row * PANEL + j] = from[needed[first + j]];
      }
      const Panel panel{p.conv1, &source, 1,       zeros.data(), pack,        p.in_features,
                        tap,     end,     bias,    tap == 0,     end == taps1, true,
                        p.scratch + job.frame * frame2 + first, p.conv2.pitch};
      run(panel, job.begin, job.end, static_cast<int>(divide_up(count, LANE_GROUP)));
    }
  });

  const int64_t out_pitch = pad(p.features);
  const std::vector<Job> jobs2 =
      jobs_of(total, [&](int64_t) { return divide_up(p.features, PANEL); }, pixels2, workers);
  parallel(static_cast<int64_t>(jobs2.size()), [&](int64_t i, int64_t) {
    const Job& job = jobs2[i];
    const Frame& frame = frames[job.frame];
    const float* y = p.scratch + job.frame * frame2;
    Source sources[2];
    int num_sources = 0;
    if (!frame.kept.empty()) {
      const auto count = static_cast<int64_t>(frame.kept.size());
      sources[num_sources++] = {y, frame.kept_at.data(), frame.kept.data(), count};
    }
    if (!frame.reused.empty()) {
      const auto count = static_cast<int64_t>(frame.reused.size());
      sources[num_sources++] = {y - frame2, frame.reused_at.data(), frame.reused.data(), count};
    }
    const int64_t first = job.panel * PANEL;
    const int64_t count = std::min<int64_t>(PANEL, p.features - first);
    const int64_t read = static_cast<int64_t>(frame.kept.size() + frame.reused.size());
    const int64_t step = taps_at_once(read, taps2);
    for (int64_t tap = 0; tap < taps2; tap += step) {
      const int64_t end = std::min(taps2, tap + step);
      const float* weights = p.weights2 + (job.panel * taps2 + tap) * p.width * PANEL;
      const Panel panel{p.conv2, sources, num_sources,       zeros.data(), weights,      p.width,
                        tap,     end,     p.bias2 + first,   tap == 0,     end == taps2, false,
                        p.out + job.frame * pixels2 * out_pitch + first, out_pitch};
      run(panel, job.begin, job.end, static_cast<int>(divide_up(count, LANE_GROUP)));
    }
  });
}

}  // namespace adafuse

namespace ffi = xla::ffi;

using Floats = ffi::Buffer<ffi::F32>;
using Result = ffi::ResultBuffer<ffi::F32>;

static bool has_shape(ffi::Span<const int64_t> found, std::initializer_list<int64_t> expected) {
  return std::equal(found.begin(), found.end(), expected.begin(), expected.end());
}

static ffi::Error compact_pair(ffi::ThreadPool pool, int64_t kernel1, int64_t stride1, int64_t kernel2,
                               int64_t stride2, int64_t features, int64_t level, Floats x, Floats weights1,
                               Floats bias1, Floats weights2, Floats bias2, ffi::Buffer<ffi::S8> actions,
                               Result out, Result scratch) {
  using namespace adafuse;
  try {
    const auto wrong = [](const std::string& what) { return ffi::Error::InvalidArgument("adafuse_jax: " + what); };
    const auto dims = x.dimensions();
    if (dims.size() != 5 || bias1.dimensions().size() != 1) return wrong("x: expected (B, T, H, W, C)");
    Pair p{};
    p.batch = dims[0], p.frames = dims[1], p.in_features = dims[4];
    p.width = bias1.dimensions()[0], p.features = features;
    for (const int64_t kernel : {kernel1, kernel2}) {
      if (kernel < 1 || kernel > 31 || kernel % 2 == 0) return wrong("kernels: expected odd, 1 to 31");
    }
    if (stride1 < 1 || stride1 > 31 || stride2 < 1 || stride2 > 31) return wrong("strides: expected 1 to 31");
    for (const int64_t size : {dims[2], dims[3], p.in_features, p.width, p.features}) {
      if (size < 1 || size > (1 << 24)) return wrong("sizes: expected 1 to 2^24");
    }
    p.conv1 = {dims[2], dims[3], p.in_features, kernel1, stride1, out_size(dims[2], kernel1, stride1),
               out_size(dims[3], kernel1, stride1)};
    const int64_t h = p.conv1.out_height, w = p.conv1.out_width;
    p.conv2 = {h, w, pad(p.width), kernel2, stride2, out_size(h, kernel2, stride2), out_size(w, kernel2, stride2)};
    const int64_t panels = divide_up(features, PANEL);
    if (!has_shape(actions.dimensions(), {p.batch, p.frames, p.width})) return wrong("actions: expected (B, T, C)");
    if (!has_shape(weights1.dimensions(), {kernel1 * kernel1, p.in_features, p.width})) return wrong("weights1");
    if (!has_shape(weights2.dimensions(), {panels, kernel2 * kernel2, p.width, PANEL})) return wrong("weights2");
    if (!has_shape(bias2.dimensions(), {panels * PANEL})) return wrong("bias2");
    if (!has_shape(scratch->dimensions(), {p.batch, p.frames, h, w, pad(p.width)})) return wrong("scratch");
    if (!has_shape(out->dimensions(), {p.batch, p.frames, p.conv2.out_height, p.conv2.out_width, pad(features)})) {
      return wrong("out");
    }
    p.x = x.typed_data(), p.weights1 = weights1.typed_data(), p.bias1 = bias1.typed_data();
    p.weights2 = weights2.typed_data(), p.bias2 = bias2.typed_data(), p.actions = actions.typed_data();
    p.scratch = scratch->typed_data(), p.out = out->typed_data();
    for (const int8_t action : ffi::Span<const int8_t>(p.actions, actions.element_count())) {
      if (action < SKIP || action > KEEP) return wrong("actions: expected 0, 1 or 2");
    }
    const Run run = choose(level);
    if (run == nullptr) return wrong("level: expected instructions that this CPU has");
    const int64_t workers = std::max<int64_t>(1, std::min<int64_t>(pool.num_threads(), 256));
    run_pair(p, run, workers, [&](int64_t count, const std::function<void(int64_t, int64_t)>& f) {
      parallel_for(pool, workers, count, f);
    });
    return ffi::Error::Success();
  } catch (const std::exception& error) {  // no memory: nothing else throws
    return ffi::Error(ffi::ErrorCode::kResourceExhausted, std::string("adafuse_jax: ") + error.what());
  }
}

XLA_FFI_DEFINE_HANDLER_SYMBOL(AdafuseCompactPair, compact_pair,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Attr<int64_t>("kernel1")
                                  .Attr<int64_t>("stride1")
                                  .Attr<int64_t>("kernel2")
                                  .Attr<int64_t>("stride2")
                                  .Attr<int64_t>("features")
                                  .Attr<int64_t>("level")
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<ffi::Buffer<ffi::S8>>()
                                  .Ret<Floats>()
                                  .Ret<Floats>());
