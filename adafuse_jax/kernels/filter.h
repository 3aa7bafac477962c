// The transforms of winograd.cc. Included once for each kind of CPU, inside a namespace; see tile.h for what is
// to be defined. Channels come in groups of 16 everywhere.

#include "products.h"
#include "transforms.h"

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
      Vector rows[4][4], t[4];
      for (int j = 0; j < 4; ++j) {
        to_frequencies({get(in[j] + c), get(in[4 + j] + c), get(in[8 + j] + c), get(in[12 + j] + c)}, t);
        for (int i = 0; i < 4; ++i) rows[i][j] = t[i];
      }
      for (int i = 0; i < 4; ++i) {
        to_frequencies(rows[i], t);
        for (int j = 0; j < 4; ++j, to += out.step) put(to, t[j]);
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
      Vector rows[2][4], pixels[2];
      for (int j = 0; j < 4; ++j) {
        const float* at = from + j * step + c;
        to_pixels({get(at), get(at + 4 * step), get(at + 8 * step), get(at + 12 * step)}, pixels);
        for (int i = 0; i < 2; ++i) rows[i][j] = pixels[i];
      }
      for (int i = 0; i < 4; ++i) {
        if (i % 2 == 0) to_pixels(rows[i / 2], pixels);
        if (out[i] >= 0) put(y + out[i] + first + c, pixels[i % 2]);
      }
    }
  }
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
