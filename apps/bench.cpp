// saccade bench: the stages of an answer, timed over several runs and set against what the machine can do.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <condition_variable>
#include <fstream>
#include <iterator>
#include <mutex>
#include <optional>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "base/thread_pool.h"
#include "build_info.h"
#include "console.h"
#include "flags.h"
#include "kernels/cuda/probe.h"
#include "machine_probe.h"
#include "session.h"
#include "system_info.h"
#include "tensor/device.h"

namespace saccade::apps {
namespace {

struct Spread {
  double median = 0, min = 0, max = 0;
};

Spread spread(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const size_t n = values.size();
  return {(values[(n - 1) / 2] + values[n / 2]) / 2, values.front(), values.back()};
}

Json to_json(const Spread& s) { return {{"median", s.median}, {"min", s.min}, {"max", s.max}}; }

struct Machine {
  double read_before = 0, read_after = 0;  // bytes per second
  Peak peak;

  double read() const { return std::max(read_before, read_after); }  // the harder floor of the two
};

// Of what the engine runs on: "cuda:1 (NVIDIA H200)" is device 1, anything else the CPU.
class Probe {
 public:
  Probe(const EngineOptions& options, const std::string& name) : options_(options), cuda_(name.starts_with("cuda:")) {
    if (cuda_)
      device::use(std::stoi(name.substr(std::string_view("cuda:").size())));
    else
      pool_.emplace(options.threads);  // sleeps while the engine runs, as the engine does while these measure
  }

  Peak peak() {
    if constexpr (device::kCudaBuilt) {
      if (cuda_) return {cuda::measure_bf16_peak(0.2), cuda::bf16_peak_instruction()};
    }
    return options_.dtype == "f32" ? measure_f32_peak(*pool_, 0.3) : measure_bf16_peak(*pool_, 0.3);
  }
  double read_bandwidth() {
    if constexpr (device::kCudaBuilt) {
      if (cuda_) return cuda::measure_read_bandwidth();
    }
    return measure_read_bandwidth(*pool_, 1.0);
  }
  int threads() const { return pool_ ? pool_->size() : 0; }

 private:
  const EngineOptions& options_;
  bool cuda_;
  std::optional<ThreadPool> pool_;
};

struct Stage {
  const char* name;
  double Timings::*value;
};
constexpr Stage kStages[] = {{"decode_media", &Timings::decode_media},
                             {"preprocess", &Timings::preprocess},
                             {"encode", &Timings::encode},
                             {"prefill", &Timings::prefill},
                             {"first_token", &Timings::first_token},
                             {"decode", &Timings::decode},
                             {"total", &Timings::total}};

using Clock = std::chrono::steady_clock;
double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

class Bench {
 public:
  Bench(Engine& engine, std::vector<ContentPart> media, int tokens)
      : engine_(engine), media_(std::move(media)), tokens_(tokens) {}

  // The same request `count` times at once. first_token and total of the result are those of the whole batch: until the
  // last of its first tokens and until its end; decode is the time of its steps once all are decoding, as the median
  // step of the last to begin times their number; the other stages are those of the first request.
  Result together(int count) {
    struct Timeline {
      std::vector<double> tokens;
      Result result;
    };
    std::vector<Timeline> lines(static_cast<size_t>(count));
    std::mutex mutex;
    std::condition_variable wake;
    int left = count;
    const auto start = Clock::now();
    for (Timeline& line : lines)
      engine_.submit(
          request(), [&line, start](const TokenEvent&) { line.tokens.push_back(seconds_since(start)); },
          [&](const Result& r) {
            line.result = r;
            const std::lock_guard lock(mutex);
            if (--left == 0) wake.notify_one();
          });
    std::unique_lock lock(mutex);
    wake.wait(lock, [&] { return left == 0; });
    const double total = seconds_since(start);
    for (const Timeline& line : lines)
      if (line.result.finish == FinishReason::kError) fail("{}", line.result.error);
    const auto last = std::ranges::max_element(lines, {}, [](const Timeline& line) { return line.tokens.front(); });
    std::vector<double> steps;
    for (size_t i = 1; i < last->tokens.size(); ++i) steps.push_back(last->tokens[i] - last->tokens[i - 1]);
    Result result = lines.front().result;
    result.timings.first_token = last->tokens.front();
    result.timings.decode = steps.empty() ? 0 : spread(steps).median * static_cast<double>(steps.size());
    result.timings.total = total;
    return result;
  }

  // As many random characters as give `prompt_tokens` of text and template together.
  void set_prompt(int64_t prompt_tokens) {
    const auto length = [&](int64_t characters) {
      Request request = text_request(random_text(characters));
      request.sampling.max_tokens = 1;
      return static_cast<int64_t>(ask(engine_, std::move(request), false).result.prompt_ids.size());
    };
    constexpr int64_t kFew = 8, kMore = 40;
    const int64_t few = length(kFew), more = length(kMore);
    const double per_character = static_cast<double>(more - few) / (kMore - kFew);
    const auto step = [&](int64_t tokens) { return std::llround(static_cast<double>(tokens) / per_character); };
    int64_t characters = per_character > 0 ? kFew + step(prompt_tokens - few) : 0;
    // Characters that merge into one token make the first estimate inexact.
    for (int corrections = 4; corrections > 0 && characters >= 1; --corrections) {
      const int64_t change = step(prompt_tokens - length(characters));
      if (change == 0) break;
      characters += change;
    }
    if (characters < 1) fail("--prompt-tokens: the template alone takes about {} tokens", few - kFew);
    prompt_ = random_text(characters);
  }

  void set_prompt(std::string text) { prompt_ = std::move(text); }

  Result once() {
    Answer answer = ask(engine_, request(), false);
    if (answer.interrupted) fail("interrupted");
    return std::move(answer.result);
  }

 private:
  // The same for every run; longer texts begin with shorter ones. Tokens vary, for a mixture of experts to spread them.
  static std::string random_text(int64_t count) {
    constexpr std::string_view kAlphabet =
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,;:!?()[]{}+-*/=%&#@$_~^'\"";
    std::mt19937 random;
    std::string text;
    for (int64_t i = 0; i < count; ++i) text += kAlphabet[random() % kAlphabet.size()];
    return text;
  }

  Request request() const {
    Request request = text_request(prompt_);
    auto& content = request.messages.back().content;
    content.insert(content.begin(), media_.begin(), media_.end());
    return request;
  }

  Request text_request(std::string text) const {
    Request request;
    request.messages = {{"user", {ContentPart::of_text(std::move(text))}}};
    request.sampling.max_tokens = tokens_;
    request.sampling.temperature = 0.0f;
    request.sampling.ignore_eos = true;
    return request;
  }

  Engine& engine_;
  std::vector<ContentPart> media_;
  int tokens_;
  std::string prompt_;
};

// Floating-point operations of the matrices of the text model on a prompt; attention itself is left out. Each weight
// is a multiply-add per token, except the head's [vocab, hidden], which only the last token meets.
double prefill_flops(const ModelInfo& info, const MemoryPlan& plan, size_t tokens) {
  const double bytes_per_weight =
      std::round(static_cast<double>(plan.weight_bytes) / static_cast<double>(std::max<int64_t>(1, info.parameters)));
  const double head = static_cast<double>(info.vocab) * static_cast<double>(info.hidden);
  const double all = static_cast<double>(info.weight_bytes_per_token) / std::max(1.0, bytes_per_weight);
  return 2 * (all - head) * static_cast<double>(tokens) + 2 * head;
}

// Rates of the median run, as shares of what the machine can do.
Json rates(const ModelInfo& info, const MemoryPlan& plan, const Machine& machine, const std::vector<Result>& results,
           int batch) {
  const auto median = [&](double Timings::*stage) {
    std::vector<double> values;
    for (const auto& r : results) values.push_back(r.timings.*stage);
    return spread(values).median;
  };
  Json json;
  const size_t prompt = results[0].prompt_ids.size(), generated = results[0].token_ids.size();
  if (const double t = median(&Timings::prefill); t > 0 && batch == 1) {
    const double flops = prefill_flops(info, plan, prompt) / t;
    json["prefill"] = {{"tokens_per_second", static_cast<double>(prompt) / t},
                       {"flops", flops},
                       {"share_of_peak", flops / machine.peak.flops}};
  }
  if (const double t = median(&Timings::decode); t > 0 && generated > 1) {
    const auto steps = static_cast<double>(generated - 1);
    // The cache grows by a token each step; a step reads what was there and what it adds.
    const double context = static_cast<double>(prompt) + (steps + 1) / 2;
    const double bytes = static_cast<double>(info.weight_bytes_per_token) +
                         batch * context * static_cast<double>(plan.kv_bytes_per_token);
    json["decode"] = {{"tokens_per_second", batch * steps / t},
                      {"ms_per_step", t / steps * 1e3},
                      {"bytes_per_step", bytes},
                      {"bytes_per_second", bytes * steps / t},
                      {"share_of_read_bandwidth", bytes * steps / t / machine.read()}};
  }
  return json;
}

std::string describe(const Json& j) {
  std::string text;
  const auto out = std::back_inserter(text);
  const Json &model = j["model"], &machine = j["machine"], &rates = j["rates"];
  fmt::format_to(out, "model     {} ({}), {} parameters, {}\n", model["name"].get<std::string>(),
                 model["architecture"].get<std::string>(), human_count(model["parameters"].get<double>()),
                 j["dtype"].get<std::string>());
  const int threads = j["threads"].get<int>();
  fmt::format_to(out, "machine   {}; reads {:.1f} GB/s before, {:.1f} after; {:.0f} GFLOP/s at most ({})\n",
                 threads > 0 ? fmt::format("{}, {} threads", j["cpu"].get<std::string>(), threads)
                             : j["memory"]["device"].get<std::string>(),
                 machine["read_bytes_per_second_before"].get<double>() / 1e9,
                 machine["read_bytes_per_second_after"].get<double>() / 1e9, machine["peak_flops"].get<double>() / 1e9,
                 machine["peak_instruction"].get<std::string>());
  const int batch = j["batch"].get<int>();
  fmt::format_to(out, "job       {}{} prompt tokens, {} generated, {} runs after {} to warm up\n\n",
                 batch > 1 ? fmt::format("{} at once: ", batch) : "", j["prompt_tokens"].get<size_t>(),
                 j["generated_tokens"].get<size_t>(), j["samples"].size(), j["warmup"].get<int>());
  fmt::format_to(out, "{:<14}{:>12}{:>12}{:>12}   ms\n", "stage", "median", "min", "max");
  for (const Stage& stage : kStages) {
    const Json& s = j["summary_ms"][stage.name];
    if (s["max"].get<double>() <= 0) continue;
    fmt::format_to(out, "{:<14}{:>12.2f}{:>12.2f}{:>12.2f}\n", stage.name, s["median"].get<double>(),
                   s["min"].get<double>(), s["max"].get<double>());
  }
  text += '\n';
  if (rates.contains("prefill")) {
    const Json& r = rates["prefill"];
    fmt::format_to(out, "prefill   {:.1f} tok/s, {:.0f} GFLOP/s, {:.1f}% of the peak\n",
                   r["tokens_per_second"].get<double>(), r["flops"].get<double>() / 1e9,
                   r["share_of_peak"].get<double>() * 100);
  }
  if (rates.contains("decode")) {
    const Json& r = rates["decode"];
    fmt::format_to(
        out, "decode    {:.2f} tok/s, {:.3f} ms and {:.3f} GB a step, {:.2f} GB/s, {:.1f}% of the read bandwidth\n",
        r["tokens_per_second"].get<double>(), r["ms_per_step"].get<double>(), r["bytes_per_step"].get<double>() / 1e9,
        r["bytes_per_second"].get<double>() / 1e9, r["share_of_read_bandwidth"].get<double>() * 100);
  }
  return text;
}

}  // namespace

int bench(const Args& args) {
  CLI::App app(
      "Times every stage of an answer over several runs, greedy and to the last token, and sets prefill and decode\n"
      "against the arithmetic and read bandwidth measured in the same run.",
      "saccade bench");
  EngineFlags flags;
  MediaFlags media;
  int64_t prompt_tokens = 0;
  int tokens = 32, runs = 5, warmup = 1, batch = 1;
  std::string prompt = "Describe this.", json_path;
  flags.add_to(app);
  media.add_to(app);
  auto* prompt_option = app.add_option("-p,--prompt", prompt, "the question (default 'Describe this.')");
  prompt_option->type_name("TEXT");
  app.add_option("--prompt-tokens", prompt_tokens, "a text of N tokens, template included, instead of --prompt")
      ->type_name("N")
      ->check(integer_in(1, int64_t{1} << 24))
      ->excludes(prompt_option);
  app.add_option("-n,--tokens,--max-tokens", tokens, "tokens to generate (default 32)")
      ->type_name("N")
      ->check(integer_in(1, 1 << 24));
  app.add_option("-b,--batch", batch, "the same request N times at once (default 1)")
      ->type_name("N")
      ->check(integer_in(1, 4096));
  app.add_option("-r,--runs", runs, "timed runs (default 5)")->type_name("N")->check(integer_in(1, 100000));
  app.add_option("--warmup", warmup, "runs before them (default 1)")->type_name("N")->check(integer_in(0, 100000));
  app.add_option("--json", json_path, "write all samples and the machine to this file")->type_name("FILE");
  if (!parse(app, args)) return kOk;

  EngineOptions options = flags.options();
  options.max_batch = batch;
  std::vector<ContentPart> parts = media.parts(app);
  const auto engine = load_engine(options, flags.quiet);

  Probe probe(options, engine->memory().device);
  Machine machine;
  machine.peak = probe.peak();
  machine.read_before = probe.read_bandwidth();

  Bench job(*engine, std::move(parts), tokens);
  if (prompt_tokens > 0)
    job.set_prompt(prompt_tokens);
  else
    job.set_prompt(prompt);
  const auto run = [&] { return batch > 1 ? job.together(batch) : job.once(); };
  for (int i = 0; i < warmup; ++i) run();
  std::vector<Result> results;
  for (int i = 0; i < runs; ++i) {
    results.push_back(run());
    if (!flags.quiet)
      print_stderr(fmt::format("run {} of {}: {}", i + 1, runs, human_seconds(results.back().timings.total)));
  }
  machine.read_after = probe.read_bandwidth();

  Json summary, samples = Json::array();
  for (const Stage& stage : kStages) {
    std::vector<double> values;
    for (const auto& result : results) values.push_back(result.timings.*stage.value * 1e3);
    summary[stage.name] = to_json(spread(std::move(values)));
  }
  for (const auto& result : results) samples.push_back(to_json(result.timings));
  Args command = {"saccade", "bench"};
  command.insert(command.end(), args.begin(), args.end());
  const Json report = {{"command", fmt::format("{}", fmt::join(command, " "))},
                       {"date", utc_now()},
                       {"version", kVersion},
                       {"commit", kCommit},
                       {"compiler", kCompiler},
                       {"build", kBuildType},
                       {"system", system_name()},
                       {"cpu", cpu_model()},
                       {"threads", probe.threads()},
                       {"dtype", options.dtype},
                       {"model", to_json(engine->info())},
                       {"memory", to_json(engine->memory())},
                       {"machine",
                        {{"read_bytes_per_second_before", machine.read_before},
                         {"read_bytes_per_second_after", machine.read_after},
                         {"peak_flops", machine.peak.flops},
                         {"peak_instruction", machine.peak.instruction}}},
                       {"load_ms", engine->info().load_seconds * 1e3},
                       {"prompt_tokens", results[0].prompt_ids.size()},
                       {"generated_tokens", results[0].token_ids.size()},
                       {"batch", batch},
                       {"warmup", warmup},
                       {"samples", samples},
                       {"summary_ms", summary},
                       {"rates", rates(engine->info(), engine->memory(), machine, results, batch)}};
  if (!json_path.empty()) {
    std::ofstream file(json_path);
    file << dump_json(report);
    file.close();
    if (!file) fail("{}: cannot write", json_path);
  }
  print_stdout(describe(report));
  return kOk;
}

}  // namespace saccade::apps
