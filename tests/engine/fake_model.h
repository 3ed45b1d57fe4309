// A model whose logits are a hash of everything before them, read back through the paged cache: a wrong page, slot,
// position, length or embedding changes the tokens. Its arithmetic is exact, so results must not depend on batching.
//
// Ids are bytes, then kEnd, kEos, kEos2, kImage. A prompt is the text of all messages and kEnd. When the text has a
// '|', the model answers with what follows it ('~' stands for kEos2, '^' for '!') and kEos; otherwise it talks
// hash, never a special id.
// Images are bytes "img:<tokens>:<seed>"; "img:<tokens>:oom" throws std::bad_alloc in encode().
// boxes() finds one for each '@' of an answer, labelled with the letter after it; "@?" makes it throw.
// Text with '!' makes forward() throw for the step that it is in; '#' makes a NaN of a logit that follows it; text
// "unreadable" makes prepare() throw.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <string>

#include "models/model.h"

namespace saccade::testing {

inline constexpr int32_t kEnd = 256, kEos = 257, kEos2 = 258, kImage = 259, kVocab = 260;
inline constexpr int kAxes = 2;

struct FakeHooks {
  std::function<void(const Batch&)> on_forward;  // on the engine's thread, before the step
  std::function<void()> on_prepare;              // on a preparing thread
  std::atomic<int> encodes{0};                   // pictures
  std::atomic<int> encode_calls{0};              // batches of them
  std::atomic<int> media_alive{0};
};

std::unique_ptr<Model> fake_model(std::shared_ptr<FakeHooks> hooks = std::make_shared<FakeHooks>(),
                                  int64_t max_context = 1024);

inline ContentPart image(int tokens, const std::string& seed) {
  return ContentPart::of_image_bytes("img:" + std::to_string(tokens) + ":" + seed);
}

inline Request ask(std::vector<ContentPart> content, int max_tokens = 32) {
  Request r;
  r.messages.push_back({"user", std::move(content)});
  r.sampling.max_tokens = max_tokens;
  return r;
}
inline Request ask(const std::string& text, int max_tokens = 32) {
  return ask(std::vector{ContentPart::of_text(text)}, max_tokens);
}

}  // namespace saccade::testing
