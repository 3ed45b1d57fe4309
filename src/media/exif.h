// The one tag of EXIF and XMP that changes pixels.
#pragma once

#include <span>
#include <string_view>

#include "media/image.h"

namespace saccade::media {

// Orientation 1..8 of a TIFF block (with or without the "Exif\0\0" in front), else of an XMP packet, else 1: the order
// in which Pillow looks.
int find_orientation(std::span<const std::byte> exif, std::string_view xmp);

// The upright picture: what Pillow's ImageOps.exif_transpose gives.
Image apply_orientation(Image image, int orientation);

}  // namespace saccade::media
