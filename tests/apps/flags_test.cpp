#include "flags.h"

#include <gmock/gmock.h>

#include "apps/process.h"
#include "base/error.h"
#include "console.h"
#include "npy.h"

namespace saccade::apps {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST(Nearest, FindsTypos) {
  const std::vector<std::string> flags = {"--image", "--prompt", "--max-tokens", "--min-pixels", "--max-pixels", "-p"};
  EXPECT_EQ(nearest("--imgae", flags), "--image");
  EXPECT_EQ(nearest("--promt", flags), "--prompt");
  EXPECT_EQ(nearest("--maxtokens", flags), "--max-tokens");
  EXPECT_EQ(nearest("--max-pixel", flags), "--max-pixels");
}

TEST(Nearest, LeavesStrangersAlone) {
  const std::vector<std::string> flags = {"--image", "--prompt", "-p"};
  EXPECT_EQ(nearest("--zzzzzzzz", flags), std::nullopt);
  EXPECT_EQ(nearest("-z", flags), std::nullopt);
  EXPECT_EQ(nearest("--image", {}), std::nullopt);
}

struct Flags {
  CLI::App app{"", "saccade run"};
  EngineFlags engine;
  SamplingFlags sampling;
  MediaFlags media;

  Flags() {
    engine.add_to(app);
    media.add_to(app);
    sampling.add_to(app);
  }
  std::string error(const Args& args) {
    try {
      parse(app, args);
      engine.check();
      media.parts(app);
    } catch (const UsageError& e) {
      return e.what();
    }
    return "";
  }
};

TEST(MediaFlags, KeepTheOrderOfTheCommandLine) {
  Flags flags;
  ASSERT_TRUE(parse(flags.app, {"--video", "a.mp4", "-i", "b.png", "--frames", "c.png,d.png", "--image=e.jpg", "folder",
                                "--fps", "1.5", "--max-pixels", "9000"}));
  const auto parts = flags.media.parts(flags.app);
  ASSERT_EQ(parts.size(), 4u);
  EXPECT_EQ(parts[0].type, ContentPart::Type::kVideo);
  EXPECT_EQ(parts[0].path, "a.mp4");
  EXPECT_EQ(parts[1].path, "b.png");
  EXPECT_THAT(parts[2].frames, ElementsAre("c.png", "d.png"));
  EXPECT_EQ(parts[3].type, ContentPart::Type::kImage);
  EXPECT_EQ(parts[3].path, "e.jpg");
  for (const auto& part : parts) {
    EXPECT_EQ(part.media.fps, 1.5);
    EXPECT_EQ(part.media.max_pixels, 9000);
    EXPECT_EQ(part.media.min_pixels, std::nullopt);
  }
  EXPECT_EQ(flags.engine.model, "folder");
}

TEST(SamplingFlags, UnsetStaysUnset) {
  Flags flags;
  ASSERT_TRUE(parse(flags.app, {"m", "--top-k", "5", "--stop", "a", "--stop", "b", "--temp", "0.5", "-n", "7"}));
  const SamplingParams& p = flags.sampling.params;
  EXPECT_EQ(p.top_k, 5);
  EXPECT_EQ(p.temperature, 0.5f);
  EXPECT_EQ(p.max_tokens, 7);
  EXPECT_EQ(p.top_p, std::nullopt);
  EXPECT_EQ(p.repetition_penalty, std::nullopt);
  EXPECT_THAT(p.stop, ElementsAre("a", "b"));
}

TEST(EngineFlags, AliasesAndUnits) {
  Flags flags;
  ASSERT_TRUE(parse(flags.app, {"-m", "x", "--max-model-len", "1000", "--kv-mib", "3", "--dtype", "float32"}));
  const EngineOptions options = flags.engine.options();
  EXPECT_EQ(options.model, "x");
  EXPECT_EQ(options.max_context, 1000);
  EXPECT_EQ(options.kv_bytes, size_t{3} << 20);
  EXPECT_EQ(options.dtype, "f32");
}

TEST(Parse, ErrorsAreOneClearLine) {
  const std::vector<std::pair<Args, std::string>> cases = {
      {{"m", "--imgae", "x"}, "unknown flag --imgae, did you mean --image?"},
      {{"m", "--imgae=x"}, "unknown flag --imgae, did you mean --image?"},
      {{"m", "--zzzzzzzz"}, "unknown flag --zzzzzzzz (see saccade run --help)"},
      {{"m", "extra"}, "unexpected argument 'extra'"},
      {{"m", "--temperature", "hot"}, "--temperature: expected a number from 0 to 1000, found 'hot'"},
      {{"m", "--top-p", "nan"}, "--top-p: expected a number from 0 to 1, found 'nan'"},
      {{"m", "--max-tokens", "0"}, "expected a whole number from 1 to 2147483647, found '0'"},
      {{"m", "--max-tokens", "12x"}, "found '12x'"},
      {{"m", "--seed", "-1"}, "expected a whole number of at least 0, found '-1'"},
      {{"m", "--dtype", "int3"}, "expected bf16 or f32, found 'int3'"},
      {{"m", "--image"}, "--image: needs a value"},
      {{"m", "--top-k", "1", "--top-k", "2"}, "--top-k: may be given once only"},
      {{"m", "-image", "x"}, "unknown flag -image, did you mean --image?"},
      {{"m", "--max-tokens="}, "found ''"},
      {{"m", "--fps", "1", "--num-frames", "4"}, "--fps excludes --num-frames"},
      {{"m", "--frames", ","}, "--frames names no picture"},
      {{}, "no model: give its folder, or --synthetic NAME"},
      {{"m", "--synthetic", "n"}, "two models"},
      {{"m", "--image", "-", "--image", "-"}, "--image - can be given once"},
  };
  for (const auto& [args, expected] : cases) {
    Flags flags;
    const std::string error = flags.error(args);
    EXPECT_THAT(error, HasSubstr(expected));
    EXPECT_EQ(error, one_line(error));
  }
}

TEST(Console, OneLine) { EXPECT_EQ(one_line("a\nb\t\tc\x1b[0m"), "a b c [0m"); }

TEST(Npy, IsWhatNumPyWrites) {
  const std::string path = apps_test::temporary_folder() + "/x.npy";
  const float data[6] = {1, 2, 3, 4, 5, 6};
  const int64_t shape[2] = {2, 3};
  write_npy(path, data, shape, 2);
  const std::string bytes = apps_test::read_all(path);
  ASSERT_GT(bytes.size(), 10u);
  const size_t header = static_cast<unsigned char>(bytes[8]) + 256u * static_cast<unsigned char>(bytes[9]);
  EXPECT_EQ(bytes.substr(0, 8), std::string("\x93NUMPY\x01\x00", 8));
  EXPECT_EQ((10 + header) % 64, 0u);
  EXPECT_THAT(bytes.substr(10, header), HasSubstr("{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }"));
  EXPECT_EQ(bytes[9 + header], '\n');
  EXPECT_EQ(bytes.substr(10 + header), std::string(reinterpret_cast<const char*>(data), sizeof data));
  write_npy(path, data, shape, 1);
  EXPECT_THAT(apps_test::read_all(path), HasSubstr("'shape': (2,), }"));
}

TEST(Dump, CountsStepsAndRefusesFullFolders) {
  const std::string folder = apps_test::temporary_folder() + "/new/deep";
  const float value = 1;
  const int64_t one = 1;
  Dump dump(folder);
  dump.write("text.layer.0", &value, &one, 1);
  dump.write("text.layer.0", &value, &one, 1);
  dump.write("positions", &value, &one, 1);
  EXPECT_NO_THROW(dump.check());
  EXPECT_EQ(dump.files(), 3);
  for (const char* name : {"text.layer.0.step0.npy", "text.layer.0.step1.npy", "positions.step0.npy"})
    EXPECT_TRUE(std::filesystem::exists(std::filesystem::path(folder) / name)) << name;
  EXPECT_THROW(Dump{folder}, Error);

  dump.write("no/such/folder", &value, &one, 1);  // cannot be written
  EXPECT_THROW(dump.check(), Error);
}

}  // namespace
}  // namespace saccade::apps
