// The 3x3 convolutions of stride 1 of a block by Winograd's minimal filtering F(4x4, 3x3): of 36 products for 16
// pixels, instead of 144, again those alone that are needed. Y = A^T [(G w G^T) * (B^T x B)] A, where the product
// is, for each of the 36 frequencies, one of matrices. Source: Lavin and Gray, "Fast algorithms for convolutional
// neural networks", CVPR 2016. Included by compact.cc, inside its namespace.

constexpr int64_t FREQUENCIES = 36;
constexpr int64_t TURNED = 32;             // tiles at a time of conv1
constexpr int64_t FILTERED = 128 * 1024;   // floats of transformed tiles at a time of conv2

// conv1: outputs times inputs, times inputs by tiles side by side. So any outputs can be left out.
template <class Parallel>
void filter_columns(const Block& p, const std::vector<Made>& images, const Loops& loops, int64_t workers,
                    Parallel parallel) {
  const Conv& conv = p.conv1;
  const int64_t inputs = p.in_features, filled = pad(inputs);
  const std::vector<float> zeros(filled, 0.0f);
  const Tiles shape{nullptr, conv.height, conv.width, inputs, conv.pitch, zeros.data()};
  const auto total = static_cast<int64_t>(images.size());
  const int64_t chunks = divide_up(shape.count(), TURNED);
  const int64_t parts = workers > 1 ? std::min(divide_up(p.width, 2 * GROUP), divide_up(2 * workers, total * chunks)) : 1;
  const int64_t v_step = filled * TURNED + GROUP, m_step = GROUP * TURNED + GROUP;
  const int64_t buffer = FREQUENCIES * (v_step + m_step);
  const Floats buffers = floats(workers * buffer);
  parallel(total * chunks * parts, [&](int64_t job, int64_t worker) {
    const Made& image = images[job / (chunks * parts)];
    const int64_t chunk = job / parts % chunks, part = job % parts;
    const int64_t groups = divide_up(static_cast<int64_t>(image.channels.size()), GROUP);
    const int64_t first_group = groups * part / parts, last_group = groups * (part + 1) / parts;
    if (first_group == last_group) return;
    const int64_t begin = chunk * TURNED, end = std::min(begin + TURNED, shape.count());
    Tiles tiles = shape;
    tiles.image = image.x;
    const Spectrum v{buffers.get() + worker * buffer, v_step, TURNED};
    const Spectrum m{v.data + FREQUENCIES * v_step, m_step, TURNED};
    loops.inputs_turned(tiles, begin, end, v);
    for (int64_t group = first_group; group < last_group; ++group) {
      const int32_t* const rows = image.channels.data() + group * GROUP;
      const int64_t count = std::min<int64_t>(GROUP, static_cast<int64_t>(image.channels.size()) - group * GROUP);
      for (int64_t f = 0; f < FREQUENCIES; ++f) {
        loops.turned({v.data + f * v_step, inputs, TURNED, end - begin, p.weights1 + f * p.width * inputs, rows, count,
                      m.data + f * m_step});
      }
      float bias[GROUP] = {0.0f};
      for (int64_t i = 0; i < count; ++i) bias[i] = p.bias1[rows[i]];
      loops.outputs_turned(m, count, bias, tiles, begin, end, image.y + group * GROUP, p.conv2.pitch);
    }
  });
}

// conv2: tiles by inputs, times inputs by outputs side by side. So any inputs can be left out.
template <class Parallel>
void filter_sources(const Block& p, const std::vector<std::array<Read, 3>>& read, const Loops& loops, int64_t workers,
                    Parallel parallel) {
  const Conv& conv = p.conv2;
  const int64_t out_pitch = pad(p.middle), panels = divide_up(p.middle, PANEL);
  const std::vector<float> zeros(conv.pitch, 0.0f);
  const Tiles shape{nullptr, conv.height, conv.width, 0, conv.pitch, zeros.data()};
  // All columns read of an image side by side.
  struct Columns {
    std::vector<int32_t> columns, channels;
    int64_t widths[3];  // of those of each source
    int64_t width;
  };
  std::vector<Columns> all(read.size());
  int64_t widest = GROUP;
  for (size_t i = 0; i < read.size(); ++i) {
    for (int s = 0; s < 3; ++s) {
      const Read& from = read[i][s];
      const int32_t last = from.columns.empty() ? -1 : *std::max_element(from.columns.begin(), from.columns.end());
      for (const int32_t column : from.columns) all[i].columns.push_back(column + static_cast<int32_t>(all[i].width));
      all[i].channels.insert(all[i].channels.end(), from.channels.begin(), from.channels.end());
      all[i].widths[s] = pad(last + 1);
      all[i].width += all[i].widths[s];
    }
    widest = std::max(widest, all[i].width);
  }
  const auto total = static_cast<int64_t>(read.size());
  const int64_t fitting = std::max<int64_t>(6, FILTERED / (FREQUENCIES * widest) / 6 * 6);
  const int64_t chunks = divide_up(shape.count(), fitting), most = divide_up(shape.count(), chunks);
  const int64_t parts = workers > 1 ? std::min(panels, divide_up(2 * workers, total * chunks)) : 1;
  const int64_t v_step = most * widest + GROUP, m_step = most * PANEL + GROUP;
  const int64_t buffer = FREQUENCIES * (v_step + m_step);
  const Floats buffers = floats(workers * buffer);
  parallel(total * chunks * parts, [&](int64_t job, int64_t worker) {
    const int64_t image = job / (chunks * parts), chunk = job / parts % chunks, part = job % parts;
    const int64_t begin = shape.count() * chunk / chunks, end = shape.count() * (chunk + 1) / chunks;
    const Columns& columns = all[image];
    Spectrum v{buffers.get() + worker * buffer, v_step, columns.width};
    const Spectrum m{v.data + FREQUENCIES * v_step, m_step, PANEL};
    float* const data = v.data;
    for (int s = 0; s < 3; ++s) {
      Tiles tiles = shape;
      tiles.image = read[image][s].y;
      tiles.channels = columns.widths[s];
      loops.inputs(tiles, begin, end, v);
      v.data += columns.widths[s];
    }
    for (int64_t panel = panels * part / parts; panel < panels * (part + 1) / parts; ++panel) {
      const int64_t first = panel * PANEL;
      const int lanes = static_cast<int>(pad(std::min<int64_t>(PANEL, p.middle - first)));
      for (int64_t f = 0; f < FREQUENCIES; ++f) {
        const float* weights = p.weights2 + (panel * FREQUENCIES + f) * p.width * PANEL;
        loops.product({data + f * v_step, columns.width, end - begin, weights, columns.columns.data(),
                       columns.channels.data(), static_cast<int64_t>(columns.channels.size()), lanes,
                       m.data + f * m_step});
      }
      const int64_t at = image * conv.height * conv.width * out_pitch + first;
      const bool last = p.weights3 == nullptr, projected = p.weights_shortcut != nullptr;
      const float* initial = !last || p.shortcut == nullptr ? nullptr : (projected ? p.out : p.shortcut) + at;
      loops.outputs_of(m, shape, begin, end,
                       {p.bias2 + first, initial, out_pitch, !last || p.shortcut != nullptr, lanes,
                        (last ? p.out : p.z) + at, out_pitch});
    }
  });
}
