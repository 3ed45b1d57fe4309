// Times what happens to one picture before the vision tower: decode, resize, patches, on one core.
//
//   preprocess_bench FILE [ROUNDS]
//
// Prints one JSON object: milliseconds over ROUNDS (default 50) with the checkpoints' published limits.
// tools/reference/preprocess_bench.py times Pillow and transformers beside it.
#include <algorithm>
#include <cstdlib>
#include <ctime>
#include <vector>

#include "base/error.h"
#include "base/json.h"
#include "base/mapped_file.h"
#include "base/memory.h"
#include "models/qwen2_5_vl/preprocess.h"

namespace {

using namespace saccade;

double thread_ms() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) * 1e3 + static_cast<double>(now.tv_nsec) * 1e-6;
}

// Processor time of the calling thread, which does all the work: other processes of the machine do not count.
template <class Fn>
Json time_ms(int rounds, Fn fn) {
  std::vector<double> times;
  for (int i = 0; i < rounds; ++i) {
    const double begin = thread_ms();
    fn();
    times.push_back(thread_ms() - begin);
  }
  std::sort(times.begin(), times.end());
  return {{"median", times[times.size() / 2]}, {"best", times.front()}};
}

int run(const std::string& path, int rounds) {
  const std::string file = read_file(path, size_t{64} << 20);
  const auto bytes = std::as_bytes(std::span(file));
  const qwen2_5_vl::PreprocessConfig config;
  const media::Image image = media::decode_image(bytes, path);
  const qwen2_5_vl::Size size = qwen2_5_vl::smart_resize(image.height, image.width, config.patch * config.merge,
                                                         config.min_pixels, config.max_pixels, path);
  const media::Image resized = media::resize_bicubic(image, size.width, size.height);
  Json out;
  out["picture"] = {image.width, image.height};
  out["grid"] = {1, size.height / config.patch, size.width / config.patch};
  out["decode_ms"] = time_ms(rounds, [&] { media::decode_image(bytes, path); });
  out["resize_ms"] = time_ms(rounds, [&] { media::resize_bicubic(image, size.width, size.height); });
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    const std::string name = dtype == DType::kF32 ? "f32" : "bf16";
    out["patches_" + name + "_ms"] = time_ms(rounds, [&] { qwen2_5_vl::patchify({&resized, 1}, config, dtype); });
    out["total_" + name + "_ms"] =
        time_ms(rounds, [&] { qwen2_5_vl::preprocess_image(media::decode_image(bytes, path), config, dtype, path); });
  }
  fmt::print("{}\n", out.dump(2));
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) {
    fmt::print(stderr, "usage: preprocess_bench FILE [ROUNDS]\n");
    return 2;
  }
  saccade::keep_freed_memory();  // as the programs do
  try {
    return run(argv[1], argc > 2 ? std::max(1, std::atoi(argv[2])) : 50);
  } catch (const saccade::Error& error) {
    fmt::print(stderr, "preprocess_bench: {}\n", error.what());
    return 1;
  }
}
