#include "models/deepseek_vl2/prompt.h"

#include <algorithm>
#include <numeric>

#include "base/error.h"
#include "base/json_fields.h"
#include "text/unicode.h"

namespace saccade::deepseek_vl2 {
namespace {

constexpr std::string_view kImage = "<image>", kUser = "<|User|>", kAssistant = "<|Assistant|>";
constexpr std::string_view kGrounding[] = {"<|ref|>", "<|/ref|>", "<|det|>", "<|/det|>", "<|grounding|>"};

int32_t id_of(const Tokenizer& tokenizer, std::string_view token) {
  const auto id = tokenizer.token_id(token);
  CHECK(id, "token {} was added", token);
  return *id;
}

// What Python's str.strip() takes away.
bool is_space(uint32_t code) {
  static const text::CodeSet white = text::CodeSet::white_space();
  return white.contains(code) || (code >= 0x1c && code <= 0x1f);
}

size_t end_of_space(std::string_view text) {
  size_t end = 0;
  for (size_t at = 0; at < text.size();) {
    if (!is_space(text::next_code(text, at))) break;
    end = at;
  }
  return end;
}

size_t begin_of_last_space(std::string_view text) {
  size_t begin = 0;
  for (size_t at = 0; at < text.size();) {
    if (!is_space(text::next_code(text, at))) begin = at;
  }
  return begin;
}

// A stretch of text, or a token that stands `count` times.
struct Item {
  std::string text;
  int32_t id = -1;
  int64_t count = 1;
  bool picture = false;
};

// Cuts text at the grounding tokens that it spells.
void append_text(std::string_view text, const Tokenizer& tokenizer, std::vector<Item>& items) {
  size_t done = 0;
  for (size_t at = text.find("<|"); at != text.npos; at = text.find("<|", at)) {
    const auto* token = std::ranges::find_if(
        kGrounding, [&](std::string_view candidate) { return text.substr(at).starts_with(candidate); });
    if (token == std::end(kGrounding)) {
      ++at;
      continue;
    }
    if (done < at) items.push_back({std::string(text.substr(done, at - done))});
    items.push_back({{}, id_of(tokenizer, *token)});
    done = at += token->size();
  }
  if (done < text.size()) items.push_back({std::string(text.substr(done))});
}

void strip(std::vector<Item>& items) {
  while (!items.empty() && items.front().id < 0) {
    items.front().text.erase(0, end_of_space(items.front().text));
    if (!items.front().text.empty()) break;
    items.erase(items.begin());
  }
  while (!items.empty() && items.back().id < 0) {
    items.back().text.resize(begin_of_last_space(items.back().text));
    if (!items.back().text.empty()) break;
    items.pop_back();
  }
}

// The parts of a message; takes the tokens of its pictures from the front of `pictures`.
std::vector<Item> items_of(const Message& message, const Tokenizer& tokenizer, std::span<const int64_t>& pictures) {
  std::vector<Item> items;
  for (size_t i = 0; i < message.content.size(); ++i) {
    const ContentPart& part = message.content[i];
    if (part.type == ContentPart::Type::kText) {
      append_text(text::to_valid_utf8(part.text), tokenizer, items);
      continue;
    }
    items.push_back({{}, image_token(tokenizer), pictures.front(), true});
    pictures = pictures.subspan(1);
    const ContentPart* next = i + 1 < message.content.size() ? &message.content[i + 1] : nullptr;
    const bool breaks = next && next->type == ContentPart::Type::kText && next->text.starts_with('\n');
    if (!breaks) items.push_back({"\n"});
  }
  strip(items);
  return items;
}

// Collects ids; text between two tokens is tokenised as one string.
class Builder {
 public:
  Builder(const Tokenizer& tokenizer, Prompt& prompt) : tokenizer_(tokenizer), prompt_(prompt) {}

  void text(std::string_view text) { pending_ += text; }
  void token(int32_t id, int64_t count = 1) {
    flush();
    prompt_.ids.insert(prompt_.ids.end(), static_cast<size_t>(count), id);
  }
  void items(const std::vector<Item>& items) {
    for (const Item& item : items) {
      if (item.id < 0) {
        text(item.text);
        continue;
      }
      flush();
      if (item.picture) prompt_.media_at.push_back(static_cast<int64_t>(prompt_.ids.size()));
      token(item.id, item.count);
    }
  }
  void flush() {
    const std::vector<int32_t> ids = tokenizer_.encode(pending_);
    prompt_.ids.insert(prompt_.ids.end(), ids.begin(), ids.end());
    pending_.clear();
  }

 private:
  const Tokenizer& tokenizer_;
  Prompt& prompt_;
  std::string pending_;
};

}  // namespace

Tokenizer with_processor_tokens(const Tokenizer& tokenizer) {
  std::vector<std::string_view> tokens = {"<｜▁pad▁｜>", kImage};
  tokens.insert(tokens.end(), std::begin(kGrounding), std::end(kGrounding));
  tokens.insert(tokens.end(), {kUser, kAssistant});
  const Tokenizer added = tokenizer.with_added(tokens);
  std::vector<int32_t> shown;
  for (const std::string_view token : kGrounding) shown.push_back(id_of(added, token));
  return added.showing(shown);
}

int32_t image_token(const Tokenizer& tokenizer) { return id_of(tokenizer, kImage); }

void build_prompt(const std::vector<Message>& messages, std::span<const int64_t> media_tokens, const Config& config,
                  const Tokenizer& tokenizer, Prompt& prompt) {
  if (messages.empty() || messages.back().role != "user") fail("messages: the last one must be the user's");
  Builder out(tokenizer, prompt);
  out.token(config.bos);
  for (size_t i = 0; i < messages.size(); ++i) {
    const Message& message = messages[i];
    const bool user = message.role == "user";
    if (!user && message.role != "assistant" && !(message.role == "system" && i == 0))
      fail("messages[{}].role: expected user or assistant, or system in the first, found {}", i,
           json_excerpt(Json(message.role)));
    const auto is_media = [](const ContentPart& part) { return part.type != ContentPart::Type::kText; };
    if (!user && std::ranges::any_of(message.content, is_media))
      fail("messages[{}].content: pictures belong to the user's messages", i);
    const std::vector<Item> items = items_of(message, tokenizer, media_tokens);
    if (user) {
      out.token(id_of(tokenizer, kUser));
      if (items.empty()) {  // as in the original
        out.text(":");
      } else {
        out.text(": ");
        out.items(items);
        out.text("\n\n");
      }
      out.token(id_of(tokenizer, kAssistant));
      out.text(":");
    } else {
      out.items(items);
      if (message.role == "assistant") out.token(config.eos);
    }
    out.flush();
  }
  prompt.positions.resize(prompt.ids.size());
  std::iota(prompt.positions.begin(), prompt.positions.end(), 0);
  prompt.next_position = static_cast<int32_t>(prompt.ids.size());
}

}  // namespace saccade::deepseek_vl2
