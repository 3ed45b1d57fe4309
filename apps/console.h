// Standard streams: output that notices a closed pipe, one-line errors, SIGINT, and numbers for people.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace saccade::apps {

bool is_terminal(int fd);

// Writes and flushes; false once standard output is closed or full. SIGPIPE must be ignored.
bool write_stdout(std::string_view text);
// Throws Error when standard output cannot be written.
void print_stdout(std::string_view text);

void print_stderr(std::string_view line);    // adds the newline
void print_error(std::string_view message);  // "saccade: ", on one line

// Control characters replaced by spaces.
std::string one_line(std::string_view text);

// All of standard input; throws Error over max_bytes. `what` names it in errors.
std::string read_stdin(size_t max_bytes, std::string_view what);

std::string human_bytes(size_t bytes);      // "7.51 GiB"
std::string human_count(double count);      // "3.755 B"
std::string human_seconds(double seconds);  // "12.3 ms"

// While one lives, SIGINT asks for an end instead of ending the process; a second SIGINT ends it.
class InterruptGuard {
 public:
  InterruptGuard();
  ~InterruptGuard();
  InterruptGuard(const InterruptGuard&) = delete;
  InterruptGuard& operator=(const InterruptGuard&) = delete;

  static bool requested();
};

// Outside of a guard SIGINT ends the process with kInterrupted. SIGPIPE is ignored.
void install_signal_handlers();

}  // namespace saccade::apps
