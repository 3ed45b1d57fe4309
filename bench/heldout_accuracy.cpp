// Share of a held-out set that a model answers correctly, in all and per kind.
//
//   heldout_accuracy MODEL DIR [--dtype bf16] [--min-all 0.95] [--min-kind 0.85] [--json FILE]
//
// DIR/questions.jsonl has one question a line: id, kind, images (paths below DIR) or video (frame paths) with fps,
// history (earlier turns), prompt, answer. An answer counts when it is equal up to case, surrounding space and a final
// full stop; one of kind "grounding" when it names the same thing with as many boxes, each overlapping its own expected
// one by half (intersection over union). Exits with 1 below a minimum.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <array>
#include <cctype>
#include <fstream>
#include <future>
#include <map>

#include "base/error.h"
#include "base/json.h"
#include "saccade/engine.h"

namespace {

using saccade::ContentPart;
using saccade::Json;

struct Question {
  std::string id, kind, answer;
  saccade::Request request;
};

Question parse_question(const Json& json, const std::string& folder) {
  Question q{json.at("id"), json.at("kind"), json.at("answer"), {}};
  saccade::Message message{"user", {}};
  for (const Json& image : json.value("images", Json::array())) {
    message.content.push_back(ContentPart::of_image_file(folder + "/" + image.get<std::string>()));
  }
  if (const Json video = json.value("video", Json()); !video.empty()) {
    std::vector<std::string> frames;
    for (const Json& frame : video) frames.push_back(folder + "/" + frame.get<std::string>());
    saccade::MediaOptions media;
    media.fps = json.at("fps").get<double>();
    message.content.push_back(ContentPart::of_video_frames(std::move(frames), media));
  }
  // Media belong to the first turn.
  for (const Json& turn : json.value("history", Json::array())) {
    message.content.push_back(ContentPart::of_text(turn.at("prompt")));
    q.request.messages.push_back(std::exchange(message, {"user", {}}));
    q.request.messages.push_back({"assistant", {ContentPart::of_text(turn.at("answer"))}});
  }
  message.content.push_back(ContentPart::of_text(json.at("prompt")));
  q.request.messages.push_back(std::move(message));
  q.request.sampling.max_tokens = 96;  // four boxes
  return q;
}

std::vector<Question> read_questions(const std::string& folder) {
  const std::string path = folder + "/questions.jsonl";
  std::ifstream file(path);
  if (!file) saccade::fail("{}: cannot open", path);
  std::vector<Question> questions;
  for (std::string line; std::getline(file, line);) {
    questions.push_back(parse_question(saccade::parse_json(line, path), folder));
  }
  return questions;
}

std::string normalised(const std::string& text) {
  std::string out;
  for (const char c : text) out += static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  const auto blank = [](char c) { return c == ' ' || c == '\n' || c == '.'; };
  while (!out.empty() && blank(out.back())) out.pop_back();
  return out.substr(std::min(out.find_first_not_of(" \n"), out.size()));
}

using Corners = std::array<double, 4>;  // x1, y1, x2, y2

// Name and boxes of "<|ref|>name<|/ref|><|det|>[[x1, y1, x2, y2], ...]<|/det|>"; no boxes if it is not of this form.
std::pair<std::string, std::vector<Corners>> read_boxes(const std::string& text) {
  constexpr std::string_view kBegin = "<|ref|>", kMiddle = "<|/ref|><|det|>", kEnd = "<|/det|>";
  const size_t middle = text.find(kMiddle), end = text.rfind(kEnd);
  if (!text.starts_with(kBegin) || middle == text.npos || end == text.npos || end < middle + kMiddle.size()) return {};
  const size_t list_at = middle + kMiddle.size();
  const Json list = Json::parse(text.substr(list_at, end - list_at), nullptr, false);
  std::pair<std::string, std::vector<Corners>> out{normalised(text.substr(kBegin.size(), middle - kBegin.size())), {}};
  if (!list.is_array()) return out;
  for (const Json& box : list) {
    const auto number = [](const Json& value) { return value.is_number(); };
    if (!box.is_array() || box.size() != 4 || !std::ranges::all_of(box, number)) return {};
    out.second.push_back(box.get<Corners>());
  }
  return out;
}

// Intersection over union.
double overlap(const Corners& a, const Corners& b) {
  const auto area = [](double x1, double y1, double x2, double y2) {
    return std::max(0.0, x2 - x1) * std::max(0.0, y2 - y1);
  };
  const double common = area(std::max(a[0], b[0]), std::max(a[1], b[1]), std::min(a[2], b[2]), std::min(a[3], b[3]));
  return common / std::max(1.0, area(a[0], a[1], a[2], a[3]) + area(b[0], b[1], b[2], b[3]) - common);
}

bool boxes_right(const saccade::Result& result, const std::string& answer) {
  const auto [meant, expected] = read_boxes(answer);
  auto [said, boxes] = read_boxes(result.text);
  if (expected.empty() || said != meant || boxes.size() != expected.size()) return false;
  if (result.boxes.size() != boxes.size()) return false;
  for (const Corners& box : expected) {
    const auto by_overlap = [&](const Corners& a, const Corners& b) { return overlap(box, a) < overlap(box, b); };
    const auto best = std::ranges::max_element(boxes, by_overlap);
    if (overlap(box, *best) < 0.5) return false;
    boxes.erase(best);
  }
  return true;
}

bool is_right(const saccade::Result& result, const Question& question) {
  return normalised(result.text) == normalised(question.answer) ||
         (question.kind == "grounding" && boxes_right(result, question.answer));
}

struct Score {
  int right = 0, asked = 0;
  double share() const { return asked ? static_cast<double>(right) / asked : 0; }
};

void print_score(const std::string& name, const Score& score) {
  fmt::print("{:<16} {:5} of {:5}  {:6.2f}%\n", name, score.right, score.asked, 100 * score.share());
}

int run(int argc, char** argv) {
  std::string model, folder, dtype = "bf16", json_path;
  double min_all = 0, min_kind = 0;
  bool verbose = false;
  CLI::App app("Accuracy on a held-out set");
  app.add_option("model", model)->required();
  app.add_option("dir", folder)->required();
  app.add_option("--dtype", dtype);
  app.add_option("--min-all", min_all);
  app.add_option("--min-kind", min_kind);
  app.add_option("--json", json_path);
  app.add_flag("--verbose", verbose, "print every wrong answer");
  CLI11_PARSE(app, argc, argv);

  const std::vector<Question> questions = read_questions(folder);
  saccade::EngineOptions options{.model = model, .dtype = dtype, .max_context = 4096};
  options.max_queue = static_cast<int>(questions.size()) + 1;
  const auto engine = saccade::Engine::load(options);
  std::vector<std::promise<saccade::Result>> results(questions.size());
  for (size_t i = 0; i < questions.size(); ++i) {
    engine->submit(questions[i].request, {}, [&results, i](const saccade::Result& r) { results[i].set_value(r); });
  }
  Score all;
  std::map<std::string, Score> kinds;
  for (size_t i = 0; i < questions.size(); ++i) {
    const saccade::Result result = results[i].get_future().get();
    const bool right = is_right(result, questions[i]);
    for (Score* s : {&all, &kinds[questions[i].kind]}) {
      ++s->asked;
      s->right += right;
    }
    if (!right && verbose) {
      fmt::print("{}: expected \"{}\", got \"{}\" {}\n", questions[i].id, questions[i].answer, result.text,
                 result.error);
    }
  }
  bool enough = all.share() >= min_all;
  Json report = {{"model", model}, {"dtype", dtype}, {"questions", all.asked}, {"accuracy", all.share()}};
  for (const auto& [kind, score] : kinds) {
    print_score(kind, score);
    report["kinds"][kind] = {{"questions", score.asked}, {"accuracy", score.share()}};
    enough = enough && score.share() >= min_kind;
  }
  print_score("all", all);
  if (!json_path.empty()) std::ofstream(json_path) << report.dump(1) << "\n";
  return enough ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run(argc, argv);
  } catch (const std::exception& e) {
    fmt::print(stderr, "heldout_accuracy: {}\n", e.what());
    return 1;
  }
}
