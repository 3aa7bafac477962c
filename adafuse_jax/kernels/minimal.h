// The loops of filtered.h: transforms and products of Winograd's F(4x4, 3x3) and F(2x2, 3x3), whose tiles read
// `SIDE` = 6 or 4 pixels in each direction. Included by tile.h, which see.

#include "transforms.h"

constexpr int FEWER = LANES > 8 ? 8 : LANES;  // tiles side by side are rounded up to so many
typedef float Half __attribute__((vector_size(FEWER * sizeof(float))));

// V = B^T x B of the vector of channels at `c` of a tile; `step` floats from one frequency to the next.
template <int SIDE>
TARGET static inline void transform(const float* const* in, int64_t c, int64_t channels, float* v, int64_t step) {
  Vector half[SIDE][SIDE];
  UNROLL for (int j = 0; j < SIDE; ++j) {
    Vector d[SIDE], t[SIDE];
    UNROLL for (int i = 0; i < SIDE; ++i) {
      if (c + LANES <= channels) {
        d[i] = get(in[SIDE * i + j] + c);
      } else {
        float some[LANES] = {0.0f};
        for (int64_t k = c; k < channels; ++k) some[k - c] = in[SIDE * i + j][k];
        d[i] = get(some);
      }
    }
    to_frequencies(d, t);
    UNROLL for (int i = 0; i < SIDE; ++i) half[i][j] = t[i];
  }
  UNROLL for (int i = 0; i < SIDE; ++i) {
    Vector t[SIDE];
    to_frequencies(half[i], t);
    UNROLL for (int j = 0; j < SIDE; ++j) put(v + (SIDE * i + j) * step, t[j]);
  }
}

// Y = A^T M A.
template <int SIDE, int OUTS>
TARGET static inline void transform_back(const float* m, int64_t step, Vector (&y)[OUTS][OUTS]) {
  Vector half[OUTS][SIDE];
  UNROLL for (int j = 0; j < SIDE; ++j) {
    Vector column[SIDE], t[OUTS];
    UNROLL for (int i = 0; i < SIDE; ++i) column[i] = get(m + (SIDE * i + j) * step);
    to_pixels(column, t);
    UNROLL for (int i = 0; i < OUTS; ++i) half[i][j] = t[i];
  }
  UNROLL for (int i = 0; i < OUTS; ++i) to_pixels(half[i], y[i]);
}

// Exchanges blocks of `S` lanes: a's second ones, of each two, for b's first ones.
template <int S, int... I>
TARGET static inline void exchange(Vector& a, Vector& b, std::integer_sequence<int, I...>) {
  const Vector x = a;
  a = SHUFFLE(x, b, (I & S ? LANES + I - S : I)...);
  b = SHUFFLE(x, b, (I & S ? LANES + I : I + S)...);
}

// Rows become columns.
template <int S>
TARGET static inline void transpose(Vector (&rows)[LANES]) {
  for (int i = 0; i < LANES; ++i) {
    if (!(i & S)) exchange<S>(rows[i], rows[i + S], std::make_integer_sequence<int, LANES>{});
  }
  if constexpr (S > 1) transpose<S / 2>(rows);
}

// Brings in what a tile reads and those before it don't, of the vector of channels at `c`: images come from the memory,
// or another core's cache, and their rows of a few pixels aren't foreseen.
template <int SIDE>
TARGET FETCHES static void fetch_tile(const float* const* in, int64_t c) {
  if (c % LINE > 0) return;
  UNROLL for (int i = 2; i < SIDE; ++i) {
    UNROLL for (int j = 2; j < SIDE; ++j) fetch(in[SIDE * i + j] + c);
  }
}

// V of the tiles from `begin` to `end`: by frequency and tile, channels side by side.
template <int SIDE>
TARGET static void inputs(const Tiles& tiles, int64_t begin, int64_t end, const Spectrum& v) {
  const float* both[2][SIDE * SIDE];
  if (begin < end) tiles.pixels(begin, both[begin % 2]);
  for (int64_t tile = begin; tile < end; ++tile) {
    const float* const* const in = both[tile % 2];
    const float** const next = both[(tile + 1) % 2];
    if (tile + 1 < end) tiles.pixels(tile + 1, next);
    float* to = v.data + (tile - begin) * v.row;
    for (int64_t c = 0; c < tiles.channels; c += LANES) {
      if (tile + 1 < end) fetch_tile<SIDE>(next, c);
      transform<SIDE>(in, c, tiles.channels, to + c, v.step);
    }
  }
}

// The same by frequency and channel, tiles side by side; as many as fill vectors, zeros behind the last one.
template <int SIDE>
TARGET static void inputs_turned(const Tiles& tiles, int64_t begin, int64_t end, const Spectrum& v) {
  constexpr int SOON = 4;  // tiles
  alignas(64) float some[SIDE * SIDE][LANES][LANES];
  for (int64_t first = begin; first < end; first += LANES) {
    const auto count = static_cast<int>(std::min<int64_t>(LANES, end - first));
    const float* in[LANES][SIDE * SIDE];
    for (int r = 0; r < count; ++r) tiles.pixels(first + r, in[r]);
    if (count < LANES) __builtin_memset(some, 0, sizeof(some));
    for (int64_t c = 0; c < tiles.channels; c += LANES) {
      for (int r = 0; r < count; ++r) {
        if (r + SOON < count) {
          fetch_tile<SIDE>(in[r + SOON], c);
        } else if (c + LANES < tiles.channels) {
          fetch_tile<SIDE>(in[(r + SOON) % count], c + LANES);
        }
        transform<SIDE>(in[r], c, tiles.channels, some[0][r], LANES * LANES);
      }
      for (int f = 0; f < SIDE * SIDE; ++f) {
        Vector rows[LANES];
        for (int r = 0; r < LANES; ++r) rows[r] = get(some[f][r]);
        transpose<LANES / 2>(rows);
        float* to = v.data + f * v.step + c * v.row + first - begin;
        for (int r = 0; r < LANES; ++r) put(to + r * v.row, rows[r]);
      }
    }
  }
}

// `ROWS` outputs times `WIDE` vectors of tiles, over all inputs.
template <class V, int ROWS, int WIDE>
TARGET static void turned_tile(const TurnedProduct& p, int64_t row, int64_t lane) {
  V sum[ROWS][WIDE];
  const float* w[ROWS];
  UNROLL for (int r = 0; r < ROWS; ++r) {
    w[r] = p.weights + static_cast<int64_t>(p.rows[row + r]) * p.inputs;
    UNROLL for (int j = 0; j < WIDE; ++j) sum[r][j] = V{};
  }
  const float* v = p.v + lane;
  for (int64_t k = 0; k < p.inputs; ++k, v += p.pitch) {
    V b[WIDE];
    UNROLL for (int j = 0; j < WIDE; ++j) b[j] = get<V>(v + j * sizeof(V) / sizeof(float));
    if (p.soon > 0 && lane == 0 && k % LINE == 0) {
      UNROLL for (int r = 0; r < ROWS; ++r) fetch(w[r] + k + p.soon);
    }
    UNROLL for (int r = 0; r < ROWS; ++r) {
      const float a = w[r][k];
      UNROLL for (int j = 0; j < WIDE; ++j) sum[r][j] += a * b[j];
    }
  }
  UNROLL for (int r = 0; r < ROWS; ++r) {
    float* const m = p.m + (row + r) * p.pitch + lane;
    UNROLL for (int j = 0; j < WIDE; ++j) put(m + j * sizeof(V) / sizeof(float), sum[r][j]);
  }
}

template <class V, int ROWS, int WIDE>
TARGET static void turned_some(const TurnedProduct& p, int64_t row, int64_t rows, int64_t lane) {
  if (rows == ROWS) {
    turned_tile<V, ROWS, WIDE>(p, row, lane);
  } else if constexpr (ROWS > 1) {
    turned_some<V, ROWS - 1, WIDE>(p, row, rows, lane);
  }
}

// All outputs, by as many rows at a time each: a few alone would wait for their own sums.
template <class V, int WIDE>
TARGET static void turned_rows(const TurnedProduct& p, int64_t lane) {
  constexpr int ROWS = 2 * VECTORS;
  const int64_t parts = divide_up(p.count, ROWS);
  for (int64_t i = 0; i < parts; ++i) {
    const int64_t row = p.count * i / parts;
    turned_some<V, ROWS, WIDE>(p, row, p.count * (i + 1) / parts - row, lane);
  }
}

// M = U V of one frequency.
TARGET static void turned(const TurnedProduct& p) {
  int64_t lane = 0;
  for (; lane + LANES + FEWER < p.tiles; lane += 2 * LANES) turned_rows<Vector, 2>(p, lane);
  for (; lane + FEWER < p.tiles; lane += LANES) turned_rows<Vector, 1>(p, lane);
  for (; lane < p.tiles; lane += FEWER) turned_rows<Half, 1>(p, lane);
}

// Brings in where a tile's outputs go, and what is added to them; not for tiles that the image's end cuts.
template <int OUTS>
TARGET FETCHES static void fetch_outputs(const Corner& corner, int64_t width, const float* initial, float* out,
                                         int64_t pitch) {
  if (corner.height < OUTS || corner.width < OUTS) return;
  UNROLL for (int i = 0; i < OUTS; ++i) {
    const int64_t at = (corner.pixel + i * width) * pitch;
    if (initial != nullptr) {
      UNROLL for (int j = 0; j < OUTS; ++j) fetch(initial + at + j * pitch);
    }
    UNROLL for (int j = 0; j < OUTS; ++j) fetch_to_write(out + at + j * pitch);
  }
}

// y = relu(A^T M A + bias) of up to 16 outputs, into columns of the image's pixels.
template <int SIDE>
TARGET static void outputs_turned(const Spectrum& m, int64_t count, const float* bias, const Tiles& tiles,
                                  int64_t begin, int64_t end, float* y, int64_t pitch) {
  constexpr int OUTS = SIDE - 2;
  alignas(64) float some[OUTS * OUTS][LANES][LANES];
  for (int64_t row = 0; row < count; row += LANES) {
    const auto some_rows = static_cast<int>(std::min<int64_t>(LANES, count - row));
    if (some_rows < LANES) __builtin_memset(some, 0, sizeof(some));
    for (int64_t first = begin; first < end; first += LANES) {
      const auto lanes = static_cast<int>(std::min<int64_t>(LANES, end - first));
      Corner corners[LANES];
      for (int lane = 0; lane < lanes; ++lane) corners[lane] = tiles.corner(first + lane);
      for (int r = 0; r < some_rows; ++r) {
        for (int lane = r; lane < lanes && row % LINE == 0; lane += some_rows) {
          fetch_outputs<OUTS>(corners[lane], tiles.width, nullptr, y + row, pitch);
        }
        Vector out[OUTS][OUTS];
        transform_back<SIDE>(m.data + (row + r) * m.row + first - begin, m.step, out);
        UNROLL for (int i = 0; i < OUTS; ++i) {
          UNROLL for (int j = 0; j < OUTS; ++j) put(some[OUTS * i + j][r], positive(out[i][j] + bias[row + r]));
        }
      }
      for (int i = 0; i < OUTS; ++i) {
        for (int j = 0; j < OUTS; ++j) {
          Vector rows[LANES];
          UNROLL for (int r = 0; r < LANES; ++r) rows[r] = get(some[OUTS * i + j][r]);
          transpose<LANES / 2>(rows);
          for (int lane = 0; lane < lanes; ++lane) {
            const Corner& corner = corners[lane];
            if (i >= corner.height || j >= corner.width) continue;
            put(y + (corner.pixel + i * tiles.width + j) * pitch + row, rows[lane]);
          }
        }
      }
    }
  }
}

// `ROWS` tiles times `WIDE` vectors of outputs, over the inputs that are read.
template <int ROWS, int WIDE>
TARGET static void product_tile(const Product& p, int64_t row, int lane) {
  Vector sum[ROWS][WIDE];
  UNROLL for (int r = 0; r < ROWS; ++r) {
    UNROLL for (int j = 0; j < WIDE; ++j) sum[r][j] = Vector{};
  }
  const float* in[ROWS];
  UNROLL for (int r = 0; r < ROWS; ++r) in[r] = p.v + (row + r) * p.pitch;
  const float* weights = p.weights + lane;
  const float* const soon = weights + p.soon;
  const int64_t coming = row == 0 ? p.num_coming : 0;
  for (int64_t k = 0; k < p.count; ++k) {
    const float* w = weights + static_cast<int64_t>(p.channels[k]) * PANEL;
    const int64_t at = p.columns[k];
    Vector b[WIDE];
    UNROLL for (int j = 0; j < WIDE; ++j) b[j] = get(w + j * LANES);
    if (k < coming) {
      const float* next = soon + static_cast<int64_t>(p.coming[k]) * PANEL;
      UNROLL for (int j = 0; j < WIDE * LANES; j += LINE) fetch(next + j);
    }
    UNROLL for (int r = 0; r < ROWS; ++r) {
      const float a = in[r][at];
      UNROLL for (int j = 0; j < WIDE; ++j) sum[r][j] += a * b[j];
    }
  }
  UNROLL for (int r = 0; r < ROWS; ++r) {
    UNROLL for (int j = 0; j < WIDE; ++j) put(p.m + (row + r) * PANEL + lane + j * LANES, sum[r][j]);
  }
}

template <int WIDE>
TARGET static void product_rows(const Product& p, int lane) {
  int64_t row = 0;
  for (; row + 6 <= p.tiles; row += 6) product_tile<6, WIDE>(p, row, lane);
  switch (p.tiles - row) {
    case 5: product_tile<5, WIDE>(p, row, lane); break;
    case 4: product_tile<4, WIDE>(p, row, lane); break;
    case 3: product_tile<3, WIDE>(p, row, lane); break;
    case 2: product_tile<2, WIDE>(p, row, lane); break;
    case 1: product_tile<1, WIDE>(p, row, lane); break;
    default: break;
  }
}

template <int WIDE>
TARGET static void product_lanes(const Product& p, int lane) {
  for (; lane + WIDE * LANES <= p.lanes; lane += WIDE * LANES) product_rows<WIDE>(p, lane);
  if constexpr (WIDE * LANES > GROUP) product_lanes<WIDE - 1>(p, lane);
}

// M = V U of one frequency and panel.
TARGET static void product(const Product& p) { product_lanes<VECTORS>(p, 0); }

// y = A^T M A + bias + initial of a panel's outputs, and its ReLU.
template <int SIDE>
TARGET static void outputs_of(const Spectrum& m, const Tiles& tiles, int64_t begin, int64_t end, const Finish& to) {
  constexpr int OUTS = SIDE - 2;
  for (int64_t tile = begin; tile < end; ++tile) {
    const Corner corner = tiles.corner(tile), next = tiles.corner(tile + 1);
    for (int c = 0; c < to.lanes; c += LANES) {
      const float* const initial = to.initial == nullptr ? nullptr : to.initial + c;
      if (c % LINE == 0) fetch_outputs<OUTS>(next, tiles.width, initial, to.out + c, to.pitch);
      Vector out[OUTS][OUTS];
      transform_back<SIDE>(m.data + (tile - begin) * m.row + c, m.step, out);
      const Vector bias = get(to.bias + c);
      UNROLL for (int i = 0; i < OUTS; ++i) {
        UNROLL for (int j = 0; j < OUTS; ++j) {
          if (i >= corner.height || j >= corner.width) continue;
          const int64_t pixel = corner.pixel + i * tiles.width + j;
          Vector x = out[i][j] + bias;
          if (initial != nullptr) x += get(initial + pixel * to.pitch);
          put(to.out + pixel * to.pitch + c, to.relu ? positive(x) : x);
        }
      }
    }
  }
}

// V of a stem's tiles, see `Phases`.
TARGET static void stem_inputs(const Phases& p, int64_t begin, int64_t end, const Spectrum& v) {
  for (int64_t tile = begin; tile < end; ++tile) {
    const float* in[36];
    for (int i = 0; i < 6; ++i) {
      for (int j = 0; j < 6; ++j) {
        in[6 * i + j] = p.pixels + (3 * (tile / p.wide) + i) * p.row() + (3 * (tile % p.wide) + j) * p.pitch;
      }
    }
    float* to = v.data + (tile - begin) * v.row;
    for (int64_t c = 0; c < p.pitch; c += LANES) transform<6>(in, c, p.pitch, to + c, v.step);
  }
}

// y = relu(A^T M A + bias) of a panel's outputs.
TARGET static void stem_outputs(const Spectrum& m, const Phases& p, int64_t begin, int64_t end, const Finish& to) {
  for (int64_t tile = begin; tile < end; ++tile) {
    const int64_t y = 3 * (tile / p.wide), x = 3 * (tile % p.wide);
    for (int c = 0; c < to.lanes; c += LANES) {
      Vector out[3][3];
      transform_back<6>(m.data + (tile - begin) * m.row + c, m.step, out);
      const Vector bias = get(to.bias + c);
      UNROLL for (int i = 0; i < 3; ++i) {
        UNROLL for (int j = 0; j < 3; ++j) {
          if (y + i >= p.out_height || x + j >= p.out_width) continue;
          put(to.out + ((y + i) * p.out_width + x + j) * to.pitch + c, positive(out[i][j] + bias));
        }
      }
    }
  }
}

template <int SIDE>
constexpr Transforms TRANSFORMS{inputs<SIDE>, inputs_turned<SIDE>, outputs_turned<SIDE>, outputs_of<SIDE>};
