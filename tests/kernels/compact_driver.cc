// Runs the native code on many shapes, by itself, for sanitizers: every buffer is exactly as long as needed,
// and several clips run at once on one pool of threads. Compares with the sums as Eq. 3 has them.

#include "compact.cc"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>

#include "pool.h"

namespace {

using namespace adafuse;

// One output of a convolution of an image with `channels` channels; weight(tap, channel) gives the weights.
template <class Image, class Weight>
double convolved(const Conv& conv, int64_t channels, int64_t row, int64_t column, Image image, Weight weight) {
  double sum = 0;
  for (int64_t tap = 0; tap < conv.kernel * conv.kernel; ++tap) {
    const int64_t y = row * conv.stride - conv.kernel / 2 + tap / conv.kernel;
    const int64_t x = column * conv.stride - conv.kernel / 2 + tap % conv.kernel;
    if (y < 0 || y >= conv.height || x < 0 || x >= conv.width) continue;
    for (int64_t c = 0; c < channels; ++c) sum += image(y * conv.width + x, c) * weight(tap, c);
  }
  return sum;
}

// A clip of a random shape, drawn by `seed`; returns whether it comes out right.
bool correct(unsigned seed, int64_t level, Pool& pool) {
  std::mt19937 random(seed);
  const auto draw = [&](int from, int to) -> int64_t {
    return std::uniform_int_distribution<int>(from, to)(random);
  };
  std::normal_distribution<float> normal;
  const auto filled = [&](int64_t n) {
    std::vector<float> values(n);
    for (float& value : values) value = normal(random);
    return values;
  };
  Pair p{};
  p.batch = draw(1, 2), p.frames = draw(1, 4), p.in_features = draw(1, 20);
  p.width = draw(1, 150), p.features = draw(1, 150);
  const int64_t kernel1 = 2 * draw(0, 1) + 1, kernel2 = 2 * draw(0, 2) + 1, stride1 = draw(1, 3), stride2 = draw(1, 3);
  const int64_t height = draw(1, 9), width = draw(1, 9);
  const int64_t h = out_size(height, kernel1, stride1), w = out_size(width, kernel1, stride1);
  p.conv1 = {height, width, p.in_features, kernel1, stride1, h, w};
  p.conv2 = {h, w, pad(p.width), kernel2, stride2, out_size(h, kernel2, stride2), out_size(w, kernel2, stride2)};
  const int64_t taps1 = kernel1 * kernel1, taps2 = kernel2 * kernel2, panels = divide_up(p.features, PANEL);
  const int64_t total = p.batch * p.frames, out_pixels = p.conv2.out_height * p.conv2.out_width;
  const auto x = filled(total * height * width * p.in_features);
  const auto weights1 = filled(taps1 * p.in_features * p.width), bias1 = filled(p.width);
  const auto weights2 = filled(panels * taps2 * p.width * PANEL), bias2 = filled(panels * PANEL);
  // Every third clip has one action alone.
  const int64_t alone = draw(0, 8);
  std::vector<int8_t> actions(total * p.width);
  for (int8_t& action : actions) action = static_cast<int8_t>(alone < 3 ? alone : draw(0, 2));
  // Where nothing is computed nothing may be read: it would show as NaN.
  std::vector<float> scratch(total * h * w * pad(p.width), NAN), out(total * out_pixels * pad(p.features), NAN);
  p.x = x.data(), p.weights1 = weights1.data(), p.bias1 = bias1.data();
  p.weights2 = weights2.data(), p.bias2 = bias2.data(), p.actions = actions.data();
  p.scratch = scratch.data(), p.out = out.data();
  const int64_t workers = draw(1, 4);
  run_pair(p, choose(level), workers, [&](int64_t count, const std::function<void(int64_t, int64_t)>& f) {
    parallel_for(pool, workers, count, f);
  });

  std::vector<double> y(total * h * w * p.width);
  for (int64_t i = 0; i < static_cast<int64_t>(y.size()); ++i) {
    const int64_t c = i % p.width, pixel = i / p.width % (h * w), frame = i / p.width / (h * w);
    const float* image = p.x + frame * height * width * p.in_features;
    y[i] = bias1[c] + convolved(
        p.conv1, p.in_features, pixel / w, pixel % w, [&](int64_t at, int64_t k) { return image[at * p.in_features + k]; },
        [&](int64_t tap, int64_t k) { return weights1[(tap * p.in_features + k) * p.width + c]; });
    y[i] = std::max(y[i], 0.0);
  }
  for (int64_t i = 0; i < total * out_pixels * p.features; ++i) {
    const int64_t o = i % p.features, pixel = i / p.features % out_pixels, frame = i / p.features / out_pixels;
    const auto fused = [&](int64_t at, int64_t c) {
      const int8_t action = actions[frame * p.width + c];
      if (action == SKIP || (action == REUSE && frame % p.frames == 0)) return 0.0;
      return y[((frame - (action == REUSE)) * h * w + at) * p.width + c];
    };
    const auto weight = [&](int64_t tap, int64_t c) {
      return weights2[((o / PANEL * taps2 + tap) * p.width + c) * PANEL + o % PANEL];
    };
    const int64_t row = pixel / p.conv2.out_width, column = pixel % p.conv2.out_width;
    const double expected = bias2[o] + convolved(p.conv2, p.width, row, column, fused, weight);
    const double found = out[(frame * out_pixels + pixel) * pad(p.features) + o];
    if (!(std::abs(found - expected) <= 1e-3 + 1e-4 * std::abs(expected))) {
      std::printf("seed %u, level %d: expected %g, found %g\n", seed, static_cast<int>(level), expected, found);
      return false;
    }
  }
  return true;
}

}  // namespace

// The argument: how many clips each of three threads runs with each kind of instructions.
int main(int argc, char** argv) {
  const int clips = argc > 1 ? std::atoi(argv[1]) : 12;
  Pool pool(3);
  std::atomic<bool> all{true};
  for (int64_t level = BEST; level <= AVX512; ++level) {
    if (choose(level) == nullptr) continue;
    std::vector<std::thread> callers;
    for (unsigned caller = 0; caller < 3; ++caller) {
      callers.emplace_back([&, caller] {
        for (int i = 0; i < clips; ++i) {
          if (!correct(1000 * caller + i, level, pool)) all = false;
        }
      });
    }
    for (std::thread& caller : callers) caller.join();
  }
  std::puts(all ? "all correct" : "wrong");
  return all ? 0 : 1;
}
