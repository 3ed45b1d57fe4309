// A decoding step as a chain of kernels, nine a layer, launched with programmatic dependent launch:
//   qkv | bias, rope, append | attention by spans | combine | output | add, norm | gate_up, silu | down | add, norm
// and the head. It is there to be right; on Hopper the same stages are one kernel (decode_batch.cu).
#include <algorithm>
#include <cmath>

#include "kernels/cuda/check.cuh"
#include "kernels/cuda/decode_chain.cuh"

namespace saccade::cuda {
namespace {

using chain::bf16;

const bf16* values(const Tensor& t) { return static_cast<const bf16*>(t.data); }

struct Buffers {
  size_t x, attended, activated, q, sums, stats, partials, arrived, bytes;
};

bool is_strips(const Weight& w, int64_t n, int64_t k, Weight::RowOrder order) {
  return w.format == Weight::Format::kStrips && w.parts == 1 && w.order == order && w.rows() == n && w.cols() == k &&
         k % kBlockCols == 0;
}

int most_spans(int64_t max_pages) {
  return static_cast<int>(std::min<int64_t>(chain::kMaxSpans, (max_pages + chain::kSpanPages - 1) / chain::kSpanPages));
}

// All CTAs, or as many as get the same number of whole key heads, of as many sequences, where these are nearly all.
int attending_ctas(int heads) {
  const int ctas = use_hopper() ? chain::kClusterCtas * chain::cluster_count() : sm_count();
  const int each = (heads + ctas - 1) / ctas, busy = (heads + each - 1) / each;
  return 10 * busy >= 9 * ctas ? busy : ctas;
}

Buffers buffers_of(const Decoder& d, int64_t rows, int64_t max_pages) {
  Buffers b = {};
  const auto take = [&](size_t bytes) {
    const size_t at = b.bytes;
    b.bytes += (bytes + 1023) / 1024 * 1024;
    return at;
  };
  const auto tiles = [](int64_t columns) { return static_cast<size_t>(columns) * chain::kMaxRows * sizeof(bf16); };
  const DecoderLayer& layer = d.layers[0];
  const size_t heads = static_cast<size_t>(rows * d.heads), head_dim = static_cast<size_t>(d.head_dim);
  const size_t spans = static_cast<size_t>(most_spans(max_pages));
  size_t partials = 0;
  for (const Weight* w : {&layer.qkv, &layer.output, &layer.down}) {
    const chain::Partials p = {nullptr, chain::matrix_of(*w, false).split, static_cast<int>(rows)};
    partials = std::max(partials, static_cast<size_t>(p.floats()));
  }
  b.x = take(tiles(d.norm.dim(0)));
  b.attended = take(tiles(d.heads * d.head_dim));
  b.activated = take(tiles(layer.down.cols()));
  b.q = take(heads * head_dim * sizeof(bf16));
  b.sums = take(heads * spans * head_dim * sizeof(float));
  b.stats = take(heads * spans * sizeof(chain::SpanStats));
  b.partials = take(partials * sizeof(float));
  b.arrived = take((1 + static_cast<size_t>(rows * d.kv_heads)) * sizeof(unsigned));
  return b;
}

}  // namespace

bool can_decode_chained(const Decoder& d, int64_t rows) {
  if (rows < 1 || rows > chain::kMaxRows || d.depth < 1 || d.kv_heads < 1 || d.heads % d.kv_heads != 0) return false;
  if (d.heads / d.kv_heads > 16 || (d.head_dim != 64 && d.head_dim != 128)) return false;
  using Order = Weight::RowOrder;
  const int64_t width = d.norm.dim(0), attended = d.heads * d.head_dim, ffn = d.layers[0].down.cols();
  for (int64_t i = 0; i < d.depth; ++i) {
    const DecoderLayer& l = d.layers[i];
    if (!is_strips(l.qkv, attended + 2 * d.kv_heads * d.head_dim, width, Order::kRope) ||
        !is_strips(l.output, width, attended, Order::kPlain) || !is_strips(l.gate_up, 2 * ffn, width, Order::kGateUp) ||
        !is_strips(l.down, width, ffn, Order::kPlain) || l.output.bias[0] || l.gate_up.bias[0] || l.down.bias[0])
      return false;
  }
  return is_strips(d.head, d.head.rows(), width, Order::kPlain) && !d.head.bias[0] &&
         (!use_hopper() || chain::can_decode_at_once(d));
}

size_t chained_workspace_bytes(const Decoder& d, int64_t max_rows, int64_t max_pages) {
  return buffers_of(d, max_rows, max_pages).bytes;
}

void decode_chained(Stream stream, const Decoder& d, const DecodeStep& step) {
  const int rows = static_cast<int>(step.h.dim(0));
  const int64_t max_pages = step.kv.page_table.dim(1);
  CHECK(can_decode_chained(d, rows), "decode: these shapes have no kernels, {} rows", rows);
  const Buffers buffers = buffers_of(d, rows, max_pages);
  CHECK(step.workspace.bytes() >= buffers.bytes, "decode: workspace of {} bytes, needs {}", step.workspace.bytes(),
        buffers.bytes);
  char* const base = static_cast<char*>(step.workspace.data);
  bf16* const x = reinterpret_cast<bf16*>(base + buffers.x);
  bf16* const activated = reinterpret_cast<bf16*>(base + buffers.activated);

  chain::Attention attention;
  attention.rows = rows;
  attention.heads = static_cast<int>(d.heads);
  attention.kv_heads = static_cast<int>(d.kv_heads);
  attention.head_dim = static_cast<int>(d.head_dim);
  attention.max_pages = static_cast<int>(max_pages);
  attention.max_spans = most_spans(max_pages);
  attention.ctas = attending_ctas(rows * attention.kv_heads);
  attention.scale = 1 / std::sqrt(static_cast<float>(d.head_dim));
  attention.cos_sin = step.cos_sin.as<float>();
  attention.slots = step.slots.as<int32_t>();
  attention.kv_lens = step.kv.kv_lens.as<int32_t>();
  attention.page_table = step.kv.page_table.as<int32_t>();
  attention.q = reinterpret_cast<bf16*>(base + buffers.q);
  attention.sums = reinterpret_cast<float*>(base + buffers.sums);
  attention.stats = reinterpret_cast<chain::SpanStats*>(base + buffers.stats);
  attention.y = reinterpret_cast<bf16*>(base + buffers.attended);

  if (use_hopper())
    return chain::decode_at_once(stream, d, step, attention,
                                 {x, activated, reinterpret_cast<float*>(base + buffers.partials),
                                  reinterpret_cast<unsigned*>(base + buffers.arrived)});

  const auto linear = [&](const bf16* from, const Weight& w, bool whole) {
    chain::Linear a;
    a.x = from;
    a.m = chain::matrix_of(w, whole);
    a.rows = rows;
    a.n = static_cast<int>(w.rows());
    return a;
  };
  const auto split = [&](const bf16* from, const Weight& w) {
    chain::Linear a = linear(from, w, false);
    a.partials = {reinterpret_cast<float*>(base + buffers.partials), a.m.split, rows};
    chain::linear_portable(stream, a);
    return a.partials;
  };
  const auto norm = [&](const chain::Partials& partials, const Tensor& w) {
    chain::Norm a;
    a.h = static_cast<bf16*>(step.h.data);
    a.partials = partials;
    a.w = values(w);
    a.x = x;
    a.rows = rows;
    a.width = static_cast<int>(d.norm.dim(0));
    a.eps = d.eps;
    chain::add_norm(stream, a);
  };

  norm({}, d.layers[0].attention_norm);
  for (int64_t i = 0; i < d.depth; ++i) {
    const DecoderLayer& layer = d.layers[i];
    attention.kv = static_cast<bf16*>(d.kv_layers[i].data);
    chain::rope_append(stream, attention, split(x, layer.qkv), values(layer.qkv.bias[0]));
    chain::attend(stream, attention);
    chain::combine(stream, attention);
    norm(split(attention.y, layer.output), layer.mlp_norm);
    chain::Linear gate_up = linear(x, layer.gate_up, true);
    gate_up.out = chain::Linear::kGateUpSilu;
    gate_up.tiles = activated;
    chain::linear_portable(stream, gate_up);
    norm(split(activated, layer.down), i + 1 < d.depth ? d.layers[i + 1].attention_norm : d.norm);
  }
  chain::Linear head = linear(x, d.head, true);
  head.out = chain::Linear::kLogits;
  head.logits = step.logits.as<float>();
  chain::linear_portable(stream, head);
}

}  // namespace saccade::cuda
