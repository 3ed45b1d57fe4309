// Clips by FFmpeg: one walk through the file, without seeking, that keeps the sampled frames only. FFmpeg reads through
// a file handle of ours and may open nothing else, so that a playlist cannot name other files or addresses.
#include "media/video.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

extern "C" {
#include <libavcodec/avcodec.h>
#include <libavformat/avformat.h>
#include <libavutil/display.h>
#include <libavutil/opt.h>
#include <libavutil/pixdesc.h>
#include <libswscale/swscale.h>
}

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <memory>

#include "base/error.h"
#include "base/thread_pool.h"
#include "media/exif.h"

namespace saccade::media {
namespace {

constexpr const char* kFormats = "mov,matroska,avi,mpegts,mpeg,flv,asf,ogg,gif,ivf";
// Each decodes a frame of its own and holds the pictures for it.
constexpr int kMaxThreads = 16, kMaxThreadsOfLargeFrames = 4;
constexpr int64_t kLargeFrame = int64_t{1} << 23;

#if LIBAVCODEC_VERSION_MAJOR >= 61
constexpr auto chroma_position = av_chroma_location_enum_to_pos;
#else
constexpr auto chroma_position = avcodec_enum_to_chroma_pos;
#endif

template <class T, void (*Free)(T**)>
struct FreePointer {
  void operator()(T* p) const { Free(&p); }
};
void free_io(AVIOContext** io) {
  if (*io) av_freep(&(*io)->buffer);
  avio_context_free(io);
}
using Io = std::unique_ptr<AVIOContext, FreePointer<AVIOContext, free_io>>;
using Format = std::unique_ptr<AVFormatContext, FreePointer<AVFormatContext, avformat_close_input>>;
using Codec = std::unique_ptr<AVCodecContext, FreePointer<AVCodecContext, avcodec_free_context>>;
using Packet = std::unique_ptr<AVPacket, FreePointer<AVPacket, av_packet_free>>;
using Frame = std::unique_ptr<AVFrame, FreePointer<AVFrame, av_frame_free>>;
using Scaler = std::unique_ptr<SwsContext, decltype(&sws_freeContext)>;

template <class T>
T* need(T* pointer, const std::string& path) {
  if (!pointer) fail("{}: out of memory for the video decoder", path);
  return pointer;
}

struct Descriptor {
  int number;
  ~Descriptor() {
    if (number >= 0) ::close(number);
  }
};

class File {
 public:
  File(const std::string& path, int64_t max_bytes) : fd_{::open(path.c_str(), O_RDONLY | O_CLOEXEC)} {
    if (fd_.number < 0) fail("{}: cannot open: {}", path, std::strerror(errno));
    struct stat info {};
    if (::fstat(fd_.number, &info) != 0 || !S_ISREG(info.st_mode)) fail("{}: not a regular file", path);
    size_ = info.st_size;
    if (size_ == 0) fail("{}: video is empty (0 bytes)", path);
    if (size_ > max_bytes) fail("{}: video of {} bytes, up to {} are allowed", path, size_, max_bytes);
  }
  File(const File&) = delete;
  File& operator=(const File&) = delete;

  static int read(void* self, uint8_t* out, int size) {
    auto& file = *static_cast<File*>(self);
    const ssize_t n = ::pread(file.fd_.number, out, static_cast<size_t>(size), file.at_);
    if (n <= 0) return n == 0 ? AVERROR_EOF : AVERROR(errno);
    file.at_ += n;
    return static_cast<int>(n);
  }
  static int64_t seek(void* self, int64_t offset, int whence) {
    auto& file = *static_cast<File*>(self);
    if (whence == AVSEEK_SIZE) return file.size_;
    const int64_t to = (whence == SEEK_SET ? 0 : whence == SEEK_CUR ? file.at_ : file.size_) + offset;
    if (to < 0) return AVERROR(EINVAL);
    return file.at_ = to;
  }

 private:
  Descriptor fd_;
  int64_t size_ = 0, at_ = 0;
};

// The video stream of a file, frame by frame in the order of presentation.
class Reader {
 public:
  Reader(const std::string& path, const VideoLimits& limits) : path_(path), file_(path, limits.max_bytes) {
    static const bool quiet = (av_log_set_level(AV_LOG_QUIET), true);
    static_cast<void>(quiet);
    open_container();
    open_decoder(limits);
    packet_.reset(need(av_packet_alloc(), path_));
    frame_.reset(need(av_frame_alloc(), path_));
  }

  const AVStream& stream() const { return *stream_; }
  int64_t packets() const { return packets_; }

  // Null at the end. Valid until the next call.
  const AVFrame* next() {
    for (;;) {
      const int status = avcodec_receive_frame(codec_.get(), frame_.get());
      if (status == 0) return frame_.get();
      if (status == AVERROR_EOF) return nullptr;
      if (status != AVERROR(EAGAIN)) fail("{}: video is damaged or cut off", path_);
      feed();
    }
  }

 private:
  void open_container() {
    constexpr int kBuffer = 1 << 16;
    auto* buffer = static_cast<uint8_t*>(need(av_malloc(kBuffer), path_));
    io_.reset(avio_alloc_context(buffer, kBuffer, 0, &file_, File::read, nullptr, File::seek));
    if (!io_) {
      av_free(buffer);
      need(io_.get(), path_);
    }
    AVFormatContext* format = need(avformat_alloc_context(), path_);
    format->pb = io_.get();
    format->flags |= AVFMT_FLAG_CUSTOM_IO;
    format->format_whitelist = av_strdup(kFormats);
    format->io_open = [](AVFormatContext*, AVIOContext**, const char*, int, AVDictionary**) { return AVERROR(EPERM); };
    // On failure the context is freed.
    if (avformat_open_input(&format, nullptr, nullptr, nullptr) < 0)
      fail("{}: not a video, or cut off (expected MP4, MOV, MKV, WebM, AVI, MPEG, FLV, ASF, Ogg or GIF)", path_);
    format_.reset(format);
    if (avformat_find_stream_info(format, nullptr) < 0) fail("{}: video is damaged or cut off", path_);
  }

  void open_decoder(const VideoLimits& limits) {
    const AVCodec* decoder = nullptr;
    const int index = av_find_best_stream(format_.get(), AVMEDIA_TYPE_VIDEO, -1, -1, &decoder, 0);
    if (index == AVERROR_DECODER_NOT_FOUND) fail("{}: no decoder for the codec of the video", path_);
    if (index < 0 || (format_->streams[index]->disposition & AV_DISPOSITION_ATTACHED_PIC) != 0)
      fail("{}: file without a video stream", path_);
    stream_ = format_->streams[index];
    for (unsigned i = 0; i < format_->nb_streams; ++i)
      if (static_cast<int>(i) != index) format_->streams[i]->discard = AVDISCARD_ALL;
    const int64_t width = stream_->codecpar->width, height = stream_->codecpar->height;
    if (width < 1 || height < 1) fail("{}: video without a frame that can be decoded", path_);
    if (width > limits.max_frame_pixels / height)
      fail("{}: video of {}x{} pixels, up to {} pixels a frame are allowed", path_, width, height,
           limits.max_frame_pixels);
    codec_.reset(need(avcodec_alloc_context3(decoder), path_));
    codec_->max_pixels = limits.max_frame_pixels;
    codec_->thread_count =
        std::min(available_cores(), width * height < kLargeFrame ? kMaxThreads : kMaxThreadsOfLargeFrames);
    if (avcodec_parameters_to_context(codec_.get(), stream_->codecpar) < 0 ||
        avcodec_open2(codec_.get(), decoder, nullptr) < 0)
      fail("{}: the codec of the video is damaged or not supported", path_);
  }

  // Hands the decoder the next packet of the stream, or the end.
  void feed() {
    int status = 0;
    do {
      av_packet_unref(packet_.get());
      status = av_read_frame(format_.get(), packet_.get());
    } while (status >= 0 && packet_->stream_index != stream_->index);
    if (status < 0 && status != AVERROR_EOF) fail("{}: video is damaged or cut off", path_);
    if (status >= 0 && (packet_->flags & AV_PKT_FLAG_CORRUPT) != 0) fail("{}: video is damaged or cut off", path_);
    if (status >= 0) ++packets_;
    if (avcodec_send_packet(codec_.get(), status < 0 ? nullptr : packet_.get()) < 0)
      fail("{}: video is damaged or cut off", path_);
    av_packet_unref(packet_.get());
  }

  std::string path_;
  File file_;
  Io io_;
  Format format_;  // before io_ in destruction
  AVStream* stream_ = nullptr;
  Codec codec_;
  Packet packet_;
  Frame frame_;
  int64_t packets_ = 0;
};

// Frames to RGB as PyAV's to_ndarray("rgb24") does: swscale with SWS_BILINEAR alone, matrix and range of the frame.
class Converter {
 public:
  Image convert(const AVFrame& frame, const std::string& path) {
    prepare(frame, path);
    if (!rgb_ || rgb_->width != frame.width || rgb_->height != frame.height) {
      rgb_.reset(need(av_frame_alloc(), path));
      rgb_->format = AV_PIX_FMT_RGB24;
      rgb_->width = frame.width;
      rgb_->height = frame.height;
      if (av_frame_get_buffer(rgb_.get(), 0) < 0) need<AVFrame>(nullptr, path);
    }
    if (sws_scale(scaler_.get(), frame.data, frame.linesize, 0, frame.height, rgb_->data, rgb_->linesize) !=
        frame.height)
      fail("{}: pixels of the video cannot be converted to RGB", path);
    Image image{frame.width, frame.height, {}};
    const auto row = static_cast<size_t>(frame.width) * 3;
    image.rgb.reserve(row * static_cast<size_t>(frame.height));
    for (int y = 0; y < frame.height; ++y) {
      const uint8_t* from = rgb_->data[0] + static_cast<ptrdiff_t>(y) * rgb_->linesize[0];
      image.rgb.insert(image.rgb.end(), from, from + row);
    }
    return image;
  }

 private:
  struct Kind {
    int width, height, format, matrix, chroma;
    bool full_range;
    bool operator==(const Kind&) const = default;
  };

  // Makes the scaler for frames of this kind, unless it is there. Chroma lies in the centre where the file is silent.
  void prepare(const AVFrame& frame, const std::string& path) {
    const Kind kind{frame.width,      frame.height,          frame.format,
                    frame.colorspace, frame.chroma_location, frame.color_range == AVCOL_RANGE_JPEG};
    if (scaler_ && kind == kind_) return;
    kind_ = kind;
    scaler_.reset(need(sws_alloc_context(), path));
    const auto set = [&](const char* option, int64_t value) { av_opt_set_int(scaler_.get(), option, value, 0); };
    set("srcw", kind.width);
    set("srch", kind.height);
    set("dstw", kind.width);
    set("dsth", kind.height);
    set("src_format", kind.format);
    set("dst_format", AV_PIX_FMT_RGB24);
    set("sws_flags", SWS_BILINEAR);
    int x = 0, y = 0;
    const bool known = frame.chroma_location != AVCHROMA_LOC_UNSPECIFIED;
    chroma_position(&x, &y, known ? frame.chroma_location : AVCHROMA_LOC_CENTER);
    const AVPixFmtDescriptor* format = av_pix_fmt_desc_get(static_cast<AVPixelFormat>(kind.format));
    if (format && format->log2_chroma_w > 0) set("src_h_chr_pos", x * ((1 << format->log2_chroma_w) - 1));
    if (format && format->log2_chroma_h > 0) set("src_v_chr_pos", y * ((1 << format->log2_chroma_h) - 1));
    if (sws_init_context(scaler_.get(), nullptr, nullptr) < 0)
      fail("{}: pixels of the video cannot be converted to RGB", path);
    sws_setColorspaceDetails(scaler_.get(), sws_getCoefficients(kind.matrix), kind.full_range,
                             sws_getCoefficients(SWS_CS_DEFAULT), 1, 0, 1 << 16, 1 << 16);
  }

  Kind kind_{};
  Scaler scaler_{nullptr, sws_freeContext};
  Frame rgb_;
};

double frames_per_second(const AVStream& stream, const std::string& path) {
  for (const AVRational rate : {stream.avg_frame_rate, stream.r_frame_rate})
    if (rate.num > 0 && rate.den > 0) return av_q2d(rate);
  fail("{}: video without a frame rate", path);
}

// EXIF orientation that turns a stored frame upright, by the container's display matrix; whole quarters, as torchcodec.
int orientation_of(const AVStream& stream) {
#if LIBAVCODEC_VERSION_MAJOR >= 61
  const AVPacketSideData* data = av_packet_side_data_get(
      stream.codecpar->coded_side_data, stream.codecpar->nb_coded_side_data, AV_PKT_DATA_DISPLAYMATRIX);
  const uint8_t* matrix = data && data->size >= 9 * sizeof(int32_t) ? data->data : nullptr;
#else
  size_t size = 0;
  const uint8_t* matrix = av_stream_get_side_data(&stream, AV_PKT_DATA_DISPLAYMATRIX, &size);
  if (size < 9 * sizeof(int32_t)) matrix = nullptr;
#endif
  if (!matrix) return 1;
  int32_t values[9];
  std::memcpy(values, matrix, sizeof values);
  const double angle = av_display_rotation_get(values);  // counter-clockwise
  if (!std::isfinite(angle)) return 1;
  constexpr int kUpright[] = {1, 8, 3, 6};
  return kUpright[(std::lround(angle / 90) + 4) % 4];
}

void check_total(int64_t total, const std::string& path, const VideoLimits& limits) {
  if (total > limits.max_total_frames)
    fail("{}: video of more than {} frames, which is the limit", path, limits.max_total_frames);
}

int64_t count_frames(const std::string& path, const VideoLimits& limits) {
  Reader reader(path, limits);
  int64_t total = 0;
  while (reader.next()) check_total(++total, path, limits);
  return total;
}

}  // namespace

Video load_video(const std::string& path, const VideoSampling& sampling, const VideoLimits& limits) {
  Video video;
  // The container's number of frames may be missing, or count packets that show nothing: then the frames are counted.
  int64_t total = 0;
  for (bool counted = false;; counted = true) {
    Reader reader(path, limits);
    const double fps = frames_per_second(reader.stream(), path);
    if (!counted) total = reader.stream().nb_frames;
    if (total <= 0) {
      total = count_frames(path, limits);
      if (total == 0) fail("{}: video without a frame that can be decoded", path);
      counted = true;
    }
    check_total(total, path, limits);
    try {
      video.indices = sample_frames(total, fps, sampling);
    } catch (const Error& error) {
      fail("{}: {}", path, error.what());
    }
    const int64_t pixels = int64_t{reader.stream().codecpar->width} * reader.stream().codecpar->height;
    if (pixels * 3 > limits.max_decoded_bytes / static_cast<int64_t>(video.indices.size()))
      fail("{}: {} frames of {} pixels, up to {} bytes of pixels are allowed", path, video.indices.size(), pixels,
           limits.max_decoded_bytes);
    video.fps = static_cast<double>(video.indices.size()) / static_cast<double>(total) * fps;

    Converter converter;
    const int orientation = orientation_of(reader.stream());
    int64_t walked = 0;
    while (video.frames.size() < video.indices.size()) {
      const AVFrame* frame = reader.next();
      if (!frame) break;
      if (walked++ == video.indices[video.frames.size()]) {
        video.frames.push_back(apply_orientation(converter.convert(*frame, path), orientation));
        video.timestamps.push_back(static_cast<double>(walked - 1) / fps);
      }
    }
    if (video.frames.size() == video.indices.size()) return video;
    if (counted || walked == 0 || reader.packets() < total)
      fail("{}: video is cut off: {} of {} frames", path, walked, total);
    total = walked;
    video = {};
  }
}

}  // namespace saccade::media
