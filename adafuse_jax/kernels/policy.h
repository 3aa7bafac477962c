// A policy network (paper, section 3): average pooling of each frame, two matrices with a norm and a ReLU between
// them, and for each group of channels the likeliest action. Included by compact.cc, inside its namespace.

struct Policy {
  int64_t batch, frames, pixels, features, hidden;
  bool looks_back;                           // whether it sees v_{t-1}, before v_t
  int64_t channels, group_size;
  std::array<int8_t, 3> actions;             // what it chooses from
  int64_t choices;                           // so many
  const float *x, *v_before;                 // (B, T, pixels, features), (B, features)
  const float *weights0, *factor, *offset;   // (panels0, inputs, 64), (hidden), (hidden): the bias and the norm
  const float *weights1, *bias1;             // (panels1, hidden, 64), (1 or B * T, outputs)
  bool own_bias;                             // whether each frame has one of its own
  float* v;                                  // (B, T, features)
  int8_t* chosen;                            // (B, T, channels)

  int64_t inputs() const { return (looks_back ? 2 : 1) * features; }
  int64_t outputs() const { return channels / group_size * choices; }
};

// Rows times a matrix of panels, as a 1x1 convolution of so many pixels, of those inputs that are `read`;
// `done(panel)` comes after each panel.
template <class Parallel, class Done>
void multiply(const float* x, int64_t rows, List read, int64_t inputs, int64_t pitch, const float* weights,
              int64_t panels, float* out, const Loops& loops, Parallel parallel, Done done) {
  const Conv conv{1, rows, pitch, 1, 1, 1, rows};
  const Source source{x, read.data, read.data, read.count};
  parallel(panels, [&](int64_t panel, int64_t) {
    loops.run({conv, &source, 1, nullptr, weights + panel * inputs * PANEL, inputs, 0, 1, nullptr, nullptr, false,
               false, out + panel * PANEL, panels * PANEL}, 0, rows, PANEL / GROUP);
    done(panel);
  });
}

// The first of the largest, as JAX's argmax of the softmax has it: 0 if any is NaN or the largest is infinite. Without
// branches: which it is can't be foreseen.
inline int64_t likeliest(const float* logits, int64_t count) {
  int64_t best = 0;
  float largest = logits[0];
  bool finite = largest < INFINITY;  // not so NaN
  for (int64_t i = 1; i < count; ++i) {
    const bool larger = logits[i] > largest;
    best = larger ? i : best;
    largest = larger ? logits[i] : largest;
    finite &= logits[i] < INFINITY;
  }
  return finite ? best : 0;
}

template <class Parallel>
void run_policy(const Policy& p, const Loops& loops, Parallel parallel) {
  const int64_t rows = p.batch * p.frames, slices = divide_up(p.pixels, SLICE), inputs = p.inputs();
  const Scratch sums(rows * slices * p.features);
  parallel(rows * slices, [&](int64_t job, int64_t) {
    const int64_t first = job % slices * SLICE, count = std::min(SLICE, p.pixels - first);
    loops.sum(p.x + (job / slices * p.pixels + first) * p.features, count, p.features, sums.get() + job * p.features);
  });
  const Scratch seen(rows * inputs);
  for (int64_t row = 0; row < rows; ++row) {
    float* const v = p.v + row * p.features;
    average(sums.get() + row * slices * p.features, p.pixels, p.features, loops, v);
    if (p.looks_back) {
      const float* before = row % p.frames > 0 ? v - p.features : p.v_before + row / p.frames * p.features;
      std::copy_n(before, p.features, seen.get() + row * inputs);
    }
    std::copy_n(v, p.features, seen.get() + (row + 1) * inputs - p.features);
  }
  const int64_t panels0 = divide_up(p.hidden, PANEL), panels1 = divide_up(p.outputs(), PANEL);
  const int64_t pitch0 = panels0 * PANEL, pitch1 = panels1 * PANEL;
  const Scratch hidden(rows * pitch0), logits(rows * pitch1), list(std::max(inputs, p.hidden));
  int32_t* const read = list.numbers();
  std::iota(read, read + inputs, 0);
  multiply(seen.get(), rows, {read, inputs}, inputs, inputs, p.weights0, panels0, hidden.get(), loops, parallel,
           [&](int64_t panel) {
    const int64_t end = std::min((panel + 1) * PANEL, p.hidden);
    for (int64_t row = 0; row < rows; ++row) {
      float* const of = hidden.get() + row * pitch0;
      for (int64_t i = panel * PANEL; i < end; ++i) {
        const float x = of[i] * p.factor[i] + p.offset[i];
        of[i] = x < 0.0f ? 0.0f : x;  // lets NaN through
      }
    }
  });
  // Weights of what the ReLU made zero for all aren't read: they take longer to come than to be used.
  int64_t active = 0;
  for (int32_t i = 0; i < p.hidden; ++i) {
    bool any = false;  // NaN counts
    for (int64_t row = 0; row < rows; ++row) any |= !(hidden.get()[row * pitch0 + i] == 0.0f);
    read[active] = i;
    active += any;  // no branch: which they are can't be foreseen
  }
  multiply(hidden.get(), rows, {read, active}, p.hidden, pitch0, p.weights1, panels1, logits.get(), loops, parallel,
           [](int64_t) {});
  for (int64_t row = 0; row < rows; ++row) {
    const float* of = logits.get() + row * pitch1;
    const float* bias = p.bias1 + (p.own_bias ? row * p.outputs() : 0);
    int8_t* const chosen = p.chosen + row * p.channels;
    for (int64_t group = 0; group < p.channels / p.group_size; ++group) {
      float sum[3];
      for (int64_t i = 0; i < p.choices; ++i) sum[i] = of[group * p.choices + i] + bias[group * p.choices + i];
      std::fill_n(chosen + group * p.group_size, p.group_size, p.actions[likeliest(sum, p.choices)]);
    }
  }
}
