#include "models/qwen2_5_vl/vision.h"

#include <cmath>

namespace saccade::qwen2_5_vl {
namespace {

constexpr float kNormEps = 1e-6f;       // hard-coded in the reference
constexpr double kRopeTheta = 10000.0;  // likewise

Tensor view(const std::vector<int32_t>& v) { return {v.data(), DType::kI32, {static_cast<int64_t>(v.size())}}; }

}  // namespace

VisionLayout::VisionLayout(std::span<const VisionGrid> grids, const VisionConfig& config) {
  const int64_t merge = config.merge, unit = merge * merge;
  const int64_t side = config.window / config.patch / merge;
  int64_t patches = 0;
  for (const VisionGrid& grid : grids) patches += grid.patches();
  window_order.reserve(static_cast<size_t>(patches / unit));
  positions.resize(2 * static_cast<size_t>(patches));
  window_offsets = {0};
  frame_offsets = {0};
  size_t p = 0;
  for (const auto& [t, h, w] : grids) {
    const int64_t rows = h / merge, cols = w / merge;  // merge units of a frame
    const auto before = static_cast<int64_t>(p) / unit;
    for (int64_t frame = 0; frame < t; ++frame) {
      for (int64_t top = 0; top < rows; top += side) {
        for (int64_t left = 0; left < cols; left += side) {
          for (int64_t r = top; r < std::min(top + side, rows); ++r) {
            for (int64_t q = left; q < std::min(left + side, cols); ++q) {
              window_order.push_back(static_cast<int32_t>(before + (frame * rows + r) * cols + q));
              for (int64_t i = 0; i < unit; ++i, ++p) {
                positions[p] = static_cast<int32_t>(r * merge + i / merge);
                positions[static_cast<size_t>(patches) + p] = static_cast<int32_t>(q * merge + i % merge);
              }
            }
          }
          window_offsets.push_back(static_cast<int32_t>(p));
        }
      }
      frame_offsets.push_back(static_cast<int32_t>(p));
    }
    longest_window = std::max(longest_window, std::min(side * merge * side * merge, h * w));
    longest_frame = std::max(longest_frame, h * w);
  }
  inverse_order.resize(window_order.size());
  for (size_t i = 0; i < window_order.size(); ++i) {
    inverse_order[static_cast<size_t>(window_order[i])] = static_cast<int32_t>(i);
  }
}

VisionTower::VisionTower(const VisionConfig& config, Weights& weights) : config_(config) {
  const int64_t hidden = config.hidden, ffn = config.intermediate, merged = hidden * config.merge * config.merge;
  patch_embed_ = weights.linear({{"visual.patch_embed.proj", hidden}}, config.patch_values(), false);
  full_attention_.resize(static_cast<size_t>(config.depth));
  for (const int64_t i : config.full_attention_blocks) full_attention_[static_cast<size_t>(i)] = true;
  for (int64_t i = 0; i < config.depth; ++i) {
    const std::string prefix = fmt::format("visual.blocks.{}.", i);
    Block b;
    b.norm1 = weights.tensor(prefix + "norm1.weight", {hidden});
    b.norm2 = weights.tensor(prefix + "norm2.weight", {hidden});
    b.qkv = weights.linear({{prefix + "attn.qkv", 3 * hidden}}, hidden, true);
    b.proj = weights.linear({{prefix + "attn.proj", hidden}}, hidden, true);
    b.gate_up = weights.gate_up(prefix + "mlp.gate_proj", prefix + "mlp.up_proj", ffn, hidden, true);
    b.down = weights.linear({{prefix + "mlp.down_proj", hidden}}, ffn, true);
    blocks_.push_back(b);
  }
  merger_norm_ = weights.tensor("visual.merger.ln_q.weight", {hidden});
  merger_up_ = weights.linear({{"visual.merger.mlp.0", merged}}, merged, true);
  merger_down_ = weights.linear({{"visual.merger.mlp.2", config.out_hidden}}, merged, true);
}

Tensor VisionTower::forward(const Ctx& c, const Tensor& pixels, std::span<const VisionGrid> grids) const {
  const int64_t patches = pixels.dim(0), hidden = config_.hidden, unit = config_.merge * config_.merge;
  const VisionLayout layout(grids, config_);
  c.tap("vision.patches", pixels);
  Tensor x = ops::linear(c, pixels, patch_embed_);  // the convolution's stride is its kernel: a plain matmul
  c.tap("vision.patch_embed", x);
  x = ops::gather_rows(c, x.reshaped({patches / unit, unit * hidden}), ops::upload(c, view(layout.window_order)));
  x = x.reshaped({patches, hidden});

  const Tensor positions(layout.positions.data(), DType::kI32, {2, patches});
  const Tensor rope = ops::vision_rope_table(c, ops::upload(c, positions), kRopeTheta, config_.head_dim());
  const ops::Segments windows{ops::upload(c, view(layout.window_offsets)), layout.longest_window};
  const ops::Segments frames{ops::upload(c, view(layout.frame_offsets)), layout.longest_frame};
  for (size_t i = 0; i < blocks_.size(); ++i) {
    block(c, blocks_[i], x, rope, full_attention_[i] ? frames : windows);
    c.tap("vision.block", static_cast<int>(i), x);
  }

  x = ops::rms_norm(c, x, merger_norm_, kNormEps).reshaped({patches / unit, unit * hidden});
  x = ops::gelu(c, ops::linear(c, x, merger_up_));
  x = ops::linear(c, x, merger_down_);
  x = ops::gather_rows(c, x, ops::upload(c, view(layout.inverse_order)));
  c.tap("vision.merger", x);
  return x;
}

void VisionTower::block(const Ctx& c, const Block& b, const Tensor& hidden, const Tensor& rope,
                        const ops::Segments& segments) const {
  const auto scratch = c.arena.scope();
  const float scale = 1.0f / std::sqrt(static_cast<float>(config_.head_dim()));
  const Tensor qkv = ops::linear(c, ops::rms_norm(c, hidden, b.norm1, kNormEps), b.qkv)
                         .reshaped({hidden.dim(0), 3, config_.heads, config_.head_dim()});
  ops::linear_add_(c, hidden, ops::vision_attention(c, qkv, rope, segments, scale), b.proj);
  const Tensor gated = ops::gate_up_silu(c, ops::rms_norm(c, hidden, b.norm2, kNormEps), b.gate_up);
  ops::linear_add_(c, hidden, gated, b.down);
}

size_t VisionTower::workspace_bytes(const VisionConfig& config, int64_t patches, DType dtype) {
  const auto element = static_cast<int64_t>(dtype_size(dtype));
  const int64_t unit = config.merge * config.merge;
  const int64_t resident = patches * (config.patch_values() + 2 * config.hidden) * element +
                           patches * config.head_dim() * 4 + patches / unit * config.out_hidden * element;
  const int64_t in_block = patches * (6 * config.hidden + 2 * config.intermediate) * element;
  return static_cast<size_t>(resident + in_block);
}

}  // namespace saccade::qwen2_5_vl
