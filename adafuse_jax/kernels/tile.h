// The inner loop of compact.cc. Included once for each kind of CPU, inside a namespace, with
//   TARGET   the attribute that lets a function use its instructions,
//   LANES    floats in one of its vectors,
//   VECTORS  vectors of outputs that are held in registers for each of six pixels,
//   NEAR     the cache that prefetches go to, as __builtin_prefetch counts: 3 the first, 2 the second.
// All of it is written out for each: a function without the attribute can't be inlined into one with it
// without its vectors having been cut to pieces first.

#include "vectors.h"

constexpr int LINE = 16;   // floats of a line of the cache
constexpr int AHEAD = 16;  // rows of weights

// Bring a line into the caches, to be read or written soon: where neither pixels nor rows of weights lie side
// by side, the CPU doesn't foresee what comes next.
TARGET static inline void fetch(const float* from) { __builtin_prefetch(from, 0, NEAR); }
TARGET static inline void fetch_to_write(float* to) { __builtin_prefetch(to, 1, 2); }

// `ROWS` pixels from `pixel` on, `WIDE` vectors of outputs from `lane` on, over all taps and channels.
template <int ROWS, int WIDE>
TARGET static void tile(const Panel& p, int64_t pixel, int64_t lane) {
  const Conv& conv = p.conv;
  const int64_t pitch = p.out_pitch;
  const float* initial = p.initial == nullptr ? nullptr : p.initial + pixel * pitch + lane;
  float* const out = p.out + pixel * pitch + lane;
  Vector sum[ROWS][WIDE];
  int64_t top[ROWS], left[ROWS];
  int64_t row = pixel / conv.out_width, column = pixel - row * conv.out_width;  // a division takes as long as 16 sums
  UNROLL for (int r = 0; r < ROWS; ++r) {
    top[r] = row * conv.stride - conv.kernel / 2;
    left[r] = column * conv.stride - conv.kernel / 2;
    if (++column == conv.out_width) column = 0, ++row;
  }
  UNROLL for (int r = 0; r < ROWS; ++r) {
    UNROLL for (int v = 0; v < WIDE; ++v) {
      sum[r][v] = initial == nullptr ? Vector{} : get(initial + r * pitch + v * LANES);
    }
  }
  int64_t coming = 0;  // of the next pixels, how many are brought in already
  const int64_t skipped = (pixel - p.begin) / 6 * p.share;
  for (int64_t tap = p.tap_begin; tap < p.tap_end; ++tap) {
    const float* weights = p.weights + (tap - p.tap_begin) * p.channels * PANEL + lane;
    for (int s = 0; s < p.num_sources; ++s) {
      const Source& source = p.sources[s];
      const float* in[ROWS];
      UNROLL for (int r = 0; r < ROWS; ++r) {
        const int64_t y = top[r] + tap / conv.kernel, x = left[r] + tap % conv.kernel;
        const bool inside = y >= 0 && y < conv.height && x >= 0 && x < conv.width;
        in[r] = inside ? source.base + (y * conv.width + x) * conv.pitch : p.zeros;
      }
      for (int64_t j = 0; j < source.count;) {
        const int64_t end = std::min(j + SPAN, source.count);
        // What comes is brought in a few lines at a time: for more the core would wait.
        for (const int64_t to = std::min<int64_t>(ROWS, coming + p.pixels); coming < to; ++coming) {
          const int64_t next = (ROWS + coming) * pitch;
          UNROLL for (int v = 0; v < WIDE * LANES; v += LINE) {
            if (initial != nullptr) fetch(initial + next + v);
            fetch_to_write(out + next + v);
          }
        }
        if (p.soon > 0) {
          for (int64_t i = j + skipped; i < std::min(j + skipped + p.share, end); ++i) {
            const float* w = weights + static_cast<int64_t>(source.rows[i]) * PANEL + p.soon;
            UNROLL for (int v = 0; v < WIDE * LANES; v += LINE) fetch(w + v);
          }
        }
        for (; j < end; ++j) {
          const float* w = weights + static_cast<int64_t>(source.rows[j]) * PANEL;
          const int64_t at = source.columns[j];
          Vector b[WIDE];
          UNROLL for (int v = 0; v < WIDE; ++v) b[v] = get(w + v * LANES);
          if (ROWS == 1 && j + AHEAD < source.count) {
            const float* next = weights + static_cast<int64_t>(source.rows[j + AHEAD]) * PANEL;
            UNROLL for (int v = 0; v < WIDE * LANES; v += LINE) fetch(next + v);
          }
          UNROLL for (int r = 0; r < ROWS; ++r) {
            const float a = in[r][at];
            UNROLL for (int v = 0; v < WIDE; ++v) sum[r][v] += a * b[v];
          }
        }
      }
    }
  }
  if (p.last) {
    UNROLL for (int v = 0; v < WIDE; ++v) {
      const Vector bias = get(p.bias + lane + v * LANES);
      UNROLL for (int r = 0; r < ROWS; ++r) sum[r][v] += bias;
    }
    if (p.relu) {
      UNROLL for (int r = 0; r < ROWS; ++r) {
        UNROLL for (int v = 0; v < WIDE; ++v) sum[r][v] = positive(sum[r][v]);
      }
    }
  }
  UNROLL for (int r = 0; r < ROWS; ++r) {
    UNROLL for (int v = 0; v < WIDE; ++v) put(out + r * pitch + v * LANES, sum[r][v]);
  }
  if (p.sums == nullptr || !p.last) return;
  float* const sums = p.sums + pixel / SLICE * pitch + lane;
  UNROLL for (int v = 0; v < WIDE; ++v) {
    Vector total = sum[0][v];
    UNROLL for (int r = 1; r < ROWS; ++r) total += sum[r][v];
    if (pixel % SLICE > 0) total += get(sums + v * LANES);
    put(sums + v * LANES, total);
  }
}

template <int WIDE>
TARGET static void pixels(const Panel& p, int64_t begin, int64_t end, int64_t lane) {
  int64_t pixel = begin;
  for (; pixel + 6 <= end; pixel += 6) tile<6, WIDE>(p, pixel, lane);
  switch (end - pixel) {
    case 5: tile<5, WIDE>(p, pixel, lane); break;
    case 4: tile<4, WIDE>(p, pixel, lane); break;
    case 3: tile<3, WIDE>(p, pixel, lane); break;
    case 2: tile<2, WIDE>(p, pixel, lane); break;
    case 1: tile<1, WIDE>(p, pixel, lane); break;
    default: break;
  }
}

// The outputs from `lane` to `lanes`, as many at once as registers hold, then fewer. All are groups of 16.
template <int WIDE>
TARGET static void outputs(const Panel& p, int64_t begin, int64_t end, int lane, int lanes) {
  for (; lane + WIDE * LANES <= lanes; lane += WIDE * LANES) pixels<WIDE>(p, begin, end, lane);
  if constexpr (WIDE * LANES > GROUP) outputs<WIDE - 1>(p, begin, end, lane, lanes);
}

// The same for one pixel, for which registers hold more: weights come from the memory then, whole rows the sooner.
template <int WIDE>
TARGET static void outputs_alone(const Panel& p, int64_t pixel, int lane, int lanes) {
  for (; lane + WIDE * LANES <= lanes; lane += WIDE * LANES) tile<1, WIDE>(p, pixel, lane);
  if constexpr (WIDE * LANES > GROUP) outputs_alone<WIDE / 2>(p, pixel, lane, lanes);
}

// The first `groups` groups of 16 outputs of a panel, for the pixels from `begin` to `end`.
TARGET static void run(const Panel& p, int64_t begin, int64_t end, int groups) {
  if (end - begin == 1) {
    outputs_alone<std::min(PANEL / LANES, 8)>(p, begin, 0, groups * GROUP);
  } else {
    outputs<VECTORS>(p, begin, end, 0, groups * GROUP);
  }
}

// `ROWS` pixels of a row of outputs, see `Row`.
template <int ROWS, int WIDE>
TARGET static void row_tile(const Row& p, int64_t pixel, int64_t lane) {
  Vector sum[ROWS][WIDE];
  UNROLL for (int v = 0; v < WIDE; ++v) {
    sum[0][v] = get(p.bias + lane + v * LANES);
    UNROLL for (int r = 1; r < ROWS; ++r) sum[r][v] = sum[0][v];
  }
  const float* w = p.weights + lane;
  for (int64_t k = 0; k < p.kernel; ++k) {
    const float* in[ROWS];
    UNROLL for (int r = 0; r < ROWS; ++r) in[r] = p.in + k * p.in_pitch + (pixel + r) * p.step;
    for (int64_t j = 0; j < p.count; ++j, w += PANEL) {
      Vector b[WIDE];
      UNROLL for (int v = 0; v < WIDE; ++v) b[v] = get(w + v * LANES);
      UNROLL for (int r = 0; r < ROWS; ++r) {
        const float a = in[r][j];
        UNROLL for (int v = 0; v < WIDE; ++v) sum[r][v] += a * b[v];
      }
    }
  }
  UNROLL for (int r = 0; r < ROWS; ++r) {
    UNROLL for (int v = 0; v < WIDE; ++v) {
      put(p.out + (pixel + r) * p.out_pitch + lane + v * LANES, positive(sum[r][v]));
    }
  }
}

template <int WIDE>
TARGET static void row_pixels(const Row& p, int64_t lane) {
  int64_t pixel = 0;
  for (; pixel + 6 <= p.pixels; pixel += 6) row_tile<6, WIDE>(p, pixel, lane);
  switch (p.pixels - pixel) {
    case 5: row_tile<5, WIDE>(p, pixel, lane); break;
    case 4: row_tile<4, WIDE>(p, pixel, lane); break;
    case 3: row_tile<3, WIDE>(p, pixel, lane); break;
    case 2: row_tile<2, WIDE>(p, pixel, lane); break;
    case 1: row_tile<1, WIDE>(p, pixel, lane); break;
    default: break;
  }
}

template <int WIDE>
TARGET static void row_outputs(const Row& p, int lane, int lanes) {
  for (; lane + WIDE * LANES <= lanes; lane += WIDE * LANES) row_pixels<WIDE>(p, lane);
  if constexpr (WIDE * LANES > GROUP) row_outputs<WIDE - 1>(p, lane, lanes);
}

TARGET static void run_row(const Row& p, int groups) { row_outputs<VECTORS>(p, 0, groups * GROUP); }

// The largest of three floats of each lane that are zero, positive or NaN, which is the largest: so are their bits.
TARGET static inline Mask largest(Vector a, Vector b, Vector c) {
  const Mask x = (Mask)a & INT32_MAX, y = (Mask)b & INT32_MAX, z = (Mask)c & INT32_MAX;
  const Mask xy = x > y ? x : y;
  return xy > z ? xy : z;
}

// A row of pixels, see `Pooling`.
TARGET static void pool(const Pooling& p) {
  const auto column = [&p](int64_t x) {
    return std::array<const float*, 3>{p.rows[0] + x * PANEL, p.rows[1] + x * PANEL, p.rows[2] + x * PANEL};
  };
  for (int64_t c = 0; c < p.lanes; c += LANES) {
    auto in = column(0);
    Mask left = largest(get(in[0] + c), get(in[1] + c), get(in[2] + c));
    for (int64_t x = 0; x < p.pixels; ++x) {
      in = column(2 * x);
      const Mask middle = largest(get(in[0] + c), get(in[1] + c), get(in[2] + c));
      in = column(std::min(2 * x + 1, p.width - 1));
      const Mask right = largest(get(in[0] + c), get(in[1] + c), get(in[2] + c));
      put(p.out + x * p.out_pitch + c, (Vector)largest((Vector)left, (Vector)middle, (Vector)right));
      left = right;
    }
  }
}

// Adds up rows of `count` floats, `WIDE` vectors at a time.
template <int WIDE>
TARGET static int64_t sum_columns(const float* from, int64_t rows, int64_t count, int64_t column, float* out) {
  for (; column + WIDE * LANES <= count; column += WIDE * LANES) {
    Vector sum[WIDE];
    UNROLL for (int v = 0; v < WIDE; ++v) sum[v] = Vector{};
    for (int64_t row = 0; row < rows; ++row) {
      UNROLL for (int v = 0; v < WIDE; ++v) sum[v] += get(from + row * count + column + v * LANES);
    }
    UNROLL for (int v = 0; v < WIDE; ++v) put(out + column + v * LANES, sum[v]);
  }
  return column;
}

TARGET static void sum(const float* from, int64_t rows, int64_t count, float* out) {
  int64_t column = sum_columns<1>(from, rows, count, sum_columns<4>(from, rows, count, 0, out), out);
  for (; column < count; ++column) {
    float total = 0.0f;
    for (int64_t row = 0; row < rows; ++row) total += from[row * count + column];
    out[column] = total;
  }
}

#include "dots.h"
#include "minimal.h"

static constexpr Loops LOOPS{run, run_row, pool, sum, run_dots, TRANSFORMS<4>, TRANSFORMS<6>, stem_inputs, stem_outputs,
                             turned, product};
