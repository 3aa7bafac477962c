// A network's first layers: convolution, ReLU and max pooling (3x3, stride 2, padded by 1), band after band of the
// image, so that what is pooled never leaves the cache. Included by compact.cc, inside its namespace.

constexpr int64_t BAND = 128 * 1024;  // floats between convolution and pooling

struct Stem {
  int64_t images;
  Conv conv;
  int64_t features;
  bool pool;
  const float *x, *weights, *bias;  // (N, H, W, C), (panels, kernel, kernel * C, 64), (panels * 64)
  float* out;                       // (N, y, x, features up to 16)

  int64_t height() const { return pool ? out_size(conv.out_height, 3, 2) : conv.out_height; }
  int64_t width() const { return pool ? out_size(conv.out_width, 3, 2) : conv.out_width; }
};

template <class Parallel>
void run_stem(const Stem& s, const Loops& loops, int64_t workers, Parallel parallel) {
  const Conv& conv = s.conv;
  const int64_t edge = conv.kernel / 2, in_pitch = (conv.width + 2 * edge) * conv.pitch;
  const int64_t row = conv.out_width * PANEL, panels = divide_up(s.features, PANEL), out_pitch = pad(s.features);
  // Rows of the output that a job makes.
  const int64_t tall = s.pool ? std::max<int64_t>(1, (BAND / row - 1) / 2) : std::max<int64_t>(1, BAND / row);
  // As many for each of the threads.
  const int64_t rounds = divide_up(s.images * divide_up(s.height(), tall), workers);
  const int64_t bands = std::min(s.height(), divide_up(std::max<int64_t>(2, rounds) * workers, s.images));
  const int64_t most = divide_up(s.height(), bands);
  const int64_t most_rows = s.pool ? 2 * most + 1 : most;
  const int64_t most_in = ((most_rows - 1) * conv.stride + conv.kernel) * in_pitch;
  std::vector<float> buffers(workers * (most_in + most_rows * row));
  parallel(s.images * bands, [&](int64_t job, int64_t worker) {
    const int64_t image = job / bands, band = job % bands;
    const int64_t begin = s.height() * band / bands, end = s.height() * (band + 1) / bands;
    // Rows of the convolution.
    const int64_t from = s.pool ? std::max<int64_t>(0, 2 * begin - 1) : begin;
    const int64_t to = s.pool ? std::min(conv.out_height, 2 * end) : end;
    float* const in = buffers.data() + worker * (most_in + most_rows * row);
    float* const between = in + most_in;
    const int64_t in_rows = (to - from - 1) * conv.stride + conv.kernel;
    std::fill_n(in, in_rows * in_pitch, 0.0f);
    for (int64_t i = 0; i < in_rows; ++i) {
      const int64_t y = from * conv.stride - edge + i;
      if (y < 0 || y >= conv.height) continue;
      const float* pixels = s.x + (image * conv.height + y) * conv.width * conv.pitch;
      std::copy_n(pixels, conv.width * conv.pitch, in + i * in_pitch + edge * conv.pitch);
    }
    for (int64_t panel = 0; panel < panels; ++panel) {
      const int64_t first = panel * PANEL, lanes = pad(std::min<int64_t>(PANEL, s.features - first));
      const float* weights = s.weights + panel * conv.kernel * conv.kernel * conv.pitch * PANEL;
      float* const out = s.out + image * s.height() * s.width() * out_pitch + first;
      for (int64_t y = from; y < to; ++y) {
        const Row one{in + (y - from) * conv.stride * in_pitch, in_pitch, conv.kernel, conv.kernel * conv.pitch,
                      conv.stride * conv.pitch, conv.out_width, weights, s.bias + first,
                      s.pool ? between + (y - from) * row : out + y * s.width() * out_pitch,
                      s.pool ? PANEL : out_pitch};
        loops.run_row(one, static_cast<int>(lanes / GROUP));
      }
      if (!s.pool) continue;
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
