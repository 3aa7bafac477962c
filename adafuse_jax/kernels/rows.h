// How direct.cc gathers what a product reads. Included once for each kind of CPU, inside a namespace; see tile.h for
// what is to be defined.

#include "products.h"

// The pixels under the kernel, of the outputs from `begin` to `end`: one "frequency" for each of its rows. Of a
// group that isn't full the rest is undefined.
TARGET static void of_rows(const Rows& rows, int64_t begin, int64_t end, const Spectra& out) {
  const int64_t line = rows.image.width * rows.image.channels, length = rows.length();
  for (int64_t pixel = begin; pixel < end; ++pixel) {
    const int64_t n = pixel / (rows.high * rows.wide), p = pixel / rows.wide % rows.high, q = pixel % rows.wide;
    const int64_t left = (q * rows.stride_x - rows.left) * rows.image.channels;
    for (int64_t i = 0; i < rows.kernel_y; ++i) {
      const int64_t y = p * rows.stride_y - rows.top + i;
      const bool inside = y >= 0 && y < rows.image.height;
      const int64_t at = (n * rows.image.height + y) * line + left;  // not a place, if not inside
      for (int64_t r = 0; r < length; r += GROUP) {
        float* to = out.at(i, pixel - begin, r);
        if (inside && left >= 0 && left + r + GROUP <= line) {
          for (int l = 0; l < GROUP; l += LANES) put(to + l, get(rows.image.data + at + r + l));
        } else {
          for (int64_t l = 0; l < GROUP; ++l) {
            const int64_t x = left + r + l;
            to[l] = inside && r + l < length && x >= 0 && x < line ? rows.image.data[at + r + l] : 0.0f;
          }
        }
      }
    }
  }
}

constexpr Loops LOOPS = {of_rows, filter<VECTORS>, outer<OUTER>};
