// A network's first layers: convolution, ReLU and max pooling (3x3, stride 2, padded by 1), band after band of the
// image, so that what is pooled never leaves the cache. A 7x7 convolution of stride 2 is filtered, F(3x3, 4x4), see
// filtered.h: 48 products for an output of three channels instead of 147. Included by compact.cc, inside its namespace.

constexpr int64_t BAND = 128 * 1024;  // floats between convolution and pooling
constexpr int64_t CHUNK_TILES = 24;   // tiles that are filtered at a time: they stay in the second cache

struct Stem {
  int64_t images;
  Conv conv;
  int64_t features;
  bool pool;
  const float *x, *weights, *bias;  // (N, H, W, C), (panels, kernel, kernel * C, 64), (panels * 64)
  float* out;                       // (N, y, x, features up to 16)
  bool filtered;                    // the weights are (panels, 36, 4 * C, 64) then

  int64_t height() const { return pool ? out_size(conv.out_height, 3, 2) : conv.out_height; }
  int64_t width() const { return pool ? out_size(conv.out_width, 3, 2) : conv.out_width; }
};

// The convolution by rows, as it is.
struct StemRows {
  const Stem& s;
  const Loops& loops;
  int64_t edge = s.conv.kernel / 2, pitch = (s.conv.width + 2 * edge) * s.conv.pitch;

  // Floats of memory for so many rows of outputs.
  int64_t size(int64_t rows) const { return ((rows - 1) * s.conv.stride + s.conv.kernel) * pitch; }

  // What is read for the rows from `from` to `to`.
  void read(const float* image, int64_t from, int64_t to, float* in) const {
    const Conv& conv = s.conv;
    const int64_t rows = (to - from - 1) * conv.stride + conv.kernel;
    std::fill_n(in, rows * pitch, 0.0f);
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t y = from * conv.stride - edge + i;
      if (y < 0 || y >= conv.height) continue;
      std::copy_n(image + y * conv.width * conv.pitch, conv.width * conv.pitch, in + i * pitch + edge * conv.pitch);
    }
  }

  // A panel's outputs of `rows` rows.
  void make(float* in, int64_t rows, int64_t panel, int lanes, float* out, int64_t out_pitch) const {
    const Conv& conv = s.conv;
    const float* weights = s.weights + panel * conv.kernel * conv.kernel * conv.pitch * PANEL;
    for (int64_t y = 0; y < rows; ++y) {
      loops.run_row({in + y * conv.stride * pitch, pitch, conv.kernel, conv.kernel * conv.pitch,
                     conv.stride * conv.pitch, conv.out_width, weights, s.bias + panel * PANEL,
                     out + y * conv.out_width * out_pitch, out_pitch}, lanes / GROUP);
    }
  }
};

// The same, filtered.
struct StemTiles {
  const Stem& s;
  const Loops& loops;
  int64_t channels = 4 * s.conv.pitch, pitch = pad(channels), wide = divide_up(s.conv.out_width, 3);
  std::vector<int32_t> every = counted(channels);
  int64_t v_step = CHUNK_TILES * pitch + GROUP, m_step = CHUNK_TILES * PANEL + GROUP;

  Phases phases(const float* pixels, int64_t rows) const {
    return {pixels, pitch, divide_up(rows, 3), wide, rows, s.conv.out_width};
  }
  int64_t pixels_size(int64_t rows) const { return (3 * divide_up(rows, 3) + 3) * phases(nullptr, rows).row(); }
  int64_t size(int64_t rows) const { return pixels_size(rows) + 36 * (v_step + m_step); }

  void read(const float* image, int64_t from, int64_t to, float* in) const {
    const Conv& conv = s.conv;
    std::fill_n(in, pixels_size(to - from), 0.0f);
    const int64_t row = phases(in, to - from).row(), begin = 2 * from - 4, rows = 6 * divide_up(to - from, 3) + 6;
    for (int64_t y = std::max<int64_t>(0, begin); y < std::min(conv.height, begin + rows); ++y) {
      const float* from_row = image + y * conv.width * conv.pitch;
      float* to_row = in + (y - begin) / 2 * row + 2 * pitch + y % 2 * 2 * conv.pitch;
      for (int64_t x = 0; x < conv.width; x += 2) {
        std::copy_n(from_row + x * conv.pitch, std::min<int64_t>(2, conv.width - x) * conv.pitch, to_row + x / 2 * pitch);
      }
    }
  }

  void make(float* in, int64_t rows, int64_t panel, int lanes, float* out, int64_t out_pitch) const {
    const Phases p = phases(in, rows);
    float *const v = in + pixels_size(rows), *const m = v + 36 * v_step;
    for (int64_t begin = 0; begin < p.tall * p.wide; begin += CHUNK_TILES) {
      const int64_t end = std::min(begin + CHUNK_TILES, p.tall * p.wide);
      loops.stem_inputs(p, begin, end, {v, v_step, pitch});
      for (int64_t f = 0; f < 36; ++f) {
        loops.product({v + f * v_step, pitch, end - begin, s.weights + (panel * 36 + f) * channels * PANEL, every.data(),
                       every.data(), channels, lanes, m + f * m_step, 0, nullptr, 0});
      }
      loops.stem_outputs({m, m_step, PANEL}, p, begin, end, {s.bias + panel * PANEL, nullptr, true, lanes, out, out_pitch});
    }
  }
};

template <class Way, class Parallel>
void run_stem_by(const Way& way, const Stem& s, const Loops& loops, int64_t workers, Parallel parallel) {
  const Conv& conv = s.conv;
  const int64_t row = conv.out_width * PANEL, panels = divide_up(s.features, PANEL), out_pitch = pad(s.features);
  // Rows of the output that a job makes.
  const int64_t tall = s.pool ? std::max<int64_t>(1, (BAND / row - 1) / 2) : std::max<int64_t>(1, BAND / row);
  // As many for each of the threads.
  const int64_t rounds = divide_up(s.images * divide_up(s.height(), tall), workers);
  const int64_t bands = std::min(s.height(), divide_up(std::max<int64_t>(2, rounds) * workers, s.images));
  const int64_t most = divide_up(s.height(), bands);
  const int64_t most_rows = s.pool ? 2 * most + 1 : most;
  const int64_t most_in = divide_up(way.size(most_rows), GROUP) * GROUP, size = most_in + most_rows * row;
  const Scratch buffers(workers * size);
  parallel(s.images * bands, [&](int64_t job, int64_t worker) {
    const int64_t image = job / bands, band = job % bands;
    const int64_t begin = s.height() * band / bands, end = s.height() * (band + 1) / bands;
    // Rows of the convolution.
    const int64_t from = s.pool ? std::max<int64_t>(0, 2 * begin - 1) : begin;
    const int64_t to = s.pool ? std::min(conv.out_height, 2 * end) : end;
    float* const in = buffers.get() + worker * size;
    float* const between = in + most_in;
    way.read(s.x + image * conv.height * conv.width * conv.pitch, from, to, in);
    for (int64_t panel = 0; panel < panels; ++panel) {
      const int64_t first = panel * PANEL;
      const auto lanes = static_cast<int>(pad(std::min<int64_t>(PANEL, s.features - first)));
      float* const out = s.out + image * s.height() * s.width() * out_pitch + first;
      if (!s.pool) {
        way.make(in, to - from, panel, lanes, out + from * s.width() * out_pitch, out_pitch);
        continue;
      }
      way.make(in, to - from, panel, lanes, between, PANEL);
      for (int64_t y = begin; y < end; ++y) {
        const auto at = [&](int64_t i) {
          return between + (std::clamp<int64_t>(i, 0, conv.out_height - 1) - from) * row;
        };
        loops.pool({{at(2 * y - 1), at(2 * y), at(2 * y + 1)}, conv.out_width, lanes, out + y * s.width() * out_pitch,
                    s.width(), out_pitch});
      }
    }
  });
}

template <class Parallel>
void run_stem(const Stem& s, const Loops& loops, int64_t workers, Parallel parallel) {
  if (s.filtered) {
    run_stem_by(StemTiles{s, loops}, s, loops, workers, parallel);
  } else {
    run_stem_by(StemRows{s, loops}, s, loops, workers, parallel);
  }
}
