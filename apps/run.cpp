// saccade run: one request, its answer streamed.
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <memory>
#include <optional>
#include <string>

#include "base/error.h"
#include "console.h"
#include "draw.h"
#include "flags.h"
#include "media/image.h"
#include "npy.h"
#include "session.h"

namespace saccade::apps {
namespace {

constexpr size_t kMaxPromptBytes = size_t{16} << 20;

// Standard input without its last line break, unless it is a terminal.
std::string prompt_from_stdin(bool stdin_taken) {
  if (stdin_taken) throw UsageError("no prompt: standard input holds the picture, so give --prompt TEXT");
  if (is_terminal(STDIN_FILENO)) throw UsageError("no prompt: give --prompt TEXT or pipe it in");
  std::string text = read_stdin(kMaxPromptBytes, "prompt");
  if (text.ends_with('\n')) text.pop_back();
  if (text.ends_with('\r')) text.pop_back();
  return text;
}

void write_text(const std::filesystem::path& path, const std::string& text) {
  std::ofstream file(path, std::ios::binary);
  file << text;
  file.close();
  if (!file) fail("{}: cannot write", path.string());
}

// The picture that boxes are on.
ContentPart last_picture(const std::vector<ContentPart>& parts) {
  const auto found = std::find_if(parts.rbegin(), parts.rend(),
                                  [](const ContentPart& part) { return part.type == ContentPart::Type::kImage; });
  if (found == parts.rend()) throw UsageError("--draw needs a picture: give --image FILE");
  return *found;
}

void write_drawing(const std::string& path, const ContentPart& picture, const std::vector<Box>& boxes) {
  media::Image image = picture.path.empty()
                           ? media::decode_image(std::as_bytes(std::span(picture.bytes)), "standard input")
                           : media::load_image(picture.path);
  draw_boxes(image, boxes);
  media::write_png(path, image);
}

}  // namespace

int run(const Args& args) {
  CLI::App app("Answers one question about pictures, clips or text. The answer goes to standard output as it is made.",
               "saccade run");
  EngineFlags engine_flags;
  SamplingFlags sampling;
  MediaFlags media;
  std::string system, prompt, dump_folder, draw_path;
  bool json = false;
  engine_flags.add_to(app);
  app.add_option("-p,--prompt", prompt, "the question (default: standard input)")->type_name("TEXT");
  app.add_option("--system", system, "instructions that stand before the conversation")->type_name("TEXT");
  media.add_to(app);
  sampling.add_to(app);
  app.add_option("--logprobs", sampling.params.logprobs,
                 "with --json: log-probability of each token and of N alternatives")
      ->type_name("N")
      ->check(integer_in(0, 100));
  app.add_flag("--json", json, "print one JSON object at the end instead of streaming text");
  app.add_option("--dump", dump_folder, "write every intermediate as .npy files (see docs/dump.md); slow")
      ->type_name("DIR");
  app.add_option("--draw", draw_path, "write the last picture with the boxes that the answer names, as PNG")
      ->type_name("FILE");
  if (!parse(app, args)) return kOk;

  EngineOptions options = engine_flags.options();
  if (app.count("--prompt") == 0) prompt = prompt_from_stdin(media.reads_stdin());
  Message user{"user", media.parts(app)};
  std::optional<ContentPart> drawn;
  if (!draw_path.empty()) drawn = last_picture(user.content);
  user.content.push_back(ContentPart::of_text(prompt));
  Request request;
  if (app.count("--system") > 0) request.messages.push_back({"system", {ContentPart::of_text(system)}});
  request.messages.push_back(std::move(user));
  request.sampling = sampling.params;

  std::unique_ptr<Dump> dump;
  if (!dump_folder.empty()) {
    dump = std::make_unique<Dump>(dump_folder);
    options.on_tap = [&](std::string_view name, const float* data, const int64_t* shape, int rank) {
      dump->write(name, data, shape, rank);
    };
  }

  const auto engine = load_engine(options, engine_flags.quiet);
  const Answer answer = ask(*engine, std::move(request), !json);
  const Json result = to_json(answer.result, engine->info());
  if (dump) {
    dump->check();
    write_text(dump->folder() / "result.json", dump_json(result));
  }
  print_stdout(json ? dump_json(result) : "\n");
  const std::vector<Box>& boxes = answer.result.boxes;
  if (drawn) write_drawing(draw_path, *drawn, boxes);
  if (!engine_flags.quiet) {
    if (!boxes.empty()) print_stderr(describe_boxes(boxes));
    if (drawn) print_stderr(fmt::format("draw: {} in {}", boxes.empty() ? "no boxes" : "the boxes", draw_path));
    print_stderr(describe_timings(answer.result, engine->info().load_seconds));
    if (dump) print_stderr(fmt::format("dump: {} files in {}", dump->files(), dump->folder().string()));
  }
  return answer.interrupted ? kInterrupted : kOk;
}

}  // namespace saccade::apps
