// 3x3 convolutions of stride 1, padded by 1, by Winograd's minimal filtering F(2x2, 3x3), and the gradient of
// their weights: Y = A^T [(G w G^T) * (B^T x B)] A for tiles of 4x4 inputs x and 2x2 outputs Y, where the product
// runs over 16 frequencies and is, for each, one of matrices: tiles by channels, channels by outputs. Source:
// Lavin and Gray, "Fast algorithms for convolutional neural networks", CVPR 2016. float32, channels last.
//
// What is computed from a block of tiles stays in the cache until its outputs are written. All sums have one
// order, whatever the number of threads. As in compact.cc, one source for all CPUs. See winograd.py for the calls.

#include "common.h"

namespace adafuse::winograd {

constexpr int FREQUENCIES = 16;
constexpr int64_t BLOCK = 48;   // tiles that are filtered at a time

// Images one after the other, and their tiles of 2x2 pixels.
struct Image {
  const float* data;
  int64_t count, height, width, channels;

  int64_t tall() const { return (height + 1) / 2; }
  int64_t wide() const { return (width + 1) / 2; }
  int64_t tiles() const { return count * tall() * wide(); }

  // Where the pixels of a tile, widened to `SIDE` on all sides, lie: `zeros` outside of the image.
  template <int SIDE>
  void pixels(int64_t tile, const float* zeros, const float** in) const {
    const int64_t n = tile / (tall() * wide()), row = tile / wide() % tall(), column = tile % wide();
    const int64_t top = 2 * row - (SIDE / 2 - 1), left = 2 * column - (SIDE / 2 - 1);
    for (int i = 0; i < SIDE; ++i) {
      for (int j = 0; j < SIDE; ++j) {
        const int64_t y = top + i, x = left + j;
        const bool inside = y >= 0 && y < height && x >= 0 && x < width;
        in[SIDE * i + j] = inside ? data + ((n * height + y) * width + x) * channels : zeros;
      }
    }
  }
  // Offsets of a tile's pixels; -1 outside of the image.
  void places(int64_t tile, int64_t* out) const {
    const int64_t n = tile / (tall() * wide()), row = tile / wide() % tall(), column = tile % wide();
    for (int i = 0; i < 4; ++i) {
      const int64_t y = 2 * row + i / 2, x = 2 * column + i % 2;
      out[i] = y < height && x < width ? ((n * height + y) * width + x) * channels : -1;
    }
  }
};

struct Loops {
  void (*of_weights)(const float*, int64_t, bool, int64_t, float*, int64_t);
  void (*of_inputs)(const Image&, const float*, int64_t, int64_t, const Spectra&);
  void (*of_outputs)(const Image&, const float*, int64_t, int64_t, const Spectra&);
  void (*to_outputs)(const float*, int64_t, int64_t, int64_t, int64_t, int64_t, const Image&, float*);
  void (*filter)(const float*, int64_t, int64_t, const float*, int64_t, bool, float*, int64_t, int64_t);
  void (*outer)(const float*, const float*, int64_t, int64_t, bool, float*, int64_t, int64_t, int64_t);
  void (*to_weights)(const float*, int64_t, int64_t, float*, int64_t);
};

#define KERNELS "filter.h"
#include "levels.h"
#undef KERNELS

// The weights (9, i, o) as filter() wants them: panels of 64 outputs, frequencies, inputs, outputs. Turned, they
// are those of the gradient of x: by 180 degrees, inputs and outputs exchanged.
template <class Parallel>
Floats transformed(const Loops& loops, const float* w, int64_t inputs, int64_t outputs, bool turned, Parallel parallel) {
  const int64_t from = turned ? outputs : inputs, to = turned ? inputs : outputs, step = from * PANEL;
  Floats u = floats(divide_up(to, PANEL) * FREQUENCIES * step);
  const int64_t pitch = inputs * outputs, groups = from / GROUP;
  parallel(divide_up(to, PANEL) * groups, [&](int64_t job, int64_t) {
    const int64_t first = job / groups * PANEL, lanes = std::min<int64_t>(PANEL, to - first);
    const int64_t row = job % groups * GROUP;
    float* out = u.get() + first * FREQUENCIES * from + row * PANEL;
    if (!turned) {
      for (int64_t k = 0; k < GROUP; ++k) {
        loops.of_weights(w + (row + k) * outputs + first, pitch, false, lanes, out + k * PANEL, step);
      }
      return;
    }
    float taps[GROUP][9][PANEL];
    for (int tap = 0; tap < 9; ++tap) {
      for (int64_t i = 0; i < lanes; ++i) {
        const float* in = w + tap * pitch + (first + i) * outputs + row;
        for (int k = 0; k < GROUP; ++k) taps[k][tap][i] = in[k];
      }
    }
    for (int k = 0; k < GROUP; ++k) loops.of_weights(taps[k][0], PANEL, true, lanes, out + k * PANEL, step);
  });
  return u;
}

// y of x and the transformed weights. A job is a block of tiles, or some of its panels where blocks are few.
template <class Parallel>
void filter(const Loops& loops, const Image& x, const float* u, const Image& shape, float* y, int64_t workers,
            Parallel parallel) {
  const int64_t tiles = x.tiles(), inputs = x.channels, outputs = shape.channels;
  const int64_t blocks = divide_up(tiles, BLOCK), panels = divide_up(outputs, PANEL);
  const int64_t parts = workers > 1 ? std::min(panels, divide_up(4 * workers, blocks)) : 1;
  const int64_t step = BLOCK * inputs + GROUP, product = BLOCK * PANEL + GROUP;  // not all in one set of the cache
  const Floats border = zeros(inputs), buffers = floats(workers * FREQUENCIES * (step + product));
  parallel(blocks * parts, [&](int64_t job, int64_t worker) {
    const int64_t block = job / parts, part = job % parts;
    const int64_t begin = tiles * block / blocks, end = tiles * (block + 1) / blocks;
    float* v = buffers.get() + worker * FREQUENCIES * (step + product);
    float* m = v + FREQUENCIES * step;
    loops.of_inputs(x, border.get(), begin, end, {v, step, inputs, GROUP});
    for (int64_t panel = panels * part / parts; panel < panels * (part + 1) / parts; ++panel) {
      const int64_t lanes = std::min<int64_t>(PANEL, outputs - panel * PANEL);
      for (int64_t f = 0; f < FREQUENCIES; ++f) {
        const float* weights = u + (panel * FREQUENCIES + f) * inputs * PANEL;
        loops.filter(v + f * step, inputs, end - begin, weights, inputs, true, m + f * product, 0, lanes);
      }
      loops.to_outputs(m, product, begin, end, panel * PANEL, lanes, shape, y);
    }
  });
}

// The gradient of the weights, (9, i, o): dw = G^T [sum of (B^T x B)^T (A dy A^T) over the tiles] G.
template <class Parallel>
void gradient(const Loops& loops, const Image& x, const Image& dy, float* dw, int64_t workers, Parallel parallel) {
  const int64_t tiles = x.tiles(), inputs = x.channels, outputs = dy.channels, size = inputs * outputs;
  const int64_t fitting = std::max<int64_t>(128, CHUNK / (FREQUENCIES * (inputs + outputs)));
  const int64_t chunks = divide_up(tiles, fitting), most = divide_up(tiles, chunks);
  const int64_t group = most * GROUP, v_step = most * inputs + GROUP, d_step = most * outputs + GROUP;
  const Floats border = zeros(std::max(inputs, outputs)), v = floats(FREQUENCIES * v_step);
  const Floats d = floats(FREQUENCIES * d_step), s = floats(FREQUENCIES * size);
  const int64_t parts = std::min(inputs / GROUP, divide_up(workers, 4));
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    const int64_t begin = tiles * chunk / chunks, end = tiles * (chunk + 1) / chunks;
    parallel(divide_up(end - begin, GROUP), [&](int64_t job, int64_t) {
      const int64_t first = job * GROUP, last = std::min(first + GROUP, end - begin);
      loops.of_inputs(x, border.get(), begin + first, begin + last, {v.get() + first * GROUP, v_step, GROUP, group});
      loops.of_outputs(dy, border.get(), begin + first, begin + last, {d.get() + first * GROUP, d_step, GROUP, group});
    });
    parallel(FREQUENCIES * parts, [&](int64_t job, int64_t) {
      const int64_t f = job / parts, part = job % parts, groups = inputs / GROUP;
      for (int64_t i = groups * part / parts; i < groups * (part + 1) / parts; ++i) {
        loops.outer(v.get() + f * v_step + i * group, d.get() + f * d_step, end - begin, group, chunk == 0,
                    s.get() + f * size + i * GROUP * outputs, GROUP, 0, outputs);
      }
    });
  }
  parallel(inputs / GROUP, [&](int64_t job, int64_t) {
    const int64_t first = job * GROUP * outputs;
    loops.to_weights(s.get() + first, size, GROUP * outputs, dw + first, size);
  });
}

}  // namespace adafuse::winograd

namespace ffi = xla::ffi;

using Input = ffi::Buffer<ffi::F32>;
using Output = ffi::ResultBuffer<ffi::F32>;

namespace {

using namespace adafuse;
using namespace adafuse::winograd;

// What a call works on, or why it can't.
ffi::Error check(int64_t level, const Input& x, ffi::Span<const int64_t> y, ffi::Span<const int64_t> w, bool turned) {
  const auto in = x.dimensions();
  if (in.size() != 4 || y.size() != 4 || w.size() != 4) return wrong("expected images (n, h, w, c)");
  for (const int64_t size : in) {
    if (size < 1 || size > (1 << 24)) return wrong("sizes: expected 1 to 2^24");
  }
  if (y[0] != in[0] || y[1] != in[1] || y[2] != in[2]) return wrong("expected outputs as high and wide as the inputs");
  if (in[3] % GROUP || y[3] % GROUP || y[3] < GROUP) return wrong("channels: expected multiples of 16");
  const bool fit = w[0] == 3 && w[1] == 3 && w[2] == (turned ? y[3] : in[3]) && w[3] == (turned ? in[3] : y[3]);
  if (!fit) return wrong("weights: expected (3, 3, i, o)");
  if (choose(level) == nullptr) return wrong("level: expected instructions that this CPU has");
  return ffi::Error::Success();
}

Image image(const float* data, ffi::Span<const int64_t> dims) { return {data, dims[0], dims[1], dims[2], dims[3]}; }

ffi::Error filter_images(ffi::ThreadPool pool, int64_t turned, int64_t level, Input x, Input w, Output y) {
  if (auto error = check(level, x, y->dimensions(), w.dimensions(), turned); error.failure()) return error;
  return on_pool(pool, [&](int64_t workers, auto parallel) {
    const Loops& loops = *choose(level);
    const Image in = image(x.typed_data(), x.dimensions()), out = image(nullptr, y->dimensions());
    const int64_t inputs = w.dimensions()[2], outputs = w.dimensions()[3];
    const Floats u = transformed(loops, w.typed_data(), inputs, outputs, turned, parallel);
    filter(loops, in, u.get(), out, y->typed_data(), workers, parallel);
  });
}

ffi::Error filter_gradient(ffi::ThreadPool pool, int64_t level, Input x, Input dy, Output dw) {
  if (auto error = check(level, x, dy.dimensions(), dw->dimensions(), false); error.failure()) return error;
  return on_pool(pool, [&](int64_t workers, auto parallel) {
    gradient(*choose(level), image(x.typed_data(), x.dimensions()), image(dy.typed_data(), dy.dimensions()),
             dw->typed_data(), workers, parallel);
  });
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(AdafuseFilter, filter_images,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Attr<int64_t>("turned")
                                  .Attr<int64_t>("level")
                                  .Arg<Input>()
                                  .Arg<Input>()
                                  .Ret<Input>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(AdafuseFilterGradient, filter_gradient,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Attr<int64_t>("level")
                                  .Arg<Input>()
                                  .Arg<Input>()
                                  .Ret<Input>());
