// Command-line flags: groups shared by the subcommands, and errors that name the nearest match.
#pragma once

#include <CLI/CLI.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "command.h"
#include "saccade/engine.h"
#include "saccade/request.h"

namespace saccade::apps {

// The candidate closest to `word` by edits (insert, delete, replace, swap); none when all are too far.
std::optional<std::string> nearest(std::string_view word, const std::vector<std::string>& candidates);

// Parses args; prints help and returns false when asked for it. Throws UsageError.
bool parse(CLI::App& app, const Args& args);

// A number in [low, high], checked before conversion so that errors are alike.
CLI::Validator integer_in(int64_t low, int64_t high);
CLI::Validator number_in(double low, double high);

// The groups hold what CLI11 writes into: they must outlive the CLI::App and stay where they are.

struct ModelFlags {
  std::string model, synthetic, dtype = "bf16";

  void add_to(CLI::App& app);
  void check() const;  // exactly one of MODEL and --synthetic
};

struct EngineFlags : ModelFlags {
  std::string device = "auto";
  int threads = 0, max_batch_tokens = 0;
  int64_t max_context = 0, kv_mib = 0;
  bool quiet = false;

  void add_to(CLI::App& app);
  EngineOptions options() const;  // checked
};

struct SamplingFlags {
  SamplingParams params;

  void add_to(CLI::App& app);
};

class MediaFlags {
 public:
  void add_to(CLI::App& app);
  // Pictures and clips in the order in which their flags were given; reads standard input for `-`.
  std::vector<ContentPart> parts(const CLI::App& app) const;
  bool reads_stdin() const;
  const MediaOptions& options() const { return options_; }

 private:
  std::vector<std::string> images_, videos_, frames_;
  MediaOptions options_;
  CLI::Option* image_ = nullptr;
  CLI::Option* video_ = nullptr;
  CLI::Option* frame_list_ = nullptr;
};

}  // namespace saccade::apps
