// The codec libraries behind this layer, for reports.
#pragma once

#include <string>
#include <vector>

namespace saccade::media {

struct Library {
  std::string name, version;
};
std::vector<Library> libraries();

}  // namespace saccade::media
