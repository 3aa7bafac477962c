// The 3x3 convolutions of stride 1 of a block by Winograd's minimal filtering, F(4x4, 3x3) or F(2x2, 3x3): of 36
// products for 16 pixels, or 16 for 4, instead of 144 or 36, again those alone that are needed. A tile's outputs are
// Y = A^T [(G w G^T) * (B^T x B)] A, where the product is, for each of the frequencies, one of matrices. Source: Lavin
// and Gray, "Fast algorithms for convolutional neural networks", CVPR 2016. Included by compact.cc, inside its
// namespace.

constexpr int64_t TURNED = 32;            // tiles of a block of conv1
constexpr int64_t FILTERED = 64 * 1024;   // floats of the transformed tiles of a block of conv2

// Some tiles of an image, and where their transformed inputs are kept if those of all blocks are.
struct Tiling {
  int64_t image, begin, end, at;
  int64_t tiles() const { return end - begin; }
};

// What is to be done for a convolution.
struct Work {
  std::vector<Tiling> blocks;
  int64_t frequencies, units;  // units: groups or panels of outputs, whose products are computed at a time
  int64_t v_size, m_size;      // floats: a block's transformed tiles at most, and its products of a unit
  int64_t all;                 // floats: all blocks' transformed tiles
  bool weighty;                // whether the weights are more than these: they go over all blocks once, then
  int64_t slices;              // of the tiles' transformation, where they are weighty
};

// Pieces that each of so many jobs is cut into, for all workers to have some.
inline int64_t pieces_of(int64_t jobs, int64_t workers) { return workers > 1 ? divide_up(2 * workers, jobs) : 1; }

// transform(block, slice, slices, v) makes a slice of a block's transformed tiles, product(block, unit, f, v, m, i,
// images) their products of a frequency, while the i-th part of the next one's weights is brought in, and
// finish(block, unit, m) the outputs.
template <class Parallel, class Transform, class Product, class Finish>
void filter_blocks(const Work& work, int64_t workers, Parallel parallel, Transform transform, Product product,
                   Finish finish) {
  const auto count = static_cast<int64_t>(work.blocks.size());
  if (count == 0) return;
  const int64_t pieces = work.weighty ? std::min(count, pieces_of(work.units, workers)) : count;
  const int64_t parts = work.weighty ? work.units : std::min(work.units, pieces_of(count, workers));
  const int64_t m_sizes = divide_up(count, pieces) * work.m_size;
  const Scratch vs(work.weighty ? work.all : workers * work.v_size), ms(workers * m_sizes);
  if (work.weighty) {
    parallel(count * work.slices, [&](int64_t job, int64_t) {
      const Tiling& block = work.blocks[job / work.slices];
      transform(block, job % work.slices, work.slices, vs.get() + block.at);
    });
  }
  parallel(pieces * parts, [&](int64_t job, int64_t worker) {
    const Range some(count, job % pieces, pieces), units(work.units, job / pieces, parts);
    const int64_t first = work.blocks[some.begin].image, images = work.blocks[some.end - 1].image + 1 - first;
    float* const own = vs.get() + worker * work.v_size;
    float* const m = ms.get() + worker * m_sizes;
    if (!work.weighty) transform(work.blocks[some.begin], 0, 1, own);
    for (int64_t unit = units.begin; unit < units.end; ++unit) {
      for (int64_t f = 0; f < work.frequencies; ++f) {
        for (int64_t b = some.begin; b < some.end; ++b) {
          const Tiling& block = work.blocks[b];
          const float* const v = work.weighty ? vs.get() + block.at : own;
          product(block, unit, f, v, m + (b - some.begin) * work.m_size, block.image - first, images);
        }
      }
      for (int64_t b = some.begin; b < some.end; ++b) {
        finish(work.blocks[b], unit, m + (b - some.begin) * work.m_size);
      }
    }
  });
}

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
  Work work{{}, frequencies, 0, frequencies * v_step, frequencies * m_step, 0, false, divide_up(inputs, PANEL)};
  for (int64_t i = 0; i < static_cast<int64_t>(images.size()); ++i) {
    if (images[i].channels.count == 0) continue;
    work.units = std::max(work.units, divide_up(images[i].channels.count, GROUP));
    for (int64_t tile = 0; tile < shape.count(); tile += pitch) {
      work.blocks.push_back({i, tile, std::min(tile + pitch, shape.count()), work.all});
      work.all += work.v_size;
    }
  }
  work.weighty = frequencies * p.width * inputs > work.all;
  // Of a unit, those that an image needs.
  const auto rows = [&](const Tiling& block, int64_t unit) {
    return std::clamp<int64_t>(images[block.image].channels.count - unit * GROUP, 0, GROUP);
  };
  const auto transform = [&](const Tiling& block, int64_t slice, int64_t slices, float* v) {
    const Range groups(divide_up(inputs, GROUP), slice, slices);
    Tiles tiles = shape;
    tiles.image = images[block.image].x + groups.begin * GROUP;
    tiles.channels = std::min(groups.end * GROUP, inputs) - groups.begin * GROUP;
    transforms.inputs_turned(tiles, block.begin, block.end, {v + groups.begin * GROUP * pitch, v_step, pitch});
  };
  const auto product = [&](const Tiling& block, int64_t unit, int64_t f, const float* v, float* m, int64_t,
                           int64_t) {
    const int64_t size = p.width * inputs, soon = f + 1 < frequencies ? size : 0;
    loops.turned({v + f * v_step, inputs, pitch, block.tiles(), p.weights1 + f * size,
                  images[block.image].channels.data + unit * GROUP, rows(block, unit), m + f * m_step, soon});
  };
  const auto finish = [&](const Tiling& block, int64_t unit, float* m) {
    const Made& image = images[block.image];
    float bias[GROUP] = {0.0f};
    for (int64_t i = 0; i < rows(block, unit); ++i) bias[i] = p.bias1[image.channels.data[unit * GROUP + i]];
    transforms.outputs_turned({m, m_step, pitch}, rows(block, unit), bias, shape, block.begin, block.end,
                              image.y + unit * GROUP, p.conv2.pitch);
  };
  filter_blocks(work, workers, parallel, transform, product, finish);
}

// The columns that conv2 reads of an image, as if they lay side by side: groups of 16, without those of which none is
// read.
struct Columns {
  struct Part {
    const float* y;
    int64_t width;
  };
  std::vector<Part> parts;
  std::vector<int32_t> columns, channels;
  int64_t width = 0;  // of all parts

  explicit Columns(const std::array<Read, 3>& read) {
    for (const Read& from : read) {
      const auto [data, count] = from.channels;
      channels.insert(channels.end(), data, data + count);
      int32_t end = -1;  // of the groups so far
      for (int64_t i = 0; i < count; ++i) {
        const int32_t column = from.columns[i], group = column / GROUP * GROUP;
        if (group >= end) {
          if (group > end) parts.push_back({from.y + group, 0});
          parts.back().width += GROUP, width += GROUP;
          end = group + GROUP;
        }
        columns.push_back(static_cast<int32_t>(width) + column - end);
      }
    }
  }
};

// conv2: tiles by inputs, times inputs by outputs side by side. So any inputs can be left out.
template <class Parallel>
void filter_sources(const Block& p, const std::vector<std::array<Read, 3>>& read, const Loops& loops, int64_t workers,
                    Parallel parallel) {
  const Conv& conv = p.conv2;
  const Transforms& transforms = p.side2 == 4 ? loops.filter4 : loops.filter6;
  const int64_t frequencies = p.side2 * p.side2, out_pitch = pad(p.middle);
  const std::vector<float> zeros(conv.pitch, 0.0f);
  const Tiles shape{nullptr, conv.height, conv.width, 0, conv.pitch, zeros.data(), p.side2};
  const std::vector<Columns> all(read.begin(), read.end());
  const std::vector<int32_t> every = counted(p.width);
  const auto images = static_cast<int64_t>(all.size());
  int64_t widest = GROUP, width = 0;
  for (const Columns& columns : all) widest = std::max(widest, columns.width), width += columns.width;
  const bool weighty = p.width * out_pitch > shape.count() * width;
  const int64_t units = divide_up(p.middle, PANEL);
  const int64_t fitting = std::max<int64_t>(6, FILTERED / (frequencies * widest) / 6 * 6);
  int64_t chunks = divide_up(shape.count(), fitting);
  // Of few images, chunks that can be shared out evenly.
  const int64_t sharing = weighty ? pieces_of(units, workers) : workers;
  if (images < workers) chunks = std::min(shape.count(), divide_up(chunks, sharing) * sharing);
  const int64_t most = divide_up(shape.count(), chunks), m_step = most * PANEL + GROUP;
  const auto v_step = [&](const Tiling& block) { return block.tiles() * all[block.image].width + GROUP; };
  Work work{{}, frequencies, units, 0, frequencies * m_step, 0, weighty, divide_up(most, 6)};
  for (int64_t i = 0; i < images; ++i) {
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      const Range tiles(shape.count(), chunk, chunks);
      work.blocks.push_back({i, tiles.begin, tiles.end, work.all});
      const int64_t size = frequencies * v_step(work.blocks.back());
      work.all += size;
      work.v_size = std::max(work.v_size, size);
    }
  }
  const auto transform = [&](const Tiling& block, int64_t slice, int64_t slices, float* v) {
    const Range some(block.tiles(), slice, slices);
    const Columns& columns = all[block.image];
    v += some.begin * columns.width;
    for (const Columns::Part& part : columns.parts) {
      Tiles tiles = shape;
      tiles.image = part.y;
      tiles.channels = part.width;
      transforms.inputs(tiles, block.begin + some.begin, block.begin + some.end, {v, v_step(block), columns.width});
      v += part.width;
    }
  };
  const auto lanes = [&](int64_t panel) {
    return static_cast<int>(pad(std::min<int64_t>(PANEL, p.middle - panel * PANEL)));
  };
  const auto product = [&](const Tiling& block, int64_t panel, int64_t f, const float* v, float* m, int64_t i,
                           int64_t images) {
    const Columns& columns = all[block.image];
    const auto count = static_cast<int64_t>(columns.channels.size());
    const int64_t size = p.width * PANEL;
    // One image brings in the rows that it reads. Several, each reading others, bring in a part of all rows each.
    const Range rows(p.width, i, images);
    const int32_t* coming = images > 1 ? every.data() + rows.begin : columns.channels.data();
    const int64_t num_coming = images > 1 ? rows.end - rows.begin : count;
    loops.product({v + f * v_step(block), columns.width, block.tiles(), p.weights2 + (panel * frequencies + f) * size,
                   columns.columns.data(), columns.channels.data(), count, lanes(panel), m + f * m_step, size, coming,
                   f + 1 < frequencies ? num_coming : 0});
  };
  const auto finish = [&](const Tiling& block, int64_t panel, float* m) {
    const int64_t first = panel * PANEL, to = block.image * conv.height * conv.width * out_pitch + first;
    const bool last = p.weights3 == nullptr, projected = p.weights_shortcut != nullptr;
    const float* initial = !last || p.shortcut == nullptr ? nullptr : (projected ? p.out : p.shortcut) + to;
    transforms.outputs({m, m_step, PANEL}, shape, block.begin, block.end,
                       {p.bias2 + first, initial, !last || p.shortcut != nullptr, lanes(panel),
                        (last ? p.out : p.z) + to, out_pitch});
  };
  filter_blocks(work, workers, parallel, transform, product, finish);
}
