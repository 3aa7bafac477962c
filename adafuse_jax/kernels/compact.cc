// A residual block with temporal fusion between its first two convolutions, computing no more than is needed
// (paper, Eqs. 3 and 5): the first gives, of each frame, the channels that are kept there or reused at the next;
// the second reads the channels that aren't skipped, a reused one where it lies, in the frame before. Those of 3x3
// and stride 1 are filtered (filtered.h), the first one else is dot products (dots.h), all others are sums over panels
// of weights. float32, channels last.
//
// One source for all CPUs: vectors as GCC and Clang write them, compiled for several kinds of CPU, of which the
// running one's is chosen at each call. No compiler flag may name a CPU. See block.py for the call.

#include <array>
#include <cmath>
#include <initializer_list>
#include <numeric>
#include <utility>
#include <vector>

#include "common.h"
#include "scratch.h"

#if defined(ADAFUSE_X86)
#include <cpuid.h>
#endif

namespace adafuse::compact {

constexpr int64_t SLICE = 48;          // pixels that are added up at a time, and pieces of work begin at; 8 tiles of 6
constexpr int64_t SPAN = 16;           // rows of weights, while which a few of those that come soon are brought in
constexpr int64_t TOGETHER = 1 << 21;  // floats of the maps of the images that go through a block at a time
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
  const float* initial;  // what the sum begins with, as `out` is laid out; null: zeros
  bool last, relu;  // whether the sum ends here, and then the bias is added
  float* out;
  int64_t out_pitch;
  // While six of the pixels from `begin` on are computed, with each SPAN rows of weights, `pixels` of the next six are
  // brought in, and `share` of the rows that come `soon` floats behind these; soon = 0: none.
  int64_t begin, pixels, share, soon;
  float* sums;         // of the outputs of each slice of the pixels, a row of `out_pitch` each; or null
};

// Up to 64 outputs of a row of pixels, of rows of inputs with a border of zeros: under each of the `kernel` rows
// of weights lie `count` floats side by side.
struct Row {
  const float* in;
  int64_t in_pitch, kernel, count, step, pixels;  // step: floats from one pixel's inputs to the next one's
  const float *weights, *bias;
  float* out;  // after a ReLU
  int64_t out_pitch;
};

// A row of pixels by max pooling (3x3, stride 2) of three rows, of `width` pixels of 64 floats each, which are those of
// a ReLU. Beyond the border lies what lies at it: the largest is the same.
struct Pooling {
  std::array<const float*, 3> rows;
  int64_t width, lanes;  // lanes: floats of a pixel that count, a multiple of 16
  float* out;
  int64_t pixels, out_pitch;
};

// Any `count` outputs of a convolution, each as the dot product of the inputs under the kernel and its weights, both
// read as they lie.
struct Dots {
  const Conv& conv;          // its pitch a multiple of 16
  const float *x, *zeros;    // zeros: a pixel of the border
  const float *weights, *bias;  // (outputs, taps, pitch), (outputs)
  const int32_t* channels;
  int64_t count;
  float* out;                // after a ReLU; what lies beyond up to a multiple of 4 is written, too
  int64_t out_pitch;
};

#include "tiles.h"

// The inner loops, for one kind of CPU.
struct Loops {
  void (*run)(const Panel&, int64_t, int64_t, int);
  void (*run_row)(const Row&, int);
  void (*pool)(const Pooling&);
  void (*sum)(const float*, int64_t, int64_t, float*);
  void (*run_dots)(const Dots&, int64_t, int64_t);
  Transforms filter4, filter6;
  void (*stem_inputs)(const Phases&, int64_t, int64_t, const Spectrum&);
  void (*stem_outputs)(const Spectrum&, const Phases&, int64_t, int64_t, const Finish&);
  void (*turned)(const TurnedProduct&);
  void (*product)(const Product&);
};

#if defined(ADAFUSE_X86)
// Whether this is AMD's Zen 5 or later. Weights from the memory cost it 0.8 of the time if they are brought into the
// first cache rather than the second, though they are read long after; Zen 4, by contrast, 1.1 to 1.4 times as much.
inline bool is_zen5() {
  static const bool found = [] {
    unsigned a, b, c, d;
    if (!__get_cpuid(0, &a, &b, &c, &d) || b != signature_AMD_ebx) return false;
    return __get_cpuid(1, &a, &b, &c, &d) && (a >> 8 & 0xf) + (a >> 20 & 0xff) >= 0x1a;  // the family
  }();
  return found;
}
#endif

#define KERNELS "tile.h"
#define PREFETCHES
#include "levels.h"
#undef KERNELS
#undef PREFETCHES

using Run = decltype(Loops::run);

// Clips, as the handler has checked them. Of each frame, `y` holds the computed channels one after the other. The
// pixels of y, z and out have so many floats as their channels, rounded up to 16.
//
// On a stream, `x_before` is what conv1 read at the frame before the first, and the columns of `y_before` are the
// channels kept there; other channels may be reused now, and are computed into `late`. Else they are null. Behind the
// columns lie the frame's actions, each one more than its number; 0: there was no such frame.
struct Block {
  int64_t batch, frames;
  Conv conv1, conv2, conv3, project;  // conv3: there is one if weights3 aren't null; project: of the shortcut
  int64_t in_features, width, middle, features;  // channels: of x, of conv1, of conv2 and of the output
  const float *x, *weights1, *bias1;  // (B, T, H, W, in), (width, taps, in), (width)
  const float *weights2, *bias2;      // (panels, taps, width, 64), (panels * 64)
  const float *weights3, *bias3;      // (panels, 1, middle, 64), (panels * 64)
  // To be added before a last ReLU, where it isn't null: as `out` is laid out, or, with weights, as x is.
  const float *shortcut, *weights_shortcut;  // (panels, 1, in, 64)
  const int8_t* actions;              // (B, T, width)
  float *y, *z, *out;                 // after conv1, after conv2 if there is a conv3, and after all
  float* averages;                    // of out, (B, T, its channels up to 16), if there is a conv3
  const float *x_before, *y_before;   // (B, H, W, in), (B, y_frame())
  float* late;                        // as y_before
  // Of the tiles by which conv1 and conv2 are filtered, or 0. Their weights are (side, side, width, in) and
  // (panels, side * side, width, 64) then.
  int64_t side1, side2;

  int64_t columns() const { return conv2.height * conv2.width * conv2.pitch; }  // floats of a frame of y
  int64_t y_frame() const { return columns() + conv2.pitch; }                   // with its actions behind them
};

inline int64_t pad(int64_t channels) { return divide_up(channels, GROUP) * GROUP; }
inline int64_t out_size(int64_t size, int64_t kernel, int64_t stride) {
  return (size + 2 * (kernel / 2) - kernel) / stride + 1;
}

// Numbers of channels or columns, which a plan holds.
struct List {
  const int32_t* data = nullptr;
  int64_t count = 0;
};

// Channels of an image that conv1 computes, into columns of y.
struct Made {
  const float* x;
  float* y;
  List channels;
};

// Channels that conv2 reads, and the columns of y where they are, which ascend.
struct Read {
  const float* y = nullptr;
  List channels;
  const int32_t* columns = nullptr;
};

struct Plan {
  std::vector<int32_t> numbers;
  std::vector<Made> made;
  std::vector<std::array<Read, 3>> read;  // by each frame: kept, reused, and reused but computed late
};

inline Plan plan(const Block& p) {
  enum Use : int8_t { HERE = 1, NEXT = 2, BOTH = HERE + NEXT, EARLIER = 4, LATE = 5 };  // which frame's conv2 reads it
  const int64_t in_frame = p.conv1.height * p.conv1.width * p.in_features, y_frame = p.y_frame();
  const int64_t total = p.batch * p.frames, of_frame = (p.y_before != nullptr ? 3 : 1) * p.width;
  Plan all;
  all.numbers.resize(p.width + total * of_frame + 1);  // a list writes one more than it holds
  all.made.reserve(2 * total);
  all.read.resize(total);
  std::iota(all.numbers.begin(), all.numbers.begin() + p.width, 0);
  const int32_t* const rising = all.numbers.data();
  int32_t* end = all.numbers.data() + p.width;
  std::vector<int8_t> uses(p.width);
  // Lists the channels of a use. Without branches: what comes can't be foreseen.
  const auto list = [&](int8_t use, const auto& number) {
    int32_t* const begin = end;
    for (int64_t c = 0; c < p.width; ++c) {
      *end = static_cast<int32_t>(number(c));
      end += uses[c] == use;
    }
    return List{begin, end - begin};
  };
  const auto itself = [](int64_t c) { return c; };
  for (int64_t frame = 0; frame < total; ++frame) {
    const int64_t b = frame / p.frames, t = frame % p.frames;
    const int8_t* const actions = p.actions + frame * p.width;
    auto& [kept, reused, late] = all.read[frame];
    for (int64_t c = 0; c < p.width; ++c) uses[c] = actions[c] == KEEP ? HERE : 0;
    if (t + 1 < p.frames) {
      const int8_t* const next = actions + p.width;
      for (int64_t c = 0; c < p.width; ++c) uses[c] = static_cast<int8_t>(uses[c] + (next[c] == REUSE ? NEXT : 0));
    }
    // In this order each frame reads columns side by side.
    const List here = list(HERE, itself), both = list(BOTH, itself), next = list(NEXT, itself);
    Made made{p.x + frame * in_frame, p.y + frame * y_frame, {here.data, here.count + both.count + next.count}};
    kept = {made.y, {here.data, here.count + both.count}, rising};
    if (t + 1 < p.frames) all.read[frame + 1][1] = {made.y, {both.data, both.count + next.count}, rising + here.count};
    all.made.push_back(made);
    if (p.y_before == nullptr) continue;
    const float* const y = p.y_before + b * y_frame;
    const float* const earlier = y + p.columns();
    for (int64_t c = 0; c < p.width; ++c) {
      const bool there = earlier[c] != 0;  // else what is reused is zero
      uses[c] = actions[c] == REUSE && there ? (earlier[c] == KEEP + 1 ? EARLIER : LATE) : 0;
    }
    int64_t column = 0;
    const List channels = list(EARLIER, itself);
    const List columns = list(EARLIER, [&](int64_t c) { return earlier[c] == KEEP + 1 ? column++ : column; });
    reused = {y, channels, columns.data};
    const List more = list(LATE, itself);
    late = {p.late + b * y_frame, more, rising};
    if (more.count > 0) all.made.push_back({p.x_before + b * in_frame, p.late + b * y_frame, more});
  }
  return all;
}

// A part of a range, the `i`-th of `parts`.
struct Range {
  int64_t begin, end;
  Range(int64_t count, int64_t i, int64_t parts) : begin(count * i / parts), end(count * (i + 1) / parts) {}
};

struct Job {
  int64_t image, panel, begin, end;  // pixels
};

// Panels of all images, cut into pieces of pixels where there are too few for all workers; image after image, or
// panel after panel of all images, as `weighty` says: so that what takes more room is read once.
template <class Panels>
std::vector<Job> jobs_of(int64_t images, Panels panels, int64_t pixels, int64_t workers, bool weighty = false) {
  int64_t count = 0;
  for (int64_t i = 0; i < images; ++i) count += panels(i);
  const int64_t wanted = workers > 1 ? divide_up(4 * workers, std::max<int64_t>(count, 1)) : 1;
  const int64_t pieces = std::max<int64_t>(1, std::min(wanted, pixels / SLICE));
  std::vector<Job> jobs;
  jobs.reserve(count * pieces);
  for (int64_t image = 0; image < images; ++image) {
    for (int64_t panel = 0; panel < panels(image); ++panel) {
      for (int64_t i = 0; i < pieces; ++i) {
        const Range slices(divide_up(pixels, SLICE), i, pieces);
        jobs.push_back({image, panel, slices.begin * SLICE, std::min(slices.end * SLICE, pixels)});
      }
    }
  }
  if (weighty) {
    std::stable_sort(jobs.begin(), jobs.end(), [](const Job& a, const Job& b) { return a.panel < b.panel; });
  }
  return jobs;
}

// Taps at a time, so that their weights stay in the cache.
inline int64_t taps_at_once(int64_t rows_a_tap, int64_t taps) {
  return std::max<int64_t>(1, std::min(taps, CACHED / (std::max<int64_t>(rows_a_tap, 1) * PANEL)));
}

// A job's panel, the first of some of the `features` outputs, over all taps. `rows` of the weights are read at each
// tap. What this thread does next is, where there are `workers` of them, so many panels ahead.
inline void convolve(Run run, Panel panel, int64_t rows, const Job& job, int64_t features, int64_t workers) {
  const int64_t taps = panel.conv.kernel * panel.conv.kernel, step = taps_at_once(rows, taps);
  const int64_t outputs = std::min<int64_t>(PANEL, features - job.panel * PANEL);
  const int64_t next = (job.panel + workers) * PANEL < features ? workers * taps : 0;
  const bool last = panel.last;
  const float* weights = panel.weights;
  for (int64_t tap = 0; tap < taps; tap += step) {
    panel.tap_begin = tap;
    panel.tap_end = std::min(taps, tap + step);
    panel.last = last && panel.tap_end == taps;
    panel.weights = weights + tap * panel.channels * PANEL;
    panel.begin = job.begin, panel.pixels = divide_up(6 * SPAN, std::max<int64_t>(rows, 1));
    panel.share = divide_up(SPAN, divide_up(job.end - job.begin, 6));
    panel.soon = (panel.tap_end < taps ? step : std::max<int64_t>(0, next - tap)) * panel.channels * PANEL;
    run(panel, job.begin, job.end, static_cast<int>(divide_up(outputs, GROUP)));
    panel.initial = panel.out;
  }
}

// 0, 1, 2, ...
inline std::vector<int32_t> counted(int64_t count) {
  std::vector<int32_t> numbers(count);
  std::iota(numbers.begin(), numbers.end(), 0);
  return numbers;
}

// Of the pixels of an image, whose slices are added up already.
inline void average(const float* sums, int64_t pixels, int64_t channels, const Loops& loops, float* averages) {
  loops.sum(sums, divide_up(pixels, SLICE), channels, averages);
  for (int64_t c = 0; c < channels; ++c) averages[c] /= static_cast<float>(pixels);
}

// In the following `parallel(n, f)` runs f(job, worker) for all jobs below n, where no two at a time have the same
// worker, below `workers`.

// Pixels of `from` floats as pixels of `to`, filled up with zeros.
inline void widen(const float* in, int64_t pixels, int64_t from, int64_t to, float* out) {
  for (int64_t i = 0; i < pixels; ++i) {
    std::copy_n(in + i * from, from, out + i * to);
    std::fill_n(out + i * to + from, to - from, 0.0f);
  }
}

// The first convolution: of each image other channels, so that weights laid out for it would be used once.
template <class Parallel>
void run_in_dots(const Block& p, std::vector<Made> images, const Loops& loops, int64_t workers, Parallel parallel) {
  Conv conv = p.conv1;
  conv.pitch = pad(p.in_features);
  const int64_t taps = conv.kernel * conv.kernel, pixels = conv.height * conv.width;
  const auto total = static_cast<int64_t>(images.size());
  const std::vector<float> zeros(conv.pitch, 0.0f);
  const float* weights = p.weights1;
  Floats wide_weights, wide_images;
  if (conv.pitch != p.in_features) {
    wide_weights = floats(p.width * taps * conv.pitch);
    widen(weights, p.width * taps, p.in_features, conv.pitch, wide_weights.get());
    weights = wide_weights.get();
    wide_images = floats(total * pixels * conv.pitch);
    parallel(total, [&](int64_t i, int64_t) {
      float* const wide = wide_images.get() + i * pixels * conv.pitch;
      widen(images[i].x, pixels, p.in_features, conv.pitch, wide);
      images[i].x = wide;
    });
  }
  // Outputs at a time, so that their weights stay in the cache; of an image about as many each time.
  const int64_t at_once = std::max<int64_t>(GROUP, CACHED / (taps * conv.pitch) / 4 * 4);
  const auto count_of = [&](int64_t i) { return images[i].channels.count; };
  const auto parts_of = [&](int64_t i) { return divide_up(count_of(i), at_once); };
  const std::vector<Job> jobs = jobs_of(total, parts_of, conv.out_height * conv.out_width, workers);
  parallel(static_cast<int64_t>(jobs.size()), [&](int64_t i, int64_t) {
    const Job& job = jobs[i];
    const Made& image = images[job.image];
    const int64_t each = divide_up(divide_up(count_of(job.image), 4), parts_of(job.image)) * 4;
    const int64_t first = job.panel * each, count = std::min(each, count_of(job.image) - first);
    loops.run_dots({conv, image.x, zeros.data(), weights, p.bias1, image.channels.data + first, count,
                    image.y + first, p.conv2.pitch}, job.begin, job.end);
  });
}

#include "filtered.h"

// Some images, from the first of p on.
template <class Parallel>
void run_images(const Block& p, const std::vector<Made>& made, const std::vector<std::array<Read, 3>>& read,
                const Loops& loops, int64_t workers, Parallel parallel) {
  const Run run = loops.run;
  const auto total = static_cast<int64_t>(read.size());
  const int64_t out_pitch = pad(p.features);
  const int64_t taps2 = p.conv2.kernel * p.conv2.kernel;
  const int64_t pixels1 = p.conv1.out_height * p.conv1.out_width;
  const int64_t pixels2 = p.conv2.out_height * p.conv2.out_width;
  const int64_t widest = std::max({p.in_features, pad(p.width), pad(p.middle)});
  const std::vector<float> zeros(widest, 0.0f);
  const std::vector<int32_t> every = counted(widest);
  if (p.side1 > 0) {
    filter_columns(p, made, loops, workers, parallel);
  } else {
    run_in_dots(p, made, loops, workers, parallel);
  }

  // The shortcut's convolution, into the output.
  const auto project = [&](const Job& job) {
    const int64_t first = job.panel * PANEL;
    const float* x = p.shortcut + job.image * p.project.height * p.project.width * p.in_features;
    const Source source{x, every.data(), every.data(), p.in_features};
    convolve(run, Panel{p.project, &source, 1, zeros.data(), p.weights_shortcut + first * p.in_features, p.in_features,
                        0, 1, nullptr, nullptr, false, false, p.out + job.image * pixels2 * out_pitch + first,
                        out_pitch}, p.in_features, job, p.features, workers);
  };
  // The last convolution begins with the shortcut.
  const auto finish = [&](Panel panel, const float* bias, int64_t rows, const Job& job) {
    const int64_t first = job.panel * PANEL;
    panel.out = p.out + job.image * pixels2 * out_pitch + first;
    panel.out_pitch = out_pitch;
    panel.bias = bias + first;
    panel.last = true;
    panel.relu = p.shortcut != nullptr;
    if (p.shortcut != nullptr) {
      if (p.weights_shortcut != nullptr) project(job);
      const float* initial = p.weights_shortcut != nullptr ? p.out : p.shortcut;
      panel.initial = initial + job.image * pixels2 * out_pitch + first;
    }
    convolve(run, panel, rows, job, p.features, workers);
  };
  const auto panels_of = [&](int64_t outputs) { return [=](int64_t) { return divide_up(outputs, PANEL); }; };

  if (p.side2 > 0) {
    if (p.weights3 == nullptr && p.weights_shortcut != nullptr) {
      const std::vector<Job> jobs = jobs_of(total, panels_of(p.features), pixels2, workers);
      parallel(static_cast<int64_t>(jobs.size()), [&](int64_t i, int64_t) { project(jobs[i]); });
    }
    filter_sources(p, read, loops, workers, parallel);
  } else {
    const std::vector<Job> jobs2 =
        jobs_of(total, panels_of(p.middle), pixels2, workers,
                taps2 * p.width * PANEL > pixels1 * p.conv2.pitch);
    parallel(static_cast<int64_t>(jobs2.size()), [&](int64_t i, int64_t) {
      const Job& job = jobs2[i];
      Source sources[3];
      int num_sources = 0;
      int64_t rows = 0;
      for (const Read& from : read[job.image]) {
        const auto [channels, count] = from.channels;
        if (count > 0) sources[num_sources++] = {from.y, from.columns, channels, count};
        rows += count;
      }
      const int64_t first = job.panel * PANEL;
      const float* weights = p.weights2 + job.panel * taps2 * p.width * PANEL;
      Panel panel{p.conv2, sources, num_sources, zeros.data(), weights, p.width, 0, 0, p.bias2 + first,
                  nullptr, true, true, nullptr, p.conv3.pitch};
      if (p.weights3 == nullptr) {
        finish(panel, p.bias2, rows, job);
      } else {
        panel.out = p.z + job.image * pixels2 * p.conv3.pitch + first;
        convolve(run, panel, rows, job, p.middle, workers);
      }
    });
  }
  if (p.weights3 == nullptr) return;

  const std::vector<Job> jobs3 =
      jobs_of(total, panels_of(p.features), pixels2, workers,
              p.middle * PANEL > pixels2 * p.conv3.pitch);
  const int64_t slices = divide_up(pixels2, SLICE);
  const Scratch sums(total * slices * out_pitch);
  parallel(static_cast<int64_t>(jobs3.size()), [&](int64_t i, int64_t) {
    const Job& job = jobs3[i];
    const Source source{p.z + job.image * pixels2 * p.conv3.pitch, every.data(), every.data(), p.middle};
    const float* weights = p.weights3 + job.panel * p.middle * PANEL;
    Panel panel{p.conv3, &source, 1, zeros.data(), weights, p.middle, 0, 0, nullptr, nullptr, true, true, nullptr, 0};
    panel.sums = sums.get() + job.image * slices * out_pitch + job.panel * PANEL;
    finish(panel, p.bias3, p.middle, job);
  });
  for (int64_t image = 0; image < total; ++image) {
    average(sums.get() + image * slices * out_pitch, pixels2, out_pitch, loops, p.averages + image * out_pitch);
  }
}

// Images that go through a block at a time, from the first convolution to the last, which adds what the first one read:
// as many as stay in the last cache, but no fewer than take as much room as the weights, which are read each time.
inline int64_t images_at_once(const Block& p) {
  const int64_t frame = p.conv1.height * p.conv1.width * p.in_features +
                        p.conv2.height * p.conv2.width * p.conv2.pitch +
                        p.conv2.out_height * p.conv2.out_width * (pad(p.middle) + pad(p.features));
  const int64_t taps1 = p.side1 > 0 ? p.side1 * p.side1 : p.conv1.kernel * p.conv1.kernel;
  const int64_t taps2 = p.side2 > 0 ? p.side2 * p.side2 : p.conv2.kernel * p.conv2.kernel;
  const int64_t weights = p.width * (taps1 * p.in_features + taps2 * p.middle) + p.middle * p.features;
  return divide_up(std::max(TOGETHER, weights), frame);
}

// `most`: images at a time.
template <class Parallel>
void run_block(const Block& p, const Loops& loops, int64_t workers, Parallel parallel, int64_t most) {
  const Plan all = plan(p);
  if (p.y_before != nullptr) {  // one frame of each stream, and some that came before
    for (int64_t b = 0; b < p.batch; ++b) {
      float* const noted = p.y + b * p.y_frame() + p.columns();
      for (int64_t c = 0; c < p.width; ++c) noted[c] = static_cast<float>(p.actions[b * p.width + c] + 1);
    }
    run_images(p, all.made, all.read, loops, workers, parallel);
    return;
  }
  const int64_t pixels = p.conv2.out_height * p.conv2.out_width;
  const int64_t shortcut =
      p.weights_shortcut != nullptr ? p.project.height * p.project.width * p.in_features : pixels * pad(p.features);
  const int64_t total = p.batch * p.frames, parts = divide_up(total, most);
  for (int64_t i = 0; i < parts; ++i) {
    const Range images(total, i, parts);
    Block part = p;
    part.out += images.begin * pixels * pad(p.features);
    if (p.shortcut != nullptr) part.shortcut += images.begin * shortcut;
    if (p.weights3 != nullptr) {
      part.z += images.begin * pixels * pad(p.middle);
      part.averages += images.begin * pad(p.features);
    }
    run_images(part, {all.made.begin() + images.begin, all.made.begin() + images.end},
               {all.read.begin() + images.begin, all.read.begin() + images.end}, loops, workers, parallel);
  }
}

#include "policy.h"
#include "stem.h"

}  // namespace adafuse::compact

namespace ffi = xla::ffi;

using Input = ffi::Buffer<ffi::F32>;
using Bytes = ffi::Buffer<ffi::S8>;
using Output = ffi::ResultBuffer<ffi::F32>;
using Chosen = ffi::ResultBuffer<ffi::S8>;

namespace {

using namespace adafuse;
using namespace adafuse::compact;

template <class Expected = std::initializer_list<int64_t>>
bool has_shape(ffi::Span<const int64_t> found, const Expected& expected) {
  return std::equal(found.begin(), found.end(), expected.begin(), expected.end());
}

// What lies one behind the other, each from a multiple of 16 floats on.
class Joined {
 public:
  explicit Joined(const Input& all) : data_(all.typed_data()), size_(static_cast<int64_t>(all.element_count())) {}
  const float* next(int64_t count) {
    const float* const found = data_ + at_;
    at_ += pad(count);
    return found;
  }
  bool ended() const { return at_ == size_; }

 private:
  const float* data_;
  int64_t size_, at_ = 0;
};

ffi::Error compact_block(ffi::ThreadPool pool, int64_t kernel1, int64_t stride1, int64_t side1, int64_t kernel2,
                         int64_t stride2, int64_t side2, int64_t middle, int64_t features, int64_t third,
                         int64_t projects, int64_t level, Input x, Input weights, Bytes actions, Input shortcut,
                         Input x_before, Input y_before, Output out, Output y, Output z, Output late,
                         Output averages) {
  const auto dims = x.dimensions();
  if (dims.size() != 5) return wrong("x: expected (B, T, H, W, C)");
  if (actions.dimensions().size() != 3) return wrong("actions: expected (B, T, C)");
  Block p{};
  p.batch = dims[0], p.frames = dims[1], p.in_features = dims[4];
  p.width = actions.dimensions()[2], p.middle = middle, p.features = features;
  for (const int64_t kernel : {kernel1, kernel2}) {
    if (kernel < 1 || kernel > 31 || kernel % 2 == 0) return wrong("kernels: expected odd, 1 to 31");
  }
  if (stride1 < 1 || stride1 > 31 || stride2 < 1 || stride2 > 31) return wrong("strides: expected 1 to 31");
  for (const int64_t size : {dims[2], dims[3], p.in_features, p.width, p.middle, p.features}) {
    if (size < 1 || size > (1 << 24)) return wrong("sizes: expected 1 to 2^24");
  }
  const auto side_fits = [](int64_t side, int64_t kernel, int64_t stride) {
    return side == 0 || ((side == 4 || side == 6) && kernel == 3 && stride == 1);
  };
  if (!side_fits(side1, kernel1, stride1) || !side_fits(side2, kernel2, stride2)) return wrong("sides");
  p.side1 = side1, p.side2 = side2;
  const int64_t h = out_size(dims[2], kernel1, stride1), w = out_size(dims[3], kernel1, stride1);
  const int64_t h2 = out_size(h, kernel2, stride2), w2 = out_size(w, kernel2, stride2);
  p.conv1 = {dims[2], dims[3], p.in_features, kernel1, stride1, h, w};
  p.conv2 = {h, w, pad(p.width), kernel2, stride2, h2, w2};
  p.conv3 = {h2, w2, pad(p.middle), 1, 1, h2, w2};
  p.project = {dims[2], dims[3], p.in_features, 1, stride1 * stride2, h2, w2};
  if (!has_shape(actions.dimensions(), {p.batch, p.frames, p.width})) return wrong("actions: expected (B, T, C)");
  const int64_t panels2 = divide_up(middle, PANEL), panels = divide_up(features, PANEL);
  const int64_t taps1 = side1 > 0 ? side1 * side1 : kernel1 * kernel1;
  const int64_t taps2 = side2 > 0 ? side2 * side2 : kernel2 * kernel2;
  Joined rest(weights);
  p.weights1 = rest.next(taps1 * p.width * p.in_features), p.bias1 = rest.next(p.width);
  p.weights2 = rest.next(panels2 * taps2 * p.width * PANEL), p.bias2 = rest.next(panels2 * PANEL);
  if (third != 0) {
    p.weights3 = rest.next(panels * middle * PANEL), p.bias3 = rest.next(panels * PANEL);
    if (!has_shape(z->dimensions(), {p.batch, p.frames, h2, w2, pad(middle)})) return wrong("z");
    if (!has_shape(averages->dimensions(), {p.batch, p.frames, pad(features)})) return wrong("averages");
    p.z = z->typed_data(), p.averages = averages->typed_data();
  } else if (middle != features) {
    return wrong("features: expected those of the second convolution");
  }
  if (projects != 0) {
    p.weights_shortcut = rest.next(panels * p.in_features * PANEL);
    if (!has_shape(shortcut.dimensions(), dims)) return wrong("shortcut: expected the shape of x");
  } else if (shortcut.element_count() > 0) {
    if (!has_shape(shortcut.dimensions(), out->dimensions())) return wrong("shortcut: expected the output's shape");
  }
  if (!rest.ended()) return wrong("weights: expected those of the block's sizes");
  if (shortcut.element_count() > 0) p.shortcut = shortcut.typed_data();
  if (!has_shape(y->dimensions(), {p.batch, p.frames, p.y_frame()})) return wrong("y");
  if (!has_shape(out->dimensions(), {p.batch, p.frames, h2, w2, pad(features)})) return wrong("out");
  if (const int64_t streams = x_before.dimensions().size() == 4 ? x_before.dimensions()[0] : -1; streams != 0) {
    if (streams != p.batch || !has_shape(x_before.dimensions(), {streams, dims[2], dims[3], p.in_features})) {
      return wrong("x_before: expected (B, H, W, C)");
    }
    if (p.frames != 1) return wrong("x: expected one frame of a stream");
    if (!has_shape(y_before.dimensions(), {streams, p.y_frame()})) return wrong("y_before");
    if (!has_shape(late->dimensions(), {streams, p.y_frame()})) return wrong("late");
    p.x_before = x_before.typed_data(), p.y_before = y_before.typed_data(), p.late = late->typed_data();
  }
  p.x = x.typed_data(), p.actions = actions.typed_data(), p.y = y->typed_data(), p.out = out->typed_data();
  for (const int8_t action : ffi::Span<const int8_t>(p.actions, actions.element_count())) {
    if (action < SKIP || action > KEEP) return wrong("actions: expected 0, 1 or 2");
  }
  const Loops* loops = choose(level);
  if (loops == nullptr) return wrong("level: expected instructions that this CPU has");
  return on_pool(pool, [&](int64_t workers, auto parallel) {
    run_block(p, *loops, workers, parallel, images_at_once(p));
  });
}

ffi::Error stem(ffi::ThreadPool pool, int64_t kernel, int64_t stride, int64_t features, int64_t pool_,
                int64_t level, Input x, Input weights, Input bias, Output out) {
  const auto dims = x.dimensions();
  if (dims.size() != 4) return wrong("x: expected (N, H, W, C)");
  if (kernel < 1 || kernel > 31 || kernel % 2 == 0) return wrong("kernel: expected odd, 1 to 31");
  if (stride < 1 || stride > 31) return wrong("stride: expected 1 to 31");
  for (const int64_t size : {dims[1], dims[2], dims[3], features}) {
    if (size < 1 || size > (1 << 24)) return wrong("sizes: expected 1 to 2^24");
  }
  Stem s{dims[0], {dims[1], dims[2], dims[3], kernel, stride, out_size(dims[1], kernel, stride),
         out_size(dims[2], kernel, stride)}, features, pool_ != 0, x.typed_data(), weights.typed_data(),
         bias.typed_data(), out->typed_data(), false};
  const int64_t panels = divide_up(features, PANEL);
  s.filtered = kernel == 7 && stride == 2 && has_shape(weights.dimensions(), {panels, 36, 4 * dims[3], PANEL});
  if (!s.filtered && !has_shape(weights.dimensions(), {panels, kernel, kernel * dims[3], PANEL})) {
    return wrong("weights");
  }
  if (!has_shape(bias.dimensions(), {panels * PANEL})) return wrong("bias");
  if (!has_shape(out->dimensions(), {s.images, s.height(), s.width(), pad(features)})) return wrong("out");
  const Loops* loops = choose(level);
  if (loops == nullptr) return wrong("level: expected instructions that this CPU has");
  return on_pool(pool, [&](int64_t workers, auto parallel) { run_stem(s, *loops, workers, parallel); });
}

ffi::Error policy(ffi::ThreadPool pool, int64_t group_size, ffi::Span<const int64_t> actions, int64_t level, Input x,
                  Input v_before, Input kernels, Input norm, Input bias, Output v, Chosen chosen) {
  const auto dims = x.dimensions(), of = chosen->dimensions();
  if (dims.size() != 5 || of.size() != 3) return wrong("x: expected (B, T, H, W, C)");
  Policy p{};
  p.batch = dims[0], p.frames = dims[1], p.pixels = dims[2] * dims[3], p.features = dims[4];
  p.hidden = static_cast<int64_t>(norm.element_count() / 2), p.channels = of[2], p.group_size = group_size;
  if (p.pixels < 1) return wrong("x: expected pixels");
  if (group_size < 1 || p.channels % group_size != 0) return wrong("group_size: expected a divisor of the channels");
  p.choices = static_cast<int64_t>(actions.size());
  if (p.choices < 1 || p.choices > 3) return wrong("actions: expected 1 to 3");
  for (int64_t i = 0; i < p.choices; ++i) {
    if (actions[i] < SKIP || actions[i] > KEEP) return wrong("actions: expected 0, 1 or 2");
    p.actions[i] = static_cast<int8_t>(actions[i]);
    p.looks_back = p.looks_back || actions[i] == REUSE;
  }
  const int64_t rows = p.batch * p.frames;
  if (!has_shape(of, {p.batch, p.frames, p.channels})) return wrong("chosen");
  if (!has_shape(v->dimensions(), {p.batch, p.frames, p.features})) return wrong("v");
  if (!has_shape(v_before.dimensions(), {p.batch, p.features})) return wrong("v_before: expected (B, C)");
  if (!has_shape(norm.dimensions(), {2, p.hidden})) return wrong("norm: expected (2, hidden units)");
  Joined rest(kernels);
  p.weights0 = rest.next(divide_up(p.hidden, PANEL) * p.inputs() * PANEL);
  p.weights1 = rest.next(divide_up(p.outputs(), PANEL) * p.hidden * PANEL);
  if (!rest.ended()) return wrong("kernels: expected those of the network's sizes");
  p.own_bias = has_shape(bias.dimensions(), {rows, p.outputs()});
  if (!p.own_bias && !has_shape(bias.dimensions(), {1, p.outputs()})) return wrong("bias");
  p.x = x.typed_data(), p.v_before = v_before.typed_data();
  p.factor = norm.typed_data(), p.offset = p.factor + p.hidden, p.bias1 = bias.typed_data();
  p.v = v->typed_data(), p.chosen = chosen->typed_data();
  const Loops* loops = choose(level);
  if (loops == nullptr) return wrong("level: expected instructions that this CPU has");
  return on_pool(pool, [&](int64_t, auto parallel) { run_policy(p, *loops, parallel); });
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(AdafusePolicy, policy,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Attr<int64_t>("group_size")
                                  .Attr<ffi::Span<const int64_t>>("actions")
                                  .Attr<int64_t>("level")
                                  .Arg<Input>()
                                  .Arg<Input>()
                                  .Arg<Input>()
                                  .Arg<Input>()
                                  .Arg<Input>()
                                  .Ret<Input>()
                                  .Ret<Bytes>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(AdafuseStem, stem,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Attr<int64_t>("kernel")
                                  .Attr<int64_t>("stride")
                                  .Attr<int64_t>("features")
                                  .Attr<int64_t>("pool")
                                  .Attr<int64_t>("level")
                                  .Arg<Input>()
                                  .Arg<Input>()
                                  .Arg<Input>()
                                  .Ret<Input>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(AdafuseCompactBlock, compact_block,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Attr<int64_t>("kernel1")
                                  .Attr<int64_t>("stride1")
                                  .Attr<int64_t>("side1")
                                  .Attr<int64_t>("kernel2")
                                  .Attr<int64_t>("stride2")
                                  .Attr<int64_t>("side2")
                                  .Attr<int64_t>("middle")
                                  .Attr<int64_t>("features")
                                  .Attr<int64_t>("third")
                                  .Attr<int64_t>("projects")
                                  .Attr<int64_t>("level")
                                  .Arg<Input>()
                                  .Arg<Input>()
                                  .Arg<Bytes>()
                                  .Arg<Input>()
                                  .Arg<Input>()
                                  .Arg<Input>()
                                  .Ret<Input>()
                                  .Ret<Input>()
                                  .Ret<Input>()
                                  .Ret<Input>()
                                  .Ret<Input>());
