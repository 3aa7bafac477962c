// As winograd_driver.cc, for convolutions of any stride.

#include "direct.cc"

#include "driver.h"

namespace {

// All three of one problem: y, dx (of a given dy) and dw.
struct Results {
  Values y, dx, dw;
};

Results computed(const Loops& loops, const Rows& rows, const Image& dy, const Values& w, int64_t workers, Pool& pool) {
  Team team(pool, workers);
  const auto parallel = [&](int64_t count, const Team::Job& job) { team.run(count, job); };
  const Image& x = rows.image;
  Results r{Values(rows.places() * dy.channels, NAN), Values(x.count * x.height * x.width * x.channels, NAN),
            Values(w.size(), NAN)};
  convolve(loops, rows, w.data(), dy.channels, r.y.data(), workers, parallel);
  if (x.channels % GROUP == 0) {
    transpose(loops, rows, w.data(), dy, r.dx.data(), workers, parallel);
  } else {
    r.dx.clear();
  }
  gradient(loops, rows, dy, r.dw.data(), parallel);
  return r;
}

Results expected(const Rows& rows, const Image& dy, const Values& w) {
  const Image& x = rows.image;
  const int64_t in = x.channels, out = dy.channels, taps = rows.kernel_y * rows.kernel_x;
  std::vector<double> y(rows.places() * out), dx(x.count * x.height * x.width * in), dw(w.size());
  for (int64_t place = 0; place < rows.places(); ++place) {
    const int64_t n = place / (rows.high * rows.wide), p = place / rows.wide % rows.high, q = place % rows.wide;
    for (int64_t tap = 0; tap < taps; ++tap) {
      const int64_t row = p * rows.stride_y - rows.top + tap / rows.kernel_x;
      const int64_t column = q * rows.stride_x - rows.left + tap % rows.kernel_x;
      if (row < 0 || row >= x.height || column < 0 || column >= x.width) continue;
      const int64_t seen = (n * x.height + row) * x.width + column;
      for (int64_t i = 0; i < in; ++i) {
        for (int64_t o = 0; o < out; ++o) {
          const int64_t weight = (tap * in + i) * out + o;
          const double a = x.data[seen * in + i], d = dy.data[place * out + o];
          y[place * out + o] += a * w[weight];
          dx[seen * in + i] += d * w[weight];
          dw[weight] += a * d;
        }
      }
    }
  }
  Results r{Values(y.begin(), y.end()), Values(dx.begin(), dx.end()), Values(dw.begin(), dw.end())};
  if (in % GROUP) r.dx.clear();
  return r;
}

bool correct(unsigned seed, int64_t level, Pool& pool) {
  Draw draw(seed);
  // Every fourth has more outputs than a block, and more than a chunk; every fourth images of few channels.
  const bool many = seed % 4 == 0;
  const int64_t kernel_y = many ? 5 : draw(1, 5), kernel_x = many ? 5 : draw(1, 5);
  const int64_t high = many ? 5 : draw(1, 5), wide = many ? 5 : draw(1, 5);
  const int64_t in = seed % 4 == 1 ? draw(1, 40) : GROUP * draw(1, many ? 1 : 5), out = GROUP * draw(1, many ? 1 : 5);
  const Values weights = draw.values(kernel_y * kernel_x * in * out);
  const int64_t count = many ? 60 : draw(1, 3), height = draw(1, 9), width = draw(1, 9);
  const Values images = draw.values(count * height * width * in), gradients = draw.values(count * high * wide * out);
  const Image x{images.data(), count, height, width, in}, dy{gradients.data(), count, high, wide, out};
  const int64_t stride_y = draw(1, kernel_y), stride_x = draw(1, kernel_x);
  const Rows rows{x, kernel_y, kernel_x, stride_y, stride_x, draw(0, kernel_y - 1), draw(0, kernel_x - 1), high, wide};
  const Loops& loops = *choose(level);
  const Results found = computed(loops, rows, dy, weights, draw(2, 4), pool);
  const Results alone = computed(loops, rows, dy, weights, 1, pool), wanted = expected(rows, dy, weights);
  return close(found.y, wanted.y) && close(found.dx, wanted.dx) && close(found.dw, wanted.dw) &&
         same(found.y, alone.y) && same(found.dx, alone.dx) && same(found.dw, alone.dw);
}

}  // namespace

int main(int argc, char** argv) {
  return all_correct(argc, argv, [](int64_t level) { return choose(level) != nullptr; }, correct);
}
