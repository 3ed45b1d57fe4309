"""Draws the pictures and the clip of examples/, and with --model asks the tiny model about them.

python tools/tiny/examples.py --out examples [--model models/tiny-qwen2.5-vl]
"""

import argparse
import json
import math
from pathlib import Path

import av
import numpy as np
import torch
from PIL import Image

import draw
import families
import scenes

QUESTIONS = [
    (["scene.png"], "Describe this image."),
    (["scene.png"], "What does the sign say?"),
    (["scene.png"], "How many shapes are there?"),
    (["scene.png"], "What colour is the star?"),
    (["scene.png"], "Where is the heart?"),
    (["scene.png"], "Is the circle to the left or to the right of the star?"),
    (["scene.jpg"], "Describe this image."),
    (["scene.jpg"], "What does it say?"),
    (["first.png", "second.png"], "Which picture has more shapes?"),
    (["first.png", "second.png"], "How many shapes are in the second picture?"),
    (["first.png", "second.png"], "Do both pictures have the same number of shapes?"),
    (["digits.png"], "Which digits are written?"),
    (["clip.mp4"], "Which way does the circle move?"),
    (["clip.mp4"], "What happens in the video?"),
    ([], "What can you do?"),
]


def gradient(size, top, bottom):
    column = np.linspace(top, bottom, size[1])[:, None, :]
    return Image.fromarray(np.broadcast_to(column, (size[1], size[0], 3)).round().astype(np.uint8))


def shape(canvas, name, colour, x, y, r, degrees=0.0):
    draw.put(canvas, draw.shape_mask(name, r, math.radians(degrees)), x, y, draw.COLOURS[colour])


def scene():
    canvas = gradient((640, 480), (206, 230, 250), (246, 240, 222))
    shape(canvas, "circle", "red", 108, 84, 58)
    shape(canvas, "star", "orange", 532, 86, 62)
    shape(canvas, "heart", "purple", 106, 398, 58)
    shape(canvas, "square", "green", 534, 396, 60, 6)
    mask = draw.text_mask("HELLO", "DejaVuSans-Bold.ttf", 88, 0)
    draw.put(canvas, mask, 320, 240, (24, 30, 48))
    return canvas


def pair():
    first, second = (
        gradient((320, 240), (250, 246, 236), (236, 240, 248)),
        gradient((320, 240), (250, 246, 236), (236, 240, 248)),
    )
    for x, y, r in ((90, 84, 34), (226, 70, 30), (160, 172, 36)):
        shape(first, "star", "blue", x, y, r)
    for x, y, r in ((64, 60, 28), (160, 66, 32), (256, 58, 28), (106, 170, 32), (216, 174, 34)):
        shape(second, "star", "blue", x, y, r)
    return first, second


def clip(path, seconds=4, fps=24, size=(320, 240)):
    """A red circle going steadily from left to right."""
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=fps)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.options = {"crf": "20"}
        ground = gradient(size, (214, 232, 244), (240, 246, 230))
        for k in range(seconds * fps):
            frame = ground.copy()
            shape(frame, "circle", "red", 44 + 232 * k / (seconds * fps - 1), 122, 30)
            file.mux(stream.encode(av.VideoFrame.from_image(frame)))
        file.mux(stream.encode())


def sampled(path, fps=2.0):
    """Frames at about `fps` as qwen-vl-utils samples them, and the rate they really have."""
    with av.open(str(path)) as file:
        rate = float(file.streams.video[0].average_rate)
        frames = [f.to_image() for f in file.decode(video=0)]
    n = int(len(frames) / rate * fps) // 2 * 2
    return [frames[i] for i in torch.linspace(0, len(frames) - 1, n).round().long().tolist()], n / len(frames) * rate


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model")
    args = parser.parse_args()
    families.use("qwen2.5-vl")
    args.out.mkdir(parents=True, exist_ok=True)
    scene().save(args.out / "scene.png", optimize=True)
    scene().save(args.out / "scene.jpg", quality=90)
    for image, name in zip(pair(), ("first.png", "second.png")):
        image.save(args.out / name, optimize=True)
    digits, _ = scenes.digit_scene(np.random.default_rng(6), True, size=(320, 240), digits=[3, 7])
    digits.save(args.out / "digits.png", optimize=True)
    clip(args.out / "clip.mp4")
    if args.model:
        import references

        reference = references.of(args.model, torch.bfloat16)
        for names, question in QUESTIONS:
            if names == ["clip.mp4"]:
                frames, rate = sampled(args.out / "clip.mp4")
                answer = reference.answer(question, video=frames, fps=rate)
            else:
                answer = reference.answer(question, [Image.open(args.out / n) for n in names])
            print(json.dumps({"files": names, "prompt": question, "answer": answer}), flush=True)


if __name__ == "__main__":
    main()
