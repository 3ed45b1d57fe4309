#include "engine/runner.h"

#include <algorithm>
#include <cstring>

#include "base/error.h"

namespace saccade {
namespace {

constexpr int64_t kEncodeAhead = 8192;  // tokens of media that are encoded together before they are needed

// Calls fn(i, begin, end) for each media item with tokens [begin, end) among [from, to) of the prompt.
template <class Fn>
void each_media(const Sequence& s, int64_t from, int64_t to, Fn&& fn) {
  for (size_t i = 0; i < s.embeddings.size(); ++i) {
    const int64_t begin = s.prompt.media_at[i], end = begin + s.media_tokens[i];
    if (begin < to && end > from) fn(i, begin, end);
  }
}

float element(const Tensor& t, int64_t offset) {
  switch (t.dtype) {
    case DType::kF32:
      return static_cast<const float*>(t.data)[offset];
    case DType::kBF16:
      return static_cast<float>(static_cast<const BFloat16*>(t.data)[offset]);
    case DType::kF16:
      return f16_to_f32(static_cast<const uint16_t*>(t.data)[offset]);
    case DType::kI32:
      return static_cast<float>(static_cast<const int32_t*>(t.data)[offset]);
    case DType::kI64:
      return static_cast<float>(static_cast<const int64_t*>(t.data)[offset]);
    case DType::kU8:
      return static_cast<float>(static_cast<const uint8_t*>(t.data)[offset]);
  }
  return 0;
}

}  // namespace

Runner::Runner(const Model& model, KvCache& kv, ThreadPool& pool, Memory memory, const UserTap& tap)
    : model_(model),
      kv_(kv),
      pool_(pool),
      memory_(memory),
      stream_(memory == Memory::kCuda ? device::new_stream() : nullptr),
      on_tap_(float_tap(tap, stream_)),
      arena_(size_t{memory == Memory::kCuda ? 256u : 16u} << 20, memory),
      decode_inputs_(memory),
      prompt_inputs_(memory) {
  if (stream_) encoded_ = device::new_event();
}

Runner::~Runner() {
  if (!stream_) return;
  device::delete_event(encoded_);
  device::delete_stream(stream_);
}

void Runner::encode_media(std::span<const Chunk> chunks, bool ahead) {
  struct Item {
    SequencePtr sequence;
    size_t media;
  };
  std::vector<Item> items;
  std::vector<const VisionInput*> inputs;
  int64_t tokens = 0;
  for (const Chunk& chunk : chunks) {
    Sequence& s = *chunk.sequence;
    for (size_t i = 0; i < s.prompt.media.size(); ++i) {
      const bool wanted = s.prompt.media_at[i] < s.cached + chunk.tokens;
      if (!wanted && (!ahead || inputs.empty() || tokens + s.media_tokens[i] > kEncodeAhead)) break;
      if (!s.prompt.media[i]) continue;
      items.push_back({chunk.sequence, i});
      inputs.push_back(s.prompt.media[i].get());
      tokens += s.media_tokens[i];
    }
  }
  if (inputs.empty()) return;
  const auto start = Clock::now();
  arena_.reset();
  if (stream_) staging_.begin_turn(stream_);
  const Tensor all = model_.encode(ctx(), inputs);
  CHECK(all.rank == 2 && all.dim(0) == tokens && all.contiguous(), "media of {} tokens became {}", tokens,
        all.describe());
  std::vector<Buffer> kept;
  int64_t at = 0;
  for (const auto& [s, i] : items) {
    const Tensor e = all.slice(at, at + s->media_tokens[i]);
    Buffer& copy = kept.emplace_back(e.bytes(), memory_, stream_);
    ops::copy_(ctx(), Tensor(copy.data(), e.dtype, {e.dim(0), e.dim(1)}), e);
    at += s->media_tokens[i];
  }
  if (stream_) device::record(encoded_, stream_);
  for (size_t k = 0; k < items.size(); ++k) {
    const auto& [s, i] = items[k];
    s->embeddings[i] = std::move(kept[k]);
    s->embedding_width = all.dim(1);
    s->embedding_dtype = all.dtype;
    s->prompt.media[i].reset();
    if (encoding_.empty() || encoding_.back() != s) encoding_.push_back(s);
  }
  if (!stream_) count_encoding(start);
}

void Runner::wait_for_media(Clock::time_point begun) {
  if (encoding_.empty()) return;
  device::wait(encoded_);
  count_encoding(begun);
}

void Runner::count_encoding(Clock::time_point begun) {
  const double took = seconds(Clock::now() - begun);
  for (const SequencePtr& s : encoding_) s->result.timings.encode += took;
  encoding_.clear();
}

Batch Runner::batch(std::span<const Chunk> chunks, StepInputs& inputs, const Tensor& newest) {
  const int axes = model_.position_axes();
  const auto sequences = static_cast<int64_t>(chunks.size());
  int64_t rows = 0, max_pages = 0, wanted = 0;
  for (const Chunk& c : chunks) {
    Sequence& s = *c.sequence;
    s.pages.grow(s.cached + c.tokens);
    rows += c.tokens;
    max_pages = std::max(max_pages, static_cast<int64_t>(s.pages.pages().size()));
    wanted += s.cached + c.tokens == s.length();
  }

  inputs.reset(StepInputs::bytes_of((axes + 2) * rows) +
               StepInputs::bytes_of(sequences * (max_pages + 2) + 1 + wanted) + 7 * StepInputs::bytes_of(1));
  Batch b;
  b.ids = inputs.i32({rows});
  b.positions = inputs.i32({axes, rows});
  b.kv.q_offsets = inputs.i32({sequences + 1});
  b.kv.kv_lens = inputs.i32({sequences});
  b.kv.page_table = inputs.i32({sequences, max_pages});
  b.kv.slots = inputs.i32({rows});
  b.logit_rows = inputs.i32({wanted});
  std::fill_n(b.kv.page_table.as<int32_t>(), b.kv.page_table.numel(), 0);

  int64_t row = 0;
  int32_t* logit_row = b.logit_rows.as<int32_t>();
  for (int64_t i = 0; i < sequences; ++i) {
    const auto& [sequence, tokens] = chunks[static_cast<size_t>(i)];
    const Sequence& s = *sequence;
    const auto& pages = s.pages.pages();
    const int64_t end = s.cached + tokens;
    b.kv.longest_q = std::max(b.kv.longest_q, tokens);
    b.kv.longest_kv = std::max(b.kv.longest_kv, end);
    b.kv.q_offsets.as<int32_t>()[i] = static_cast<int32_t>(row);
    b.kv.kv_lens.as<int32_t>()[i] = static_cast<int32_t>(end);
    std::copy(pages.begin(), pages.end(), b.kv.page_table.row<int32_t>(i));

    each_media(s, s.cached, end, [&](size_t m, int64_t media_begin, int64_t media_end) {
      const int64_t from = std::max(media_begin, s.cached), to = std::min(media_end, end);
      const Tensor all(s.embeddings[m].data(), s.embedding_dtype, {media_end - media_begin, s.embedding_width});
      b.spans.push_back({row + from - s.cached, all.slice(from - media_begin, to - media_begin)});
    });
    for (int64_t t = s.cached; t < end; ++t, ++row) {
      b.ids.as<int32_t>()[row] = s.token(t);
      for (int axis = 0; axis < axes; ++axis) b.positions.row<int32_t>(axis)[row] = s.position(axis, t);
      b.kv.slots.as<int32_t>()[row] =
          pages[static_cast<size_t>(t / kPageTokens)] * int32_t{kPageTokens} + static_cast<int32_t>(t % kPageTokens);
    }
    if (end == s.length()) *logit_row++ = static_cast<int32_t>(row - 1);
    if (!s.prefilling()) {
      CHECK(b.kv.decodes == i, "sequences that generate come first");
      ++b.kv.decodes;
    }
  }
  b.kv.q_offsets.as<int32_t>()[sequences] = static_cast<int32_t>(row);
  inputs.upload(ctx(), b.ids, newest);
  for (Tensor* t : {&b.ids, &b.positions, &b.kv.q_offsets, &b.kv.kv_lens, &b.kv.page_table, &b.kv.slots, &b.logit_rows})
    *t = inputs.placed(*t);
  return b;
}

Tensor Runner::run(std::span<const Chunk> chunks, StepInputs& inputs, const Tensor& newest) {
  const Batch b = batch(chunks, inputs, newest);
  const Tensor logits = model_.forward(ctx(), b, kv_.layers());
  CHECK(logits.rank == 2 && logits.dim(0) == b.logit_rows.dim(0), "{} logit rows wanted, got {}", b.logit_rows.dim(0),
        logits.describe());
  return logits;
}

Tensor Runner::forward_in_parts(std::span<const Chunk> chunks, const Tensor& newest) {
  const auto first_prompt = std::ranges::find_if(chunks, [](const Chunk& c) { return c.sequence->prefilling(); });
  const auto decodes = static_cast<size_t>(first_prompt - chunks.begin());
  if (decodes == 0) return run(chunks, prompt_inputs_, newest);
  if (decodes == chunks.size()) return run(chunks, decode_inputs_, newest);
  const Tensor first = run(chunks.first(decodes), decode_inputs_, newest);
  const Tensor second = run(chunks.subspan(decodes), prompt_inputs_, newest);
  if (second.dim(0) == 0) return first;
  const Tensor all = arena_.tensor(first.dtype, {first.dim(0) + second.dim(0), first.dim(1)});
  ops::copy_(ctx(), all.slice(0, first.dim(0)), first);
  ops::copy_(ctx(), all.slice(first.dim(0), all.dim(0)), second);
  return all;
}

Tensor Runner::forward(std::span<const Chunk> chunks, const Tensor& newest) {
  arena_.reset();
  const Tensor logits = stream_ ? forward_in_parts(chunks, newest) : run(chunks, prompt_inputs_, newest);
  for (const Chunk& c : chunks) {
    Sequence& s = *c.sequence;
    s.cached += c.tokens;
    for (size_t i = 0; i < s.embeddings.size(); ++i)
      if (s.prompt.media_at[i] + s.media_tokens[i] <= s.cached) s.embeddings[i] = Buffer();
  }
  return logits;
}

Tap float_tap(const UserTap& user, Stream stream) {
  if (!user) return {};
  return [user, stream](std::string_view name, const Tensor& value) {
    Tensor host = value;
    std::vector<std::byte> copy;
    if (stream) {
      CHECK(value.contiguous(), "{}: {} is not contiguous", name, value.describe());
      copy.resize(value.bytes());
      device::copy(copy.data(), value.data, value.bytes(), stream);
      device::synchronize(stream);
      host.data = copy.data();
    }
    std::vector<float> data(static_cast<size_t>(value.numel()));
    std::array<int64_t, kMaxRank> index{};
    for (float& out : data) {
      int64_t offset = 0;
      for (size_t a = 0; a < static_cast<size_t>(value.rank); ++a) offset += index[a] * value.stride[a];
      out = element(host, offset);
      for (size_t a = static_cast<size_t>(value.rank); a-- > 0;) {
        if (++index[a] < value.shape[a]) break;
        index[a] = 0;
      }
    }
    user(name, data.data(), value.shape.data(), value.rank);
  };
}

}  // namespace saccade
