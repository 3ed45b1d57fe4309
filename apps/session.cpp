#include "session.h"

#include <fmt/format.h>
#include <unistd.h>

#include <chrono>
#include <condition_variable>
#include <iterator>
#include <mutex>
#include <optional>

#include "base/error.h"
#include "console.h"

namespace saccade::apps {
namespace {

using Clock = std::chrono::steady_clock;

// On a terminal one line that is rewritten, else a line every ten per cent; silent for the first second.
class LoadProgress {
 public:
  explicit LoadProgress(bool quiet) : quiet_(quiet), terminal_(is_terminal(STDERR_FILENO)) {}
  ~LoadProgress() {
    if (shown_ && terminal_) fmt::print(stderr, "\r\033[K");
  }
  LoadProgress(const LoadProgress&) = delete;
  LoadProgress& operator=(const LoadProgress&) = delete;

  void operator()(double fraction, std::string_view what) {
    if (quiet_ || Clock::now() - start_ < std::chrono::seconds(1)) return;
    const int percent = static_cast<int>(fraction * 100);
    if (percent < next_) return;
    if (terminal_)
      fmt::print(stderr, "\r\033[Kloading {} {}%", what, percent);
    else
      fmt::print(stderr, "loading {} {}%\n", what, percent);
    shown_ = true;
    next_ = terminal_ ? percent + 1 : percent / 10 * 10 + 10;
  }

 private:
  bool quiet_, terminal_, shown_ = false;
  int next_ = 0;
  Clock::time_point start_ = Clock::now();
};

}  // namespace

std::string describe_plan(const MemoryPlan& plan) {
  std::string mapped;
  if (plan.weights_mapped) mapped = " (mapped)";
  if (plan.weights_mapped && plan.weight_bytes_owned > 0)
    mapped = fmt::format(" (mapped; {} converted)", human_bytes(plan.weight_bytes_owned));
  std::string text = fmt::format(
      "memory: weights {}{}, KV cache {} for {} tokens ({} each), step {}, largest picture {}; {} free{}",
      human_bytes(plan.weight_bytes), mapped, human_bytes(plan.kv_bytes), plan.context_tokens,
      human_bytes(plan.kv_bytes_per_token), human_bytes(plan.workspace_bytes), human_bytes(plan.vision_bytes),
      human_bytes(plan.available_bytes), plan.device.empty() || plan.device == "cpu" ? "" : " on " + plan.device);
  if (plan.weights_exceed_memory())
    text += fmt::format(
        "\nweights: {} are mapped from files and exceed the free memory ({}): what does not stay cached is read from "
        "disk again, up to {} for each token",
        human_bytes(plan.weight_bytes), human_bytes(plan.available_bytes), human_bytes(plan.weight_bytes_per_token));
  return text;
}

std::unique_ptr<Engine> load_engine(EngineOptions options, bool quiet) {
  if (!quiet) print_stderr(describe_plan(Engine::plan(options)));
  LoadProgress progress(quiet);
  options.on_load_progress = [&](double fraction, std::string_view what) { progress(fraction, what); };
  return Engine::load(options);
}

Answer ask(Engine& engine, Request request, bool stream) {
  const InterruptGuard guard;
  Answer answer;
  std::mutex mutex;
  std::condition_variable wake;
  std::optional<Result> done;
  bool output_closed = false;

  const auto on_token = [&](const TokenEvent& event) {
    if (!stream || event.text.empty()) return;
    const std::lock_guard lock(mutex);
    if (!output_closed && !write_stdout(event.text)) output_closed = true;
  };
  const auto on_done = [&](const Result& result) {
    const std::lock_guard lock(mutex);
    done = result;
    wake.notify_one();  // under the lock: the waiter destroys `wake`
  };
  const uint64_t id = engine.submit(std::move(request), on_token, on_done);

  std::unique_lock lock(mutex);
  bool cancelled = false;
  // A signal handler cannot notify, so look at its flag now and then.
  while (!wake.wait_for(lock, std::chrono::milliseconds(20), [&] { return done.has_value(); })) {
    if (cancelled || (!InterruptGuard::requested() && !output_closed)) continue;
    cancelled = true;
    lock.unlock();
    engine.cancel(id);
    lock.lock();
  }
  answer.result = std::move(*done);
  answer.interrupted = InterruptGuard::requested();
  answer.output_closed = output_closed;
  if (answer.result.finish == FinishReason::kError) throw Error(answer.result.error);
  return answer;
}

std::string describe_timings(const Result& result, double load_seconds) {
  const Timings& t = result.timings;
  const auto rate = [](size_t tokens, double seconds) {
    return seconds > 0 ? fmt::format(", {:.1f} tok/s", static_cast<double>(tokens) / seconds) : std::string();
  };
  std::string text;
  const auto line = [&](const char* stage, double seconds, const std::string& detail = {}) {
    fmt::format_to(std::back_inserter(text), "{:<13}{:>10}{}\n", stage, human_seconds(seconds), detail);
  };
  line("load", load_seconds);
  if (t.decode_media > 0) line("decode media", t.decode_media);
  line("preprocess", t.preprocess);
  if (t.encode > 0) line("encode", t.encode);
  const size_t prompt = result.prompt_ids.size(), generated = result.token_ids.size();
  line("prefill", t.prefill, fmt::format("  {} tokens{}", prompt, rate(prompt, t.prefill)));
  line("first token", t.first_token, "  from the request");
  const size_t steps = generated > 0 ? generated - 1 : 0;
  line("decode", t.decode, fmt::format("  {} tokens{}", steps, rate(steps, t.decode)));
  line("total", t.total, fmt::format("  without loading; stopped by {}", finish_reason_name(result.finish)));
  text.pop_back();
  return text;
}

Json to_json(const Timings& t) {
  return {{"queue", t.queue * 1e3},           {"decode_media", t.decode_media * 1e3},
          {"preprocess", t.preprocess * 1e3}, {"encode", t.encode * 1e3},
          {"prefill", t.prefill * 1e3},       {"first_token", t.first_token * 1e3},
          {"decode", t.decode * 1e3},         {"total", t.total * 1e3}};
}

Json to_json(const MemoryPlan& p) {
  return {{"device", p.device},
          {"weight_bytes", p.weight_bytes},
          {"weights_mapped", p.weights_mapped},
          {"weight_bytes_owned", p.weight_bytes_owned},
          {"weight_bytes_per_token", p.weight_bytes_per_token},
          {"weights_exceed_memory", p.weights_exceed_memory()},
          {"kv_bytes", p.kv_bytes},
          {"kv_bytes_per_token", p.kv_bytes_per_token},
          {"context_tokens", p.context_tokens},
          {"workspace_bytes", p.workspace_bytes},
          {"vision_bytes", p.vision_bytes},
          {"available_bytes", p.available_bytes}};
}

Json to_json(const ModelInfo& i) {
  return {{"architecture", i.architecture},
          {"name", i.name},
          {"parameters", i.parameters},
          {"weight_bytes_per_token", i.weight_bytes_per_token},
          {"layers", i.layers},
          {"hidden", i.hidden},
          {"vocab", i.vocab},
          {"max_context", i.max_context}};
}

Json to_json(const Result& result, const ModelInfo& info) {
  Json json = {{"model", info.name},
               {"prompt_token_ids", result.prompt_ids},
               {"token_ids", result.token_ids},
               {"text", result.text},
               {"stop_reason", finish_reason_name(result.finish)}};
  Json& boxes = json["boxes"] = Json::array();
  for (const Box& b : result.boxes)
    boxes.push_back({{"label", b.label}, {"image", b.image}, {"box", {b.x1, b.y1, b.x2, b.y2}}});
  if (!result.logprobs.empty()) {
    Json& rows = json["logprobs"] = Json::array();
    for (const auto& token : result.logprobs) {
      Json top = Json::array();
      for (const auto& [id, logprob] : token.top) top.push_back({{"id", id}, {"logprob", logprob}});
      rows.push_back({{"id", token.id}, {"logprob", token.logprob}, {"top", std::move(top)}});
    }
  }
  json["timings_ms"] = to_json(result.timings);
  json["timings_ms"]["load"] = info.load_seconds * 1e3;
  return json;
}

std::string dump_json(const Json& json) { return json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n"; }

}  // namespace saccade::apps
