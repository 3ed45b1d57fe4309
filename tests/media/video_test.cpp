#include "media/video.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "base/error.h"
#include "base/mapped_file.h"
#include "media/goldens.h"

namespace saccade::media {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::Not;
using testing::StartsWith;

VideoSampling at_fps(double fps) {
  VideoSampling sampling;
  sampling.fps = fps;
  return sampling;
}

VideoSampling of_frames(int count) {
  VideoSampling sampling;
  sampling.num_frames = count;
  return sampling;
}

std::string temporary(const char* name, const std::string& bytes) {
  const std::string path = testing::TempDir() + "/" + name;
  std::ofstream(path, std::ios::binary) << bytes;
  return path;
}

TEST(SampleFrames, EqualTorchLinspace) {
  for (const Json& golden : goldens("samples")) {
    const auto expected = golden[2].get<std::vector<int64_t>>();
    EXPECT_EQ(sample_frames(golden[0], 30, of_frames(golden[1])), expected) << golden[0] << " " << golden[1];
  }
}

TEST(SampleFrames, NumberOfFrames) {
  const auto count = [](int64_t total, double video_fps, const VideoSampling& sampling) {
    return sample_frames(total, video_fps, sampling).size();
  };
  EXPECT_EQ(count(895, 895000.0 / 29833, at_fps(1)), 28u);  // 29.833 seconds, rounded down to even
  EXPECT_EQ(count(300, 30, {}), 20u);                       // 2 frames a second by default
  EXPECT_EQ(count(30, 30, at_fps(1)), 4u);                  // min_frames
  EXPECT_EQ(count(3, 30, at_fps(1)), 2u);                   // no more than there are, even
  EXPECT_EQ(count(100000, 30, at_fps(30)), 768u);           // max_frames
  EXPECT_EQ(count(100, 30, of_frames(5)), 4u);              // halves to even: 5 / 2 is 2
  EXPECT_EQ(count(100, 30, of_frames(7)), 8u);
  VideoSampling odd = at_fps(1);
  odd.min_frames = 5;
  EXPECT_EQ(count(30, 30, odd), 6u);
  odd.max_frames = 5;
  EXPECT_EQ(count(300, 30, odd), 4u);
}

TEST(SampleFrames, NoValidNumber) {
  EXPECT_EQ(error_of([] { sample_frames(1, 30, {}); }), "0 frames would be sampled of a video of 1, expected 2 to 1");
  EXPECT_EQ(error_of([] { sample_frames(10, 30, of_frames(12)); }),
            "12 frames would be sampled of a video of 10, expected 2 to 10");
  EXPECT_EQ(error_of([] { sample_frames(10, 30, of_frames(-2)); }),
            "-2 frames would be sampled of a video of 10, expected 2 to 10");
  EXPECT_EQ(error_of([] { sample_frames(0, 30, {}); }), "video has no frames");
  EXPECT_EQ(error_of([] { sample_frames(10, 30, at_fps(0)); }), "fps is 0, expected more than 0");
  EXPECT_EQ(error_of([] { sample_frames(10, 30, at_fps(std::nan(""))); }), "fps is nan, expected more than 0");
  VideoSampling both = at_fps(1);
  both.num_frames = 4;
  EXPECT_EQ(error_of([&] { sample_frames(10, 30, both); }),
            "fps and num_frames exclude each other, one of them is expected");
}

// H.264 in MP4, the same with a display matrix, VP8 in WebM, which does not say how many frames it has, MPEG-4 in AVI.
TEST(LoadVideo, FramesEqualThoseOfPyav) {
  for (const Json& golden : goldens("clips")) {
    const std::string name = golden.at("file");
    const Video video = load_video(data_path(name), of_frames(4));
    EXPECT_EQ(video.indices, golden.at("indices").get<std::vector<int64_t>>()) << name;
    EXPECT_DOUBLE_EQ(video.fps, 4 / golden.at("frames").get<double>() * golden.at("fps").get<double>()) << name;
    ASSERT_EQ(video.frames.size(), 4u) << name;
    for (size_t i = 0; i < 4; ++i) {
      const Image& frame = video.frames[i];
      EXPECT_EQ(frame.width, golden.at("width")) << name;
      EXPECT_EQ(frame.height, golden.at("height")) << name;
      EXPECT_EQ(crc(frame.rgb.data(), frame.rgb.size()), golden.at("rgb")[i].get<uint32_t>()) << name << " " << i;
      EXPECT_DOUBLE_EQ(video.timestamps[i], static_cast<double>(video.indices[i]) / golden.at("fps").get<double>());
    }
  }
}

TEST(LoadVideo, BadFilesAreNamedInOneLine) {
  const auto load = [](const std::string& path) { return error_of([&] { load_video(path, {}); }); };
  const std::string empty = temporary("empty.mp4", "");
  EXPECT_EQ(load(empty), empty + ": video is empty (0 bytes)");
  const std::string folder = testing::TempDir();
  EXPECT_EQ(load(folder), folder + ": not a regular file");
  EXPECT_THAT(load(folder + "/no-such.mp4"), HasSubstr("no-such.mp4: cannot open"));
  const std::string text = temporary("text.mp4", "hello, I am a text file\n");
  EXPECT_THAT(load(text), StartsWith(text + ": not a video"));
  EXPECT_THAT(load(data_path("png-rgb.png")), HasSubstr("png-rgb.png: not a video"));
  // A playlist must not make the reader open what it names.
  const std::string playlist =
      temporary("list.m3u8", "#EXTM3U\n#EXTINF:1,\nfile://" + data_path("clip-h264.mp4") + "\n#EXT-X-ENDLIST\n");
  EXPECT_THAT(load(playlist), HasSubstr("not a video"));
}

TEST(LoadVideo, CutOffFiles) {
  for (const char* name : {"clip-h264.mp4", "clip-mpeg4.avi", "clip-vp8.webm"}) {
    const std::string whole = read_file(data_path(name), 1 << 20);
    for (size_t part = 0; part < 20; ++part) {
      const std::string path = temporary("cut-video", whole.substr(0, whole.size() * part / 20));
      const std::string message = error_of([&] { load_video(path, {}); });
      // WebM says nowhere how long it is: what is there is the clip.
      if (std::string(name) == "clip-vp8.webm" && message == "no error") continue;
      EXPECT_THAT(message, AllOf(StartsWith(path + ": "), Not(HasSubstr("\n")))) << name << " " << part;
    }
  }
}

TEST(LoadVideo, Limits) {
  const std::string path = data_path("clip-h264.mp4");
  const auto load = [&](const VideoLimits& limits) { return error_of([&] { load_video(path, {}, limits); }); };
  VideoLimits limits;
  limits.max_bytes = 1000;
  EXPECT_THAT(load(limits), HasSubstr("bytes, up to 1000 are allowed"));
  limits = {};
  limits.max_frame_pixels = 64 * 48 - 1;
  EXPECT_EQ(load(limits), path + ": video of 64x48 pixels, up to 3071 pixels a frame are allowed");
  limits = {};
  limits.max_total_frames = 19;
  EXPECT_EQ(load(limits), path + ": video of more than 19 frames, which is the limit");
  limits = {};
  limits.max_decoded_bytes = 4 * 64 * 48 * 3 - 1;
  EXPECT_THAT(load(limits), HasSubstr("4 frames of 3072 pixels"));
  limits.max_decoded_bytes += 1;
  EXPECT_EQ(load(limits), "no error");
  EXPECT_EQ(error_of([&] { load_video(path, of_frames(40)); }),
            path + ": 40 frames would be sampled of a video of 20, expected 2 to 20");
}

TEST(LoadFrames, OddListRepeatsItsLast) {
  const std::vector<std::string> paths = {data_path("bmp-4.bmp"), data_path("bmp-555.bmp"), data_path("bmp-565.bmp")};
  const Video video = load_frames(paths, 4);
  ASSERT_EQ(video.frames.size(), 4u);
  EXPECT_EQ(video.frames[3].rgb, video.frames[2].rgb);
  EXPECT_NE(video.frames[1].rgb, video.frames[0].rgb);
  EXPECT_EQ(video.fps, 4);
  EXPECT_EQ(video.indices, (std::vector<int64_t>{0, 1, 2, 3}));
  EXPECT_EQ(video.timestamps, (std::vector<double>{0, 0.25, 0.5, 0.75}));
}

TEST(LoadFrames, BadLists) {
  const std::string a = data_path("bmp-4.bmp"), b = data_path("bmp-24.bmp");
  EXPECT_EQ(error_of([&] { load_frames({}, 2); }), "video: the list of frames is empty");
  EXPECT_THAT(error_of([&] { load_frames({a}, 0); }), HasSubstr("fps of the frames is 0"));
  EXPECT_EQ(error_of([&] {
              load_frames({a, b}, 2);
            }),
            b + ": frame of 33x29 pixels, the first one (" + a + ") has 45x37");
}

}  // namespace
}  // namespace saccade::media
