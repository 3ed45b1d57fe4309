"""Makes tests/data/media: small odd pictures and clips, and goldens.json with what Pillow, transformers, PyAV, torch and
qwen-vl-utils make of them. Values are compared by CRC-32.

    python tools/reference/preprocess_goldens.py tests/data/media

Needs transformers 5.17, Pillow 13, PyAV 18, torch. The files of pictures are written anew only when missing, so that a
new version of an encoder does not change them; delete them to make them again.
"""
import io
import json
import os
import random
import struct
import sys
import zlib

import av
import numpy as np
import PIL
import torch
import transformers
from PIL import Image
from transformers.image_utils import load_image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil, smart_resize

LIMITS = {"min_pixels": 56 * 56, "max_pixels": 28 * 28 * 16384}
OUT = sys.argv[1]
ORIENTATION = 0x0112


def scene(width, height, seed, channels=3):
    """Gradients, a disc, stripes and some noise: edges for the filters, little for the encoders."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    planes = [(x * (c + 1) * 97 // max(width, 1) + y * (3 - c) * 61 // max(height, 1)) % 256 for c in range(3)]
    rgb = np.stack(planes, -1)
    disc = (x - width * 0.6) ** 2 + (y - height * 0.4) ** 2 < (min(width, height) * 0.3) ** 2
    rgb[disc] = rng.integers(0, 256, 3)
    rgb[(x + y) % 17 == 0] = 255 - rgb[(x + y) % 17 == 0]
    band = slice(height // 2, height // 2 + max(2, height // 12))
    rgb[band] = rng.integers(0, 256, rgb[band].shape)
    if channels == 4:
        alpha = (x * 255 // max(width - 1, 1) + y) % 256
        rgb = np.concatenate([rgb, alpha[..., None]], -1)
    return rgb.astype(np.uint8)


def save(image, kind, **options):
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def exif(orientation):
    block = Image.Exif()
    block[ORIENTATION] = orientation
    return block.tobytes()


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def pack(samples, bits):
    """[h, w, c] samples of `bits` bits to the bytes of each row."""
    rows = []
    for row in samples.reshape(samples.shape[0], -1):
        if bits == 16:
            rows.append(row.astype(">u2").tobytes())
        else:
            values = np.unpackbits(row.astype(np.uint8)[:, None], axis=1)[:, 8 - bits :]
            rows.append(np.packbits(values.reshape(-1)).tobytes())
    return rows


def png(samples, bits, color, chunks=(), interlaced=False):
    """A PNG of any kind, which Pillow itself cannot write."""
    samples = samples.reshape(samples.shape[0], samples.shape[1], -1)
    passes = [(0, 0, 1, 1)]
    if interlaced:
        passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
    parts = [samples[y::dy, x::dx] for x, y, dx, dy in passes]
    data = b"".join(b"\0" + row for part in parts if part.size for row in pack(part, bits))
    header = struct.pack(">IIBBBBB", samples.shape[1], samples.shape[0], bits, color, 0, 0, int(interlaced))
    body = b"".join(chunk(k, d) for k, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def bmp(width, height, bits, rows, palette=b"", compression=0, masks=b"", header_size=40):
    if header_size == 12:
        header = struct.pack("<IHHHH", 12, width, height, 1, bits)
    else:
        header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, compression, 0, 0, 0, 0, 0)
    data = b"".join(row + bytes(-len(row) % 4) for row in rows)
    offset = 14 + len(header) + len(masks) + len(palette)
    return b"BM" + struct.pack("<IHHI", offset + len(data), 0, 0, offset) + header + masks + palette + data


def jpegs():
    rgb = Image.fromarray(scene(150, 101, 1))
    for name, subsampling in (("444", 0), ("422", 1), ("420", 2)):
        yield f"jpeg-{name}.jpg", save(rgb, "JPEG", quality=85, subsampling=subsampling)
    yield "jpeg-progressive.jpg", save(Image.fromarray(scene(211, 57, 2)), "JPEG", quality=70, progressive=True)
    yield "jpeg-restarts.jpg", save(Image.fromarray(scene(90, 130, 3)), "JPEG", quality=60, restart_marker_blocks=3)
    yield "jpeg-grey.jpg", save(rgb.convert("L"), "JPEG", quality=80)
    yield "jpeg-grey-progressive.jpg", save(rgb.convert("L"), "JPEG", quality=80, progressive=True)
    yield "jpeg-tall.jpg", save(Image.fromarray(scene(31, 300, 4)), "JPEG", quality=75)
    yield "jpeg-one-pixel.jpg", save(Image.fromarray(scene(1, 1, 5)), "JPEG")
    cmyk = save(Image.fromarray(scene(65, 49, 6)).convert("CMYK"), "JPEG", quality=85)
    at = cmyk.index(b"Adobe")
    yield "jpeg-cmyk.jpg", cmyk
    yield "jpeg-ycck.jpg", cmyk[: at + 11] + b"\2" + cmyk[at + 12 :]
    yield "jpeg-cmyk-plain.jpg", cmyk[: at - 4] + cmyk[at + 12 :]
    coded = save(Image.fromarray(scene(65, 49, 7)), "JPEG", quality=85)
    adobe = b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0\0"
    yield "jpeg-rgb.jpg", coded[:2] + adobe + coded[2:]
    for orientation in range(1, 9):
        picture = Image.fromarray(scene(61, 40, 10 + orientation))
        yield f"jpeg-exif-{orientation}.jpg", save(picture, "JPEG", quality=60, exif=exif(orientation))
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    yield "jpeg-xmp.jpg", save(Image.fromarray(scene(50, 33, 20)), "JPEG", quality=60, xmp=xmp)


def pngs():
    rgb, rgba = scene(120, 77, 30), scene(99, 83, 31, 4)
    yield "png-rgb.png", save(Image.fromarray(rgb), "PNG")
    yield "png-rgba.png", save(Image.fromarray(rgba), "PNG")
    yield "png-la.png", save(Image.fromarray(rgba).convert("LA"), "PNG")
    yield "png-grey.png", save(Image.fromarray(scene(64, 200, 32)).convert("L"), "PNG")
    palette = Image.fromarray(rgb).quantize(23)
    yield "png-palette.png", save(palette, "PNG")
    yield "png-palette-transparent.png", save(palette, "PNG", transparency=bytes(range(0, 230, 10)))
    yield "png-1bit.png", save(Image.fromarray(rgb).convert("1"), "PNG")
    small = scene(45, 37, 33)
    grey = small[..., :1].astype(np.uint16)
    yield "png-grey2.png", png(grey >> 6, 2, 0)
    yield "png-grey4.png", png(grey >> 4, 4, 0, interlaced=True)
    yield "png-grey8-colour-key.png", png(grey, 8, 0, [(b"tRNS", struct.pack(">H", int(grey[0, 0, 0])))])
    deep = grey * 3 - 100 * (grey > 60)  # on both sides of 255
    yield "png-grey16.png", png(deep, 16, 0)
    wide = small.astype(np.uint16) * 257 - (small > 9) * 13
    yield "png-rgb16.png", png(wide, 16, 2)
    yield "png-rgba16-interlaced.png", png(np.concatenate([wide, wide[..., :1]], -1), 16, 6, interlaced=True)
    yield "png-la16.png", png(np.concatenate([wide[..., :1], wide[..., 1:2]], -1), 16, 4)
    yield "png-rgb-interlaced.png", png(small, 8, 2, interlaced=True)
    yield "png-1bit-interlaced.png", png(grey >> 7, 1, 0, interlaced=True)
    colours = bytes(np.random.default_rng(34).integers(0, 256, 3 * 5).astype(np.uint8))
    yield "png-palette4-past-end.png", png(grey >> 5, 4, 3, [(b"PLTE", colours)])
    yield "png-palette2-interlaced.png", png(grey >> 6, 2, 3, [(b"PLTE", colours[:12])], interlaced=True)
    yield "png-exif.png", save(Image.fromarray(scene(40, 28, 35)), "PNG", exif=exif(8))
    xmp = b"XML:com.adobe.xmp\0\0\0\0\0<tiff:Orientation>3</tiff:Orientation>"
    yield "png-xmp.png", png(small, 8, 2, [(b"iTXt", xmp)])
    yield "png-thin.png", png(scene(200, 1, 36), 8, 2)


def others():
    rgb, rgba = Image.fromarray(scene(131, 70, 40)), Image.fromarray(scene(64, 90, 41, 4))
    yield "webp-lossy.webp", save(rgb, "WEBP", quality=60)
    yield "webp-lossless.webp", save(Image.fromarray(scene(70, 41, 42)), "WEBP", lossless=True)
    yield "webp-alpha.webp", save(rgba, "WEBP", quality=50)
    yield "webp-alpha-lossless.webp", save(rgba, "WEBP", lossless=True)
    yield "webp-animated.webp", save(rgba, "WEBP", quality=40, save_all=True, append_images=[rgba.rotate(180)])
    yield "webp-exif.webp", save(Image.fromarray(scene(50, 30, 43)), "WEBP", quality=40, exif=exif(5))
    flat = Image.fromarray(scene(57, 44, 44)).quantize(12)
    gif = save(flat, "GIF", interlace=0)
    yield "gif-plain.gif", gif
    yield "gif-interlaced.gif", save(flat, "GIF", interlace=1)
    yield "gif-grey.gif", save(flat.convert("L"), "GIF", interlace=0)
    yield "gif-animated.gif", save(flat, "GIF", save_all=True, append_images=[flat.rotate(90), flat.rotate(180)])
    yield "gif-small-frame.gif", gif[:6] + struct.pack("<HH", 80, 60) + gif[10:]
    clear = save(flat, "GIF", transparency=3, interlace=0)
    yield "gif-transparent-small-frame.gif", clear[:6] + struct.pack("<HH", 70, 66) + clear[10:]
    yield "bmp-24.bmp", save(Image.fromarray(scene(33, 29, 45)), "BMP")
    yield "bmp-32.bmp", save(Image.fromarray(scene(30, 28, 46, 4)), "BMP")
    yield "bmp-8.bmp", save(flat, "BMP")
    yield "bmp-grey.bmp", save(flat.convert("L"), "BMP")
    yield "bmp-1.bmp", save(flat.convert("1"), "BMP")
    small = scene(45, 37, 33)
    entries = bytes(np.random.default_rng(47).integers(0, 256, 64).astype(np.uint8))
    yield "bmp-4.bmp", bmp(45, 37, 4, pack(small[..., :1] >> 4, 4), entries)
    thin = b"".join(entries[i : i + 3] for i in range(0, 64, 4))
    yield "bmp-os2.bmp", bmp(45, 37, 4, pack(small[..., :1] >> 4, 4), thin, header_size=12)
    words = (small[..., 0].astype(np.uint16) >> 3 << 10) | (small[..., 1].astype(np.uint16) >> 3 << 5) | (small[..., 2] >> 3)
    yield "bmp-555.bmp", bmp(45, 37, 16, [r.astype("<u2").tobytes() for r in words])
    masks = struct.pack("<III", 0xF800, 0x7E0, 0x1F)
    yield "bmp-565.bmp", bmp(45, 37, 16, [r.astype("<u2").tobytes() for r in words], compression=3, masks=masks)
    yield "bmp-top-down.bmp", bmp(45, -37, 24, [r.tobytes() for r in small])


def write_missing(name, make):
    path = os.path.join(OUT, name)
    if not os.path.exists(path):
        open(path, "wb").write(make() if callable(make) else make)
    return path


def clip(name, codec, count, rate, size=(64, 48)):
    path = os.path.join(OUT, name)
    if os.path.exists(path):
        return path
    with av.open(path, "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for i in range(count):
            frame = np.roll(scene(*size, 50), (i * 2, i * 3), (0, 1))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


def rotated(path, name):
    """The clip with a display matrix of a quarter turn clockwise, as phones write it."""
    data = bytearray(open(path, "rb").read())
    at = data.index(b"tkhd") + 4 + 4 + 20 + 8 + 8
    struct.pack_into(">9i", data, at, 0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0, 1 << 30)
    return write_missing(name, bytes(data))


def crc(array):
    return zlib.crc32(np.ascontiguousarray(array).tobytes())


def bf16(array):
    return torch.from_numpy(array).bfloat16().view(torch.int16).numpy()


def picture_golden(processor, name):
    image = load_image(os.path.join(OUT, name))
    golden = {"file": name, "width": image.width, "height": image.height, "rgb": crc(np.array(image))}
    try:
        out = processor(images=[image], return_tensors="np")
        golden["grid"] = out["image_grid_thw"][0].tolist()
        golden["patches_f32"] = crc(out["pixel_values"])
        golden["patches_bf16"] = crc(bf16(out["pixel_values"]))
    except ValueError:
        golden["grid"] = None  # aspect ratio
    return golden


def resize_goldens():
    cases = []
    for name, sizes in {
        "png-rgb.png": [(28, 28), (120, 28), (28, 77), (300, 200), (119, 76), (120, 200), (7, 3), (121, 20), (100, 50)],
        "jpeg-tall.jpg": [(28, 56), (84, 28), (31, 28), (30, 299)],
    }.items():
        image = load_image(os.path.join(OUT, name))
        for width, height in sizes:
            out = image.resize((width, height), Image.Resampling.BICUBIC)
            cases.append({"file": name, "width": width, "height": height, "rgb": crc(np.array(out))})
    return cases


def size_goldens():
    rng, cases = random.Random(0), []
    fixed = [(480, 640), (1080, 1920), (28, 28), (70, 42), (98, 98), (6000, 4000), (10, 2000), (13, 1000), (1, 1), (1, 200)]
    for height, width in fixed + [(rng.randint(1, 3000), rng.randint(1, 3000)) for _ in range(60)]:
        low = rng.choice([3136, 100352, 784 * 4])
        high = low * rng.choice([1, 2, 6, 4096])
        if max(height, width) <= 200 * min(height, width):
            out = smart_resize(height, width, 28, low, high)
            cases.append([height, width, low, high, *out])
    return cases


def sampling_goldens():
    """Frames of qwen-vl-utils: linspace over the clip, rounded by torch."""
    cases = []
    for total, count in [(895, 28), (20, 4), (9, 4), (10, 8), (2, 2), (3001, 768), (182235, 768), (126170, 254)]:
        cases.append([total, count, torch.linspace(0, total - 1, count).round().long().tolist()])
    return cases


def clip_golden(name, indices, turn=0):
    with av.open(os.path.join(OUT, name)) as container:
        frames = [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]
        rate = float(container.streams.video[0].average_rate)
    frames = [np.rot90(f, turn) for f in frames]
    height, width = frames[0].shape[:2]
    return {"file": name, "frames": len(frames), "fps": rate, "width": width, "height": height, "indices": indices,
            "rgb": [crc(frames[i]) for i in indices]}


def main():
    os.makedirs(OUT, exist_ok=True)
    names = []
    for make in (jpegs, pngs, others):
        for name, data in make():
            write_missing(name, data)
            names.append(name)
    h264 = clip("clip-h264.mp4", "libx264", 20, 10)
    rotated(h264, "clip-rotated.mp4")
    clip("clip-vp8.webm", "libvpx", 21, 10)
    clip("clip-mpeg4.avi", "mpeg4", 20, 10)

    processor = Qwen2VLImageProcessorPil(**LIMITS)
    goldens = {
        "versions": {"pillow": PIL.__version__, "transformers": transformers.__version__, "av": av.__version__,
                     "torch": torch.__version__},
        "pictures": [picture_golden(processor, name) for name in names],
        "resizes": resize_goldens(),
        "sizes": size_goldens(),
        "samples": sampling_goldens(),
        "clips": [
            clip_golden("clip-h264.mp4", [0, 6, 13, 19]),
            clip_golden("clip-rotated.mp4", [0, 6, 13, 19], turn=3),
            clip_golden("clip-vp8.webm", [0, 7, 13, 20]),
            clip_golden("clip-mpeg4.avi", [0, 6, 13, 19]),
        ],
    }
    lines = json.dumps(goldens, separators=(",", ":")).replace("},{", "},\n{").replace("],[", "],\n[")
    open(os.path.join(OUT, "goldens.json"), "w").write(lines + "\n")


if __name__ == "__main__":
    main()
