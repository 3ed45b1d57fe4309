// saccade bench: the stages of an answer, timed over several runs and set against what the machine can do.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/thread_pool.h"
#include "build_info.h"
#include "console.h"
#include "flags.h"
#include "machine_probe.h"
#include "session.h"
#include "system_info.h"

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

class Bench {
 public:
  Bench(Engine& engine, std::vector<ContentPart> media, int tokens)
      : engine_(engine), media_(std::move(media)), tokens_(tokens) {}

  // A repeated word, as often as gives `prompt_tokens` of text and template together.
  void set_prompt(int64_t prompt_tokens) {
    const auto length = [&](int64_t words) {
      Request request = text_request(words_of(words));
      request.sampling.max_tokens = 1;
      return static_cast<int64_t>(ask(engine_, std::move(request), false).result.prompt_ids.size());
    };
    constexpr int64_t kFew = 4, kMore = 20;
    const int64_t few = length(kFew), more = length(kMore);
    const double per_word = static_cast<double>(more - few) / (kMore - kFew);
    const double words = kFew + static_cast<double>(prompt_tokens - few) / per_word;
    if (!(per_word > 0) || words < 1) fail("--prompt-tokens: the template alone takes about {} tokens", few - kFew);
    prompt_ = words_of(std::llround(words));
  }

  void set_prompt(std::string text) { prompt_ = std::move(text); }

  Result once() {
    Request request = text_request(prompt_);
    auto& content = request.messages.back().content;
    content.insert(content.begin(), media_.begin(), media_.end());
    Answer answer = ask(engine_, std::move(request), false);
    if (answer.interrupted) fail("interrupted");
    return std::move(answer.result);
  }

 private:
  static std::string words_of(int64_t count) {
    std::string text = "the";
    for (int64_t i = 1; i < count; ++i) text += " the";
    return text;
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
Json rates(const ModelInfo& info, const MemoryPlan& plan, const Machine& machine, const std::vector<Result>& results) {
  const auto median = [&](double Timings::*stage) {
    std::vector<double> values;
    for (const auto& r : results) values.push_back(r.timings.*stage);
    return spread(values).median;
  };
  Json json;
  const size_t prompt = results[0].prompt_ids.size(), generated = results[0].token_ids.size();
  if (const double t = median(&Timings::prefill); t > 0) {
    const double flops = prefill_flops(info, plan, prompt) / t;
    json["prefill"] = {{"tokens_per_second", static_cast<double>(prompt) / t},
                       {"flops", flops},
                       {"share_of_peak", flops / machine.peak.flops}};
  }
  if (const double t = median(&Timings::decode); t > 0 && generated > 1) {
    const auto steps = static_cast<double>(generated - 1);
    // The cache grows by a token each step; a step reads what was there and what it adds.
    const double context = static_cast<double>(prompt) + (steps + 1) / 2;
    const double bytes =
        static_cast<double>(info.weight_bytes_per_token) + context * static_cast<double>(plan.kv_bytes_per_token);
    json["decode"] = {{"tokens_per_second", steps / t},
                      {"bytes_per_token", bytes},
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
  fmt::format_to(out, "machine   {}, {} threads; reads {:.1f} GB/s before, {:.1f} after; {:.0f} GFLOP/s at most ({})\n",
                 j["cpu"].get<std::string>(), j["threads"].get<int>(),
                 machine["read_bytes_per_second_before"].get<double>() / 1e9,
                 machine["read_bytes_per_second_after"].get<double>() / 1e9, machine["peak_flops"].get<double>() / 1e9,
                 machine["peak_instruction"].get<std::string>());
  fmt::format_to(out, "job       {} prompt tokens, {} generated, {} runs after {} to warm up\n\n",
                 j["prompt_tokens"].get<size_t>(), j["generated_tokens"].get<size_t>(), j["samples"].size(),
                 j["warmup"].get<int>());
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
    fmt::format_to(out, "decode    {:.2f} tok/s, {:.3f} GB a token, {:.2f} GB/s, {:.1f}% of the read bandwidth\n",
                   r["tokens_per_second"].get<double>(), r["bytes_per_token"].get<double>() / 1e9,
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
  int tokens = 32, runs = 5, warmup = 1;
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
  app.add_option("-r,--runs", runs, "timed runs (default 5)")->type_name("N")->check(integer_in(1, 100000));
  app.add_option("--warmup", warmup, "runs before them (default 1)")->type_name("N")->check(integer_in(0, 100000));
  app.add_option("--json", json_path, "write all samples and the machine to this file")->type_name("FILE");
  if (!parse(app, args)) return kOk;

  const EngineOptions options = flags.options();
  std::vector<ContentPart> parts = media.parts(app);
  const auto engine = load_engine(options, flags.quiet);

  // The engine's threads sleep while these measure, and these sleep while it runs.
  ThreadPool pool(options.threads);
  Machine machine;
  machine.peak = options.dtype == "f32" ? measure_f32_peak(pool, 0.3) : measure_bf16_peak(pool, 0.3);
  machine.read_before = measure_read_bandwidth(pool, 1.0);

  Bench job(*engine, std::move(parts), tokens);
  if (prompt_tokens > 0)
    job.set_prompt(prompt_tokens);
  else
    job.set_prompt(prompt);
  for (int i = 0; i < warmup; ++i) job.once();
  std::vector<Result> results;
  for (int i = 0; i < runs; ++i) {
    results.push_back(job.once());
    if (!flags.quiet)
      print_stderr(fmt::format("run {} of {}: {}", i + 1, runs, human_seconds(results.back().timings.total)));
  }
  machine.read_after = measure_read_bandwidth(pool, 1.0);

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
                       {"threads", pool.size()},
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
                       {"warmup", warmup},
                       {"samples", samples},
                       {"summary_ms", summary},
                       {"rates", rates(engine->info(), engine->memory(), machine, results)}};
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
