// What a caller asks for and what comes back.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace saccade {

// Limits and sampling of pictures and clips; unset fields take the checkpoint's values, then the reference's.
struct MediaOptions {
  std::optional<int64_t> min_pixels;  // area in pixels of one resized image or frame
  std::optional<int64_t> max_pixels;
  std::optional<double> fps;      // frames sampled per second of a clip
  std::optional<int> num_frames;  // fixed number of frames instead of fps
};

// One piece of a message, in the order in which it stands.
struct ContentPart {
  enum class Type : uint8_t { kText, kImage, kVideo };

  Type type = Type::kText;
  std::string text;   // kText
  std::string bytes;  // kImage: an encoded file in memory (JPEG, PNG, WebP, GIF, BMP); used when path is empty
  std::string path;   // kImage, kVideo: a file
  std::vector<std::string> frames;  // kVideo: picture files instead of a clip; their rate is `media.fps` (default 2)
  MediaOptions media;

  static ContentPart of_text(std::string text);
  static ContentPart of_image_file(std::string path, MediaOptions media = {});
  static ContentPart of_image_bytes(std::string bytes, MediaOptions media = {});
  static ContentPart of_video_file(std::string path, MediaOptions media = {});
  static ContentPart of_video_frames(std::vector<std::string> paths, MediaOptions media = {});
};

struct Message {
  std::string role;  // "system", "user" or "assistant"
  std::vector<ContentPart> content;
};

// Unset fields take the checkpoint's generation_config.json, then the value in the comment.
struct SamplingParams {
  int max_tokens = 512;
  std::optional<float> temperature;         // 0 = greedy (default 0)
  std::optional<int> top_k;                 // 0 = off (default)
  std::optional<float> top_p;               // 1 = off (default)
  std::optional<float> min_p;               // 0 = off (default)
  std::optional<float> repetition_penalty;  // 1 = off (default); counts prompt ids too, as the reference does
  uint64_t seed = 0;
  std::vector<std::string> stop;  // the text ends before the first of these
  bool ignore_eos = false;
  int logprobs = -1;  // >= 0: log-probability of each token and of that many alternatives
};

struct Request {
  std::vector<Message> messages;
  SamplingParams sampling;
};

enum class FinishReason : uint8_t { kNone, kEos, kStop, kLength, kCancelled, kError };
const char* finish_reason_name(FinishReason reason);  // "eos", "stop", "length", "cancelled", "error"

struct TokenLogprob {
  int32_t id = 0;
  float logprob = 0;
  std::vector<std::pair<int32_t, float>> top;  // most likely first
};

// Seconds. decode_media..encode are zero for text-only requests.
struct Timings {
  double queue = 0;         // waiting for a place in the batch
  double decode_media = 0;  // files to pixels
  double preprocess = 0;    // pixels to patches, and tokenising
  double encode = 0;        // vision tower
  double prefill = 0;
  double first_token = 0;  // from submit to the first token
  double decode = 0;       // from the first token to the last
  double total = 0;
};

// A place that the answer names: pixels of the original picture, corners with x1 <= x2 and y1 <= y2 inside it.
struct Box {
  std::string label;
  int image = 0;  // number of the picture in the conversation, counted from 0
  float x1 = 0, y1 = 0, x2 = 0, y2 = 0;
};

struct Result {
  std::vector<int32_t> prompt_ids;
  std::vector<int32_t> token_ids;  // the eos id is included when it ended the answer
  std::string text;                // special tokens left out, but for those that mark boxes
  std::vector<Box> boxes;          // in the order of the text; of an answer that ended by eos, stop or length
  FinishReason finish = FinishReason::kNone;
  std::string error;  // one line when finish is kError
  std::vector<TokenLogprob> logprobs;
  Timings timings;
};

}  // namespace saccade
