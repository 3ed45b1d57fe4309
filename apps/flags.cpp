#include "flags.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdint>
#include <limits>

#include "console.h"

namespace saccade::apps {
namespace {

constexpr size_t kMaxImageBytes = size_t{64} << 20;

// Optimal string alignment distance: edits and swaps of neighbours.
size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<size_t> before(b.size() + 1), last(b.size() + 1), now(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) last[j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    now[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      now[j] = std::min({last[j] + 1, now[j - 1] + 1, last[j - 1] + (a[i - 1] != b[j - 1])});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1]) now[j] = std::min(now[j], before[j - 2] + 1);
    }
    std::swap(before, last);
    std::swap(last, now);
  }
  return last[b.size()];
}

std::vector<std::string> flag_names(const CLI::App& app) {
  std::vector<std::string> names;
  for (const CLI::Option* option : app.get_options()) {
    for (const auto& name : option->get_lnames()) names.push_back("--" + name);
    for (const auto& name : option->get_snames()) names.push_back("-" + name);
  }
  return names;
}

[[noreturn]] void refuse_extras(const CLI::App& app, const Args& args) {
  const std::vector<std::string> extras = app.remaining();
  const std::vector<std::string> known = flag_names(app);
  for (const auto& extra : extras) {
    if (extra.size() < 2 || extra[0] != '-') continue;
    const std::string flag = extra.substr(0, extra.find('='));
    if (const auto match = nearest(flag, known))
      throw UsageError(fmt::format("unknown flag {}, did you mean {}?", flag, *match));
    throw UsageError(fmt::format("unknown flag {} (see {} --help)", flag, app.get_name()));
  }
  for (const auto& arg : args) {  // "-image x" reads as "-i mage x"
    if (arg.starts_with('-') && std::find(known.begin(), known.end(), "-" + arg) != known.end())
      throw UsageError(fmt::format("unknown flag {}, did you mean -{}?", arg, arg));
  }
  throw UsageError(fmt::format("unexpected argument '{}' (see {} --help)", fmt::join(extras, " "), app.get_name()));
}

template <class T>
CLI::Validator in_range(T low, T high, const char* kind) {
  const auto check = [=](const std::string& text) -> std::string {
    T value{};
    const char* end = text.data() + text.size();
    const auto [rest, error] = std::from_chars(text.data(), end, value);
    if (error == std::errc() && rest == end && value >= low && value <= high) return {};  // NaN fails
    const bool open = high == std::numeric_limits<T>::max();
    const std::string range = open ? fmt::format("of at least {}", low) : fmt::format("from {} to {}", low, high);
    return fmt::format("expected {} {}, found '{}'", kind, range, text);
  };
  return CLI::Validator(check, "");
}

std::vector<std::string> split_commas(const std::string& text) {
  std::vector<std::string> parts;
  for (size_t begin = 0; begin <= text.size();) {
    const size_t end = std::min(text.find(',', begin), text.size());
    if (end > begin) parts.push_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return parts;
}

constexpr int64_t kAnyInt64 = std::numeric_limits<int64_t>::max();
constexpr int64_t kAnyInt = std::numeric_limits<int>::max();
constexpr double kAnyNumber = std::numeric_limits<double>::max();

}  // namespace

std::optional<std::string> nearest(std::string_view word, const std::vector<std::string>& candidates) {
  std::optional<std::string> best;
  size_t best_distance = 1 + word.size() / 3;  // further away, a guess would only confuse
  for (const auto& candidate : candidates) {
    const size_t distance = edit_distance(word, candidate);
    // a single letter is no likeness
    if (distance < best_distance + (best ? 0 : 1) && distance + 1 < std::max(word.size(), candidate.size())) {
      best = candidate;
      best_distance = distance;
    }
  }
  return best;
}

bool parse(CLI::App& app, const Args& args) {
  std::vector<std::string> reversed;  // CLI11 takes them from the back
  for (auto it = args.rbegin(); it != args.rend(); ++it) {
    // "--flag=" is an empty value; CLI11 would take the next argument for it.
    if (it->size() > 3 && it->starts_with("--") && it->find('=') == it->size() - 1) {
      reversed.emplace_back();
      reversed.push_back(it->substr(0, it->size() - 1));
    } else {
      reversed.push_back(*it);
    }
  }
  try {
    app.parse(std::move(reversed));
    return true;
  } catch (const CLI::CallForHelp&) {
    write_stdout(app.help());
    return false;
  } catch (const CLI::ExtrasError&) {
    refuse_extras(app, args);
  } catch (const CLI::ArgumentMismatch& e) {
    const std::string what = e.what();
    const std::string flag = what.substr(0, what.find(':'));
    throw UsageError(flag + (what.ends_with("missing") ? ": needs a value" : ": may be given once only"));
  } catch (const CLI::ParseError& e) {
    throw UsageError(one_line(e.what()));
  }
}

CLI::Validator integer_in(int64_t low, int64_t high) { return in_range<int64_t>(low, high, "a whole number"); }
CLI::Validator number_in(double low, double high) { return in_range<double>(low, high, "a number"); }

void ModelFlags::add_to(CLI::App& app) {
  app.add_option("MODEL,-m,--model", model, "folder of a Hugging Face checkpoint")->type_name("DIR");
  app.add_option("--synthetic", synthetic, "published shapes with seeded random weights, e.g. qwen2.5-vl-3b")
      ->type_name("NAME");
  app.add_option("--dtype", dtype, "arithmetic: bf16 or f32 (default bf16)")
      ->type_name("TYPE")
      ->transform(CLI::Validator(
          [](std::string& text) -> std::string {
            if (text == "bfloat16" || text == "auto") text = "bf16";
            if (text == "float32" || text == "float") text = "f32";
            return text == "bf16" || text == "f32" ? "" : fmt::format("expected bf16 or f32, found '{}'", text);
          },
          ""));
}

void ModelFlags::check() const {
  if (model.empty() && synthetic.empty()) throw UsageError("no model: give its folder, or --synthetic NAME");
  if (!model.empty() && !synthetic.empty())
    throw UsageError(fmt::format("two models: the folder '{}' and --synthetic {}", model, synthetic));
}

void EngineFlags::add_to(CLI::App& app) {
  ModelFlags::add_to(app);
  app.add_option("--device", device, "auto, cpu, cuda or cuda:N (default auto: a CUDA device where there is one)")
      ->type_name("DEVICE");
  app.add_option("-t,--threads", threads, "threads (default: all cores)")->type_name("N")->check(integer_in(0, 4096));
  app.add_option("-c,--max-context,--max-model-len", max_context,
                 "tokens of one sequence, prompt and answer (default: the model's limit, as far as memory allows)")
      ->type_name("TOKENS")
      ->check(integer_in(1, kAnyInt));
  app.add_option("--kv-mib", kv_mib, "size of the KV cache in MiB (default: planned from the context)")
      ->type_name("MIB")
      ->check(integer_in(1, int64_t{1} << 30));
  app.add_option("--max-batch-tokens,--max-num-batched-tokens", max_batch_tokens,
                 "tokens of one step; longer prompts are prefilled in chunks (default 512, on a CUDA device 4096)")
      ->type_name("TOKENS")
      ->check(integer_in(1, 1 << 20));
  app.add_flag("-q,--quiet", quiet, "no memory plan, progress or timings on standard error");
}

EngineOptions EngineFlags::options() const {
  check();
  EngineOptions options;
  options.model = model;
  options.synthetic = synthetic;
  options.device = device;
  options.dtype = dtype;
  options.threads = threads;
  options.max_batch = 1;
  options.max_batch_tokens = max_batch_tokens;
  options.max_context = max_context;
  options.kv_bytes = static_cast<size_t>(kv_mib) << 20;
  return options;
}

void SamplingFlags::add_to(CLI::App& app) {
  const auto number = [&](const char* names, auto& value, const char* help, double low, double high) {
    app.add_option(names, value, help)->type_name("X")->check(number_in(low, high));
  };
  app.add_option("-n,--max-tokens,--n-predict", params.max_tokens, "length of the answer in tokens (default 512)")
      ->type_name("N")
      ->check(integer_in(1, kAnyInt));
  number("--temperature,--temp", params.temperature, "0 takes the likeliest token (default: the checkpoint's)", 0,
         1000);
  app.add_option("--top-k", params.top_k, "sample among the K likeliest tokens; 0 is off (default: the checkpoint's)")
      ->type_name("K")
      ->check(integer_in(0, kAnyInt));
  number("--top-p", params.top_p, "sample among the likeliest tokens of this total probability", 0, 1);
  number("--min-p", params.min_p, "drop tokens below this share of the likeliest one's probability", 0, 1);
  number("--repetition-penalty,--repeat-penalty", params.repetition_penalty,
         "divide the score of tokens already seen; 1 is off (default: the checkpoint's)", 0.01, 100);
  app.add_option("--seed", params.seed, "of sampling (default 0)")->type_name("N")->check(integer_in(0, kAnyInt64));
  app.add_option("--stop", params.stop, "end the answer before this text; may be repeated")
      ->type_name("TEXT")
      ->allow_extra_args(false);
  app.add_flag("--ignore-eos", params.ignore_eos, "go on to --max-tokens");
}

void MediaFlags::add_to(CLI::App& app) {
  image_ = app.add_option("-i,--image", images_,
                          "a picture (JPEG, PNG, WebP, GIF, BMP), or - for standard input; "
                          "may be repeated")
               ->type_name("FILE")
               ->allow_extra_args(false);
  video_ = app.add_option("--video", videos_, "a clip; may be repeated")->type_name("FILE")->allow_extra_args(false);
  frame_list_ = app.add_option("--frames", frames_, "pictures that make one clip, separated by commas")
                    ->type_name("A,B,...")
                    ->allow_extra_args(false);
  app.add_option("--min-pixels", options_.min_pixels, "smallest area of a resized picture or frame, in pixels")
      ->type_name("N")
      ->check(integer_in(1, kAnyInt64));
  app.add_option("--max-pixels", options_.max_pixels, "largest area of a resized picture or frame, in pixels")
      ->type_name("N")
      ->check(integer_in(1, kAnyInt64));
  auto* fps = app.add_option("--fps,--video-fps", options_.fps, "frames sampled per second of a clip (default 2)")
                  ->type_name("X")
                  ->check(number_in(1e-3, 1e3));
  app.add_option("--num-frames", options_.num_frames, "frames sampled from a clip, instead of --fps")
      ->type_name("N")
      ->check(integer_in(1, kAnyInt))
      ->excludes(fps);
}

bool MediaFlags::reads_stdin() const { return std::find(images_.begin(), images_.end(), "-") != images_.end(); }

std::vector<ContentPart> MediaFlags::parts(const CLI::App& app) const {
  if (std::count(images_.begin(), images_.end(), "-") > 1)
    throw UsageError("--image - can be given once: standard input holds one picture");
  std::vector<ContentPart> parts;
  size_t image = 0, video = 0, frame_list = 0;
  for (const CLI::Option* option : app.parse_order()) {
    if (option == image_) {
      const std::string& path = images_[image++];
      parts.push_back(path == "-" ? ContentPart::of_image_bytes(read_stdin(kMaxImageBytes, "picture"), options_)
                                  : ContentPart::of_image_file(path, options_));
    } else if (option == video_) {
      parts.push_back(ContentPart::of_video_file(videos_[video++], options_));
    } else if (option == frame_list_) {
      auto paths = split_commas(frames_[frame_list++]);
      if (paths.empty()) throw UsageError("--frames names no picture");
      parts.push_back(ContentPart::of_video_frames(std::move(paths), options_));
    }
  }
  return parts;
}

}  // namespace saccade::apps
