"""Times Pillow and transformers' Pillow image processor on one picture, one thread, beside preprocess_bench.

    python tools/reference/preprocess_bench.py FILE build/cpu/bench/preprocess_bench [--out bench/results/preprocess-cpu.json]

Both are timed as processor time of one thread; decode is Image.open, exif_transpose and convert("RGB"), which is what
transformers' load_image does.
"""
import argparse
import datetime
import io
import json
import os
import subprocess
import time

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import PIL
import transformers
from PIL import Image, ImageOps
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil, smart_resize

LIMITS = {"min_pixels": 56 * 56, "max_pixels": 28 * 28 * 16384}


def time_ms(rounds, fn):
    times = []
    for _ in range(rounds):
        begin = time.thread_time_ns()
        fn()
        times.append((time.thread_time_ns() - begin) / 1e6)
    times.sort()
    return {"median": times[len(times) // 2], "best": times[0]}


def time_reference(path, rounds):
    data = open(path, "rb").read()
    decode = lambda: ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    processor = Qwen2VLImageProcessorPil(**LIMITS)
    image = decode()
    height, width = smart_resize(image.height, image.width, 28, **LIMITS)
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    return {
        "decode_ms": time_ms(rounds, decode),
        "resize_ms": time_ms(rounds, lambda: image.resize((width, height), Image.Resampling.BICUBIC)),
        "patches_f32_ms": time_ms(rounds, lambda: processor(images=[resized], do_resize=False, return_tensors="np")),
        "total_f32_ms": time_ms(rounds, lambda: processor(images=[decode()], return_tensors="np")),
    }


def cpu_model():
    lines = open("/proc/cpuinfo").read().splitlines()
    fields = {k.strip(): v.strip() for k, _, v in (line.partition(":") for line in lines) if v}
    names = [fields.get(k, "") for k in ("model name", "cpu family", "model")]
    return "{} (family {}, model {}), {} cores".format(*names, os.cpu_count())


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("file")
    parser.add_argument("bench")
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--out")
    args = parser.parse_args()
    ours = json.loads(subprocess.check_output([args.bench, args.file, str(args.rounds)]))
    result = {
        "what": "one picture to patches on one core, processor time",
        "command": f"preprocess_bench {os.path.basename(args.file)} {args.rounds}; tools/reference/preprocess_bench.py",
        "device": cpu_model(),
        "date": datetime.date.today().isoformat(),
        "commit": subprocess.check_output(["git", "rev-parse", "--short", "HEAD"], text=True).strip(),
        "file_bytes": os.path.getsize(args.file),
        "saccade": ours,
        "reference": {
            "versions": {"transformers": transformers.__version__, "pillow": PIL.__version__, "numpy": np.__version__},
            **time_reference(args.file, args.rounds),
        },
    }
    text = json.dumps(result, indent=2) + "\n"
    print(text, end="")
    if args.out:
        os.makedirs(os.path.dirname(args.out) or ".", exist_ok=True)
        open(args.out, "w").write(text)


if __name__ == "__main__":
    main()
