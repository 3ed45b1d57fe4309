// Attention is cut into tasks of up to kQueryBlock queries that share their keys: rows of one sequence times the heads
// of one kv group. When there are too few tasks for the threads, as in decoding, each task is cut again along its keys.
#include "kernels/cpu/attention.h"

#include <algorithm>

#include "kernels/cpu/items.h"
#include "kernels/cpu/kernels.h"

namespace saccade::cpu {
namespace {

constexpr size_t kMostPartialBytes = size_t{64} << 20;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Tasks with everything but a workspace.
struct Tasks {
  AttendArgs* args;
  int64_t count = 0;
  int64_t work = 0;  // multiply-adds

  Tasks(Arena& scratch, int64_t most) : args(allocate(scratch, most)) {}
  static AttendArgs* allocate(Arena& scratch, int64_t n) {
    return static_cast<AttendArgs*>(scratch.allocate(static_cast<size_t>(n) * sizeof(AttendArgs)));
  }
  void add(const AttendArgs& task) {
    args[count++] = task;
    work += task.rows * task.group * (task.keys - task.begin) * (task.key_dim + task.value_dim);
  }
};

// All tasks have the dimensions of the first.
template <class T>
void run(ThreadPool& pool, Arena& scratch, const Tasks& tasks) {
  const int64_t size = attend_workspace(tasks.args->key_dim, tasks.args->value_dim);
  auto* workspace = static_cast<float*>(scratch.allocate(static_cast<size_t>(pool.size() * size) * sizeof(float)));
  const auto attend = kernels().of<T>().attend;
  const int64_t run =
      std::clamp<int64_t>(tasks.count / (8 * pool.size()), 1, 8);  // tasks that a thread takes at a time
  for_items(pool, ceil_div(tasks.count, run), tasks.work <= kAlone, [&](int worker, int64_t item) {
    const int64_t end = std::min(tasks.count, (item + 1) * run);
    for (int64_t i = item * run; i < end; ++i) {
      AttendArgs& args = tasks.args[i];
      args.workspace = workspace + worker * size;
      args.next = i + 1 < end ? &args + 1 : nullptr;
      attend(args);
    }
  });
}

// Runs tasks span by span, then merges.
template <class T>
void run_split(ThreadPool& pool, Arena& scratch, const Tasks& tasks, int64_t spans, int64_t floats) {
  const int64_t dim = tasks.args->value_dim;
  auto* partial = static_cast<float*>(scratch.allocate(static_cast<size_t>(floats) * sizeof(float)));
  Tasks pieces(scratch, spans);
  for (int64_t i = 0; i < tasks.count; ++i) {
    AttendArgs& task = tasks.args[i];
    task.partial = partial;
    AttendArgs piece = task;
    for (int64_t begin = 0; begin < task.keys; begin += kKeySpan) {
      piece.begin = begin;
      piece.keys = std::min(task.keys, begin + kKeySpan);
      piece.partial = partial;
      pieces.add(piece);
      partial += task.rows * task.group * (dim + 2);
    }
  }
  run<T>(pool, scratch, pieces);
  const auto merge = kernels().of<T>().merge;
  for_items(pool, tasks.count, floats <= kAlone, [&](int, int64_t item) {
    const AttendArgs& task = tasks.args[item];
    const int64_t queries = task.rows * task.group;
    for (int64_t i = 0; i < queries; ++i) {
      T* y = static_cast<T*>(task.y) + i / task.group * task.y_stride + i % task.group * dim;
      merge(task.partial + i * (dim + 2), ceil_div(task.keys, kKeySpan), queries * (dim + 2), dim, y);
    }
  });
}

template <class T>
void causal(ThreadPool& pool, Arena& scratch, const Tensor& q, const CausalKeys& keys, const PagedIndex& index,
            float scale, const Tensor& y) {
  static_assert(kKeyBlock == 64, "a block of keys is a page");
  const int64_t heads = q.dim(1), dim = q.dim(2), value_dim = y.dim(2), group = heads / keys.heads;
  const int64_t most_heads = std::min(group, kQueryBlock), most_rows = kQueryBlock / most_heads;
  const auto* q_offsets = index.q_offsets.as<int32_t>();
  const int64_t sequences = index.kv_lens.dim(0);

  int64_t most = 0;
  for (int64_t b = 0; b < sequences; ++b) {
    most += ceil_div(q_offsets[b + 1] - q_offsets[b], most_rows) * ceil_div(group, most_heads) * keys.heads;
  }
  if (most == 0) return;
  const auto scope = scratch.scope();
  Tasks tasks(scratch, most);
  int64_t spans = 0, floats = 0;
  for (int64_t b = 0; b < sequences; ++b) {
    const int64_t first = q_offsets[b], rows = q_offsets[b + 1] - first;
    const int64_t before = index.kv_lens.as<int32_t>()[b] - rows;
    for (int64_t r = 0; r < rows; r += most_rows) {
      for (int64_t h = 0; h < heads; h += std::min(most_heads, group - h % group)) {
        AttendArgs task{};
        task.q = q.row<T>(first + r) + h * dim;
        task.y = y.row<T>(first + r) + h * value_dim;
        task.q_stride = heads * dim;
        task.y_stride = heads * value_dim;
        task.rows = std::min(most_rows, rows - r);
        task.group = std::min(most_heads, group - h % group);
        task.k = static_cast<const T*>(keys.k) + h / group * keys.head_stride;
        task.v = static_cast<const T*>(keys.v) + h / group * keys.head_stride;
        const int32_t* pages = index.page_table.row<int32_t>(b);
        task.places = {keys.paged ? pages : nullptr, keys.block_stride, keys.token_stride};
        task.k_tail = keys.tail;
        task.tail_places = {pages, keys.tail_block_stride, keys.tail_token_stride};
        task.tail_dim = keys.tail_dim;
        task.keys = before + r + task.rows;
        task.visible = before + r + 1;
        task.causal = true;
        task.key_dim = dim;
        task.value_dim = value_dim;
        task.scale = scale;
        tasks.add(task);
        const int64_t task_spans = ceil_div(task.keys, kKeySpan);
        spans += task_spans;
        floats += task_spans * task.rows * task.group * (value_dim + 2);
      }
    }
  }
  const bool few = tasks.count < 4 * pool.size() && pool.size() > 1;
  if (few && spans > tasks.count && static_cast<size_t>(floats) * sizeof(float) <= kMostPartialBytes) {
    run_split<T>(pool, scratch, tasks, spans, floats);
  } else {
    run<T>(pool, scratch, tasks);
  }
}

template <class T>
void segments(ThreadPool& pool, Arena& scratch, const Tensor& qkv, const Tensor& cu_seqlens, float scale,
              const Tensor& y) {
  const int64_t heads = qkv.dim(2), dim = qkv.dim(3), count = cu_seqlens.dim(0) - 1;
  const auto* ends = cu_seqlens.as<int32_t>();
  int64_t most = 0;
  for (int64_t s = 0; s < count; ++s) most += ceil_div(ends[s + 1] - ends[s], kQueryBlock) * heads;
  if (most == 0) return;
  const auto scope = scratch.scope();
  Tasks tasks(scratch, most);
  for (int64_t s = 0; s < count; ++s) {
    const int64_t first = ends[s], rows = ends[s + 1] - first;
    for (int64_t h = 0; h < heads; ++h) {
      for (int64_t r = 0; r < rows; r += kQueryBlock) {
        AttendArgs task{};
        task.q = qkv.row<T>(first + r) + h * dim;
        task.y = y.row<T>(first + r) + h * dim;
        task.q_stride = qkv.stride[0];
        task.y_stride = heads * dim;
        task.rows = std::min(kQueryBlock, rows - r);
        task.group = 1;
        task.k = qkv.row<T>(first) + qkv.stride[1] + h * dim;
        task.v = static_cast<const T*>(task.k) + qkv.stride[1];
        task.places = {nullptr, kKeyBlock * qkv.stride[0], qkv.stride[0]};
        task.keys = rows;
        task.key_dim = task.value_dim = dim;
        task.scale = scale;
        tasks.add(task);
      }
    }
  }
  run<T>(pool, scratch, tasks);
}

}  // namespace

void causal_attention(ThreadPool& pool, Arena& scratch, const Tensor& q, const CausalKeys& keys,
                      const PagedIndex& index, float scale, const Tensor& y) {
  q.dtype == DType::kBF16 ? causal<BFloat16>(pool, scratch, q, keys, index, scale, y)
                          : causal<float>(pool, scratch, q, keys, index, scale, y);
}

void paged_attention(ThreadPool& pool, Arena& scratch, const Tensor& q, const Tensor& kv_layer, const PagedIndex& index,
                     float scale, const Tensor& y) {
  CausalKeys keys{};
  keys.k = kv_layer.data;
  keys.v = static_cast<const std::byte*>(kv_layer.data) +
           static_cast<size_t>(kv_layer.stride[1]) * dtype_size(kv_layer.dtype);
  keys.heads = kv_layer.dim(2);
  keys.head_stride = kv_layer.stride[2];
  keys.paged = true;
  keys.block_stride = kv_layer.stride[0];
  keys.token_stride = kv_layer.stride[3];
  causal_attention(pool, scratch, q, keys, index, scale, y);
}

void segment_attention(ThreadPool& pool, Arena& scratch, const Tensor& qkv, const Tensor& cu_seqlens, float scale,
                       const Tensor& y) {
  qkv.dtype == DType::kBF16 ? segments<BFloat16>(pool, scratch, qkv, cu_seqlens, scale, y)
                            : segments<float>(pool, scratch, qkv, cu_seqlens, scale, y);
}

}  // namespace saccade::cpu
