// The products of winograd.cc and direct.cc. Included once for each kind of CPU, inside a namespace; see tile.h for
// what is to be defined. Channels come in groups of 16.

#include "vectors.h"

// `ROWS` tiles times `WIDE` vectors of weights, over all channels.
template <int ROWS, int WIDE>
TARGET static void filter_tile(const float* v, int64_t pitch, const float* u, int64_t channels, bool first, float* m) {
  Vector sum[ROWS][WIDE];
  UNROLL for (int r = 0; r < ROWS; ++r) {
    UNROLL for (int j = 0; j < WIDE; ++j) sum[r][j] = first ? Vector{} : get(m + r * PANEL + j * LANES);
  }
  for (int64_t k = 0; k < channels; ++k, u += PANEL) {
    Vector b[WIDE];
    UNROLL for (int j = 0; j < WIDE; ++j) b[j] = get(u + j * LANES);
    UNROLL for (int r = 0; r < ROWS; ++r) {
      const float a = v[r * pitch + k];
      UNROLL for (int j = 0; j < WIDE; ++j) sum[r][j] += a * b[j];
    }
  }
  UNROLL for (int r = 0; r < ROWS; ++r) {
    UNROLL for (int j = 0; j < WIDE; ++j) put(m + r * PANEL + j * LANES, sum[r][j]);
  }
}

template <int WIDE>
TARGET static void filter_rows(const float* v, int64_t pitch, int64_t rows, const float* u, int64_t channels,
                               bool first, float* m) {
  for (; rows >= 6; rows -= 6, v += 6 * pitch, m += 6 * PANEL) filter_tile<6, WIDE>(v, pitch, u, channels, first, m);
  switch (rows) {
    case 5: filter_tile<5, WIDE>(v, pitch, u, channels, first, m); break;
    case 4: filter_tile<4, WIDE>(v, pitch, u, channels, first, m); break;
    case 3: filter_tile<3, WIDE>(v, pitch, u, channels, first, m); break;
    case 2: filter_tile<2, WIDE>(v, pitch, u, channels, first, m); break;
    case 1: filter_tile<1, WIDE>(v, pitch, u, channels, first, m); break;
    default: break;
  }
}

// M = V U, or M += V U: `rows` tiles and the lanes from `lane` to `lanes` of a panel.
template <int WIDE>
TARGET static void filter(const float* v, int64_t pitch, int64_t rows, const float* u, int64_t channels, bool first,
                          float* m, int64_t lane, int64_t lanes) {
  for (; lane + WIDE * LANES <= lanes; lane += WIDE * LANES) {
    filter_rows<WIDE>(v, pitch, rows, u + lane, channels, first, m + lane);
  }
  if constexpr (WIDE * LANES > GROUP) filter<WIDE - 1>(v, pitch, rows, u, channels, first, m, lane, lanes);
}

// A whole group of outputs at least.
constexpr int OUTER = VECTORS * LANES > GROUP ? VECTORS : GROUP / LANES;

// `ROWS` inputs times `WIDE` vectors of outputs, summed over the tiles.
template <int ROWS, int WIDE>
TARGET static void outer_tile(const float* v, const float* d, int64_t tiles, int64_t group, bool first, float* s,
                              int64_t pitch) {
  Vector sum[ROWS][WIDE];
  UNROLL for (int r = 0; r < ROWS; ++r) {
    UNROLL for (int j = 0; j < WIDE; ++j) sum[r][j] = first ? Vector{} : get(s + r * pitch + j * LANES);
  }
  for (int64_t t = 0; t < tiles; ++t, v += GROUP, d += GROUP) {
    Vector b[WIDE];
    UNROLL for (int j = 0; j < WIDE; ++j) b[j] = get(d + j * LANES / GROUP * group + j * LANES % GROUP);
    UNROLL for (int r = 0; r < ROWS; ++r) {
      const float a = v[r];
      UNROLL for (int j = 0; j < WIDE; ++j) sum[r][j] += a * b[j];
    }
  }
  UNROLL for (int r = 0; r < ROWS; ++r) {
    UNROLL for (int j = 0; j < WIDE; ++j) put(s + r * pitch + j * LANES, sum[r][j]);
  }
}

// S = V^T D, or S += V^T D, for the first `inputs` of a group, a multiple of 4, and the outputs from `lane` to
// `lanes`; a group's tiles lie side by side, `group` floats from one group to the next.
template <int WIDE>
TARGET static void outer(const float* v, const float* d, int64_t tiles, int64_t group, bool first, float* s,
                         int64_t inputs, int64_t lane, int64_t lanes) {
  const int64_t pitch = lanes;
  constexpr int ROWS = 4 * VECTORS / OUTER;
  for (; lane + WIDE * LANES <= lanes; lane += WIDE * LANES) {
    for (int64_t r = 0; r < inputs; r += ROWS) {
      outer_tile<ROWS, WIDE>(v + r, d + lane / GROUP * group, tiles, group, first, s + r * pitch + lane, pitch);
    }
  }
  if constexpr (WIDE * LANES > GROUP) outer<WIDE - 1>(v, d, tiles, group, first, s, inputs, lane, lanes);
}
