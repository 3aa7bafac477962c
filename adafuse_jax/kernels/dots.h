// Convolutions as dot products, for the first one of compact.cc: nothing is laid out anew, and neither pixels nor
// outputs are rounded up to a number that suits vectors. Included by tile.h, see there.

typedef float Four __attribute__((vector_size(4 * sizeof(float))));
typedef int32_t FourMask __attribute__((vector_size(4 * sizeof(float))));

// Of each four lanes of a and b: a0 + a2, b0 + b2, a1 + a3, b1 + b3.
template <class V, int... I>
TARGET static inline V interleaved(V a, V b, std::integer_sequence<int, I...>) {
  return SHUFFLE(a, b, (I / 4 * 4 + I % 4 / 2 + I % 2 * LANES)...) +
         SHUFFLE(a, b, (I / 4 * 4 + I % 4 / 2 + I % 2 * LANES + 2)...);
}

// Of each four lanes of a and b: a0 + a2, a1 + a3, b0 + b2, b1 + b3.
template <class V, int... I>
TARGET static inline V beside(V a, V b, std::integer_sequence<int, I...>) {
  return SHUFFLE(a, b, (I / 4 * 4 + I % 2 + I % 4 / 2 * LANES)...) +
         SHUFFLE(a, b, (I / 4 * 4 + I % 2 + I % 4 / 2 * LANES + 2)...);
}

// The sums of the lanes of each.
TARGET static inline Four totals(Vector a, Vector b, Vector c, Vector d) {
  constexpr auto lanes = std::make_integer_sequence<int, LANES>{};
  const Vector sum = beside(interleaved(a, b, lanes), interleaved(c, d, lanes), lanes);
  Four parts[LANES / 4];
  __builtin_memcpy(parts, &sum, sizeof(sum));
  Four total = parts[0];
  for (int i = 1; i < LANES / 4; ++i) total += parts[i];
  return total;
}

constexpr int PIXELS = 3 * VECTORS / 2;  // with four outputs and as many vectors as registers hold

// `OUTS` outputs from `output` on, of `ROWS` pixels, from their inputs under each tap; `next`: two pixels that
// will be needed soon, or null.
template <int ROWS, int OUTS>
TARGET static void dot_tile(const Dots& p, const float* const* inputs, const float* next, int64_t output,
                            float* out) {
  const int64_t taps = p.conv.kernel * p.conv.kernel, features = p.conv.pitch, step = p.conv.stride * features;
  Vector sum[ROWS][OUTS];
  const float* w[OUTS];
  Four bias{};
  UNROLL for (int o = 0; o < OUTS; ++o) {
    const int64_t channel = p.channels[output + o];
    w[o] = p.weights + channel * taps * features;
    bias[o] = p.bias[channel];
    UNROLL for (int r = 0; r < ROWS; ++r) sum[r][o] = Vector{};
  }
  for (int64_t tap = 0; tap < taps; ++tap, inputs += ROWS) {
    const float* in[ROWS];
    UNROLL for (int r = 0; r < ROWS; ++r) in[r] = inputs[r];
    for (int64_t c = 0; c < features; c += LANES) {
      if (next != nullptr) {
        fetch(next + c);
        fetch(next + step + c);
      }
      Vector b[OUTS];
      UNROLL for (int o = 0; o < OUTS; ++o) b[o] = get(w[o] + c);
      UNROLL for (int r = 0; r < ROWS; ++r) {
        const Vector a = get(in[r] + c);
        UNROLL for (int o = 0; o < OUTS; ++o) sum[r][o] += a * b[o];
      }
    }
    UNROLL for (int o = 0; o < OUTS; ++o) w[o] += features;
  }
  UNROLL for (int r = 0; r < ROWS; ++r) {
    const Vector* s = sum[r];
    const Four x = totals(s[0], s[OUTS > 1 ? 1 : 0], s[OUTS > 2 ? 2 : 0], s[OUTS > 3 ? 3 : 0]) + bias;
    FourMask bits = (FourMask)x;
    bits &= ~(FourMask)(x < Four{});  // lets NaN through
    __builtin_memcpy(out + r * p.out_pitch + output, &bits, sizeof(Four));
  }
}

// All outputs of `ROWS` pixels; `inputs`: room for a pointer for each tap and pixel.
template <int ROWS>
TARGET static void dot_pixels(const Dots& p, int64_t pixel, const float** inputs) {
  const Conv& conv = p.conv;
  const int64_t taps = conv.kernel * conv.kernel, step = conv.stride * conv.pitch;
  for (int r = 0; r < ROWS; ++r) {
    const int64_t row = (pixel + r) / conv.out_width, column = pixel + r - row * conv.out_width;
    for (int64_t tap = 0; tap < taps; ++tap) {
      const int64_t y = row * conv.stride - conv.kernel / 2 + tap / conv.kernel;
      const int64_t x = column * conv.stride - conv.kernel / 2 + tap % conv.kernel;
      const bool inside = y >= 0 && y < conv.height && x >= 0 && x < conv.width;
      inputs[tap * ROWS + r] = inside ? p.x + (y * conv.width + x) * conv.pitch : p.zeros;
    }
  }
  const float* next = inputs[taps * ROWS - 1] + step;  // the next pixel's under the last tap
  float* out = p.out + pixel * p.out_pitch;
  int64_t output = 0;
  for (; output + 4 <= p.count; output += 4) {  // the first ones bring in as many pixels as these
    dot_tile<ROWS, 4>(p, inputs, output < 2 * ROWS ? next + output / 2 * step : nullptr, output, out);
  }
  switch (p.count - output) {
    case 3: dot_tile<ROWS, 3>(p, inputs, nullptr, output, out); break;
    case 2: dot_tile<ROWS, 2>(p, inputs, nullptr, output, out); break;
    case 1: dot_tile<ROWS, 1>(p, inputs, nullptr, output, out); break;
    default: break;
  }
}

TARGET static void run_dots(const Dots& p, int64_t begin, int64_t end) {
  std::vector<const float*> inputs(p.conv.kernel * p.conv.kernel * PIXELS);
  // So many at the end go by one less at a time: then none remains, where there are enough.
  const int64_t fewer = (PIXELS - (end - begin) % PIXELS) % PIXELS * (PIXELS - 1);
  for (; begin + PIXELS <= end - fewer; begin += PIXELS) dot_pixels<PIXELS>(p, begin, inputs.data());
  for (; begin + PIXELS - 1 <= end; begin += PIXELS - 1) dot_pixels<PIXELS - 1>(p, begin, inputs.data());
  for (; begin < end; ++begin) dot_pixels<1>(p, begin, inputs.data());
}
