// Runs the command as a user does.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <string>
#include <vector>

namespace saccade::apps_test {

struct Outcome {
  int code = -1;  // exit code, or 128 + signal
  std::string out, err;
};

struct Options {
  std::string input = {};     // standard input
  bool close_output = false;  // standard output is a pipe that nobody reads
  bool full_output = false;   // standard output is /dev/full
  bool interrupt = false;     // SIGINT once the first text is out
};

// The command with these arguments. It is killed after two minutes.
Outcome saccade(const std::vector<std::string>& args, const Options& options = {});

// A fresh folder, removed at the end of the process.
std::string temporary_folder();
std::string read_all(const std::string& path);
void write_all(const std::string& path, const std::string& bytes);

std::vector<std::string> lines_of(const std::string& text);

}  // namespace saccade::apps_test
