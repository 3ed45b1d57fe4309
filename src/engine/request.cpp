#include "saccade/request.h"

namespace saccade {

ContentPart ContentPart::of_text(std::string text) {
  ContentPart part;
  part.text = std::move(text);
  return part;
}

ContentPart ContentPart::of_image_file(std::string path, MediaOptions media) {
  ContentPart part;
  part.type = Type::kImage;
  part.path = std::move(path);
  part.media = media;
  return part;
}

ContentPart ContentPart::of_image_bytes(std::string bytes, MediaOptions media) {
  ContentPart part;
  part.type = Type::kImage;
  part.bytes = std::move(bytes);
  part.media = media;
  return part;
}

ContentPart ContentPart::of_video_file(std::string path, MediaOptions media) {
  ContentPart part;
  part.type = Type::kVideo;
  part.path = std::move(path);
  part.media = media;
  return part;
}

ContentPart ContentPart::of_video_frames(std::vector<std::string> paths, MediaOptions media) {
  ContentPart part;
  part.type = Type::kVideo;
  part.frames = std::move(paths);
  part.media = media;
  return part;
}

const char* finish_reason_name(FinishReason reason) {
  switch (reason) {
    case FinishReason::kNone:
      return "none";
    case FinishReason::kEos:
      return "eos";
    case FinishReason::kStop:
      return "stop";
    case FinishReason::kLength:
      return "length";
    case FinishReason::kCancelled:
      return "cancelled";
    case FinishReason::kError:
      return "error";
  }
  return "?";
}

}  // namespace saccade
