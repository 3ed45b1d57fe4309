#include "console.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstring>

#include "base/error.h"
#include "command.h"

namespace saccade::apps {
namespace {

volatile std::sig_atomic_t g_guarded = 0;
volatile std::sig_atomic_t g_interrupted = 0;

void on_interrupt(int) {
  if (g_guarded == 0 || g_interrupted != 0) ::_exit(kInterrupted);
  g_interrupted = 1;
}

}  // namespace

bool is_terminal(int fd) { return ::isatty(fd) == 1; }

bool write_stdout(std::string_view text) {
  return std::fwrite(text.data(), 1, text.size(), stdout) == text.size() && std::fflush(stdout) == 0;
}

void print_stdout(std::string_view text) {
  if (!write_stdout(text)) fail("cannot write to standard output: {}", std::strerror(errno));
}

void print_stderr(std::string_view line) {
  const std::string text = fmt::format("{}\n", line);
  std::fwrite(text.data(), 1, text.size(), stderr);
}

void print_error(std::string_view message) { print_stderr(fmt::format("saccade: {}", one_line(message))); }

std::string one_line(std::string_view text) {
  std::string line;
  for (const char c : text) {
    const bool control = static_cast<unsigned char>(c) < 0x20 || c == 0x7f;
    if (!control)
      line += c;
    else if (!line.empty() && line.back() != ' ')
      line += ' ';
  }
  return line;
}

std::string read_stdin(size_t max_bytes, std::string_view what) {
  std::string text;
  char buffer[1 << 16];
  for (;;) {
    const size_t n = std::fread(buffer, 1, sizeof buffer, stdin);
    if (text.size() + n > max_bytes) fail("standard input: {} larger than {} bytes", what, max_bytes);
    text.append(buffer, n);
    if (n < sizeof buffer) break;
  }
  if (std::ferror(stdin)) fail("standard input: cannot read: {}", std::strerror(errno));
  if (text.empty()) fail("standard input: no {}, it is empty", what);
  return text;
}

std::string human_bytes(size_t bytes) {
  const auto value = static_cast<double>(bytes);
  if (bytes < 1024) return fmt::format("{} B", bytes);
  if (bytes < (size_t{1} << 20)) return fmt::format("{:.1f} KiB", value / 1024);
  if (bytes < (size_t{1} << 30)) return fmt::format("{:.1f} MiB", value / (1 << 20));
  return fmt::format("{:.2f} GiB", value / (1 << 30));
}

std::string human_count(double count) {
  if (count < 1e6) return fmt::format("{:.0f}", count);
  return count < 1e9 ? fmt::format("{:.3f} M", count / 1e6) : fmt::format("{:.3f} B", count / 1e9);
}

std::string human_seconds(double seconds) {
  return seconds < 1 ? fmt::format("{:.1f} ms", seconds * 1e3) : fmt::format("{:.2f} s", seconds);
}

InterruptGuard::InterruptGuard() {
  g_interrupted = 0;
  g_guarded = 1;
}

InterruptGuard::~InterruptGuard() { g_guarded = 0; }

bool InterruptGuard::requested() { return g_interrupted != 0; }

void install_signal_handlers() {
  struct sigaction action {};
  action.sa_handler = on_interrupt;
  ::sigaction(SIGINT, &action, nullptr);  // reads and waits are interrupted too
  action.sa_handler = SIG_IGN;
  ::sigaction(SIGPIPE, &action, nullptr);
}

}  // namespace saccade::apps
