// Bad input of every kind gives one clear line and a non-zero exit code.
#include <gmock/gmock.h>

#include <algorithm>
#include <filesystem>
#include <functional>
#include <string>

#include "apps/pictures.h"
#include "apps/process.h"

namespace saccade::apps_test {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;
using ::testing::StartsWith;

const std::string kModel = std::string(SACCADE_SOURCE_DIR) + "/models/tiny-qwen2.5-vl";

std::string file(const std::string& name, const std::string& bytes) {
  const std::string path = temporary_folder() + "/" + name;
  write_all(path, bytes);
  return path;
}

// The bundled model with one file changed by `edit`, or removed when edit is empty.
std::string broken_model(const std::string& name, const std::function<std::string(std::string)>& edit) {
  const std::string folder = temporary_folder();
  for (const auto& entry : fs::directory_iterator(kModel)) {
    if (entry.path().filename() != name) fs::create_symlink(entry.path(), folder / entry.path().filename());
  }
  if (edit) write_all(folder + "/" + name, edit(read_all(kModel + "/" + name)));
  return folder;
}

std::function<std::string(std::string)> replacing(const std::string& from, const std::string& to) {
  return [=](std::string text) {
    const size_t at = text.find(from);
    EXPECT_NE(at, std::string::npos) << "no " << from;
    return at == std::string::npos ? text : text.replace(at, from.size(), to);
  };
}

// `expected` are parts of the line.
void expect_error(const std::vector<std::string>& args, const std::vector<std::string>& expected,
                  const std::string& input = {}) {
  const Outcome outcome = saccade(args, {.input = input});
  SCOPED_TRACE(::testing::PrintToString(args));
  EXPECT_EQ(outcome.code, 1);
  EXPECT_EQ(outcome.out, "");
  EXPECT_EQ(lines_of(outcome.err).size(), 1u) << outcome.err;
  EXPECT_THAT(outcome.err, StartsWith("saccade: "));
  for (const auto& part : expected) EXPECT_THAT(outcome.err, HasSubstr(part));
}

void expect_model_error(const std::string& model, const std::vector<std::string>& expected) {
  expect_error({"run", model, "-q", "-p", "x"}, expected);
}

void expect_media_error(const std::string& flag, const std::string& path, const std::vector<std::string>& expected) {
  expect_error({"run", kModel, "-q", "-p", "x", flag, path}, expected);
}

TEST(BadModel, Folder) {
  expect_model_error("/no/such/folder", {"/no/such/folder"});
  expect_model_error(file("model.gguf", "GGUF"), {"model.gguf"});
  expect_model_error(temporary_folder(), {"config.json"});
  expect_error({"inspect", "/no/such/folder"}, {"/no/such/folder"});
  expect_error({"bench", "/no/such/folder", "-q"}, {"/no/such/folder"});
  expect_error({"chat", "/no/such/folder", "-q"}, {"/no/such/folder"});
  expect_error({"run", "--synthetic", "qwen9", "-q", "-p", "x"}, {"qwen9", "qwen2.5-vl-3b"});
}

TEST(BadModel, Config) {
  expect_model_error(broken_model("config.json", [](auto) { return "{"; }), {"config.json", "not valid JSON"});
  expect_model_error(broken_model("config.json", [](auto) { return std::string(100000, '['); }), {"config.json"});
  expect_model_error(broken_model("config.json", [](auto) { return "[]"; }), {"config.json"});
  expect_model_error(broken_model("config.json", [](auto) { return R"({"model_type": "llama"})"; }),
                     {"config.json", "unknown architecture", "llama", "qwen2_5_vl"});
  expect_model_error(broken_model("config.json", replacing("\"vocab_size\": ", "\"vocab_size\": -")),
                     {"config.json", "vocab_size"});
}

TEST(BadModel, Weights) {
  const std::string name = "model.safetensors";
  expect_model_error(broken_model(name, {}), {"safetensors"});
  expect_model_error(broken_model(name, [](auto) { return ""; }), {name});
  expect_model_error(broken_model(name, [](auto text) { return text.substr(0, 5); }), {name});
  expect_model_error(broken_model(name, [](auto text) { return text.substr(0, text.size() / 2); }), {name});
  expect_model_error(broken_model(name, [](auto text) { return text + "more"; }), {name});
  expect_model_error(broken_model(name, [](auto text) { return std::string(8, '\xff') + text.substr(8); }), {name});
  expect_model_error(broken_model(name, replacing("\"BF16\"", "\"I16\" ")), {"I16"});
  expect_model_error(broken_model(name, replacing("\"BF16\"", "\"F32\" ")), {name});
  expect_model_error(broken_model(name, replacing("model.norm.weight", "model.norm.wrongs")), {"model.norm.weight"});
}

TEST(BadModel, Tokenizer) {
  expect_model_error(broken_model("tokenizer.json", {}), {"tokenizer.json"});
  expect_model_error(broken_model("tokenizer.json", [](auto) { return "{}"; }), {"tokenizer.json"});
  expect_model_error(broken_model("tokenizer.json", [](auto text) { return text.substr(0, text.size() / 2); }),
                     {"tokenizer.json"});
}

TEST(BadMedia, Picture) {
  expect_media_error("--image", "/no/such.png", {"/no/such.png"});
  expect_media_error("--image", temporary_folder(), {"/"});
  expect_media_error("--image", file("empty.png", ""), {"empty.png"});
  expect_media_error("--image", file("text.png", "this is no picture\n"), {"text.png"});
  expect_media_error("--image", file("cut.bmp", bmp(64, 64).substr(0, 500)), {"cut.bmp"});
  expect_media_error("--image", file("thin.bmp", bmp(1, 300)), {"thin.bmp", "200"});
  expect_media_error("--image", file("wide.bmp", bmp(2010, 10)), {"wide.bmp", "200"});
  std::string huge = bmp(8, 8);
  for (const size_t byte : {20u, 24u}) huge[byte] = '\x7f';  // 8 million on each side
  expect_media_error("--image", file("huge.bmp", huge), {"huge.bmp"});
  expect_error({"run", kModel, "-q", "-p", "x", "--image", "-"}, {"standard input"});
  expect_error({"run", kModel, "-q", "-p", "x", "--image", "-"}, {"picture"}, "this is no picture\n");
}

TEST(BadMedia, Clip) {
  expect_media_error("--video", "/no/such.mp4", {"/no/such.mp4"});
  expect_media_error("--video", file("empty.mp4", ""), {"empty.mp4"});
  expect_media_error("--video", file("text.mp4", "this is no clip\n"), {"text.mp4"});
  expect_media_error("--frames", "/no/a.png,/no/b.png", {"/no/a.png"});
  expect_media_error("--frames", file("a.bmp", bmp(56, 56)) + "," + file("b.bmp", "no picture"), {"b.bmp"});
}

TEST(BadRequest, Prompt) {
  std::string words = "word";
  for (int i = 0; i < 500; ++i) words += " word";
  expect_error({"run", kModel, "-q", "-p", words, "--max-context", "64"}, {"64", "tokens"});
  expect_error({"run", kModel, "-q"}, {"standard input: no prompt, it is empty"});
}

TEST(BadRequest, Dump) {
  const std::string full = temporary_folder();
  write_all(full + "/something", "");
  expect_error({"run", kModel, "-q", "-p", "x", "--dump", full}, {"not empty"});
  expect_error({"run", kModel, "-q", "-p", "x", "--dump", "/proc/none"}, {"/proc/none"});
}

}  // namespace
}  // namespace saccade::apps_test
