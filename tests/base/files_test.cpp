#include <gmock/gmock.h>
#include <sys/stat.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <utility>

#include "base/error.h"
#include "base/mapped_file.h"

namespace saccade {
namespace {

namespace fs = std::filesystem;
using testing::AllOf;
using testing::HasSubstr;
using testing::ThrowsMessage;

class Files : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::path(testing::TempDir()) /
              (std::string("files_") + testing::UnitTest::GetInstance()->current_test_info()->name());
    fs::remove_all(folder_);
    fs::create_directories(folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }

  std::string write(const std::string& name, const std::string& content) {
    const fs::path path = folder_ / name;
    std::ofstream(path, std::ios::binary) << content;
    return path.string();
  }

  fs::path folder_;
};

std::string text_of(const MappedFile& file) {
  return {reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()};
}

TEST_F(Files, MapsTheWholeFile) {
  std::string content(10000, 'x');
  content[9999] = '\0';
  const MappedFile file(write("data.bin", content));
  EXPECT_EQ(text_of(file), content);
  EXPECT_EQ(file.path(), (folder_ / "data.bin").string());
}

TEST_F(Files, MapsAnEmptyFileAsNoBytes) {
  const MappedFile file(write("empty", ""));
  EXPECT_TRUE(file.bytes().empty());
}

TEST_F(Files, MovedMapStaysValidAndTheSourceIsEmpty) {
  MappedFile first(write("data", "abc"));
  const MappedFile second(std::move(first));
  EXPECT_EQ(text_of(second), "abc");
  EXPECT_TRUE(first.bytes().empty());  // NOLINT(bugprone-use-after-move): that is the claim
}

TEST_F(Files, MapErrorsNameThePath) {
  const std::string missing = (folder_ / "missing").string();
  EXPECT_THAT([&] { MappedFile{missing}; }, ThrowsMessage<Error>(AllOf(HasSubstr(missing), HasSubstr("No such file"))));
  EXPECT_THAT([&] { MappedFile{folder_.string()}; },
              ThrowsMessage<Error>(AllOf(HasSubstr(folder_.string()), HasSubstr("not a regular file"))));
}

TEST_F(Files, ReadsUpToTheLimitAndNotOneByteMore) {
  const std::string path = write("text", "12345678");
  EXPECT_EQ(read_file(path, 8), "12345678");
  EXPECT_THAT([&] { read_file(path, 7); },
              ThrowsMessage<Error>(AllOf(HasSubstr(path), HasSubstr("8 bytes"), HasSubstr("limit of 7"))));
  EXPECT_EQ(read_file(write("empty", ""), 0), "");
}

TEST_F(Files, ReadErrorsNameThePath) {
  const std::string missing = (folder_ / "missing").string();
  EXPECT_THAT([&] { read_file(missing, 1); }, ThrowsMessage<Error>(HasSubstr(missing)));
  EXPECT_THAT([&] { read_file(folder_.string(), 1); }, ThrowsMessage<Error>(HasSubstr("not a regular file")));
  EXPECT_THAT([] { read_file("/dev/zero", 1); }, ThrowsMessage<Error>(HasSubstr("not a regular file")));
}

TEST_F(Files, APipeIsRefusedWithoutWaitingForAWriter) {
  const std::string path = (folder_ / "pipe").string();
  ASSERT_EQ(::mkfifo(path.c_str(), 0600), 0);
  EXPECT_THAT([&] { read_file(path, 1); }, ThrowsMessage<Error>(HasSubstr("not a regular file")));
  EXPECT_THAT([&] { MappedFile{path}; }, ThrowsMessage<Error>(HasSubstr("not a regular file")));
}

}  // namespace
}  // namespace saccade
