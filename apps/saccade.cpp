// The command `saccade`: one subcommand per file. Errors are one line on standard error and a non-zero exit code.
#include <fmt/format.h>

#include <array>
#include <cstdio>
#include <exception>
#include <new>
#include <string>

#include "base/memory.h"
#include "build_info.h"
#include "command.h"
#include "console.h"
#include "flags.h"

namespace saccade::apps {
namespace {

struct Command {
  const char* name;
  const char* help;
  int (*run)(const Args&);
};

constexpr std::array kCommands = {
    Command{"run", "answer one question about pictures, clips or text", run},
    Command{"chat", "keep a conversation", chat},
    Command{"inspect", "show a model's configuration, sizes and memory plan without reading its weights", inspect},
    Command{"doctor", "show what this machine has and what it can do", doctor},
    Command{"bench", "time every stage of an answer", bench},
};

std::string usage() {
  std::string text = "Saccade runs vision-language models.\n\nUsage: saccade COMMAND [FLAGS]\n\nCommands:\n";
  for (const Command& command : kCommands) text += fmt::format("  {:<9}{}\n", command.name, command.help);
  return text + "\nsaccade COMMAND --help lists the flags of a command; saccade --version prints the version.\n";
}

int dispatch(Args args) {
  if (args.empty()) throw UsageError("no command (see saccade --help)");
  const std::string name = args.front();
  args.erase(args.begin());
  if (name == "--help" || name == "-h" || name == "help") {
    print_stdout(usage());
    return kOk;
  }
  if (name == "--version") {
    print_stdout(fmt::format("saccade {} ({})\n", kVersion, kCommit));
    return kOk;
  }
  std::vector<std::string> names;
  for (const Command& command : kCommands) {
    if (name == command.name) return command.run(args);
    names.emplace_back(command.name);
  }
  const std::string what = name.starts_with('-') ? "flag" : "command";
  if (what == "flag") names = {"--help", "--version"};
  if (const auto match = nearest(name, names))
    throw UsageError(fmt::format("unknown {} {}, did you mean {}?", what, name, *match));
  throw UsageError(fmt::format("unknown {} {} (see saccade --help)", what, name));
}

int guarded_main(int argc, char** argv) {
  install_signal_handlers();
  keep_freed_memory();
  try {
    return dispatch(Args(argv + 1, argv + argc));
  } catch (const UsageError& e) {
    print_error(e.what());
    return kUsage;
  } catch (const std::bad_alloc&) {
    print_error("out of memory");
  } catch (const std::exception& e) {
    print_error(e.what());
  }
  return kFailed;
}

}  // namespace
}  // namespace saccade::apps

int main(int argc, char** argv) { return argc < 1 ? 2 : saccade::apps::guarded_main(argc, argv); }
