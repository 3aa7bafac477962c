// What the loops of minimal.h work on.

// Of a tile: number of the first of its own pixels, and how much of the image there is from there on.
struct Corner {
  int64_t pixel, height, width;
};

// Tiles of 2x2 or 4x4 pixels of an image, of which a 3x3 convolution of stride 1, padded by 1, reads 4x4 or 6x6.
struct Tiles {
  const float* image;  // null, where only the shape counts
  int64_t height, width, channels, pitch;  // pitch: floats from one pixel to the next
  const float* zeros;  // a pixel of the border
  int64_t side;        // 4 or 6

  int64_t outs() const { return side - 2; }
  int64_t wide() const { return divide_up(width, outs()); }
  int64_t count() const { return divide_up(height, outs()) * wide(); }

  // Where the pixels lie that are read.
  void pixels(int64_t tile, const float** in) const {
    const int64_t top = outs() * (tile / wide()) - 1, left = outs() * (tile % wide()) - 1;
    for (int i = 0; i < side; ++i) {
      for (int j = 0; j < side; ++j) {
        const int64_t y = top + i, x = left + j;
        const bool inside = y >= 0 && y < height && x >= 0 && x < width;
        in[side * i + j] = inside ? image + (y * width + x) * pitch : zeros;
      }
    }
  }
  Corner corner(int64_t tile) const {
    const int64_t y = outs() * (tile / wide()), x = outs() * (tile % wide());
    return {y * width + x, height - y, width - x};
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
  int64_t soon;          // floats from the weights to those of the next frequency, to be brought in; or 0
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
  int64_t soon;          // floats from the weights to those of the next frequency
  const int32_t* coming;  // `num_coming` rows of those, to be brought in
  int64_t num_coming;
};

// Where a panel's outputs go.
struct Finish {
  const float *bias, *initial;  // initial: what is added, as `out` is laid out, or null
  bool relu;
  int lanes;
  float* out;
  int64_t pitch;
};

// Rows of the input of a stem's convolution, 7x7 of stride 2, where each pixel is four of x's, two by two: so it is a
// 4x4 one of stride 1, of tiles of 3x3 outputs that read 6x6. Two pixels of zeros, at least, are on the left and right.
struct Phases {
  const float* pixels;            // (3 * tall + 3, 3 * wide + 3, pitch)
  int64_t pitch, tall, wide;      // tall, wide: tiles
  int64_t out_height, out_width;  // of the outputs that there are
  int64_t row() const { return (3 * wide + 3) * pitch; }
};

// The loops of a size of tiles.
struct Transforms {
  void (*inputs)(const Tiles&, int64_t, int64_t, const Spectrum&);
  void (*inputs_turned)(const Tiles&, int64_t, int64_t, const Spectrum&);
  void (*outputs_turned)(const Spectrum&, int64_t, const float*, const Tiles&, int64_t, int64_t, float*, int64_t);
  void (*outputs)(const Spectrum&, const Tiles&, int64_t, int64_t, const Finish&);
};
