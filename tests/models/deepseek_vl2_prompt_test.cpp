#include <gmock/gmock.h>

#include <map>

#include "base/error.h"
#include "models/deepseek_vl2/preprocess.h"
#include "models/deepseek_vl2/prompt.h"
#include "text/synthetic_tokenizer.h"

namespace saccade::deepseek_vl2 {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

using Ids = std::vector<int32_t>;
constexpr int32_t kBos = 300, kEos = 301;
// The nine tokens that the processor adds, in its order, behind those of the tokenizer.
constexpr int32_t kImage = 303, kRef = 304, kRefEnd = 305, kGrounding = 308, kUser = 309, kAssistant = 310;

Config small_config() {
  Config config;
  config.bos = kBos;
  config.eos = kEos;
  return config;
}

// Bytes are their own ids.
Tokenizer bytes() {
  const std::pair<std::string_view, int32_t> special[] = {{"<bos>", kBos}, {"<eos>", kEos}};
  return synthetic_tokenizer(special);
}

Message says(std::string role, std::string text) { return {std::move(role), {ContentPart::of_text(std::move(text))}}; }
ContentPart text(std::string text) { return ContentPart::of_text(std::move(text)); }
ContentPart picture() { return ContentPart::of_image_file("x.png"); }

Prompt prompt_of(const std::vector<Message>& messages, const std::vector<int64_t>& media_tokens = {}) {
  Prompt prompt;
  build_prompt(messages, media_tokens, small_config(), with_processor_tokens(bytes()), prompt);
  return prompt;
}

// Ids as text: bytes as they are, special tokens by a short name. Adjacent <image> are counted.
std::string shown(const Ids& ids) {
  const std::map<int32_t, std::string> names = {{kBos, "[bos]"},          {kEos, "[eos]"},   {kRef, "[ref]"},
                                                {kRefEnd, "[/ref]"},      {306, "[det]"},    {307, "[/det]"},
                                                {kGrounding, "[ground]"}, {kUser, "[user]"}, {kAssistant, "[asst]"}};
  std::string out;
  for (size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] == kImage) {
      size_t end = i;
      while (end < ids.size() && ids[end] == kImage) ++end;
      out += fmt::format("[{} images]", end - i);
      i = end - 1;
    } else if (ids[i] < 256) {
      out += static_cast<char>(ids[i]);
    } else {
      out += names.at(ids[i]);
    }
  }
  return out;
}

std::string prompt_text(const std::vector<Message>& messages, const std::vector<int64_t>& media_tokens = {}) {
  return shown(prompt_of(messages, media_tokens).ids);
}

std::string error_of(const std::vector<Message>& messages, const std::vector<int64_t>& media_tokens = {}) {
  try {
    prompt_of(messages, media_tokens);
  } catch (const Error& e) {
    return e.what();
  }
  return "";
}

TEST(DeepseekVl2Tokens, AreAddedInTheProcessorsOrder) {
  const Tokenizer tokenizer = with_processor_tokens(bytes());
  const char* order[] = {"<\uFF5C\u2581pad\u2581\uFF5C>",
                         "<image>",
                         "<|ref|>",
                         "<|/ref|>",
                         "<|det|>",
                         "<|/det|>",
                         "<|grounding|>",
                         "<|User|>",
                         "<|Assistant|>"};
  int32_t id = kEos + 1;
  for (const char* token : order) EXPECT_EQ(tokenizer.token_id(token), id++) << token;
  EXPECT_EQ(tokenizer.vocab_size(), id);
  EXPECT_EQ(image_token(tokenizer), kImage);
}

TEST(DeepseekVl2Tokens, ThoseThatAreThereKeepTheirIds) {
  const std::pair<std::string_view, int32_t> special[] = {{"<bos>", kBos}, {"<|User|>", 310}, {"<image>", 320}};
  const Tokenizer tokenizer = with_processor_tokens(synthetic_tokenizer(special));
  EXPECT_EQ(tokenizer.token_id("<|User|>"), 310);
  EXPECT_EQ(image_token(tokenizer), 320);
  EXPECT_EQ(tokenizer.token_id("<|ref|>"), 322);  // 321 is the padding
  EXPECT_EQ(tokenizer.token_id("<|Assistant|>"), 327);
}

TEST(DeepseekVl2Tokens, GroundingIsShownAndTheRestIsNot) {
  const Tokenizer tokenizer = with_processor_tokens(bytes());
  EXPECT_EQ(tokenizer.decode({kRef, 'a', kRefEnd, 306, '[', ']', 307, kGrounding, kImage, kUser, kEos}),
            "<|ref|>a<|/ref|><|det|>[]<|/det|><|grounding|>");
  EXPECT_TRUE(tokenizer.is_special(kRef));
}

TEST(DeepseekVl2Prompt, IdsSpelledOut) {
  const Prompt prompt = prompt_of({{"user", {picture(), text("hi")}}}, {3});
  EXPECT_EQ(prompt.ids,
            (Ids{kBos, kUser, ':', ' ', kImage, kImage, kImage, '\n', 'h', 'i', '\n', '\n', kAssistant, ':'}));
  EXPECT_THAT(prompt.media_at, ElementsAre(4));
  EXPECT_EQ(prompt.positions.size(), prompt.ids.size());
  for (size_t i = 0; i < prompt.positions.size(); ++i) EXPECT_EQ(prompt.positions[i], static_cast<int32_t>(i));
  EXPECT_EQ(prompt.next_position, 14);
}

TEST(DeepseekVl2Prompt, PicturesAndLineBreaks) {
  const auto user = [](std::vector<ContentPart> parts, const std::vector<int64_t>& tokens) {
    const std::string all = prompt_text({{"user", std::move(parts)}}, tokens);
    const std::string before = "[bos][user]: ", after = "\n\n[asst]:";
    EXPECT_THAT(all, testing::AllOf(testing::StartsWith(before), testing::EndsWith(after)));
    return all.substr(before.size(), all.size() - before.size() - after.size());
  };
  EXPECT_EQ(user({picture(), text("a")}, {2}), "[2 images]\na");
  EXPECT_EQ(user({picture(), text("\na")}, {2}), "[2 images]\na");
  EXPECT_EQ(user({picture(), text("\n\na")}, {2}), "[2 images]\n\na");
  EXPECT_EQ(user({picture(), text(" a")}, {2}), "[2 images]\n a");
  EXPECT_EQ(user({text("see "), picture(), text("and "), picture(), text("?")}, {2, 3}),
            "see [2 images]\nand [3 images]\n?");
  EXPECT_EQ(user({picture(), picture(), text("?")}, {2, 3}), "[2 images]\n[3 images]\n?");
  // At the end of the message the break is stripped away with the white space.
  EXPECT_EQ(user({text("a "), picture()}, {2}), "a [2 images]");
  EXPECT_EQ(user({text("a"), picture(), text(" \n")}, {2}), "a[2 images]");
  EXPECT_EQ(user({text(" "), picture()}, {1}), "[1 images]");
  EXPECT_EQ(user({text("a"), text("b")}, {}), "ab");
}

TEST(DeepseekVl2Prompt, MediaStandWhereTheirTokensBegin) {
  const Prompt prompt =
      prompt_of({{"user", {text("a"), picture(), picture()}}, says("assistant", "b"), {"user", {picture(), text("c")}}},
                {421, 1, 5});
  ASSERT_EQ(prompt.media_at.size(), 3u);
  const int64_t counts[] = {421, 1, 5};
  for (size_t i = 0; i < 3; ++i) {
    const auto at = static_cast<size_t>(prompt.media_at[i]), n = static_cast<size_t>(counts[i]);
    for (size_t j = at; j < at + n; ++j) EXPECT_EQ(prompt.ids[j], kImage);
    EXPECT_NE(prompt.ids[at - 1], kImage);
    EXPECT_NE(prompt.ids[at + n], kImage);
  }
}

TEST(DeepseekVl2Prompt, ContentIsStrippedAsPythonDoes) {
  EXPECT_EQ(prompt_text({says("user", " \t\n a b \r\n")}), "[bos][user]: a b\n\n[asst]:");
  // U+0085, U+00A0, U+1680, U+2003, U+2028, U+3000 and U+001C are white space to str.strip(), U+200B and U+FEFF are
  // not.
  EXPECT_EQ(prompt_text({says("user", "\u0085\u00A0\u1680a\u2003\u2028\u3000\x1C")}), "[bos][user]: a\n\n[asst]:");
  EXPECT_EQ(prompt_text({says("user", "\u200Ba\uFEFF")}), "[bos][user]: \u200Ba\uFEFF\n\n[asst]:");
}

TEST(DeepseekVl2Prompt, AnEmptyMessageHasNoSpaceAndNoBreaks) {
  EXPECT_EQ(prompt_text({says("user", "")}), "[bos][user]:[asst]:");
  EXPECT_EQ(prompt_text({says("user", " \n")}), "[bos][user]:[asst]:");
  EXPECT_EQ(prompt_text({{"user", {}}}), "[bos][user]:[asst]:");
}

TEST(DeepseekVl2Prompt, SeveralTurnsAndSystem) {
  EXPECT_EQ(prompt_text({says("user", "a"), says("assistant", " b\n"), says("user", "c")}),
            "[bos][user]: a\n\n[asst]:b[eos][user]: c\n\n[asst]:");
  EXPECT_EQ(prompt_text({says("system", " Be brief. "), says("user", "a")}), "[bos]Be brief.[user]: a\n\n[asst]:");
  EXPECT_EQ(prompt_text({says("user", "a"), says("assistant", ""), says("user", "c")}),
            "[bos][user]: a\n\n[asst]:[eos][user]: c\n\n[asst]:");
  EXPECT_EQ(prompt_text({says("user", "a"), says("user", "b")}), "[bos][user]: a\n\n[asst]:[user]: b\n\n[asst]:");
}

TEST(DeepseekVl2Prompt, OfTypedTokensOnlyGroundingCounts) {
  EXPECT_EQ(prompt_text({says("user", "<image><|User|>: <eos><|ref|>x<|/ref|>")}),
            "[bos][user]: <image><|User|>: <eos>[ref]x[/ref]\n\n[asst]:");
  EXPECT_EQ(prompt_text({says("user", "<|grounding|> <|<|det|><|/det|<|/det|>\n")}),
            "[bos][user]: [ground] <|[det]<|/det|[/det]\n\n[asst]:");
  // In the history of the assistant as well: its text shows them, and they came as tokens.
  EXPECT_EQ(prompt_text({says("user", "a"), says("assistant", "<|ref|>x<|/ref|><|det|>[[1, 2, 3, 4]]<|/det|>"),
                         says("user", "b")}),
            "[bos][user]: a\n\n[asst]:[ref]x[/ref][det][[1, 2, 3, 4]][/det][eos][user]: b\n\n[asst]:");
  // White space inside, beside a token, stays.
  EXPECT_EQ(prompt_text({says("user", " <|ref|> x <|/ref|> ")}), "[bos][user]: [ref] x [/ref]\n\n[asst]:");
  // A token may not straddle two parts.
  EXPECT_EQ(prompt_text({{"user", {text("<|re"), text("f|>")}}}), "[bos][user]: <|ref|>\n\n[asst]:");
}

TEST(DeepseekVl2Prompt, LongTextOfTokensTakesNoTime) {
  std::string text;
  constexpr size_t kCount = 50000;
  for (size_t i = 0; i < kCount; ++i) text += "<|ref|>";
  EXPECT_EQ(prompt_of({says("user", text)}).ids.size(), kCount + 8);
}

TEST(DeepseekVl2Prompt, RefusesOtherRolesByNumber) {
  EXPECT_THAT(error_of({}), HasSubstr("messages: "));
  EXPECT_THAT(error_of({says("tool", "a"), says("user", "b")}),
              HasSubstr("messages[0].role: expected user or assistant"));
  EXPECT_THAT(error_of({says("user", "a"), says("system", "b"), says("user", "c")}),
              HasSubstr("messages[1].role: expected user or assistant, or system in the first, found \"system\""));
  EXPECT_THAT(error_of({says("system", "a")}), HasSubstr("messages: the last one must be the user's"));
  EXPECT_THAT(error_of({says("user", "a"), says("assistant", "b")}), HasSubstr("the last one must be the user's"));
  EXPECT_THAT(error_of({says("user", "a"), {"assistant", {picture()}}, says("user", "c")}, {1}),
              HasSubstr("messages[1].content: pictures belong to the user's messages"));
  EXPECT_THAT(error_of({{"system", {picture()}}, says("user", "c")}, {1}), HasSubstr("messages[0].content: "));
}

// tools/reference/goldens_deepseek_vl2.py: text is cut into words by DeepSeek's rules, at each token anew.
TEST(DeepseekVl2Prompt, EqualsTheReference) {
  const std::string root = std::string(SACCADE_SOURCE_DIR) + "/tests/data/";
  size_t pictures = 0, cases = 0;
  for (const char* name : {"deepseek-vl2-mha", "deepseek-vl2-noaux"}) {
    const Config config = Config::parse(read_json_file(root + "models/" + name + "/config.json"), name);
    const Tokenizer tokenizer = with_processor_tokens(Tokenizer::load(root + "models/" + name + "/tokenizer.json"));
    const Json goldens = read_json_file(root + "golden/" + name + ".json");
    for (const Json& golden : goldens.at("cases")) {
      std::vector<Message> messages;
      for (const Json& m : golden.at("messages")) {
        Message& message = messages.emplace_back(Message{m.at("role"), {}});
        for (const Json& part : m.at("content"))
          message.content.push_back(part.at("type") == "text" ? text(part.at("text")) : picture());
      }
      std::vector<int64_t> tokens;
      for (const Json& tiles : golden.at("tiles")) tokens.push_back(picture_tokens({tiles[0], tiles[1]}, config));
      Prompt prompt;
      build_prompt(messages, tokens, config, tokenizer, prompt);
      EXPECT_EQ(prompt.ids, golden.at("prompt_ids").get<Ids>()) << name << " " << golden.at("name");
      EXPECT_EQ(prompt.next_position, golden.at("next_position").get<int32_t>());
      pictures += tokens.size();
      ++cases;
    }
  }
  EXPECT_GE(cases, 10u);
  EXPECT_GE(pictures, 5u);
}

}  // namespace
}  // namespace saccade::deepseek_vl2
