// The build without CUDA: there are no devices.
#include "base/error.h"
#include "tensor/device.h"

namespace saccade::device {
namespace {

[[noreturn]] void absent() { fail("device: this build has no CUDA (build with the preset \"cuda\")"); }

}  // namespace

std::vector<Info> list() { return {}; }
void use(int) { absent(); }
void* allocate(size_t, Memory, Stream) { absent(); }
void release(void*, Memory, Stream) noexcept {}
Stream new_stream() { absent(); }
void delete_stream(Stream) noexcept {}
void synchronize(Stream) { absent(); }
Event new_event() { absent(); }
void delete_event(Event) noexcept {}
void record(Event, Stream) { absent(); }
void wait(Event) { absent(); }
void copy(void*, const void*, size_t, Stream) { absent(); }
void fill_zero(void*, size_t, Stream) { absent(); }

}  // namespace saccade::device
