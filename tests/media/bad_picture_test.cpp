#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "base/error.h"
#include "base/mapped_file.h"
#include "media/goldens.h"
#include "media/image.h"

namespace saccade::media {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::Not;
using testing::StartsWith;

constexpr size_t kFileLimit = 1 << 20;

std::string file(const char* name) { return read_file(data_path(name), kFileLimit); }

// The message of the error, "decoded" when there is none.
std::string decode(const std::string& bytes, const ImageLimits& limits = {}) {
  try {
    decode_image(std::as_bytes(std::span(bytes)), "upload", limits);
  } catch (const Error& error) {
    return error.what();
  }
  return "decoded";
}

std::string big_endian(uint32_t value) {
  return {static_cast<char>(value >> 24), static_cast<char>(value >> 16), static_cast<char>(value >> 8),
          static_cast<char>(value)};
}

std::string little_endian(uint32_t value) {
  const std::string big = big_endian(value);
  return {big.rbegin(), big.rend()};
}

// A PNG that promises width x height pixels and holds ten bytes.
std::string png_bomb(uint32_t width, uint32_t height) {
  std::string header = "IHDR" + big_endian(width) + big_endian(height) + std::string("\x08\x02\0\0\0", 5);
  header = big_endian(13) + header + big_endian(crc(header.data(), header.size()));
  std::string data = "IDAT0123456789";
  data = big_endian(10) + data + big_endian(crc(data.data(), data.size()));
  return "\x89PNG\r\n\x1a\n" + header + data;
}

TEST(BadPicture, NotAPicture) {
  EXPECT_EQ(decode(""), "upload: picture is empty (0 bytes)");
  EXPECT_EQ(decode("hello, I am a text file"), "upload: not a picture (expected JPEG, PNG, WebP, GIF or BMP)");
  EXPECT_THAT(decode(std::string("RIFF\x10\0\0\0WAVEfmt ", 16)), HasSubstr("not a picture"));
  for (const char* head : {"\xff\xd8\xff", "\x89PNG\r\n\x1a\n", "GIF89a", "BM", "RIFF\x10\1\1\1WEBPVP8 "})
    EXPECT_THAT(decode(head), AllOf(StartsWith("upload: "), Not(HasSubstr("decoded")))) << head;
}

TEST(BadPicture, EveryPrefixOfEveryFormatIsRefusedInOneLine) {
  for (const char* name :
       {"jpeg-420.jpg", "jpeg-progressive.jpg", "jpeg-cmyk.jpg", "png-rgb.png", "png-1bit-interlaced.png",
        "webp-lossy.webp", "webp-alpha-lossless.webp", "gif-interlaced.gif", "bmp-24.bmp", "bmp-4.bmp"}) {
    const std::string whole = file(name);
    // The last bytes of PNG (checks and the end mark) and GIF (the end mark) hold no pixels.
    const size_t spare = name[0] == 'p' ? 24 : name[0] == 'g' ? 2 : 1;
    const size_t step = std::max<size_t>(1, whole.size() / 150);
    for (size_t size = 0; size + spare <= whole.size(); size += step) {
      const std::string message = decode(whole.substr(0, size));
      ASSERT_THAT(message, AllOf(StartsWith("upload: "), Not(HasSubstr("\n")))) << name << " cut to " << size;
    }
    EXPECT_EQ(decode(whole), "decoded") << name;
  }
  const std::string jpeg = file("jpeg-420.jpg");
  EXPECT_EQ(decode(jpeg.substr(0, jpeg.size() / 2)), "upload: JPEG picture is cut off before its end");
  const std::string png = file("png-rgb.png");
  EXPECT_EQ(decode(png.substr(0, png.size() / 2)), "upload: PNG picture is cut off before its end");
  const std::string webp = file("webp-lossy.webp");
  EXPECT_EQ(decode(webp.substr(0, webp.size() / 2)), "upload: WebP picture is cut off before its end");
  const std::string gif = file("gif-plain.gif");
  EXPECT_EQ(decode(gif.substr(0, gif.size() / 2)), "upload: GIF picture is cut off before its end");
  const std::string bmp = file("bmp-24.bmp");
  EXPECT_EQ(decode(bmp.substr(0, bmp.size() / 2)), "upload: BMP picture is cut off before its end");
}

TEST(BadPicture, LimitsHoldBeforeAnythingIsAllocated) {
  EXPECT_EQ(decode(png_bomb(60000, 60000)),
            "upload: picture of 60000x60000 pixels, up to 178956970 pixels are allowed");
  EXPECT_EQ(decode(png_bomb(70000, 1)), "upload: picture of 70000x1 pixels, sides up to 65535 are allowed");
  EXPECT_EQ(decode(png_bomb(0xffffffff, 0xffffffff)),
            "upload: picture of 4294967295x4294967295 pixels, sides up to 65535 are allowed");
  // Within the limits, but more than ten bytes of deflate can hold.
  EXPECT_EQ(decode(png_bomb(13000, 13000)), "upload: PNG picture is cut off before its end");

  ImageLimits small;
  small.max_pixels = 150 * 101 - 1;
  EXPECT_THAT(decode(file("jpeg-420.jpg"), small), HasSubstr("picture of 150x101 pixels, up to 15149 pixels"));
  small.max_pixels = 150 * 101;
  EXPECT_EQ(decode(file("jpeg-420.jpg"), small), "decoded");
  small.max_side = 100;
  for (const char* name : {"jpeg-420.jpg", "webp-lossy.webp", "png-rgb.png"})
    EXPECT_THAT(decode(file(name), small), HasSubstr("sides up to 100 are allowed")) << name;
  small = {};
  small.max_pixels = 900;
  for (const char* name : {"gif-animated.gif", "bmp-24.bmp", "webp-alpha.webp"})
    EXPECT_THAT(decode(file(name), small), HasSubstr("up to 900 pixels are allowed")) << name;
  small = {};
  small.max_bytes = 100;
  EXPECT_THAT(decode(file("bmp-24.bmp"), small), HasSubstr("bytes, up to 100 are allowed"));
}

TEST(BadPicture, HostileSizesInOtherFormats) {
  std::string bmp = file("bmp-24.bmp");
  EXPECT_EQ(decode(std::string(bmp).replace(18, 4, little_endian(0))), "upload: picture of 0x29 pixels is empty");
  EXPECT_THAT(decode(std::string(bmp).replace(18, 4, little_endian(0xffffff00))), HasSubstr("is empty"));
  EXPECT_THAT(decode(std::string(bmp).replace(22, 4, little_endian(0x80000000))),
              HasSubstr("2147483648 pixels, sides"));
  EXPECT_EQ(decode(std::string(bmp).replace(10, 4, little_endian(0xfffffff0))),
            "upload: BMP picture is cut off before its end");
  EXPECT_EQ(decode(std::string(bmp).replace(14, 4, little_endian(41))),
            "upload: BMP picture with a header of 41 bytes, which is not known");
  EXPECT_EQ(decode(std::string(bmp).replace(28, 2, std::string("\x07\0", 2))),
            "upload: BMP picture of 7 bits per pixel, which is not supported");
  EXPECT_EQ(decode(std::string(bmp).replace(30, 4, little_endian(1))),
            "upload: run-length encoded BMP pictures are not supported");
  const std::string gif = file("gif-plain.gif");
  EXPECT_THAT(decode(std::string(gif).replace(6, 4, "\xff\xff\xff\xff")), HasSubstr("65535x65535 pixels, up to"));
  std::string jpeg = file("jpeg-420.jpg");
  const size_t frame = jpeg.find("\xff\xc0") + 5;
  EXPECT_THAT(decode(std::string(jpeg).replace(frame, 4, "\xff\xdc\xff\xdc")), HasSubstr("65500x65500 pixels, up to"));
  EXPECT_EQ(decode(std::string(jpeg).replace(frame, 2, std::string(2, '\0'))),
            "upload: JPEG picture is damaged or of an unsupported kind");
}

TEST(BadPicture, DamageInsideIsAnErrorOrAPicture) {
  for (const char* name : {"jpeg-progressive.jpg", "png-palette2-interlaced.png", "webp-alpha.webp",
                           "gif-transparent-small-frame.gif", "bmp-565.bmp", "jpeg-exif-6.jpg"}) {
    const std::string whole = file(name);
    for (size_t at = 0; at < whole.size(); at += 1 + whole.size() / 300) {
      std::string bytes = whole;
      bytes[at] = static_cast<char>(~bytes[at]);
      EXPECT_THAT(decode(bytes), testing::AnyOf("decoded", AllOf(StartsWith("upload: "), Not(HasSubstr("\n")))))
          << name << " at " << at;
    }
  }
}

TEST(BadPicture, FilesAreNamed) {
  const auto load = [](const std::string& path) {
    try {
      load_image(path);
    } catch (const Error& error) {
      return std::string(error.what());
    }
    return std::string("loaded");
  };
  const std::string folder = testing::TempDir();
  EXPECT_THAT(load(folder), AllOf(StartsWith(folder), HasSubstr("not a regular file")));
  EXPECT_THAT(load(folder + "/no-such-picture.png"), HasSubstr("no-such-picture.png: cannot open"));
  const std::string empty = folder + "/empty.png";
  std::ofstream(empty).close();
  EXPECT_EQ(load(empty), empty + ": picture is empty (0 bytes)");
}

}  // namespace
}  // namespace saccade::media
