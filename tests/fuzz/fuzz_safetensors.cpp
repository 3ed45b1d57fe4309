// Headers of safetensors files and their index: any bytes are refused with Error or yield tensors within the file.
#include <cstdlib>

#include "base/error.h"
#include "weights/safetensors.h"

namespace {

void require(bool condition) {
  if (!condition) std::abort();
}

void parse_file(std::span<const std::byte> bytes) {
  const std::byte* at = nullptr;
  size_t total = 0;
  for (const auto& tensor : saccade::parse_safetensors(bytes, "fuzz")) {
    require(tensor.data >= bytes.data() && tensor.data + tensor.bytes <= bytes.data() + bytes.size());
    require(at == nullptr || tensor.data == at);  // they tile the data
    at = tensor.data + tensor.bytes;
    total += tensor.bytes;
    for (const int64_t size : tensor.shape) require(size >= 0);
  }
  require(total + 8 <= bytes.size());
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  try {
    parse_file(std::as_bytes(std::span(data, size)));
  } catch (const saccade::Error&) {
  }
  try {
    for (const auto& [tensor, file] :
         saccade::parse_safetensors_index({reinterpret_cast<const char*>(data), size}, "fuzz"))
      require(file.find('/') == file.npos && file != "..");
  } catch (const saccade::Error&) {
  }
  return 0;
}
