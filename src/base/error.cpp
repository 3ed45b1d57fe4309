#include "base/error.h"

#include <algorithm>
#include <exception>
#include <new>

namespace saccade {

std::string current_error() {
  std::string text = "unknown error";
  try {
    throw;
  } catch (const std::bad_alloc&) {
    text = "out of memory";
  } catch (const std::exception& e) {
    text = e.what();
  } catch (...) {
  }
  std::replace(text.begin(), text.end(), '\n', ' ');
  return text;
}

}  // namespace saccade
