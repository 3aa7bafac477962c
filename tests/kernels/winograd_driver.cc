// As compact_driver.cc, for Winograd's filtering: every buffer is exactly as long as needed, and several calls run at once on
// one pool. Compares with the sums as a convolution and its gradients have them, and the bits with those of one
// thread alone.

#include "winograd.cc"

#include "driver.h"

namespace {

// All three of one problem: y, dx (of y taken as dy) and dw.
struct Results {
  Values y, dx, dw;
};

Results computed(const Loops& loops, const Image& x, const Image& dy, const Values& w, int64_t workers, Pool& pool) {
  Team team(pool, workers);
  const auto parallel = [&](int64_t count, const Team::Job& job) { team.run(count, job); };
  const int64_t pixels = x.count * x.height * x.width;
  Results r{Values(pixels * dy.channels, NAN), Values(pixels * x.channels, NAN), Values(w.size(), NAN)};
  const Floats forward = transformed(loops, w.data(), x.channels, dy.channels, false, parallel);
  filter(loops, x, forward.get(), dy, r.y.data(), workers, parallel);
  const Floats backward = transformed(loops, w.data(), x.channels, dy.channels, true, parallel);
  filter(loops, dy, backward.get(), x, r.dx.data(), workers, parallel);
  gradient(loops, x, dy, r.dw.data(), workers, parallel);
  return r;
}

Results expected(const Image& x, const Image& dy, const Values& w) {
  const int64_t in = x.channels, out = dy.channels, pixels = x.count * x.height * x.width;
  std::vector<double> y(pixels * out), dx(pixels * in), dw(w.size());
  for (int64_t pixel = 0; pixel < pixels; ++pixel) {
    for (int tap = 0; tap < 9; ++tap) {
      const int64_t row = pixel / x.width % x.height + tap / 3 - 1, column = pixel % x.width + tap % 3 - 1;
      if (row < 0 || row >= x.height || column < 0 || column >= x.width) continue;
      const int64_t seen = pixel + (tap / 3 - 1) * x.width + tap % 3 - 1;
      for (int64_t i = 0; i < in; ++i) {
        for (int64_t o = 0; o < out; ++o) {
          const int64_t weight = (tap * in + i) * out + o;
          const double a = x.data[seen * in + i], d = dy.data[pixel * out + o];
          y[pixel * out + o] += a * w[weight];
          dx[seen * in + i] += d * w[weight];
          dw[weight] += a * d;
        }
      }
    }
  }
  return {Values(y.begin(), y.end()), Values(dx.begin(), dx.end()), Values(dw.begin(), dw.end())};
}

bool correct(unsigned seed, int64_t level, Pool& pool) {
  Draw draw(seed);
  // Every fourth has more tiles than a block, and more than a chunk.
  const bool many = seed % 4 == 0;
  const int64_t n = many ? 80 : draw(1, 3), h = many ? 7 : draw(1, 7), w = many ? 7 : draw(1, 7);
  const int64_t in = GROUP * draw(1, many ? 1 : 6), out = GROUP * draw(1, many ? 1 : 6);
  const Values images = draw.values(n * h * w * in), gradients = draw.values(n * h * w * out), weights = draw.values(9 * in * out);
  const Image x{images.data(), n, h, w, in}, dy{gradients.data(), n, h, w, out};
  const Loops& loops = *choose(level);
  const Results found = computed(loops, x, dy, weights, draw(2, 4), pool);
  const Results alone = computed(loops, x, dy, weights, 1, pool), wanted = expected(x, dy, weights);
  const bool right = close(found.y, wanted.y) && close(found.dx, wanted.dx) && close(found.dw, wanted.dw);
  const bool alike = same(found.y, alone.y) && same(found.dx, alone.dx) && same(found.dw, alone.dw);
  return right && alike;
}

}  // namespace

int main(int argc, char** argv) {
  return all_correct(argc, argv, [](int64_t level) { return choose(level) != nullptr; }, correct);
}
