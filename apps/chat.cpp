// saccade chat: a conversation over standard input and output.
#include <fmt/format.h>
#include <unistd.h>

#include <filesystem>
#include <iostream>
#include <optional>
#include <string>

#include "base/error.h"
#include "console.h"
#include "flags.h"
#include "session.h"

namespace saccade::apps {
namespace {

constexpr const char* kHelp =
    "/image PATH   add a picture to the next message\n"
    "/video PATH   add a clip to the next message\n"
    "/clear        forget the conversation\n"
    "/help         this list\n"
    "/exit         leave (so does the end of input)";

class Chat {
 public:
  Chat(Engine& engine, SamplingParams sampling, MediaOptions media, std::string system, bool quiet)
      : engine_(engine), sampling_(std::move(sampling)), media_(media), system_(std::move(system)), quiet_(quiet) {
    clear();
  }

  void add(ContentPart part) { pending_.push_back(std::move(part)); }

  // False at /exit.
  bool handle(const std::string& line) {
    if (!line.starts_with('/')) {
      if (!line.empty()) say(line);
      return true;
    }
    const size_t space = line.find(' ');
    const std::string command = line.substr(0, space);
    const std::string argument = space == std::string::npos ? "" : line.substr(space + 1);
    if (command == "/exit" || command == "/quit") return false;
    if (command == "/help") {
      print_stderr(kHelp);
    } else if (command == "/clear") {
      clear();
    } else if (command == "/image" || command == "/video") {
      add_file(command == "/image", argument);
    } else {
      const auto match = nearest(command, {"/image", "/video", "/clear", "/help", "/exit"});
      fail("unknown command {}, {}", command, match ? fmt::format("did you mean {}?", *match) : "see /help");
    }
    return true;
  }

 private:
  void clear() {
    messages_.clear();
    pending_.clear();
    if (!system_.empty()) messages_.push_back({"system", {ContentPart::of_text(system_)}});
  }

  void add_file(bool image, const std::string& path) {
    if (path.empty()) fail("{} needs a path", image ? "/image" : "/video");
    std::error_code error;
    if (!std::filesystem::is_regular_file(path, error)) fail("{}: no such file", path);
    add(image ? ContentPart::of_image_file(path, media_) : ContentPart::of_video_file(path, media_));
  }

  void say(const std::string& text) {
    // A message that fails is forgotten with its media, so that the conversation can go on.
    std::vector<Message> messages = messages_;
    messages.push_back({"user", std::move(pending_)});
    pending_.clear();
    messages.back().content.push_back(ContentPart::of_text(text));
    Request request;
    request.messages = messages;
    request.sampling = sampling_;
    const Answer answer = ask(engine_, std::move(request), true);
    print_stdout("\n");
    const Result& result = answer.result;
    if (!quiet_) {
      print_stderr(fmt::format(
          "[{} tokens in, {} out, first after {}, {:.1f} tok/s]", result.prompt_ids.size(), result.token_ids.size(),
          human_seconds(result.timings.first_token),
          result.timings.decode > 0 ? static_cast<double>(result.token_ids.size() - 1) / result.timings.decode : 0.0));
    }
    messages.push_back({"assistant", {ContentPart::of_text(result.text)}});
    messages_ = std::move(messages);
  }

  Engine& engine_;
  SamplingParams sampling_;
  MediaOptions media_;
  std::string system_;
  bool quiet_;
  std::vector<Message> messages_;
  std::vector<ContentPart> pending_;
};

}  // namespace

int chat(const Args& args) {
  CLI::App app("Keeps a conversation: a line is a message, /help lists the commands.", "saccade chat");
  EngineFlags engine_flags;
  SamplingFlags sampling;
  MediaFlags media;
  std::string system;
  engine_flags.add_to(app);
  app.add_option("--system", system, "instructions that stand before the conversation")->type_name("TEXT");
  media.add_to(app);
  sampling.add_to(app);
  if (!parse(app, args)) return kOk;
  if (media.reads_stdin()) throw UsageError("--image - does not go with chat, which reads its messages there");

  const EngineOptions options = engine_flags.options();
  std::vector<ContentPart> parts = media.parts(app);
  const auto engine = load_engine(options, engine_flags.quiet);
  Chat chat(*engine, sampling.params, media.options(), system, engine_flags.quiet);
  for (auto& part : parts) chat.add(std::move(part));

  const bool terminal = is_terminal(STDIN_FILENO);
  if (terminal) print_stderr("/help lists the commands, /exit leaves");
  for (std::string line;;) {
    if (terminal) print_stdout("> ");
    if (!std::getline(std::cin, line)) break;
    if (line.ends_with('\r')) line.pop_back();
    try {
      if (!chat.handle(line)) break;
    } catch (const Error& e) {
      print_error(e.what());
      if (std::ferror(stdout)) return kFailed;
    }
  }
  return kOk;
}

}  // namespace saccade::apps
