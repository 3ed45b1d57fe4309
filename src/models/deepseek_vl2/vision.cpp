#include "models/deepseek_vl2/vision.h"

#include <cmath>

namespace saccade::deepseek_vl2 {
namespace {

constexpr float kNormEps = 1e-6f;  // hard-coded in the reference

Tensor view(const std::vector<int32_t>& v) { return {v.data(), DType::kI32, {static_cast<int64_t>(v.size())}}; }

}  // namespace

std::vector<int32_t> token_order(std::span<const Size> pictures, int64_t side) {
  const int64_t tile = side * side;
  int64_t tiles = 0;
  for (const Size& p : pictures) tiles += 1 + p.width * p.height;
  const auto newline = static_cast<int32_t>(tiles * tile), separator = newline + 1;
  std::vector<int32_t> order;
  int64_t first = 0;  // feature of the picture
  for (const Size& p : pictures) {
    const auto feature = [&](int64_t t, int64_t row, int64_t column) {
      order.push_back(static_cast<int32_t>(first + t * tile + row * side + column));
    };
    for (int64_t row = 0; row < side; ++row) {
      for (int64_t column = 0; column < side; ++column) feature(0, row, column);
      order.push_back(newline);
    }
    order.push_back(separator);
    for (int64_t row = 0; row < side * p.height; ++row) {  // across the tiles
      for (int64_t column = 0; column < side * p.width; ++column)
        feature(1 + row / side * p.width + column / side, row % side, column % side);
      order.push_back(newline);
    }
    first += (1 + p.width * p.height) * tile;
  }
  return order;
}

VisionTower::VisionTower(const Config& config, Weights& weights)
    : config_(config.vision), downsample_(config.downsample), side_(config.tile_side()) {
  const int64_t width = config_.hidden, ffn = config_.ffn();
  const auto norm = [&](const std::string& name) {
    return Norm{weights.tensor(name + ".weight", {width}), weights.tensor(name + ".bias", {width})};
  };
  patch_embed_ = weights.linear({{"vision.patch_embed.proj", width}}, config_.patch_values(), true);
  positions_ = weights.tensor("vision.pos_embed", {1, config_.patches(), width}).reshaped({config_.patches(), width});
  for (int64_t i = 0; i < config_.layers; ++i) {
    const std::string prefix = fmt::format("vision.blocks.{}.", i);
    Block b;
    b.norm1 = norm(prefix + "norm1");
    b.norm2 = norm(prefix + "norm2");
    b.qkv = weights.linear({{prefix + "attn.qkv", 3 * width}}, width, true);
    b.proj = weights.linear({{prefix + "attn.proj", width}}, width, true);
    b.fc1 = weights.linear({{prefix + "mlp.fc1", ffn}}, width, true);
    b.fc2 = weights.linear({{prefix + "mlp.fc2", width}}, ffn, true);
    blocks_.push_back(b);
  }
  norm_ = norm("vision.norm");
  const int64_t hidden = config.hidden;
  project_up_ = weights.linear({{"projector.layers.0", hidden}}, width * downsample_ * downsample_, true);
  project_down_ = weights.linear({{"projector.layers.2", hidden}}, hidden, true);
  newline_ = weights.tensor("image_newline", {hidden});
  separator_ = weights.tensor("view_seperator", {hidden});  // the checkpoints' spelling
}

Tensor VisionTower::forward(const Ctx& c, const Tensor& pixels, std::span<const Size> pictures) const {
  c.tap("vision.patches", pixels);
  const Tensor features = project(c, tower(c, pixels));
  c.tap("projector", features);
  const int64_t n = features.dim(0);
  const Tensor table = c.arena.tensor(features.dtype, {n + 2, features.dim(1)});
  ops::copy_(c, table.slice(0, n), features);
  ops::copy_(c, table[n], newline_);
  ops::copy_(c, table[n + 1], separator_);
  const std::vector<int32_t> order = token_order(pictures, side_);
  const Tensor y = ops::gather_rows(c, table, view(order));
  c.tap("vision.embeds", y);
  return y;
}

Tensor VisionTower::tower(const Ctx& c, const Tensor& pixels) const {
  const Tensor x = ops::linear(c, pixels, patch_embed_);  // the convolution's stride is its kernel: a plain matmul
  c.tap("vision.patch_embed", x);
  ops::add_rows_(c, x, positions_);
  std::vector<int32_t> tiles;
  for (int64_t row = 0; row <= x.dim(0); row += config_.patches()) tiles.push_back(static_cast<int32_t>(row));
  for (size_t i = 0; i < blocks_.size(); ++i) {
    block(c, blocks_[i], x, view(tiles));
    c.tap("vision.block", static_cast<int>(i), x);
  }
  const Tensor y = ops::layer_norm(c, x, norm_.weight, norm_.bias, kNormEps);
  c.tap("vision.norm", y);
  return y;
}

void VisionTower::block(const Ctx& c, const Block& b, const Tensor& hidden, const Tensor& tiles) const {
  const auto scratch = c.arena.scope();
  const float scale = 1.0f / std::sqrt(static_cast<float>(config_.head_dim()));
  const Tensor qkv = ops::linear(c, ops::layer_norm(c, hidden, b.norm1.weight, b.norm1.bias, kNormEps), b.qkv)
                         .reshaped({hidden.dim(0), 3, config_.heads, config_.head_dim()});
  ops::linear_add_(c, hidden, ops::segment_attention(c, qkv, tiles, scale), b.proj);
  const Tensor wide = ops::linear(c, ops::layer_norm(c, hidden, b.norm2.weight, b.norm2.bias, kNormEps), b.fc1);
  ops::linear_add_(c, hidden, ops::gelu_tanh(c, wide), b.fc2);
}

Tensor VisionTower::project(const Ctx& c, const Tensor& x) const {
  const int64_t side = config_.side(), tiles = x.dim(0) / config_.patches();
  const Tensor squares = ops::unfold(c, x.reshaped({tiles, side, side, config_.hidden}), downsample_);
  const Tensor rows = squares.reshaped({tiles * side_ * side_, config_.hidden * downsample_ * downsample_});
  return ops::linear(c, ops::gelu(c, ops::linear(c, rows, project_up_)), project_down_);
}

size_t VisionTower::workspace_bytes(const Config& config, int64_t tiles, DType dtype) {
  const VisionConfig& v = config.vision;
  const auto element = static_cast<int64_t>(dtype_size(dtype));
  const int64_t patches = tiles * v.patches(), tokens = tiles * config.tile_side() * config.tile_side();
  const int64_t in_block = patches * (6 * v.hidden + 2 * v.ffn());
  const int64_t in_projector = tokens * (v.hidden * config.downsample * config.downsample + 5 * config.hidden);
  return static_cast<size_t>((patches * (v.patch_values() + 2 * v.hidden) + std::max(in_block, in_projector)) *
                             element);
}

}  // namespace saccade::deepseek_vl2
