// The 3x3 convolutions of stride 1 of a block by Winograd's minimal filtering, F(4x4, 3x3) or F(2x2, 3x3): of 36
// products for 16 pixels, or 16 for 4, instead of 144 or 36, again those alone that are needed. A tile's outputs are
// Y = A^T [(G w G^T) * (B^T x B)] A, where the product is, for each of the frequencies, one of matrices. Source: Lavin
// and Gray, "Fast algorithms for convolutional neural networks", CVPR 2016. Included by compact.cc, inside its
// namespace.

constexpr int64_t TURNED = 32;            // tiles of a block of conv1
constexpr int64_t FILTERED = 128 * 1024;  // floats of the transformed tiles of a block of conv2

// Some tiles of an image, and where their transformed inputs are kept if those of all blocks are.
struct Tiling {
  int64_t image, begin, end, at;
};

// A part of a range, the `i`-th of `parts`.
struct Range {
  int64_t begin, end;
  Range(int64_t count, int64_t i, int64_t parts) : begin(count * i / parts), end(count * (i + 1) / parts) {}
};

// conv1: outputs by inputs, times inputs by tiles side by side. So any outputs can be left out.
template <class Parallel>
void filter_columns(const Block& p, const std::vector<Made>& images, const Loops& loops, int64_t workers,
                    Parallel parallel) {
  const Conv& conv = p.conv1;
  const Transforms& transforms = p.side1 == 4 ? loops.filter4 : loops.filter6;
  const int64_t frequencies = p.side1 * p.side1, inputs = p.in_features, filled = pad(inputs);
  const std::vector<float> zeros(filled, 0.0f);
  const Tiles shape{nullptr, conv.height, conv.width, inputs, conv.pitch, zeros.data(), p.side1};
  const int64_t pitch = std::min(TURNED, pad(shape.count()));
  const int64_t v_step = filled * pitch + GROUP, m_step = GROUP * pitch + GROUP;  // not all in one set of the cache
  std::vector<Tiling> blocks;
  int64_t most = 0;  // groups of outputs
  for (int64_t i = 0; i < static_cast<int64_t>(images.size()); ++i) {
    if (images[i].channels.empty()) continue;
    most = std::max(most, divide_up(static_cast<int64_t>(images[i].channels.size()), GROUP));
    for (int64_t tile = 0; tile < shape.count(); tile += pitch) {
      const auto at = static_cast<int64_t>(blocks.size()) * frequencies * v_step;
      blocks.push_back({i, tile, std::min(tile + pitch, shape.count()), at});
    }
  }
  const auto count = static_cast<int64_t>(blocks.size());
  if (count == 0) return;
  // The weights go over all blocks while they are in the cache, if they are more than the tiles.
  const bool shared = p.width * inputs > count * filled * pitch;
  const int64_t pieces = shared ? std::min(count, divide_up(2 * workers, most)) : count;
  const int64_t parts = shared ? most : workers > 1 ? std::min(divide_up(most, 2), divide_up(2 * workers, count)) : 1;
  const int64_t v_size = frequencies * v_step, m_size = frequencies * m_step;
  const Floats vs = floats((shared ? count : workers) * v_size);
  const Floats ms = floats(workers * divide_up(count, pieces) * m_size);
  const auto transform = [&](const Tiling& block, float* v, int64_t first, int64_t last) {
    Tiles tiles = shape;
    tiles.image = images[block.image].x + first;
    tiles.channels = last - first;
    transforms.inputs_turned(tiles, block.begin, block.end, {v + first * pitch, v_step, pitch});
  };
  if (shared) {
    const int64_t slices = divide_up(inputs, PANEL);
    parallel(count * slices, [&](int64_t job, int64_t) {
      const Tiling& block = blocks[job / slices];
      const int64_t first = job % slices * PANEL;
      transform(block, vs.get() + block.at, first, std::min(first + PANEL, inputs));
    });
  }
  parallel(pieces * parts, [&](int64_t job, int64_t worker) {
    const Range some(count, job % pieces, pieces), groups(most, job / pieces, parts);
    float* const own = vs.get() + worker * v_size;
    float* const m = ms.get() + worker * divide_up(count, pieces) * m_size;
    if (!shared) transform(blocks[some.begin], own, 0, inputs);
    for (int64_t group = groups.begin; group < groups.end; ++group) {
      const auto rows = [&](const Tiling& block) {
        const std::vector<int32_t>& channels = images[block.image].channels;
        return std::min<int64_t>(GROUP, static_cast<int64_t>(channels.size()) - group * GROUP);
      };
      for (int64_t f = 0; f < frequencies; ++f) {
        for (int64_t b = some.begin; b < some.end; ++b) {
          const Tiling& block = blocks[b];
          if (rows(block) <= 0) continue;
          const int64_t soon = f + 1 < frequencies && b == some.begin ? p.width * inputs : 0;
          const float* v = shared ? vs.get() + block.at : own;
          loops.turned({v + f * v_step, inputs, pitch, block.end - block.begin, p.weights1 + f * p.width * inputs,
                        images[block.image].channels.data() + group * GROUP, rows(block),
                        m + (b - some.begin) * m_size + f * m_step, soon});
        }
      }
      for (int64_t b = some.begin; b < some.end; ++b) {
        const Tiling& block = blocks[b];
        const Made& image = images[block.image];
        float bias[GROUP] = {0.0f};
        for (int64_t i = 0; i < rows(block); ++i) bias[i] = p.bias1[image.channels[group * GROUP + i]];
        transforms.outputs_turned({m + (b - some.begin) * m_size, m_step, pitch}, rows(block), bias, shape, block.begin,
                                  block.end, image.y + group * GROUP, p.conv2.pitch);
      }
    }
  });
}

// All columns that conv2 reads of an image, as if those of its sources lay side by side.
struct Columns {
  std::vector<int32_t> columns, channels;
  std::array<int64_t, 3> widths{};  // of the sources
  int64_t width = 0;

  explicit Columns(const std::array<Read, 3>& read) {
    for (int s = 0; s < 3; ++s) {
      const Read& from = read[s];
      if (from.columns.empty()) continue;
      for (const int32_t column : from.columns) columns.push_back(column + static_cast<int32_t>(width));
      channels.insert(channels.end(), from.channels.begin(), from.channels.end());
      width += widths[s] = pad(*std::max_element(from.columns.begin(), from.columns.end()) + 1);
    }
  }
};

// conv2: tiles by inputs, times inputs by outputs side by side. So any inputs can be left out.
template <class Parallel>
void filter_sources(const Block& p, const std::vector<std::array<Read, 3>>& read, const Loops& loops, int64_t workers,
                    Parallel parallel) {
  const Conv& conv = p.conv2;
  const Transforms& transforms = p.side2 == 4 ? loops.filter4 : loops.filter6;
  const int64_t frequencies = p.side2 * p.side2, out_pitch = pad(p.middle), panels = divide_up(p.middle, PANEL);
  const std::vector<float> zeros(conv.pitch, 0.0f);
  const Tiles shape{nullptr, conv.height, conv.width, 0, conv.pitch, zeros.data(), p.side2};
  const std::vector<Columns> all(read.begin(), read.end());
  int64_t widest = GROUP;
  for (const Columns& columns : all) widest = std::max(widest, columns.width);
  const int64_t fitting = std::max<int64_t>(6, FILTERED / (frequencies * widest) / 6 * 6);
  const int64_t chunks = divide_up(shape.count(), fitting), tiles_most = divide_up(shape.count(), chunks);
  const int64_t m_step = tiles_most * PANEL + GROUP, m_size = frequencies * m_step;
  const auto v_step = [&](const Tiling& block) { return (block.end - block.begin) * all[block.image].width + GROUP; };
  std::vector<Tiling> blocks;
  int64_t at = 0, v_size = 0;
  for (int64_t i = 0; i < static_cast<int64_t>(read.size()); ++i) {
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      const Range tiles(shape.count(), chunk, chunks);
      blocks.push_back({i, tiles.begin, tiles.end, at});
      at += frequencies * v_step(blocks.back());
      v_size = std::max(v_size, frequencies * v_step(blocks.back()));
    }
  }
  const auto count = static_cast<int64_t>(blocks.size());
  const bool shared = frequencies * p.width * out_pitch > at;  // see filter_columns
  const int64_t pieces = shared ? std::min(count, divide_up(2 * workers, panels)) : count;
  const int64_t parts = shared ? panels : workers > 1 ? std::min(panels, divide_up(2 * workers, count)) : 1;
  const Floats vs = floats(shared ? at : workers * v_size);
  const Floats ms = floats(workers * divide_up(count, pieces) * m_size);
  const auto transform = [&](const Tiling& block, int64_t begin, int64_t end, float* v) {
    const Columns& columns = all[block.image];
    v += (begin - block.begin) * columns.width;
    for (int s = 0; s < 3; ++s) {
      Tiles tiles = shape;
      tiles.image = read[block.image][s].y;
      tiles.channels = columns.widths[s];
      transforms.inputs(tiles, begin, end, {v, v_step(block), columns.width});
      v += columns.widths[s];
    }
  };
  if (shared) {
    const int64_t slices = divide_up(tiles_most, 6);
    parallel(count * slices, [&](int64_t job, int64_t) {
      const Tiling& block = blocks[job / slices];
      const Range tiles(block.end - block.begin, job % slices, slices);
      transform(block, block.begin + tiles.begin, block.begin + tiles.end, vs.get() + block.at);
    });
  }
  parallel(pieces * parts, [&](int64_t job, int64_t worker) {
    const Range some(count, job % pieces, pieces), some_panels(panels, job / pieces, parts);
    float* const own = vs.get() + worker * v_size;
    float* const m = ms.get() + worker * divide_up(count, pieces) * m_size;
    if (!shared) transform(blocks[some.begin], blocks[some.begin].begin, blocks[some.begin].end, own);
    for (int64_t panel = some_panels.begin; panel < some_panels.end; ++panel) {
      const int64_t first = panel * PANEL;
      const int lanes = static_cast<int>(pad(std::min<int64_t>(PANEL, p.middle - first)));
      for (int64_t f = 0; f < frequencies; ++f) {
        const float* weights = p.weights2 + (panel * frequencies + f) * p.width * PANEL;
        for (int64_t b = some.begin; b < some.end; ++b) {
          const Tiling& block = blocks[b];
          const Columns& columns = all[block.image];
          const int64_t soon = f + 1 < frequencies && b == some.begin ? p.width * PANEL : 0;
          const float* v = (shared ? vs.get() + block.at : own) + f * v_step(block);
          loops.product({v, columns.width, block.end - block.begin, weights, columns.columns.data(),
                         columns.channels.data(), static_cast<int64_t>(columns.channels.size()), lanes,
                         m + (b - some.begin) * m_size + f * m_step, soon});
        }
      }
      for (int64_t b = some.begin; b < some.end; ++b) {
        const Tiling& block = blocks[b];
        const int64_t to = block.image * conv.height * conv.width * out_pitch + first;
        const bool last = p.weights3 == nullptr, projected = p.weights_shortcut != nullptr;
        const float* initial = !last || p.shortcut == nullptr ? nullptr : (projected ? p.out : p.shortcut) + to;
        transforms.outputs({m + (b - some.begin) * m_size, m_step, PANEL}, shape, block.begin, block.end,
                           {p.bias2 + first, initial, out_pitch, !last || p.shortcut != nullptr, lanes,
                            (last ? p.out : p.z) + to, out_pitch});
      }
    }
  });
}
