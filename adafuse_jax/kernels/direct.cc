// Convolutions of any stride as products of matrices, and their gradients: what the kernel covers is gathered for a
// block of outputs at a time, so that it is in the cache when it is multiplied. A row of the kernel covers pixels
// that lie side by side, with all their channels: a run of floats. float32, channels last.
//
// All sums have one order, whatever the number of threads. As in compact.cc, one source for all CPUs. See
// direct.py for the calls.

#include "common.h"

namespace adafuse::direct {

constexpr int64_t BLOCK = 48;   // outputs at a time
constexpr int64_t DEPTH = 512;  // rows of weights that go over a block before the next ones do

struct Image {
  const float* data;
  int64_t count, height, width, channels;
};

// A kernel at places of an image: `stride` pixels apart, the first beginning `top` rows above the image.
struct Rows {
  Image image;
  int64_t kernel_y, kernel_x, stride_y, stride_x, top, left;
  int64_t high, wide;  // places
  int64_t length() const { return kernel_x * image.channels; }  // floats under a row of the kernel
  int64_t places() const { return image.count * high * wide; }
};

// Where outputs go: the first of an image, and floats from one to the next.
struct Places {
  float* data;
  int64_t image, row, column;
};

struct Loops {
  void (*of_rows)(const Rows&, int64_t, int64_t, const Spectra&);
  void (*filter)(const float*, int64_t, int64_t, const float*, int64_t, bool, float*, int64_t, int64_t);
  void (*outer)(const float*, const float*, int64_t, int64_t, bool, float*, int64_t, int64_t, int64_t);
};

#define KERNELS "rows.h"
#include "levels.h"
#undef KERNELS

// The weights (rows, outputs) in panels of 64 outputs.
template <class Parallel>
Floats panels_of(const float* w, int64_t rows, int64_t outputs, Parallel parallel) {
  const int64_t panels = divide_up(outputs, PANEL), parts = divide_up(rows, GROUP);
  Floats u = floats(panels * rows * PANEL);
  parallel(panels * parts, [&](int64_t job, int64_t) {
    const int64_t panel = job / parts, begin = job % parts * GROUP, end = std::min(rows, begin + GROUP);
    const int64_t lanes = std::min<int64_t>(PANEL, outputs - panel * PANEL);
    for (int64_t row = begin; row < end; ++row) {
      std::copy_n(w + row * outputs + panel * PANEL, lanes, u.get() + (panel * rows + row) * PANEL);
    }
  });
  return u;
}

// All outputs, of weights in panels; a job is a block of them, or some of its panels where blocks are few.
template <class Parallel>
void filter(const Loops& loops, const Rows& rows, const float* u, int64_t outputs, const Places& out, int64_t workers,
            Parallel parallel) {
  const int64_t total = rows.places(), depth = rows.kernel_y * rows.length(), pitch = depth + 2 * GROUP;
  const int64_t blocks = divide_up(total, BLOCK), panels = divide_up(outputs, PANEL);
  const int64_t parts = workers > 1 ? std::min(panels, divide_up(4 * workers, blocks)) : 1;
  const Floats buffers = floats(workers * BLOCK * (pitch + PANEL));
  parallel(blocks * parts, [&](int64_t job, int64_t worker) {
    const int64_t block = job / parts, part = job % parts;
    const int64_t begin = total * block / blocks, end = total * (block + 1) / blocks;
    float* v = buffers.get() + worker * BLOCK * (pitch + PANEL);
    float* m = v + BLOCK * pitch;
    // What is written beyond the end of a row is overwritten by the next one.
    loops.of_rows(rows, begin, end, {v, rows.length(), pitch, GROUP});
    for (int64_t panel = panels * part / parts; panel < panels * (part + 1) / parts; ++panel) {
      const int64_t lanes = std::min<int64_t>(PANEL, outputs - panel * PANEL);
      for (int64_t k = 0; k < depth; k += DEPTH) {
        const float* weights = u + (panel * depth + k) * PANEL;
        loops.filter(v + k, pitch, end - begin, weights, std::min(DEPTH, depth - k), k == 0, m, 0, lanes);
      }
      for (int64_t i = begin; i < end; ++i) {
        const int64_t n = i / (rows.high * rows.wide), p = i / rows.wide % rows.high, q = i % rows.wide;
        float* to = out.data + n * out.image + p * out.row + q * out.column + panel * PANEL;
        std::copy_n(m + (i - begin) * PANEL, lanes, to);
      }
    }
  });
}

// y (of the rows' places) by the weights (y, x, i, o).
template <class Parallel>
void convolve(const Loops& loops, const Rows& rows, const float* w, int64_t outputs, float* y, int64_t workers,
              Parallel parallel) {
  const Floats u = panels_of(w, rows.kernel_y * rows.length(), outputs, parallel);
  const int64_t row = rows.wide * outputs;
  filter(loops, rows, u.get(), outputs, {y, rows.high * row, row, outputs}, workers, parallel);
}

// The gradient of the image, into `dx`, of that of the outputs, `dy`. The pixels of one remainder by the strides
// see only some rows and columns of the kernel, every stride-th, and are a convolution of stride 1 with these.
template <class Parallel>
void transpose(const Loops& loops, const Rows& rows, const float* w, const Image& dy, float* dx, int64_t workers,
               Parallel parallel) {
  const int64_t inputs = rows.image.channels, outputs = dy.channels;
  const int64_t height = rows.image.height, width = rows.image.width;
  for (int64_t a = 0; a < std::min(rows.stride_y, height); ++a) {
    for (int64_t b = 0; b < std::min(rows.stride_x, width); ++b) {
      const int64_t first_y = (a + rows.top) % rows.stride_y, first_x = (b + rows.left) % rows.stride_x;
      const int64_t taps_y = divide_up(rows.kernel_y - first_y, rows.stride_y);
      const int64_t taps_x = divide_up(rows.kernel_x - first_x, rows.stride_x);
      const int64_t depth = taps_y * taps_x * outputs;
      Floats turned = floats(depth * inputs);
      parallel(taps_y * taps_x * divide_up(inputs, GROUP), [&](int64_t job, int64_t) {
        const int64_t tap = job % (taps_y * taps_x), group = job / (taps_y * taps_x) * GROUP;
        const int64_t y = first_y + (taps_y - 1 - tap / taps_x) * rows.stride_y;
        const int64_t x = first_x + (taps_x - 1 - tap % taps_x) * rows.stride_x;
        const float* from = w + (y * rows.kernel_x + x) * inputs * outputs;
        float* to = turned.get() + tap * outputs * inputs;
        for (int64_t o = 0; o < outputs; o += GROUP) {
          for (int64_t k = o; k < std::min(o + GROUP, outputs); ++k) {
            for (int64_t i = group; i < std::min(group + GROUP, inputs); ++i) to[k * inputs + i] = from[i * outputs + k];
          }
        }
      });
      const Rows seen{dy, taps_y, taps_x, 1, 1, taps_y - 1 - (a + rows.top) / rows.stride_y,
                      taps_x - 1 - (b + rows.left) / rows.stride_x, divide_up(height - a, rows.stride_y),
                      divide_up(width - b, rows.stride_x)};
      const Floats u = panels_of(turned.get(), depth, inputs, parallel);
      const int64_t line = width * inputs;
      filter(loops, seen, u.get(), inputs,
             {dx + a * line + b * inputs, height * line, rows.stride_y * line, rows.stride_x * inputs}, workers, parallel);
    }
  }
}

// The gradient of the weights, (y, x, i, o).
template <class Parallel>
void gradient(const Loops& loops, const Rows& rows, const Image& dy, float* dw, Parallel parallel) {
  const int64_t total = rows.places(), length = rows.length(), outputs = dy.channels;
  const int64_t groups = divide_up(length, GROUP), padded = groups * GROUP;
  const Rows pixels{dy, 1, 1, 1, 1, 0, 0, dy.height, dy.width};
  const int64_t fitting = std::max<int64_t>(128, CHUNK / (rows.kernel_y * padded + outputs));
  const int64_t chunks = divide_up(total, fitting), most = divide_up(total, chunks), group = most * GROUP;
  const int64_t step = groups * group + GROUP;
  const Floats v = floats(rows.kernel_y * step), d = floats(outputs * most), s = floats(rows.kernel_y * padded * outputs);
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    const int64_t begin = total * chunk / chunks, end = total * (chunk + 1) / chunks;
    parallel(divide_up(end - begin, GROUP), [&](int64_t job, int64_t) {
      const int64_t first = job * GROUP, last = std::min(first + GROUP, end - begin);
      loops.of_rows(rows, begin + first, begin + last, {v.get() + first * GROUP, step, GROUP, group});
      loops.of_rows(pixels, begin + first, begin + last, {d.get() + first * GROUP, 0, GROUP, group});
    });
    parallel(rows.kernel_y * groups, [&](int64_t job, int64_t) {
      const int64_t i = job / groups, at = job % groups;
      const int64_t inputs = std::min<int64_t>(GROUP, divide_up(length - at * GROUP, 4) * 4);
      loops.outer(v.get() + i * step + at * group, d.get(), end - begin, group, chunk == 0,
                  s.get() + (i * padded + at * GROUP) * outputs, inputs, 0, outputs);
    });
  }
  for (int64_t i = 0; i < rows.kernel_y; ++i) {
    std::copy_n(s.get() + i * padded * outputs, length * outputs, dw + i * length * outputs);
  }
}

}  // namespace adafuse::direct

namespace ffi = xla::ffi;

using Input = ffi::Buffer<ffi::F32>;
using Output = ffi::ResultBuffer<ffi::F32>;
using Dimensions = ffi::Span<const int64_t>;

namespace {

using namespace adafuse;
using namespace adafuse::direct;

struct Numbers {
  int64_t stride_y, stride_x, top, left, level;
};

// What a call works on, or why it can't: images (n, h, w, i), weights (y, x, i, o) and outputs (n, p, q, o).
ffi::Error check(const Numbers& numbers, Dimensions x, Dimensions w, Dimensions y, int64_t vector) {
  if (x.size() != 4 || w.size() != 4 || y.size() != 4) return wrong("expected images (n, h, w, c)");
  for (const Dimensions& dims : {x, w, y}) {
    for (const int64_t size : dims) {
      if (size < 1 || size > (1 << 24)) return wrong("sizes: expected 1 to 2^24");
    }
  }
  if (x[0] != y[0] || x[3] != w[2] || y[3] != w[3]) return wrong("weights: expected (y, x, i, o)");
  if (vector % GROUP) return wrong("channels: expected multiples of 16");
  const auto fits = [](int64_t stride, int64_t before, int64_t kernel) {
    return stride >= 1 && stride <= kernel && kernel <= 31 && before >= 0 && before < kernel;
  };
  if (!fits(numbers.stride_y, numbers.top, w[0]) || !fits(numbers.stride_x, numbers.left, w[1])) {
    return wrong("kernel: expected up to 31, no smaller than its stride and larger than its padding");
  }
  if (choose(numbers.level) == nullptr) return wrong("level: expected instructions that this CPU has");
  return ffi::Error::Success();
}

Image image(const float* data, Dimensions dims) { return {data, dims[0], dims[1], dims[2], dims[3]}; }

Rows rows_of(const Numbers& n, const float* x, Dimensions dims, Dimensions w, Dimensions y) {
  return {image(x, dims), w[0], w[1], n.stride_y, n.stride_x, n.top, n.left, y[1], y[2]};
}

ffi::Error conv(ffi::ThreadPool pool, int64_t stride_y, int64_t stride_x, int64_t top, int64_t left, int64_t level,
                Input x, Input w, Output y) {
  const Numbers numbers{stride_y, stride_x, top, left, level};
  const Dimensions in = x.dimensions(), kernel = w.dimensions(), out = y->dimensions();
  if (auto error = check(numbers, in, kernel, out, kernel.size() == 4 ? kernel[3] : 0); error.failure()) return error;
  return on_pool(pool, [&](int64_t workers, auto parallel) {
    const Rows rows = rows_of(numbers, x.typed_data(), in, kernel, out);
    convolve(*choose(level), rows, w.typed_data(), out[3], y->typed_data(), workers, parallel);
  });
}

ffi::Error conv_transpose(ffi::ThreadPool pool, int64_t stride_y, int64_t stride_x, int64_t top, int64_t left,
                          int64_t level, Input dy, Input w, Output dx) {
  const Numbers numbers{stride_y, stride_x, top, left, level};
  const Dimensions in = dx->dimensions(), kernel = w.dimensions(), out = dy.dimensions();
  if (auto error = check(numbers, in, kernel, out, kernel.size() == 4 ? kernel[2] : 0); error.failure()) return error;
  return on_pool(pool, [&](int64_t workers, auto parallel) {
    const Rows rows = rows_of(numbers, nullptr, in, kernel, out);
    transpose(*choose(level), rows, w.typed_data(), image(dy.typed_data(), out), dx->typed_data(), workers, parallel);
  });
}

ffi::Error conv_gradient(ffi::ThreadPool pool, int64_t stride_y, int64_t stride_x, int64_t top, int64_t left,
                         int64_t level, Input x, Input dy, Output dw) {
  const Numbers numbers{stride_y, stride_x, top, left, level};
  const Dimensions in = x.dimensions(), kernel = dw->dimensions(), out = dy.dimensions();
  if (auto error = check(numbers, in, kernel, out, kernel.size() == 4 ? kernel[3] : 0); error.failure()) return error;
  return on_pool(pool, [&](int64_t, auto parallel) {
    const Rows rows = rows_of(numbers, x.typed_data(), in, kernel, out);
    gradient(*choose(level), rows, image(dy.typed_data(), out), dw->typed_data(), parallel);
  });
}

}  // namespace

#define ADAFUSE_CONV(name, function)                                     \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(name, function,                          \
                                ffi::Ffi::Bind()                         \
                                    .Ctx<ffi::ThreadPool>()              \
                                    .Attr<int64_t>("stride_y")           \
                                    .Attr<int64_t>("stride_x")           \
                                    .Attr<int64_t>("top")                \
                                    .Attr<int64_t>("left")               \
                                    .Attr<int64_t>("level")              \
                                    .Arg<Input>()                        \
                                    .Arg<Input>()                        \
                                    .Ret<Input>())
ADAFUSE_CONV(AdafuseConv, conv);
ADAFUSE_CONV(AdafuseConvTranspose, conv_transpose);
ADAFUSE_CONV(AdafuseConvGradient, conv_gradient);
