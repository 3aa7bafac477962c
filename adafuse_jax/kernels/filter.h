// The inner loops of winograd.cc. Included once for each kind of CPU, inside a namespace; see tile.h for what is
// to be defined. Channels come in groups of 16 everywhere.

typedef float Vector __attribute__((vector_size(LANES * sizeof(float))));

TARGET static inline Vector get(const float* from) {
  Vector x;
  __builtin_memcpy(&x, from, sizeof(Vector));
  return x;
}

TARGET static inline void put(float* to, Vector x) { __builtin_memcpy(to, &x, sizeof(Vector)); }

// U = G w G^T of `count` channels, a multiple of 16; `pitch` floats from one tap to the next.
TARGET static void of_weights(const float* w, int64_t pitch, bool turned, int64_t count, float* out, int64_t step) {
  for (int64_t c = 0; c < count; c += LANES) {
    Vector rows[4][3];
    for (int j = 0; j < 3; ++j) {
      Vector tap[3];
      for (int i = 0; i < 3; ++i) {
        const int at = 3 * i + j;
        tap[i] = get(w + (turned ? 8 - at : at) * pitch + c);
      }
      const Vector ends = 0.5f * (tap[0] + tap[2]), middle = 0.5f * tap[1];
      rows[0][j] = tap[0], rows[1][j] = ends + middle, rows[2][j] = ends - middle, rows[3][j] = tap[2];
    }
    for (int i = 0; i < 4; ++i) {
      const Vector ends = 0.5f * (rows[i][0] + rows[i][2]), middle = 0.5f * rows[i][1];
      put(out + (4 * i) * step + c, rows[i][0]);
      put(out + (4 * i + 1) * step + c, ends + middle);
      put(out + (4 * i + 2) * step + c, ends - middle);
      put(out + (4 * i + 3) * step + c, rows[i][2]);
    }
  }
}

// V = B^T x B of the tiles from `begin` to `end`.
TARGET static void of_inputs(const Image& image, const float* zeros, int64_t begin, int64_t end, const Spectra& out) {
  for (int64_t tile = begin; tile < end; ++tile) {
    const float* in[16];
    image.pixels<4>(tile, zeros, in);
    for (int64_t c = 0; c < image.channels; c += LANES) {
      float* to = out.at(0, tile - begin, c);
      Vector rows[4][4];
      for (int j = 0; j < 4; ++j) {
        const Vector a = get(in[j] + c), b = get(in[4 + j] + c), d = get(in[8 + j] + c), e = get(in[12 + j] + c);
        rows[0][j] = a - d, rows[1][j] = b + d, rows[2][j] = d - b, rows[3][j] = b - e;
      }
      for (int i = 0; i < 4; ++i, to += 4 * out.step) {
        put(to, rows[i][0] - rows[i][2]);
        put(to + out.step, rows[i][1] + rows[i][2]);
        put(to + 2 * out.step, rows[i][2] - rows[i][1]);
        put(to + 3 * out.step, rows[i][1] - rows[i][3]);
      }
    }
  }
}

// D = A y A^T of the outputs' tiles from `begin` to `end`.
TARGET static void of_outputs(const Image& image, const float* zeros, int64_t begin, int64_t end, const Spectra& out) {
  for (int64_t tile = begin; tile < end; ++tile) {
    const float* in[4];
    image.pixels<2>(tile, zeros, in);
    for (int64_t c = 0; c < image.channels; c += LANES) {
      float* to = out.at(0, tile - begin, c);
      Vector rows[4][2];
      for (int j = 0; j < 2; ++j) {
        const Vector a = get(in[j] + c), b = get(in[2 + j] + c);
        rows[0][j] = a, rows[1][j] = a + b, rows[2][j] = a - b, rows[3][j] = -b;
      }
      for (int i = 0; i < 4; ++i, to += 4 * out.step) {
        put(to, rows[i][0]);
        put(to + out.step, rows[i][0] + rows[i][1]);
        put(to + 2 * out.step, rows[i][0] - rows[i][1]);
        put(to + 3 * out.step, -rows[i][1]);
      }
    }
  }
}

// y = A^T M A: `lanes` channels of the tiles from `begin` to `end` into the image, from channel `first` on.
TARGET static void to_outputs(const float* m, int64_t step, int64_t begin, int64_t end, int64_t first,
                              int64_t lanes, const Image& image, float* y) {
  for (int64_t tile = begin; tile < end; ++tile) {
    const float* from = m + (tile - begin) * PANEL;
    int64_t out[4];
    image.places(tile, out);
    for (int64_t c = 0; c < lanes; c += LANES) {
      Vector rows[2][4];
      for (int j = 0; j < 4; ++j) {
        const float* column = from + j * step + c;
        const Vector b = get(column + 4 * step), d = get(column + 8 * step);
        rows[0][j] = get(column) + b + d;
        rows[1][j] = b - d - get(column + 12 * step);
      }
      for (int i = 0; i < 2; ++i) {
        const Vector left = rows[i][0] + rows[i][1] + rows[i][2], right = rows[i][1] - rows[i][2] - rows[i][3];
        if (out[2 * i] >= 0) put(y + out[2 * i] + first + c, left);
        if (out[2 * i + 1] >= 0) put(y + out[2 * i + 1] + first + c, right);
      }
    }
  }
}

// `ROWS` tiles times `WIDE` vectors of weights, over all channels.
template <int ROWS, int WIDE>
TARGET static void filter_tile(const float* v, int64_t pitch, const float* u, int64_t channels, float* m) {
  Vector sum[ROWS][WIDE] = {};
  for (int64_t k = 0; k < channels; ++k, u += PANEL) {
    Vector b[WIDE];
    for (int j = 0; j < WIDE; ++j) b[j] = get(u + j * LANES);
    for (int r = 0; r < ROWS; ++r) {
      const float a = v[r * pitch + k];
      for (int j = 0; j < WIDE; ++j) sum[r][j] += a * b[j];
    }
  }
  for (int r = 0; r < ROWS; ++r) {
    for (int j = 0; j < WIDE; ++j) put(m + r * PANEL + j * LANES, sum[r][j]);
  }
}

template <int WIDE>
TARGET static void filter_rows(const float* v, int64_t pitch, int64_t rows, const float* u, int64_t channels, float* m) {
  for (; rows >= 6; rows -= 6, v += 6 * pitch, m += 6 * PANEL) filter_tile<6, WIDE>(v, pitch, u, channels, m);
  switch (rows) {
    case 5: filter_tile<5, WIDE>(v, pitch, u, channels, m); break;
    case 4: filter_tile<4, WIDE>(v, pitch, u, channels, m); break;
    case 3: filter_tile<3, WIDE>(v, pitch, u, channels, m); break;
    case 2: filter_tile<2, WIDE>(v, pitch, u, channels, m); break;
    case 1: filter_tile<1, WIDE>(v, pitch, u, channels, m); break;
    default: break;
  }
}

// M = V U for one frequency: `rows` tiles and the lanes from `lane` to `lanes` of a panel.
template <int WIDE>
TARGET static void filter(const float* v, int64_t pitch, int64_t rows, const float* u, int64_t channels, float* m,
                          int64_t lane, int64_t lanes) {
  for (; lane + WIDE * LANES <= lanes; lane += WIDE * LANES) {
    filter_rows<WIDE>(v, pitch, rows, u + lane, channels, m + lane);
  }
  if constexpr (WIDE * LANES > GROUP) filter<WIDE - 1>(v, pitch, rows, u, channels, m, lane, lanes);
}

// A whole group of outputs at least.
constexpr int OUTER = VECTORS * LANES > GROUP ? VECTORS : GROUP / LANES;

// `ROWS` inputs times `WIDE` vectors of outputs, summed over the tiles.
template <int ROWS, int WIDE>
TARGET static void outer_tile(const float* v, const float* d, int64_t tiles, int64_t group, bool first, float* s,
                              int64_t pitch) {
  Vector sum[ROWS][WIDE];
  for (int r = 0; r < ROWS; ++r) {
    for (int j = 0; j < WIDE; ++j) sum[r][j] = first ? Vector{} : get(s + r * pitch + j * LANES);
  }
  for (int64_t t = 0; t < tiles; ++t, v += GROUP, d += GROUP) {
    Vector b[WIDE];
    for (int j = 0; j < WIDE; ++j) b[j] = get(d + j * LANES / GROUP * group + j * LANES % GROUP);
    for (int r = 0; r < ROWS; ++r) {
      const float a = v[r];
      for (int j = 0; j < WIDE; ++j) sum[r][j] += a * b[j];
    }
  }
  for (int r = 0; r < ROWS; ++r) {
    for (int j = 0; j < WIDE; ++j) put(s + r * pitch + j * LANES, sum[r][j]);
  }
}

// S += V^T D for one frequency, one group of inputs and the outputs from `lane` to `lanes`; a group's tiles lie
// side by side, `group` floats from one group to the next.
template <int WIDE>
TARGET static void outer(const float* v, const float* d, int64_t tiles, int64_t group, bool first, float* s,
                         int64_t lane, int64_t lanes) {
  const int64_t pitch = lanes;
  constexpr int ROWS = 4 * VECTORS / OUTER;
  for (; lane + WIDE * LANES <= lanes; lane += WIDE * LANES) {
    for (int r = 0; r < GROUP; r += ROWS) {
      outer_tile<ROWS, WIDE>(v + r, d + lane / GROUP * group, tiles, group, first, s + r * pitch + lane, pitch);
    }
  }
  if constexpr (WIDE * LANES > GROUP) outer<WIDE - 1>(v, d, tiles, group, first, s, lane, lanes);
}

// dw = G^T S G of `count` channels.
TARGET static void to_weights(const float* s, int64_t step, int64_t count, float* w, int64_t pitch) {
  for (int64_t c = 0; c < count; c += LANES) {
    Vector rows[3][4];
    for (int j = 0; j < 4; ++j) {
      const float* column = s + j * step + c;
      const Vector b = 0.5f * get(column + 4 * step), d = 0.5f * get(column + 8 * step);
      rows[0][j] = get(column) + b + d, rows[1][j] = b - d, rows[2][j] = b + d + get(column + 12 * step);
    }
    for (int i = 0; i < 3; ++i) {
      const Vector b = 0.5f * rows[i][1], d = 0.5f * rows[i][2];
      put(w + (3 * i) * pitch + c, rows[i][0] + b + d);
      put(w + (3 * i + 1) * pitch + c, b - d);
      put(w + (3 * i + 2) * pitch + c, b + d + rows[i][3]);
    }
  }
}

constexpr Loops LOOPS = {of_weights, of_inputs, of_outputs, to_outputs, filter<VECTORS>, outer<OUTER>, to_weights};
