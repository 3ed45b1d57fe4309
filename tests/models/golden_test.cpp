// The checkpoints of the repository against their references, transformers 5.17 for Qwen2.5-VL
// (tools/reference/goldens.py) and plain torch for DeepSeek-VL2 (goldens_deepseek_vl2.py): prompt ids, positions, every
// stage, and greedy tokens of all input kinds, in float32 and bfloat16; and the same answers however requests are
// batched.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <future>
#include <map>
#include <memory>
#include <numeric>
#include <ostream>
#include <set>
#include <tuple>
#include <vector>

#include "base/json.h"
#include "saccade/engine.h"

namespace saccade {
namespace {

const std::string kSource = SACCADE_SOURCE_DIR;

// SACCADE_TEST_DEVICE=cuda tests the answers of a CUDA device, as far as its kernels go.
const std::string& test_device() {
  static const char* const asked = std::getenv("SACCADE_TEST_DEVICE");
  static const std::string device = asked ? asked : "cpu";
  return device;
}

struct Checkpoint {
  const char* name;
  const char* folder;
  const char* pictures;
  const char* goldens;
  size_t least_cases;
  int least_staged;
  double least_equal;  // share of answers that equal the reference's in bfloat16 to the last token
  double rerouted;     // share of answers, and of tokens of a layer, that bfloat16 may send through other experts
  double bf16;         // tolerance of stages in bfloat16
};

void PrintTo(const Checkpoint& checkpoint, std::ostream* out) { *out << checkpoint.name; }

// Logits of random weights lie close together, so few of their answers are free of ties in bfloat16. So do the scores
// of their experts: the last expert chosen is ahead of the first one left out by 0.002 in some tokens, less than a
// rounding.
constexpr Checkpoint kCheckpoints[] = {
    {"TinyQwen2_5Vl", "/models/tiny-qwen2.5-vl", "/tests/data/tiny_heldout/", "/tests/data/golden/tiny-qwen2.5-vl.json",
     64, 3, 0.9, 0, 0x1p-5},
    {"TinyDeepseekVl2", "/models/tiny-deepseek-vl2", "/tests/data/tiny_deepseek_vl2_heldout/",
     "/tests/data/golden/tiny-deepseek-vl2.json", 64, 4, 0.9, 0, 0x1p-4},
    {"RandomDeepseekVl2Mha", "/tests/data/models/deepseek-vl2-mha", "/tests/data/media/",
     "/tests/data/golden/deepseek-vl2-mha.json", 14, 2, 0.5, 0.125, 0x1p-4},
    {"RandomDeepseekVl2NoAux", "/tests/data/models/deepseek-vl2-noaux", "/tests/data/media/",
     "/tests/data/golden/deepseek-vl2-noaux.json", 14, 2, 0.5, 0.125, 0x1p-4},
};

// Margin below which two bfloat16 logits may swap places between implementations: logits of these models reach 10 to
// 30, where bfloat16 steps by 1/16 to 1/8, and each side rounds once. The references' own margins below 2 move by at
// most 0.18 between float32 and bfloat16 in nineteen of twenty steps.
constexpr double kTieMargin = 0.25;

const Json& golden_file(const Checkpoint& checkpoint) {
  static std::map<std::string, Json> files;
  auto it = files.find(checkpoint.name);
  if (it == files.end()) it = files.emplace(checkpoint.name, read_json_file(kSource + checkpoint.goldens)).first;
  return it->second;
}

const Json& goldens_of(const Checkpoint& checkpoint) { return golden_file(checkpoint).at("cases"); }

std::vector<Message> messages_of(const Json& golden, const std::string& pictures) {
  std::vector<Message> messages;
  for (const Json& m : golden.at("messages")) {
    Message message{m.at("role"), {}};
    for (const Json& p : m.at("content")) {
      if (p.at("type") == "text") {
        message.content.push_back(ContentPart::of_text(p.at("text")));
      } else if (p.at("type") == "image") {
        message.content.push_back(ContentPart::of_image_file(pictures + p.at("path").get<std::string>()));
      } else {
        std::vector<std::string> frames;
        for (const Json& f : p.at("frames")) frames.push_back(pictures + f.get<std::string>());
        MediaOptions media;
        media.fps = p.at("fps").get<double>();
        message.content.push_back(ContentPart::of_video_frames(frames, media));
      }
    }
    messages.push_back(std::move(message));
  }
  return messages;
}

Request request_of(const Checkpoint& checkpoint, const Json& golden) {
  Request request;
  request.messages = messages_of(golden, kSource + checkpoint.pictures);
  request.sampling.max_tokens = golden_file(checkpoint).at("max_tokens");
  return request;
}

EngineOptions options_of(const Checkpoint& checkpoint, const std::string& dtype, int max_batch_tokens) {
  return {.model = kSource + checkpoint.folder,
          .device = test_device(),
          .dtype = dtype,
          .max_batch = 16,
          .max_batch_tokens = max_batch_tokens,
          .max_context = 2048};
}

bool runs_here(const Checkpoint& checkpoint, const std::string& dtype) {
  return test_device() == "cpu" || (dtype == "bf16" && checkpoint.name == std::string("TinyQwen2_5Vl"));
}

class Golden : public testing::TestWithParam<std::tuple<Checkpoint, const char*>> {
 protected:
  void SetUp() override {
    if (!runs_here(checkpoint, dtype)) GTEST_SKIP() << "not on " << test_device();
  }

  const Checkpoint checkpoint = std::get<0>(GetParam());
  const std::string dtype = std::get<1>(GetParam());
};

std::string name_of(const testing::TestParamInfo<Golden::ParamType>& info) {
  return std::string(std::get<0>(info.param).name) + "_" + std::get<1>(info.param);
}

INSTANTIATE_TEST_SUITE_P(All, Golden, testing::Combine(testing::ValuesIn(kCheckpoints), testing::Values("f32", "bf16")),
                         name_of);

// AddressSanitizer makes this test 15 times slower: with it every third prompt of the long lists, which take the same
// paths.
#ifdef __SANITIZE_ADDRESS__
constexpr size_t kEvery = 3;
#else
constexpr size_t kEvery = 1;
#endif

TEST_P(Golden, GreedyTokensEqual) {
  const Json& all = goldens_of(checkpoint);
  ASSERT_GE(all.size(), checkpoint.least_cases);
  Json goldens = Json::array();
  for (size_t i = 0; i < all.size(); i += all.size() < 64 ? 1 : kEvery) goldens.push_back(all[i]);
  const auto engine = Engine::load(options_of(checkpoint, dtype, 512));
  int equal = 0, ties = 0, rerouted = 0;
  for (const Json& golden : goldens) {
    SCOPED_TRACE(golden.at("name").get<std::string>());
    const Result result = engine->generate(request_of(checkpoint, golden));
    EXPECT_EQ(result.prompt_ids, golden.at("prompt_ids").get<std::vector<int32_t>>());
    const auto expected = golden.at("tokens_" + dtype).get<std::vector<int32_t>>();
    if (result.token_ids == expected) {
      ++equal;
      continue;
    }
    const auto [a, b] =
        std::mismatch(expected.begin(), expected.end(), result.token_ids.begin(), result.token_ids.end());
    const auto step = static_cast<size_t>(a - expected.begin());
    const auto margins = golden.at("margins_" + dtype).get<std::vector<double>>();
    // Where the reference's own dtypes part, either token is right.
    const auto f32 = golden.at("tokens_f32").get<std::vector<int32_t>>();
    const bool as_f32 = b != result.token_ids.end() && step < f32.size() && f32[step] == *b &&
                        std::equal(expected.begin(), a, f32.begin());
    const bool tie = dtype == "bf16" && (as_f32 || (step < margins.size() && margins[step] <= kTieMargin));
    ties += tie;
    if (tie || (dtype == "bf16" && ++rerouted <= checkpoint.rerouted * static_cast<double>(goldens.size()))) continue;
    ADD_FAILURE() << "differs at step " << step << ", reference margin "
                  << (step < margins.size() ? margins[step] : -1.0) << ", answered " << result.text;
  }
  RecordProperty("equal", equal);
  RecordProperty("ties", ties);
  RecordProperty("rerouted", rerouted);
  EXPECT_GE(equal, checkpoint.least_equal * static_cast<double>(goldens.size()));
}

struct Captured {
  std::vector<int64_t> shape;
  std::vector<float> data;
};

// Runs the prompt in one step and keeps the first call of every tap.
std::map<std::string, Captured> stages_of(const Checkpoint& checkpoint, const Json& golden, const std::string& dtype) {
  std::map<std::string, Captured> taps;
  EngineOptions options = options_of(checkpoint, dtype, 4096);
  options.max_context = 4096;
  options.on_tap = [&](std::string_view name, const float* data, const int64_t* shape, int rank) {
    Captured captured{{shape, shape + rank}, {}};
    int64_t count = 1;
    for (const int64_t d : captured.shape) count *= d;
    captured.data.assign(data, data + count);
    taps.emplace(name, std::move(captured));
  };
  Request request = request_of(checkpoint, golden);
  request.sampling.max_tokens = 1;
  Engine::load(options)->generate(request);
  return taps;
}

// Length of the difference of the samples, as a share of the expected ones' length. The rows that differ most, a share
// of `left_out`, do not count.
double distance(const std::vector<double>& got, const Json& stage, double left_out = 0) {
  const auto expected = stage.at("value").get<std::vector<double>>();
  const auto index = stage.at("index").get<std::vector<size_t>>();
  const auto width = stage.at("shape").back().get<size_t>();
  double norm = 0;
  std::map<size_t, double> rows;
  for (size_t i = 0; i < expected.size(); ++i) {
    rows[index[i] / width] += (got[i] - expected[i]) * (got[i] - expected[i]);
    norm += expected[i] * expected[i];
  }
  std::vector<double> errors;
  for (const auto& [row, error] : rows) errors.push_back(error);
  std::ranges::sort(errors);
  const auto left = static_cast<ptrdiff_t>(static_cast<double>(errors.size()) * (1 - left_out));
  return std::sqrt(std::accumulate(errors.begin(), errors.begin() + left, 0.0) / norm);
}

// bfloat16 rounds to 2^-9; a dozen blocks of independent roundings stay well inside 2^-5, with the weights of experts,
// which are rounded scores as well, inside 2^-4. Where the reference's own float32 is about as far away, that distance
// and half as much again.
double tolerance_of(const Checkpoint& checkpoint, const Json& golden, const std::string& dtype,
                    const std::string& stage) {
  if (dtype == "f32") return 2e-4;
  const auto f32 = golden.at("stages_f32").at(stage).at("value").get<std::vector<double>>();
  return std::max(checkpoint.bf16, 1.5 * distance(f32, golden.at("stages_bf16").at(stage)));
}

// Vision blocks of Qwen2.5-VL are tapped in window order; the reference hooks see the same order, so all stages compare
// directly.
TEST_P(Golden, StagesEqual) {
  int compared = 0;
  for (const Json& golden : goldens_of(checkpoint)) {
    if (!golden.contains("stages_" + dtype)) continue;
    SCOPED_TRACE(golden.at("name").get<std::string>());
    const auto taps = stages_of(checkpoint, golden, dtype);
    for (const auto& [name, stage] : golden.at("stages_" + dtype).items()) {
      SCOPED_TRACE(name);
      const auto it = taps.find(name);
      ASSERT_NE(it, taps.end());
      EXPECT_EQ(it->second.shape, stage.at("shape").get<std::vector<int64_t>>());
      const double tolerance = tolerance_of(checkpoint, golden, dtype, name);
      std::vector<double> samples;
      for (const size_t i : stage.at("index").get<std::vector<size_t>>()) {
        ASSERT_LT(i, it->second.data.size());
        samples.push_back(it->second.data[i]);
      }
      const bool routed = dtype == "bf16" && name.starts_with("text.layer.");
      EXPECT_LE(distance(samples, stage, routed ? checkpoint.rerouted : 0), tolerance);
      double whole = 0;
      for (const float v : it->second.data) whole += static_cast<double>(v) * static_cast<double>(v);
      EXPECT_NEAR(std::sqrt(whole), stage.at("norm").get<double>(), tolerance * stage.at("norm").get<double>());
    }
    ++compared;
  }
  EXPECT_GE(compared, checkpoint.least_staged);
}

// The positions of M-RoPE; those of DeepSeek-VL2 count up.
TEST(GoldenPositions, EqualTransformers) {
  const Checkpoint& qwen = kCheckpoints[0];
  int compared = 0;
  for (const Json& golden : goldens_of(qwen)) {
    if (!golden.contains("positions")) continue;
    SCOPED_TRACE(golden.at("name").get<std::string>());
    const auto taps = stages_of(qwen, golden, "bf16");
    const auto expected = golden.at("positions").get<std::vector<float>>();
    EXPECT_EQ(taps.at("positions").data, expected);
    ++compared;
  }
  EXPECT_GE(compared, 5);
}

using Answers = std::vector<std::vector<int32_t>>;

Answers alone(Engine& engine, const std::vector<Request>& requests) {
  Answers answers;
  for (const Request& request : requests) answers.push_back(engine.generate(request).token_ids);
  return answers;
}

Answers together(Engine& engine, const std::vector<Request>& requests) {
  std::vector<std::promise<std::vector<int32_t>>> done(requests.size());
  for (size_t i = 0; i < requests.size(); ++i) {
    engine.submit(requests[i], {}, [&done, i](const Result& result) { done[i].set_value(result.token_ids); });
  }
  Answers answers;
  for (auto& answer : done) answers.push_back(answer.get_future().get());
  return answers;
}

class GoldenBatches : public testing::TestWithParam<Checkpoint> {
 protected:
  void SetUp() override {
    if (!runs_here(GetParam(), "bf16")) GTEST_SKIP() << "not on " << test_device();
  }
};

INSTANTIATE_TEST_SUITE_P(All, GoldenBatches, testing::ValuesIn(kCheckpoints),
                         [](const auto& info) { return std::string(info.param.name); });

// One request of each kind: whole prompts one by one, chunks of 48 and 512 tokens, and up to 16 requests in a step.
TEST_P(GoldenBatches, AnswersDoNotDependOnThem) {
  const Checkpoint& checkpoint = GetParam();
  std::vector<Request> requests;
  std::set<std::string> kinds;
  for (const Json& golden : goldens_of(checkpoint)) {
    if (kinds.insert(golden.at("kind")).second) requests.push_back(request_of(checkpoint, golden));
  }
  ASSERT_GE(requests.size(), 14u);
  const Answers whole = alone(*Engine::load(options_of(checkpoint, "bf16", 4096)), requests);
  for (const auto& answer : whole) EXPECT_FALSE(answer.empty());
  for (const int max_batch_tokens : {48, 512}) {
    SCOPED_TRACE(max_batch_tokens);
    const auto engine = Engine::load(options_of(checkpoint, "bf16", max_batch_tokens));
    EXPECT_EQ(alone(*engine, requests), whole);
    EXPECT_EQ(together(*engine, requests), whole);
  }
}

// A penalty that leaves no chance to what was seen: neither in the prompt, nor in the answer up to its last token.
TEST_P(GoldenBatches, PenaltiesKnowEveryToken) {
  const Checkpoint& checkpoint = GetParam();
  const auto engine = Engine::load(options_of(checkpoint, "bf16", 512));
  std::vector<Request> requests;
  for (int i = 0; i < 8; ++i) {  // more are decoded by another kernel, whose sums have another order
    Request request;
    request.messages = {
        {"user", {ContentPart::of_text("What is " + std::to_string(i) + " and " + std::to_string(3 * i) + "?")}}};
    request.sampling.max_tokens = 4 + i % 5;
    request.sampling.ignore_eos = true;
    request.sampling.repetition_penalty = 1000;
    request.sampling.temperature = i % 2 == 0 ? 0 : 0.7;
    request.sampling.seed = 7;
    request.sampling.logprobs = i % 3 == 0 ? 2 : -1;
    requests.push_back(request);
  }
  for (const Request& request : requests) {
    const Result result = engine->generate(request);
    std::set<int32_t> seen(result.prompt_ids.begin(), result.prompt_ids.end());
    for (const int32_t id : result.token_ids) EXPECT_TRUE(seen.insert(id).second) << id << " again";
    ASSERT_EQ(result.token_ids.size(), static_cast<size_t>(request.sampling.max_tokens));
    if (request.sampling.logprobs < 0) continue;
    ASSERT_EQ(result.logprobs.size(), result.token_ids.size());
    for (size_t i = 0; i < result.logprobs.size(); ++i) {
      EXPECT_EQ(result.logprobs[i].id, result.token_ids[i]);
      EXPECT_LE(result.logprobs[i].logprob, result.logprobs[i].top[0].second);
    }
  }
  EXPECT_EQ(together(*engine, requests), alone(*engine, requests));
}

}  // namespace
}  // namespace saccade
