// Runs the native code on many shapes, by itself, for sanitizers: every buffer is exactly as long as needed,
// and several clips run at once on one pool of threads. Compares with the sums as Eq. 3 has them.

#include "compact.cc"

#include "driver.h"

namespace {

using namespace adafuse;
using namespace adafuse::compact;

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

// Transforms weights of `taps` x `taps`, 3 or 4, as they lie at at(y, x): by frequency, G w G^T for tiles of `side`
// inputs. Row i of G is the powers of the i-th point over a number, the last one, of infinity, a one at the end.
template <class At>
float filtered(int64_t side, int64_t taps, int64_t frequency, At at) {
  constexpr double POINTS[] = {0, 1, -1, 2, -2}, SMALL[] = {1, 2, 2}, LARGE[] = {4, -6, -6, 24, 24};
  const auto g = [&](int64_t row, int64_t tap) {
    if (row + 1 == side) return tap + 1 == taps ? 1.0 : 0.0;
    return (tap == 0 ? 1.0 : std::pow(POINTS[row], tap)) / (side == 4 ? SMALL : LARGE)[row];
  };
  double sum = 0;
  for (int64_t y = 0; y < taps; ++y) {
    for (int64_t x = 0; x < taps; ++x) sum += g(frequency / side, y) * g(frequency % side, x) * at(y, x);
  }
  return static_cast<float>(sum);
}

// The clips `p`, some images at a time, or one frame of each after the other.
void run_frames(const Block& p, int64_t images, bool one_by_one, const Loops& loops, int64_t workers, Pool& pool) {
  Team team(pool, workers);
  const auto parallel = [&](int64_t count, const Team::Job& job) { team.run(count, job); };
  if (!one_by_one) {
    run_block(p, loops, workers, parallel, images);
    return;
  }
  const int64_t in = p.conv1.height * p.conv1.width * p.in_features, between = p.y_frame();
  const int64_t out = p.conv2.out_height * p.conv2.out_width * pad(p.features);
  const int64_t added = p.weights_shortcut != nullptr ? in : p.shortcut != nullptr ? out : 0;
  std::vector<float> shortcut(p.batch * added);
  std::vector<float> x(p.batch * in), x_before(p.batch * in), y(p.batch * between), y_before(p.batch * between);
  std::vector<float> outs(p.batch * out), averages(p.batch * pad(p.features));
  std::vector<int8_t> actions(p.batch * p.width);
  for (int64_t t = 0; t < p.frames; ++t) {
    std::vector<float> late(p.batch * between, NAN);
    std::fill(y.begin(), y.end(), NAN);
    for (int64_t b = 0; b < p.batch; ++b) {
      std::copy_n(p.x + (b * p.frames + t) * in, in, x.begin() + b * in);
      std::copy_n(p.actions + (b * p.frames + t) * p.width, p.width, actions.begin() + b * p.width);
      if (added > 0) std::copy_n(p.shortcut + (b * p.frames + t) * added, added, shortcut.begin() + b * added);
    }
    Block step = p;
    step.frames = 1;
    if (added > 0) step.shortcut = shortcut.data();
    step.x = x.data(), step.y = y.data(), step.actions = actions.data(), step.out = outs.data();
    step.x_before = x_before.data(), step.y_before = y_before.data();
    step.late = late.data(), step.averages = averages.data();
    run_block(step, loops, workers, parallel, images);
    for (int64_t b = 0; b < p.batch && p.averages != nullptr; ++b) {
      std::copy_n(averages.begin() + b * pad(p.features), pad(p.features), p.averages + (b * p.frames + t) * pad(p.features));
    }
    for (int64_t b = 0; b < p.batch; ++b) std::copy_n(outs.begin() + b * out, out, p.out + (b * p.frames + t) * out);
    x_before.swap(x), y_before.swap(y);
  }
}

// A clip of a random shape, drawn by `seed`; returns whether it comes out right.
bool correct_block(unsigned seed, int64_t level, Pool& pool) {
  Draw draw(seed);
  Block p{};
  p.batch = draw(1, 2), p.frames = draw(1, 4), p.in_features = draw(1, 20);
  p.width = draw(1, 150), p.middle = draw(1, 90);
  const bool third = draw(0, 1) == 1;
  p.features = third ? draw(1, 90) : p.middle;
  const int64_t how = draw(0, 2);  // no shortcut, one that is added as it is, one with a convolution
  const int64_t kernel1 = 2 * draw(0, 1) + 1, kernel2 = 2 * draw(0, 2) + 1, stride1 = draw(1, 3), stride2 = draw(1, 3);
  const int64_t height = draw(1, 20), width = draw(1, 20);
  const int64_t h = out_size(height, kernel1, stride1), w = out_size(width, kernel1, stride1);
  p.conv1 = {height, width, p.in_features, kernel1, stride1, h, w};
  p.conv2 = {h, w, pad(p.width), kernel2, stride2, out_size(h, kernel2, stride2), out_size(w, kernel2, stride2)};
  p.conv3 = {p.conv2.out_height, p.conv2.out_width, pad(p.middle), 1, 1, p.conv2.out_height, p.conv2.out_width};
  p.project = {height, width, p.in_features, 1, stride1 * stride2, p.conv2.out_height, p.conv2.out_width};
  const int64_t taps1 = kernel1 * kernel1, taps2 = kernel2 * kernel2;
  const int64_t panels2 = divide_up(p.middle, PANEL), panels = divide_up(p.features, PANEL);
  const int64_t total = p.batch * p.frames, out_pixels = p.conv2.out_height * p.conv2.out_width;
  const auto x = draw.values(total * height * width * p.in_features);
  const auto weights1 = draw.values(taps1 * p.in_features * p.width), bias1 = draw.values(p.width);
  const auto weights2 = draw.values(panels2 * taps2 * p.width * PANEL), bias2 = draw.values(panels2 * PANEL);
  const auto weights3 = draw.values(panels * p.middle * PANEL), bias3 = draw.values(panels * PANEL);
  const auto weights_shortcut = draw.values(panels * p.in_features * PANEL);
  const auto shortcut = how == 2 ? x : draw.values(total * out_pixels * pad(p.features));
  // 3x3 convolutions of stride 1 may be filtered.
  const auto side_of = [&](const Conv& conv) { return conv.kernel == 3 && conv.stride == 1 ? std::array<int64_t, 3>{0, 4, 6}[draw(0, 2)] : int64_t{0}; };
  p.side1 = side_of(p.conv1), p.side2 = side_of(p.conv2);
  std::vector<float> filtered1(p.side1 * p.side1 * p.width * p.in_features);
  for (int64_t i = 0; i < static_cast<int64_t>(filtered1.size()); ++i) {
    const int64_t row = i % (p.width * p.in_features) / p.in_features, column = i % p.in_features;
    filtered1[i] = filtered(p.side1, 3, i / (p.width * p.in_features), [&](int64_t y, int64_t x) {
      return weights1[(row * taps1 + 3 * y + x) * p.in_features + column];
    });
  }
  std::vector<float> filtered2(panels2 * p.side2 * p.side2 * p.width * PANEL);
  for (int64_t i = 0; i < static_cast<int64_t>(filtered2.size()); ++i) {
    const int64_t matrix = p.width * PANEL, frequencies = p.side2 * p.side2, panel = i / (frequencies * matrix);
    filtered2[i] = filtered(p.side2, 3, i / matrix % frequencies, [&](int64_t y, int64_t x) {
      return weights2[(panel * taps2 + 3 * y + x) * matrix + i % matrix];
    });
  }
  // Every third clip has one action alone.
  const int64_t alone = draw(0, 8);
  std::vector<int8_t> actions(total * p.width);
  for (int8_t& action : actions) action = static_cast<int8_t>(alone < 3 ? alone : draw(0, 2));
  if (draw(0, 2) == 0) {  // by groups: there are whole vectors that aren't read
    for (int64_t i = 0; i < total * p.width; ++i) actions[i] = actions[i - i % p.width % GROUP];
  }
  // Where nothing is computed nothing may be read: it would show as NaN.
  std::vector<float> between(total * p.y_frame(), NAN), out(total * out_pixels * pad(p.features), NAN);
  std::vector<float> z(total * out_pixels * pad(p.middle), NAN), averages(total * pad(p.features), NAN);
  p.x = x.data(), p.weights1 = weights1.data(), p.bias1 = bias1.data();
  p.weights2 = weights2.data(), p.bias2 = bias2.data(), p.actions = actions.data();
  p.y = between.data(), p.out = out.data();
  if (p.side1 > 0) p.weights1 = filtered1.data();
  if (p.side2 > 0) p.weights2 = filtered2.data();
  if (third) p.weights3 = weights3.data(), p.bias3 = bias3.data(), p.z = z.data(), p.averages = averages.data();
  if (how > 0) p.shortcut = shortcut.data();
  if (how == 2) p.weights_shortcut = weights_shortcut.data();
  const int64_t workers = draw(1, 4);
  run_frames(p, draw(1, p.batch * p.frames), draw(0, 1) == 1, *choose(level), workers, pool);

  std::vector<double> y(total * h * w * p.width);
  for (int64_t i = 0; i < static_cast<int64_t>(y.size()); ++i) {
    const int64_t c = i % p.width, pixel = i / p.width % (h * w), frame = i / p.width / (h * w);
    const float* image = p.x + frame * height * width * p.in_features;
    y[i] = bias1[c] + convolved(
        p.conv1, p.in_features, pixel / w, pixel % w, [&](int64_t at, int64_t k) { return image[at * p.in_features + k]; },
        [&](int64_t tap, int64_t k) { return weights1[(c * taps1 + tap) * p.in_features + k]; });
    y[i] = std::max(y[i], 0.0);
  }
  const auto panel_weight = [](const std::vector<float>& weights, int64_t taps, int64_t channels, int64_t o,
                               int64_t tap, int64_t c) {
    return weights[((o / PANEL * taps + tap) * channels + c) * PANEL + o % PANEL];
  };
  std::vector<double> middle(total * out_pixels * p.middle);
  for (int64_t i = 0; i < static_cast<int64_t>(middle.size()); ++i) {
    const int64_t o = i % p.middle, pixel = i / p.middle % out_pixels, frame = i / p.middle / out_pixels;
    const auto fused = [&](int64_t at, int64_t c) {
      const int8_t action = actions[frame * p.width + c];
      if (action == SKIP || (action == REUSE && frame % p.frames == 0)) return 0.0;
      return y[((frame - (action == REUSE)) * h * w + at) * p.width + c];
    };
    const int64_t row = pixel / p.conv2.out_width, column = pixel % p.conv2.out_width;
    middle[i] = bias2[o] + convolved(p.conv2, p.width, row, column, fused, [&](int64_t tap, int64_t c) {
      return panel_weight(weights2, taps2, p.width, o, tap, c);
    });
  }
  std::vector<double> all(total * out_pixels * p.features);
  for (int64_t i = 0; i < static_cast<int64_t>(all.size()); ++i) {
    const int64_t o = i % p.features, pixel = i / p.features % out_pixels, frame = i / p.features / out_pixels;
    double expected = third ? bias3[o] : middle[i];
    for (int64_t m = 0; third && m < p.middle; ++m) {
      expected += std::max(middle[(frame * out_pixels + pixel) * p.middle + m], 0.0) *
                  panel_weight(weights3, 1, p.middle, o, 0, m);
    }
    if (how == 1) expected += shortcut[(frame * out_pixels + pixel) * pad(p.features) + o];
    if (how == 2) {
      const float* image = p.x + frame * height * width * p.in_features;
      expected += convolved(
          p.project, p.in_features, pixel / p.project.out_width, pixel % p.project.out_width,
          [&](int64_t at, int64_t c) { return image[at * p.in_features + c]; },
          [&](int64_t, int64_t c) { return panel_weight(weights_shortcut, 1, p.in_features, o, 0, c); });
    }
    all[i] = how > 0 ? std::max(expected, 0.0) : expected;
  }
  std::vector<double> means(total * p.features);
  for (int64_t i = 0; i < static_cast<int64_t>(all.size()); ++i) {
    means[i / p.features / out_pixels * p.features + i % p.features] += all[i] / out_pixels;
  }
  double largest = 1;
  for (const double expected : all) largest = std::max(largest, std::abs(expected));
  for (int64_t i = 0; i < static_cast<int64_t>(all.size()); ++i) {
    const double found = out[i / p.features * pad(p.features) + i % p.features];
    if (!(std::abs(found - all[i]) <= 1e-5 * largest)) {
      std::printf("a block: expected %g, found %g, of %g at most\n", all[i], found, largest);
      return false;
    }
  }
  for (int64_t i = 0; third && i < static_cast<int64_t>(means.size()); ++i) {
    const double found = averages[i / p.features * pad(p.features) + i % p.features];
    if (!(std::abs(found - means[i]) <= 1e-5 * largest)) {
      std::printf("an average of a block: expected %g, found %g, of %g at most\n", means[i], found, largest);
      return false;
    }
  }
  return true;
}

// The same of a network's first layers.
bool correct_stem(unsigned seed, int64_t level, Pool& pool) {
  Draw draw(seed);
  Stem s{};
  s.images = draw(1, 3), s.features = draw(1, 90), s.pool = draw(0, 1) == 1;
  const int64_t height = draw(1, 20), width = draw(1, 20), channels = draw(1, 4);
  s.filtered = draw(0, 1) == 1;
  const int64_t kernel = s.filtered ? 7 : 2 * draw(0, 3) + 1, stride = s.filtered ? 2 : draw(1, 3);
  s.conv = {height, width, channels, kernel, stride, out_size(height, kernel, stride), out_size(width, kernel, stride)};
  const int64_t panels = divide_up(s.features, PANEL), taps = kernel * kernel;
  const auto x = draw.values(s.images * height * width * channels);
  const auto weights = draw.values(panels * taps * channels * PANEL), bias = draw.values(panels * PANEL);
  // Each pixel as four, two by two, of which the first of the kernel's eight by eight are not read.
  std::vector<float> by_frequency(s.filtered ? panels * 36 * 4 * channels * PANEL : 0);
  for (int64_t i = 0; i < static_cast<int64_t>(by_frequency.size()); ++i) {
    const int64_t c = i / PANEL % channels, phase = i / PANEL / channels % 4, panel = i / PANEL / channels / 4 / 36;
    by_frequency[i] = filtered(6, 4, i / PANEL / channels / 4 % 36, [&](int64_t y, int64_t x) {
      const int64_t row = 2 * y + phase / 2 - 1, column = 2 * x + phase % 2 - 1;
      if (row < 0 || column < 0) return 0.0f;
      return weights[((panel * taps + 7 * row + column) * channels + c) * PANEL + i % PANEL];
    });
  }
  std::vector<float> out(s.images * s.height() * s.width() * pad(s.features), NAN);
  s.x = x.data(), s.weights = s.filtered ? by_frequency.data() : weights.data();
  s.bias = bias.data(), s.out = out.data();
  const int64_t workers = draw(1, 4);
  Team team(pool, workers);
  run_stem(s, *choose(level), workers, [&](int64_t count, const Team::Job& job) { team.run(count, job); });
  for (int64_t i = 0; i < s.images * s.height() * s.width() * s.features; ++i) {
    const int64_t o = i % s.features, at = i / s.features % s.width(), row = i / s.features / s.width() % s.height();
    const int64_t image = i / s.features / s.width() / s.height();
    const auto convolved_at = [&](int64_t y, int64_t z) {
      return bias[o] + convolved(
          s.conv, channels, y, z, [&](int64_t pixel, int64_t c) { return x[(image * height * width + pixel) * channels + c]; },
          [&](int64_t tap, int64_t c) {
            return weights[(o / PANEL * taps * channels + tap * channels + c) * PANEL + o % PANEL];
          });
    };
    double expected = 0;
    const int64_t step = s.pool ? 2 : 1, reach = s.pool ? 1 : 0;
    for (int64_t y = std::max<int64_t>(0, step * row - reach); y <= std::min(s.conv.out_height - 1, step * row + reach); ++y) {
      for (int64_t z = std::max<int64_t>(0, step * at - reach); z <= std::min(s.conv.out_width - 1, step * at + reach); ++z) {
        expected = std::max(expected, convolved_at(y, z));
      }
    }
    const double found = out[((image * s.height() + row) * s.width() + at) * pad(s.features) + o];
    if (!(std::abs(found - expected) <= 1e-3 + 1e-4 * std::abs(expected))) {
      std::printf("a stem: expected %g, found %g\n", expected, found);
      return false;
    }
  }
  return true;
}

// The same of a policy network; of choices that are nearly as good any is right.
bool correct_policy(unsigned seed, int64_t level, Pool& pool) {
  Draw draw(seed);
  Policy p{};
  p.batch = draw(1, 2), p.frames = draw(1, 4), p.pixels = draw(1, 200), p.features = draw(1, 90);
  p.hidden = draw(1, 150), p.choices = draw(1, 3), p.group_size = draw(1, 3), p.channels = draw(1, 40) * p.group_size;
  p.actions = {SKIP, static_cast<int8_t>(p.choices == 3 ? REUSE : KEEP), KEEP};
  p.looks_back = draw(0, 1) == 1, p.own_bias = draw(0, 1) == 1;
  const int64_t rows = p.batch * p.frames, panels0 = divide_up(p.hidden, PANEL), panels1 = divide_up(p.outputs(), PANEL);
  const auto x = draw.values(rows * p.pixels * p.features), v_before = draw.values(p.batch * p.features);
  const auto weights0 = draw.values(panels0 * p.inputs() * PANEL), weights1 = draw.values(panels1 * p.hidden * PANEL);
  const auto factor = draw.values(p.hidden), offset = draw.values(p.hidden);
  const auto bias1 = draw.values((p.own_bias ? rows : 1) * p.outputs());
  std::vector<float> v(rows * p.features, NAN);
  std::vector<int8_t> chosen(rows * p.channels, -1);
  p.x = x.data(), p.v_before = v_before.data(), p.weights0 = weights0.data(), p.weights1 = weights1.data();
  p.factor = factor.data(), p.offset = offset.data(), p.bias1 = bias1.data(), p.v = v.data(), p.chosen = chosen.data();
  Team team(pool, draw(1, 4));
  run_policy(p, *choose(level), [&](int64_t count, const Team::Job& job) { team.run(count, job); });
  for (int64_t row = 0; row < rows; ++row) {
    std::vector<double> seen(p.inputs()), hidden(p.hidden);
    const int64_t own = p.inputs() - p.features;  // v_t lies behind v_{t-1}
    for (int64_t c = 0; c < p.features; ++c) {
      for (int64_t i = 0; i < p.pixels; ++i) seen[own + c] += x[(row * p.pixels + i) * p.features + c] / double(p.pixels);
      const double found = v[row * p.features + c];
      if (!(std::abs(found - seen[own + c]) <= 1e-5)) {
        std::printf("an average: expected %g, found %g\n", seen[own + c], found);
        return false;
      }
      if (p.looks_back) seen[c] = row % p.frames > 0 ? v[(row - 1) * p.features + c] : v_before[row / p.frames * p.features + c];
    }
    const auto product = [](const std::vector<float>& weights, const std::vector<double>& from, int64_t o) {
      double sum = 0;
      const auto inputs = static_cast<int64_t>(from.size());
      for (int64_t i = 0; i < inputs; ++i) sum += from[i] * weights[(o / PANEL * inputs + i) * PANEL + o % PANEL];
      return sum;
    };
    for (int64_t i = 0; i < p.hidden; ++i) hidden[i] = std::max(product(weights0, seen, i) * factor[i] + offset[i], 0.0);
    for (int64_t c = 0; c < p.channels; ++c) {
      double logits[3], largest = -INFINITY, scale = 1;
      int64_t found = -1;
      for (int64_t i = 0; i < p.choices; ++i) {
        const int64_t o = c / p.group_size * p.choices + i;
        logits[i] = product(weights1, hidden, o) + bias1[(p.own_bias ? row * p.outputs() : 0) + o];
        largest = std::max(largest, logits[i]), scale = std::max(scale, std::abs(logits[i]));
        if (p.actions[i] == chosen[row * p.channels + c]) found = i;
      }
      if (found < 0 || !(logits[found] >= largest - 1e-4 * scale)) {
        std::printf("an action: found %d of %g where the largest is %g\n", chosen[row * p.channels + c],
                    found < 0 ? NAN : logits[found], largest);
        return false;
      }
    }
  }
  return true;
}

}  // namespace

int main(int argc, char** argv) {
  return all_correct(argc, argv, [](int64_t level) { return choose(level) != nullptr; },
                     [](unsigned seed, int64_t level, Pool& pool) {
                       return correct_block(seed, level, pool) && correct_stem(seed, level, pool) &&
                              correct_policy(seed, level, pool);
                     });
}
