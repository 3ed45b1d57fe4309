#include "models/qwen2_5_vl/prompt.h"

#include <algorithm>
#include <array>
#include <filesystem>

#include "base/error.h"
#include "base/mapped_file.h"

namespace saccade::qwen2_5_vl {
namespace {

constexpr size_t kMaxTemplateBytes = size_t{1} << 20;

int32_t required_token(const Tokenizer& tokenizer, std::string_view token) {
  const auto id = tokenizer.token_id(token);
  if (!id) fail("tokenizer.json: token {} is missing", token);
  return *id;
}

// The checkpoint's Jinja text, or empty when it brings none. The first place that has one wins, as in the reference.
std::string template_text(const std::string& folder) {
  namespace fs = std::filesystem;
  const fs::path root(folder);
  if (const auto path = root / "chat_template.jinja"; fs::exists(path)) return read_file(path, kMaxTemplateBytes);
  for (const char* name : {"chat_template.json", "tokenizer_config.json"}) {
    const auto path = root / name;
    if (!fs::exists(path)) continue;
    const Json json = read_json_file(path);
    const auto it = json.find("chat_template");
    if (it == json.end()) continue;
    if (!it->is_string()) fail("{}: chat_template must be a string, found {}", path.string(), it->type_name());
    return it->get<std::string>();
  }
  return {};
}

// Collects ids and positions together; text runs are tokenised as one string between two special tokens.
class Builder {
 public:
  Builder(const Tokenizer& tokenizer, Prompt& prompt) : tokenizer_(tokenizer), prompt_(prompt) {}

  void text(std::string_view text) { pending_ += text; }

  void special(int32_t id) {
    flush();
    push(id, next_, next_, next_);
    ++next_;
  }

  void media(int32_t id, const MediaGrid& grid, double tokens_per_second) {
    flush();
    prompt_.media_at.push_back(static_cast<int64_t>(prompt_.ids.size()));
    // transformers 5.17 truncates the seconds before it multiplies.
    const auto interval =
        grid.video
            ? static_cast<int32_t>(tokens_per_second * static_cast<double>(static_cast<int64_t>(grid.second_per_grid)))
            : 1;
    for (int32_t t = 0; t < grid.t; ++t) {
      for (int32_t h = 0; h < grid.h; ++h) {
        for (int32_t w = 0; w < grid.w; ++w) push(id, next_ + t * interval, next_ + h, next_ + w);
      }
    }
    next_ += static_cast<int32_t>(std::max(grid.h, grid.w));  // the time axis does not advance what follows
  }

  void finish() {
    flush();
    const size_t n = prompt_.ids.size();
    prompt_.positions.resize(3 * n);
    int32_t last = -1;
    for (size_t axis = 0; axis < 3; ++axis) {
      std::copy(axes_[axis].begin(), axes_[axis].end(),
                prompt_.positions.begin() + static_cast<std::ptrdiff_t>(axis * n));
      last = std::max(last, *std::max_element(axes_[axis].begin(), axes_[axis].end()));
    }
    prompt_.next_position = last + 1;
  }

 private:
  void flush() {
    for (const int32_t id : tokenizer_.encode(pending_)) {
      push(id, next_, next_, next_);
      ++next_;
    }
    pending_.clear();
  }

  void push(int32_t id, int32_t t, int32_t h, int32_t w) {
    prompt_.ids.push_back(id);
    axes_[0].push_back(t);
    axes_[1].push_back(h);
    axes_[2].push_back(w);
  }

  const Tokenizer& tokenizer_;
  Prompt& prompt_;
  std::string pending_;
  std::array<std::vector<int32_t>, 3> axes_;
  int32_t next_ = 0;
};

}  // namespace

ChatFormat ChatFormat::published(const Tokenizer& tokenizer) {
  ChatFormat format;
  format.im_start = required_token(tokenizer, "<|im_start|>");
  format.im_end = required_token(tokenizer, "<|im_end|>");
  return format;
}

ChatFormat ChatFormat::read(const std::string& folder, const Tokenizer& tokenizer) {
  ChatFormat format = published(tokenizer);
  const std::string text = template_text(folder);
  if (text.empty()) return format;
  for (const char* part : {"<|im_start|>", "<|im_end|>", "<|vision_start|><|image_pad|><|vision_end|>"}) {
    if (text.find(part) == std::string::npos) {
      fail("{}: chat_template is not of the Qwen2.5-VL family: {} is missing", folder, part);
    }
  }
  if (text.find(format.default_system) == std::string::npos) format.default_system.clear();
  return format;
}

void build_prompt(const std::vector<Message>& messages, std::span<const MediaGrid> grids, const Config& config,
                  const ChatFormat& format, const Tokenizer& tokenizer, Prompt& prompt) {
  if (messages.empty()) fail("messages: at least one is needed");
  Builder out(tokenizer, prompt);
  size_t next_grid = 0;
  if (messages.front().role != "system" && !format.default_system.empty()) {
    out.special(format.im_start);
    out.text("system\n" + format.default_system);
    out.special(format.im_end);
    out.text("\n");
  }
  for (const Message& message : messages) {
    out.special(format.im_start);
    out.text(message.role + "\n");
    for (const ContentPart& part : message.content) {
      if (part.type == ContentPart::Type::kText) {
        out.text(part.text);
        continue;
      }
      const MediaGrid& grid = grids[next_grid++];
      out.special(config.vision_start);
      out.media(grid.video ? config.video_token : config.image_token, grid, config.vision.tokens_per_second);
      out.special(config.vision_end);
    }
    out.special(format.im_end);
    out.text("\n");
  }
  out.special(format.im_start);
  out.text("assistant\n");
  out.finish();
}

}  // namespace saccade::qwen2_5_vl
