// The command as a user meets it, on the bundled tiny model.
#include <gmock/gmock.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <string>

#include "apps/pictures.h"
#include "apps/process.h"
#include "base/json.h"

namespace saccade::apps_test {
namespace {

namespace fs = std::filesystem;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;

const std::string kModel = std::string(SACCADE_SOURCE_DIR) + "/models/tiny-qwen2.5-vl";

std::string picture(int width = 84, int height = 56) {
  const std::string path = temporary_folder() + "/picture.bmp";
  write_all(path, bmp(width, height));
  return path;
}

// A short greedy answer as JSON.
Json run_json(std::vector<std::string> args, const Options& options = {}, const std::string& temperature = "0") {
  args.insert(args.begin(), {"run", kModel, "--json", "-q", "-n", "6", "--temp", temperature});
  const Outcome outcome = saccade(args, options);
  EXPECT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_EQ(outcome.err, "");
  return parse_json(outcome.out, "--json");
}

void expect_usage_error(const std::vector<std::string>& args, const std::string& line) {
  const Outcome outcome = saccade(args);
  EXPECT_EQ(outcome.code, 2);
  EXPECT_EQ(outcome.out, "");
  EXPECT_EQ(outcome.err, "saccade: " + line + "\n");
}

TEST(Cli, HelpAndVersion) {
  const Outcome help = saccade({"--help"});
  EXPECT_EQ(help.code, 0);
  for (const char* command : {"run", "chat", "inspect", "doctor", "bench"}) {
    EXPECT_THAT(help.out, HasSubstr(command));
    const Outcome own = saccade({command, "--help"});
    EXPECT_EQ(own.code, 0);
    EXPECT_THAT(own.out, HasSubstr("--"));
    EXPECT_EQ(own.err, "");
  }
  EXPECT_THAT(saccade({"--version"}).out, StartsWith("saccade "));
}

TEST(Cli, UsageErrors) {
  expect_usage_error({}, "no command (see saccade --help)");
  expect_usage_error({"rnu"}, "unknown command rnu, did you mean run?");
  expect_usage_error({"photosynthesis"}, "unknown command photosynthesis (see saccade --help)");
  expect_usage_error({"--versoin"}, "unknown flag --versoin, did you mean --version?");
  expect_usage_error({"run", "m", "--imgae", "x"}, "unknown flag --imgae, did you mean --image?");
  expect_usage_error({"chat", "m", "--sytem", "x"}, "unknown flag --sytem, did you mean --system?");
  expect_usage_error({"inspect", "m", "--tensor"}, "unknown flag --tensor, did you mean --tensors?");
  expect_usage_error({"doctor", "--jsno"}, "unknown flag --jsno, did you mean --json?");
  expect_usage_error({"bench", "m", "--promt-tokens", "9"},
                     "unknown flag --promt-tokens, did you mean --prompt-tokens?");
  expect_usage_error({"run", "-p", "x"}, "no model: give its folder, or --synthetic NAME");
  expect_usage_error({"run", kModel, "--image", "-"},
                     "no prompt: standard input holds the picture, so give --prompt TEXT");
  expect_usage_error({"chat", kModel, "--image", "-"},
                     "--image - does not go with chat, which reads its messages there");
}

TEST(Cli, RunJsonHasEverything) {
  const Json json = run_json({"-i", picture(), "-p", "What is this?", "--logprobs", "3", "--ignore-eos"});
  EXPECT_EQ(json["token_ids"].size(), 6u);
  EXPECT_EQ(json["stop_reason"], "length");
  EXPECT_TRUE(json["text"].is_string());
  EXPECT_TRUE(json["boxes"].is_array());
  EXPECT_GT(json["prompt_token_ids"].size(), 6u);
  ASSERT_EQ(json["logprobs"].size(), 6u);
  for (size_t i = 0; i < 6; ++i) {
    const Json& row = json["logprobs"][i];
    ASSERT_EQ(row["top"].size(), 3u);
    EXPECT_EQ(row["id"], json["token_ids"][i]);
    EXPECT_EQ(row["top"][0]["logprob"], row["logprob"]);  // greedy: the likeliest
    EXPECT_GE(row["top"][0]["logprob"].get<double>(), row["top"][1]["logprob"].get<double>());
  }
  for (const char* stage :
       {"load", "decode_media", "preprocess", "encode", "prefill", "first_token", "decode", "total"})
    EXPECT_GE(json["timings_ms"][stage].get<double>(), 0) << stage;
  EXPECT_FALSE(run_json({"-p", "Hello"}).contains("logprobs"));
}

TEST(Cli, RunStreamsTheTextOfTheJson) {
  const std::string image = picture();
  const Json json = run_json({"-i", image, "-p", "What is this?"});
  const Outcome streamed = saccade({"run", kModel, "-n", "6", "--temp", "0", "-i", image, "-p", "What is this?"});
  EXPECT_EQ(streamed.code, 0);
  EXPECT_EQ(streamed.out, json["text"].get<std::string>() + "\n");
  for (const char* stage : {"memory: weights", "load", "encode", "prefill", "tok/s"})
    EXPECT_THAT(streamed.err, HasSubstr(stage));
}

TEST(Cli, PromptAndPictureFromStandardInput) {
  const std::string image = picture();
  const Json given = run_json({"-i", image, "-p", "What is this?"});
  EXPECT_EQ(run_json({"-i", image}, {.input = "What is this?\n"})["prompt_token_ids"], given["prompt_token_ids"]);
  const Json piped = run_json({"-i", "-", "-p", "What is this?"}, {.input = read_all(image)});
  EXPECT_EQ(piped["token_ids"], given["token_ids"]);
  EXPECT_EQ(piped["prompt_token_ids"], given["prompt_token_ids"]);
}

TEST(Cli, MediaFlagsChangeTheNumberOfTokens) {
  const std::string image = picture(448, 448);
  const auto tokens = [](std::vector<std::string> args) {
    args.insert(args.end(), {"-p", "x"});
    return run_json(args)["prompt_token_ids"].size();
  };
  const size_t text = tokens({});
  const size_t large = tokens({"-i", image, "--max-pixels", "50176"});
  const size_t small = tokens({"-i", image, "--max-pixels", "12544"});
  EXPECT_EQ(large - small, (224 / 28) * (224 / 28) - (112 / 28) * (112 / 28));
  EXPECT_EQ(tokens({"-i", image, "-i", image, "--max-pixels", "50176"}) - large, large - text);
  // Two frames are one step in time.
  EXPECT_EQ(tokens({"--frames", image + "," + image, "--max-pixels", "50176"}), large);
  EXPECT_EQ(tokens({"--frames", image + "," + image, "--max-pixels", "12544"}), small);
}

TEST(Cli, StopTextAndSeed) {
  const Json whole = run_json({"-p", "Hello", "--ignore-eos"});
  const auto text = whole["text"].get<std::string>();
  ASSERT_GE(text.size(), 2u);
  const std::string stop = text.substr(text.size() / 2, 1);
  const Json stopped = run_json({"-p", "Hello", "--ignore-eos", "--stop", stop});
  EXPECT_EQ(stopped["stop_reason"], "stop");
  EXPECT_EQ(stopped["text"], text.substr(0, text.find(stop)));

  const auto sampled = [](const char* seed) {
    return run_json({"-p", "Hello", "--ignore-eos", "--top-k", "0", "--top-p", "1", "--seed", seed}, {},
                    "5")["token_ids"];
  };
  EXPECT_EQ(sampled("1"), sampled("1"));
  EXPECT_NE(sampled("1"), sampled("2"));
}

TEST(Cli, DumpWritesEveryStage) {
  const std::string folder = temporary_folder() + "/dump";
  const std::string image = picture();
  const Json json = run_json({"-i", image, "-p", "What is this?", "--ignore-eos", "--dump", folder});
  const size_t marks = 2;  // vision_start, vision_end
  const size_t image_tokens =
      json["prompt_token_ids"].size() - run_json({"-p", "What is this?"})["prompt_token_ids"].size() - marks;
  for (const char* name : {"vision.patches.step0", "vision.patch_embed.step0", "vision.block.0.step0",
                           "vision.merger.step0", "positions.step0", "text.embed.step0", "text.layer.0.step0",
                           "text.norm.step0", "text.logits.step0", "text.logits.step5", "positions.step5"})
    EXPECT_TRUE(fs::exists(fs::path(folder) / (std::string(name) + ".npy"))) << name;
  EXPECT_FALSE(fs::exists(fs::path(folder) / "positions.step6.npy"));
  EXPECT_EQ(parse_json(read_all(folder + "/result.json"), "result.json")["token_ids"], json["token_ids"]);
  const std::string header = read_all(folder + "/vision.patches.step0.npy").substr(0, 128);
  EXPECT_THAT(header, HasSubstr("'shape': (" + std::to_string(4 * image_tokens) + ", 1176), }"));
}

TEST(Cli, DrawWritesThePictureWithItsBoxes) {
  const std::string image = picture(), out = temporary_folder() + "/out.png";
  const std::vector<std::string> rest = {"-p", "What is this?", "-n", "4", "--temp", "0", "--draw", out};
  for (const char* source : {image.c_str(), "-"}) {
    std::vector<std::string> args = {"run", kModel, "-i", source};
    args.insert(args.end(), rest.begin(), rest.end());
    const Outcome outcome = saccade(args, {.input = source[0] == '-' ? read_all(image) : ""});
    EXPECT_EQ(outcome.code, 0) << outcome.err;
    EXPECT_THAT(outcome.err, HasSubstr("draw: no boxes in " + out));
    EXPECT_THAT(read_all(out), StartsWith("\x89PNG"));
    fs::remove(out);
  }
  expect_usage_error({"run", kModel, "-p", "x", "--draw", out}, "--draw needs a picture: give --image FILE");
  const Outcome bad = saccade({"run", kModel, "-q", "-i", image, "-p", "x", "-n", "1", "--draw", "/no/such/out.png"});
  EXPECT_EQ(bad.code, 1);
  EXPECT_EQ(bad.err, "saccade: /no/such/out.png: cannot write: No such file or directory\n");
}

TEST(Cli, ClosedOrFullOutputIsAnError) {
  for (const Options& options : {Options{.close_output = true}, Options{.full_output = true}}) {
    for (const char* mode : {"--json", "--ignore-eos"}) {
      const Outcome outcome = saccade({"run", kModel, "-q", "-n", "300", "-p", "Hello", mode}, options);
      EXPECT_EQ(outcome.code, 1);
      EXPECT_THAT(outcome.err, StartsWith("saccade: cannot write to standard output: "));
      EXPECT_EQ(lines_of(outcome.err).size(), 1u);
    }
  }
}

TEST(Cli, InterruptKeepsWhatThereIs) {
  const Outcome outcome = saccade({"run", kModel, "-p", "Hello", "--ignore-eos", "-n", "1000000"}, {.interrupt = true});
  EXPECT_EQ(outcome.code, 130);
  EXPECT_GT(outcome.out.size(), 1u);
  EXPECT_EQ(outcome.out.back(), '\n');
  EXPECT_THAT(outcome.err, HasSubstr("stopped by cancelled"));
}

TEST(Cli, ChatKeepsTheConversationAndSurvivesBadPictures) {
  const std::string image = picture();
  const std::string bad = temporary_folder() + "/bad.png";
  write_all(bad, "this is no picture");
  const Outcome outcome =
      saccade({"chat", kModel, "-n", "4", "--temp", "0", "--ignore-eos"},
              {.input = "Hello\n/image /no/such/file.png\n/image " + bad + "\nWhat is this?\n/image " + image +
                        "\nWhat is this?\n/imgae x\n/clear\nHello\n/exit\nnever read\n"});
  EXPECT_EQ(outcome.code, 0);
  std::vector<std::string> errors, answers;
  for (const auto& line : lines_of(outcome.err)) {
    if (line.starts_with("saccade: ")) errors.push_back(line);
    if (line.starts_with("[")) answers.push_back(line.substr(1, line.find(" tokens in")));
  }
  EXPECT_THAT(errors, ElementsAre(HasSubstr("/no/such/file.png"), HasSubstr(bad), HasSubstr("did you mean /image?")));
  ASSERT_EQ(answers.size(), 3u);
  EXPECT_GT(std::stoi(answers[1]), std::stoi(answers[0]));  // history and picture
  EXPECT_EQ(answers[2], answers[0]);                        // after /clear
}

TEST(Cli, InspectReadsNoWeights) {
  const Outcome text = saccade({"inspect", kModel, "--tensors"});
  EXPECT_EQ(text.code, 0) << text.err;
  for (const char* word : {"architecture", "parameters", "memory: weights", "configuration", "BF16", ".safetensors"})
    EXPECT_THAT(text.out, HasSubstr(word));
  const Json json = parse_json(saccade({"inspect", kModel, "--json", "--tensors"}).out, "inspect");
  size_t bytes = 0;
  for (const Json& tensor : json["tensors"]) bytes += tensor["bytes"].get<size_t>();
  EXPECT_GT(bytes, 0u);
  EXPECT_EQ(json["tensors"].size(), json["tensor_count"].get<size_t>());
  EXPECT_FALSE(parse_json(saccade({"inspect", kModel, "--json"}).out, "inspect").contains("tensors"));
}

// The bundled model with a tensor that nobody uses, in a file that is larger than any memory but holds no more.
std::string huge_model() {
  const std::string folder = temporary_folder(), name = "model.safetensors";
  for (const auto& entry : fs::directory_iterator(kModel))
    if (entry.path().filename() != name) fs::create_symlink(entry.path(), folder / entry.path().filename());
  const std::string file = read_all(kModel + "/" + name);
  uint64_t header = 0;
  std::memcpy(&header, file.data(), sizeof header);
  Json json = parse_json(file.substr(8, header), name);
  const uint64_t begin = file.size() - 8 - header, bytes = uint64_t{4} << 40;
  json["unused"] = {{"dtype", "BF16"}, {"shape", {bytes / 2}}, {"data_offsets", {begin, begin + bytes}}};
  std::string text = json.dump();
  text.append((8 - text.size() % 8) % 8, ' ');
  const uint64_t length = text.size();
  std::string whole(reinterpret_cast<const char*>(&length), sizeof length);
  whole += text + file.substr(8 + header);
  write_all(folder + "/" + name, whole);
  fs::resize_file(folder + "/" + name, whole.size() + bytes);
  return folder;
}

TEST(Cli, ACheckpointLargerThanMemoryAnswersTheSame) {
  const std::string model = huge_model();
  const std::vector<std::string> question = {"-p", "What is this?", "-i", picture(), "-n", "6", "--temp", "0"};
  const auto answer = [&](const std::string& folder) {
    std::vector<std::string> args = {"run", folder};
    args.insert(args.end(), question.begin(), question.end());
    const Outcome outcome = saccade(args);
    EXPECT_EQ(outcome.code, 0) << outcome.err;
    return outcome;
  };
  const Outcome huge = answer(model), small = answer(kModel);
  EXPECT_EQ(huge.out, small.out);
  EXPECT_THAT(huge.err, HasSubstr("\nweights: 4096.01 GiB are mapped from files and exceed the free memory"));
  EXPECT_THAT(small.err, Not(HasSubstr("exceed")));
  const Json plan = parse_json(saccade({"inspect", model, "--json"}).out, "inspect")["memory"];
  EXPECT_EQ(plan["weights_exceed_memory"], true);
  EXPECT_EQ(plan["weight_bytes_owned"], 0);
  EXPECT_GT(plan["weight_bytes_per_token"].get<size_t>(), 0u);
}

TEST(Cli, InspectKnowsThePublishedShapes) {
  const Json json = parse_json(saccade({"inspect", "--synthetic", "qwen2.5-vl-3b", "--json"}).out, "inspect");
  EXPECT_NEAR(json["model"]["parameters"].get<double>(), 3.755e9, 0.001e9);
  EXPECT_EQ(json["model"]["layers"], 36);
  EXPECT_EQ(json["kv_bytes_per_token"], 36864);  // 36 layers, 2 heads of 128, keys and values, bf16
}

TEST(Cli, DoctorJson) {
  const Json json = parse_json(saccade({"doctor", "--json", "-t", "1"}).out, "doctor");
  EXPECT_GT(json["measured"]["read_bytes_per_second"].get<double>(), 1e7);
  EXPECT_GT(json["measured"]["bf16"]["flops"].get<double>(), 1e7);
  EXPECT_GE(json["cpu"]["cores"].get<int>(), 1);
  EXPECT_GT(json["memory"]["total_bytes"].get<size_t>(), size_t{1} << 20);
  EXPECT_TRUE(json["libraries"].contains("libjpeg"));
  EXPECT_TRUE(json["cuda"]["devices"].is_array());
  EXPECT_THAT(saccade({"doctor", "-t", "1"}).out, HasSubstr("\ncuda"));
}

TEST(Cli, BenchWritesItsSamples) {
  const std::string path = temporary_folder() + "/bench.json";
  const std::string image = picture();
  const size_t picture_tokens =
      run_json({"-i", image, "-p", "x"})["prompt_token_ids"].size() - run_json({"-p", "x"})["prompt_token_ids"].size();
  const Outcome outcome = saccade({"bench", kModel, "-i", image, "--prompt-tokens", "60", "--tokens", "5", "--runs",
                                   "3", "--warmup", "0", "--json", path, "-q"});
  EXPECT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_THAT(outcome.out, HasSubstr("of the read bandwidth"));
  const Json json = parse_json(read_all(path), path);
  ASSERT_EQ(json["samples"].size(), 3u);
  EXPECT_EQ(json["generated_tokens"], 5);
  EXPECT_NEAR(json["prompt_tokens"].get<double>(), 60 + static_cast<double>(picture_tokens), 2);
  std::vector<double> prefill;
  for (const Json& sample : json["samples"]) prefill.push_back(sample["prefill"].get<double>());
  std::sort(prefill.begin(), prefill.end());
  EXPECT_DOUBLE_EQ(json["summary_ms"]["prefill"]["median"].get<double>(), prefill[1]);
  EXPECT_DOUBLE_EQ(json["summary_ms"]["prefill"]["max"].get<double>(), prefill[2]);
  EXPECT_GT(json["machine"]["read_bytes_per_second_after"].get<double>(), 0);
  for (const char* key : {"command", "cpu", "date", "commit", "rates"}) EXPECT_TRUE(json.contains(key)) << key;
}

}  // namespace
}  // namespace saccade::apps_test
