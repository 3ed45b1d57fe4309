#include "models/qwen2_5_vl/boxes.h"

#include <algorithm>

#include "models/boxes.h"

namespace saccade::qwen2_5_vl {
namespace {

// Follows the events of a JSON parser, which come before it knows whether the text is whole.
class Reader : public nlohmann::json_sax<Json> {
 public:
  Reader(std::span<const Picture> pictures, std::vector<Box>& boxes) : pictures_(pictures), boxes_(boxes) {}

  size_t error_at() const { return error_at_; }  // bytes read up to an error, 0: none

  bool null() override { return other(); }
  bool boolean(bool) override { return other(); }
  bool number_integer(number_integer_t value) override { return number(static_cast<double>(value)); }
  bool number_unsigned(number_unsigned_t value) override { return number(static_cast<double>(value)); }
  bool number_float(number_float_t value, const string_t&) override { return number(value); }
  bool binary(binary_t&) override { return other(); }
  bool string(string_t& value) override {
    if (known() && frames_.back().arrays == 0) {
      Object& object = frames_.back();
      if (object.key == "label" || (object.key == "text_content" && object.label.empty())) object.label = value;
    }
    return other();
  }
  bool start_object(size_t) override {
    other();
    ++depth_;
    if (depth_ <= size_t{kMaxJsonDepth}) frames_.emplace_back();
    return true;
  }
  bool key(string_t& value) override {
    if (known()) frames_.back().key = value;
    return true;
  }
  bool end_object() override {
    const bool last = known();
    --depth_;
    if (!last) return true;
    const Object& o = frames_.back();
    if (o.box.size() == 4) {
      const auto w = static_cast<double>(pictures_.back().input_width);
      const auto h = static_cast<double>(pictures_.back().input_height);
      boxes_.push_back(box_of_shares(o.label, pictures_, o.box[0] / w, o.box[1] / h, o.box[2] / w, o.box[3] / h));
    }
    frames_.pop_back();
    return true;
  }
  bool start_array(size_t) override {
    other();
    if (!known() || frames_.back().arrays++ > 0 || frames_.back().key != "bbox_2d") return true;
    frames_.back().box.clear();
    in_box_ = true;
    return true;
  }
  bool end_array() override {
    in_box_ = false;
    if (known()) --frames_.back().arrays;
    return true;
  }
  bool parse_error(size_t position, const std::string&, const nlohmann::detail::exception&) override {
    error_at_ = position;
    return false;
  }

 private:
  struct Object {
    std::string key, label;
    std::vector<double> box;
    int arrays = 0;  // open inside this object
  };

  bool known() const { return depth_ > 0 && depth_ == frames_.size(); }  // the innermost object is kept

  bool number(double value) {
    if (!in_box_) return true;
    auto& box = frames_.back().box;
    if (box.size() <= 4) box.push_back(value);  // a fifth spoils it
    return true;
  }
  // Anything but a number spoils a box.
  bool other() {
    if (in_box_) frames_.back().box.assign(5, 0);
    in_box_ = false;
    return true;
  }

  std::span<const Picture> pictures_;
  std::vector<Box>& boxes_;
  std::vector<Object> frames_;  // open objects, the outer kMaxJsonDepth of them
  size_t depth_ = 0;            // open objects
  bool in_box_ = false;         // inside the array of a bbox_2d
  size_t error_at_ = 0;
};

}  // namespace

std::vector<Box> parse_boxes(std::string_view text, std::span<const Picture> pictures) {
  std::vector<Box> boxes;
  if (pictures.empty()) return boxes;
  for (size_t at = text.find('{'); at < text.size();) {
    Reader reader(pictures, boxes);
    const std::string_view rest = text.substr(at);
    if (Json::sax_parse(rest.begin(), rest.end(), &reader)) break;
    // The byte that was wrong may begin the next object.
    at = text.find('{', at + std::max<size_t>(reader.error_at(), 2) - 1);
  }
  return boxes;
}

}  // namespace saccade::qwen2_5_vl
