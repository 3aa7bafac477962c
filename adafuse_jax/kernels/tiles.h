// What the loops of minimal.h work on.

// Tiles of 4x4 pixels of an image, of which a 3x3 convolution of stride 1, padded by 1, reads 6x6.
struct Tiles {
  const float* image;  // null, where only the shape counts
  int64_t height, width, channels, pitch;  // pitch: floats from one pixel to the next
  const float* zeros;  // a pixel of the border

  int64_t wide() const { return divide_up(width, 4); }
  int64_t count() const { return divide_up(height, 4) * wide(); }

  // Where the 6x6 pixels lie.
  void pixels(int64_t tile, const float** in) const {
    const int64_t top = 4 * (tile / wide()) - 1, left = 4 * (tile % wide()) - 1;
    for (int i = 0; i < 6; ++i) {
      for (int j = 0; j < 6; ++j) {
        const int64_t y = top + i, x = left + j;
        const bool inside = y >= 0 && y < height && x >= 0 && x < width;
        in[6 * i + j] = inside ? image + (y * width + x) * pitch : zeros;
      }
    }
  }
  // Number of the `i`-th of the 4x4 pixels; -1 outside of the image.
  int64_t pixel(int64_t tile, int i) const {
    const int64_t y = 4 * (tile / wide()) + i / 4, x = 4 * (tile % wide()) + i % 4;
    return y < height && x < width ? y * width + x : -1;
  }
};

// Transformed tiles, by frequency: floats from one to the next, and from one row of them to the next.
struct Spectrum {
  float* data;
  int64_t step, row;
};

// Some outputs of a frequency, tiles side by side.
struct TurnedProduct {
  const float* v;        // (inputs, pitch)
  int64_t inputs, pitch, tiles;
  const float* weights;  // (outputs, inputs)
  const int32_t* rows;   // `count` outputs
  int64_t count;
  float* m;              // (count, pitch)
};

// A panel's outputs of a frequency, of the inputs that are read: `columns[k]` of a tile times row `channels[k]`.
struct Product {
  const float* v;
  int64_t pitch, tiles;  // pitch: floats from one tile to the next
  const float* weights;  // rows of 64
  const int32_t *columns, *channels;
  int64_t count;
  int lanes;             // outputs, a multiple of 16
  float* m;              // (tiles, 64)
};

// Where a panel's outputs go.
struct Finish {
  const float *bias, *initial;  // initial: what is added, as `out` is laid out, or null
  int64_t initial_pitch;
  bool relu;
  int lanes;
  float* out;
  int64_t pitch;
};
