#!/usr/bin/env python3
"""Compares Saccade with transformers on a checkpoint of a published shape with random weights: text, one picture, three
pictures and a clip.

  full_size_parity.py build/cpu/apps/saccade --size tiny --work /tmp/parity
  full_size_parity.py build/cuda/apps/saccade --size 3b --size 7b --device cuda --json parity.json

For each prompt Saccade (bfloat16) answers greedily, and transformers reads prompt and answer in bfloat16 and, as the
yardstick, in float32 (no TF32), with the same weights. Prompt ids and patches must be equal. Three errors are compared,
each against float32, and each of Saccade's may be at most BOUND times that of transformers' bfloat16: both round the
same values to bfloat16, in sums of other order, so their errors are two draws of one size.

  stages   relative error of every stage of the prompt (`--dump`): the worst ratio, and where it stands
  logits   relative error of the logits of the first token, over the whole vocabulary
  logprobs root mean square error of the likeliest tokens' log-probabilities from the second token on, the ones that are
           decoded (without --dump, so by the fused kernels)

A token that is not the best one in float32 may miss it by BOUND times four standard deviations of a difference of two
errors of transformers' bfloat16 logits.
Exit code 1 if anything exceeds its bound. Reference versions: torch 2.11.0, transformers 5.17.0.
"""
import argparse
import concurrent.futures
import json
import math
import pathlib
import shutil
import sys
import time
import zlib

import numpy as np
import PIL
import torch
import transformers
from PIL import Image
from transformers import AutoTokenizer, Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

import make_random_checkpoint as shapes
import saccade_run

BOUND = 1.5
TINY = pathlib.Path(__file__).resolve().parents[2] / "models" / "tiny-qwen2.5-vl"
FIRST_SPECIAL = 151643
IMAGE, VIDEO = 151655, 151656
TEXT = """A lighthouse keeper wrote every evening what the sea had been like: its colour, the height of the waves, how
far one could see, and which ships had passed. After forty years there were eleven thousand pages. A student who found
them counted the grey days and the blue ones, drew the counts on a long roll of paper, and saw that the autumns had
moved. Then she asked the keeper's daughter whether he had known. He never looked back at a page, said the daughter;
he held that a day is finished when it is written down. Retell this story in two sentences, and then say what the roll
of paper shows."""


# Checkpoint

def write_tokenizer(folder):
    """The bundled vocabulary, filled up so that the special tokens have their published ids."""
    tokenizer = json.loads((TINY / "tokenizer.json").read_text())
    vocab = tokenizer["model"]["vocab"]
    shift = FIRST_SPECIAL - len(vocab)
    vocab.update({f"[{i}]": i for i in range(len(vocab), FIRST_SPECIAL)})
    for token in tokenizer["added_tokens"]:
        token["id"] += shift
    settings = json.loads((TINY / "tokenizer_config.json").read_text())
    settings["added_tokens_decoder"] = {str(int(i) + shift): t for i, t in settings["added_tokens_decoder"].items()}
    shapes.write_json(folder / "tokenizer.json", tokenizer)
    shapes.write_json(folder / "tokenizer_config.json", settings)
    shapes.write_json(folder / "vocab.json", vocab)
    for name in ("merges.txt", "chat_template.json"):
        shutil.copyfile(TINY / name, folder / name)
    limits = {"min_pixels": 3136, "max_pixels": 12845056}  # the published ones
    shapes.write_json(folder / "preprocessor_config.json",
                      {**json.loads((TINY / "preprocessor_config.json").read_text()), **limits})


def spread(name, shape):
    """Standard deviation of a tensor's values: stages keep their size, attention is uneven, logits have one of 2."""
    if name.endswith("bias"):
        return 0.5 if "self_attn" in name or "qkv" in name else 0.05
    fan_in = math.prod(shape[1:])
    if "embed_tokens" in name or "lm_head" in name:
        return 2 / math.sqrt(fan_in)
    return (1.4 if any(n in name for n in ("q_proj", "k_proj", "qkv")) else 1) / math.sqrt(fan_in)


def write_checkpoint(folder, size, device):
    folder.mkdir(parents=True)
    settings = shapes.config(shapes.SIZES[size], nested=False)
    shapes.write_json(folder / "config.json", settings)
    shapes.write_json(folder / "generation_config.json", {"do_sample": False, "eos_token_id": [151645, 151643]})
    write_tokenizer(folder)

    def fill(out, name, shape):
        generator = torch.Generator(device).manual_seed(zlib.crc32(name.encode()))
        values = torch.randn(shape, generator=generator, device=device)
        norm = len(shape) == 1 and name.endswith("weight")
        values = values.mul_(0.2).add_(1) if norm else values.mul_(spread(name, shape))
        out.write(values.bfloat16().view(torch.int16).cpu().numpy())

    entries = list(shapes.tensors(shapes.SIZES[size], settings["vision_config"], nested=False))
    shapes.write_tensors(folder, entries, 2, fill)


# Prompts

def picture(path, width, height, seed):
    """Soft colours with sharp rectangles and a little noise."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    pixels = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(np.int16)
    for _ in range(12):
        x, y = rng.integers(0, width), rng.integers(0, height)
        pixels[y:y + rng.integers(8, height // 3), x:x + rng.integers(8, width // 3)] = rng.integers(0, 256, 3)
    pixels += rng.integers(-6, 7, pixels.shape, dtype=np.int16)
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)
    return path


def prompts(folder, small):
    """name, pictures, frames, question. None is made smaller: Pillow before 13 has another order of passes there."""
    folder.mkdir()
    s = 4 if small else 1
    images = [picture(folder / f"image{i}.png", w // s, h // s, i)
              for i, (w, h) in enumerate(((811, 580), (500, 333), (273, 640), (448, 448)))]
    frames = [picture(folder / f"frame{i}.png", 470, 270, 10 + i // 2) for i in range(4 if small else 8)]
    return [("text", [], [], TEXT), ("image", images[:1], [], "Describe this image."),
            ("images", images[1:], [], "What do these three pictures have in common?"),
            ("video", [], frames, "What happens in this clip?")]


class Inputs:
    """What transformers' processor makes of a prompt; pictures and frames through Pillow."""

    def __init__(self, model):
        self.tokenizer = AutoTokenizer.from_pretrained(model)
        self.processor = Qwen2VLImageProcessorPil.from_pretrained(model)
        self.template = json.loads((model / "chat_template.json").read_text())["chat_template"]

    def patches(self, path):
        out = self.processor(images=[Image.open(path).convert("RGB")], return_tensors="pt")
        return out["pixel_values"], out["image_grid_thw"]

    def clip(self, frames):
        slices = []
        for a, b in zip(frames[0::2], frames[1::2]):
            (first, grid), (second, _) = self.patches(a), self.patches(b)
            both = first.reshape(-1, 3, 2, 14, 14).clone()
            both[:, :, 1] = second.reshape(both.shape)[:, :, 1]
            slices.append(both.reshape(first.shape))
        return torch.cat(slices), grid * torch.tensor([len(slices), 1, 1])

    def make(self, images, frames, question):
        out, grids = {}, {IMAGE: [], VIDEO: []}
        if images:
            pixels, grids[IMAGE] = zip(*map(self.patches, images))
            out.update(pixel_values=torch.cat(pixels), image_grid_thw=torch.cat(grids[IMAGE]))
        if frames:
            out["pixel_values_videos"], grid = self.clip(frames)
            grids[VIDEO] = [grid]
            out.update(video_grid_thw=grid, second_per_grid_ts=torch.tensor([2.0]))  # one frame a second
        parts = [{"type": "image"}] * len(images) + [{"type": "video"}] * bool(frames)
        parts.append({"type": "text", "text": question})
        text = self.tokenizer.apply_chat_template([{"role": "user", "content": parts}], chat_template=self.template,
                                                  tokenize=False, add_generation_prompt=True)
        counts = {token: [int(g.prod()) // 4 for g in of] for token, of in grids.items()}
        ids = []
        for token in self.tokenizer.encode(text, add_special_tokens=False):
            ids += [token] * (counts[token].pop(0) if token in counts else 1)
        return ids, out


# Runs

def saccade(args, model, case, extra):
    _, images, frames, question = case
    return saccade_run.answer(args.saccade, model, question, extra, images, frames, args.device, args.timeout)


class Stages:
    """Values of every stage at the prompt's positions, by the names of docs/dump.md."""

    def __init__(self, model, prompt):
        self.values, inner = {}, model.model
        modules = {"vision.patch_embed": inner.visual.patch_embed, "vision.merger": inner.visual,
                   **{f"vision.block.{i}": m for i, m in enumerate(inner.visual.blocks)},
                   **{f"text.layer.{i}": m for i, m in enumerate(inner.language_model.layers)}}
        self.hooks = [m.register_forward_hook(self.keep(name, prompt)) for name, m in modules.items()]

    def keep(self, name, prompt):
        def hook(_, __, out):
            value = getattr(out, "pooler_output", out)
            value = value[0] if isinstance(value, tuple) else value
            value = value.detach().reshape(-1, value.shape[-1])
            self.values[name] = (value[:prompt] if name.startswith("text") else value).float().cpu().numpy()
        return hook


def transformers_run(model, ids, prompt, inputs):
    """Logits of the answer's tokens, and the stages of the prompt."""
    at = next(model.parameters())
    ids = torch.tensor([ids], device=at.device)
    kinds = (ids == IMAGE).long() + 2 * (ids == VIDEO).long()
    inputs = {k: v.to(at.device, at.dtype if k.startswith("pixel") else None) for k, v in inputs.items()}
    stages = Stages(model, prompt)
    model.model.rope_deltas = None
    with torch.no_grad():
        logits = model(input_ids=ids, mm_token_type_ids=kinds, attention_mask=torch.ones_like(ids), use_cache=False,
                       logits_to_keep=ids.shape[1] - prompt + 1, **inputs).logits[0, :-1].float()
    for hook in stages.hooks:
        hook.remove()
    return logits.cpu().numpy().astype(np.float64), stages.values


# Comparison

def relative(value, reference):
    return float(np.linalg.norm(value - reference) / np.linalg.norm(reference))


def dumped(folder, name):
    """All steps of one name, one after the other."""
    files = sorted(folder.glob(f"{name}.step*.npy"), key=lambda f: int(f.stem.rpartition("step")[2]))
    return np.concatenate([np.load(f) for f in files])


def wrong_patches(folder, pixels):
    found, wanted = dumped(folder, "vision.patches"), pixels.bfloat16().float().numpy()
    wrong = (found != wanted).any(1)
    if wrong.any():
        rows = np.flatnonzero(wrong)
        print(f"  {folder.name}: {rows.size} of {wrong.size} patches differ, {rows[0]} to {rows[-1]}, by up to "
              f"{np.abs(found - wanted).max()}")
    return int(wrong.sum())


def log_softmax(x):
    shifted = x - x.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def compare(case, inputs, answer, dump, bf16, f32):
    (bf16_logits, bf16_stages), (f32_logits, f32_stages) = bf16, f32
    tokens, best = np.array(answer["token_ids"]), f32_logits.argmax(-1)
    steps = np.arange(len(tokens))
    patches = sum(wrong_patches(dump, inputs[key]) for key in ("pixel_values", "pixel_values_videos") if key in inputs)
    stages = {n: (relative(dumped(dump, n), v), relative(bf16_stages[n], v)) for n, v in f32_stages.items()}
    worst = max(stages, key=lambda n: stages[n][0] / stages[n][1])
    first = relative(dumped(dump, "text.logits")[-1], f32_logits[0]), relative(bf16_logits[0], f32_logits[0])

    top = [[(t["id"], t["logprob"]) for t in step["top"]] for step in answer["logprobs"][1:]]
    ids, found = (np.array([[pair[i] for pair in step] for step in top]) for i in (0, 1))
    want, theirs = (np.take_along_axis(log_softmax(x[1:]), ids.astype(np.int64), 1) for x in (f32_logits, bf16_logits))
    rms = lambda x: float(np.sqrt(np.mean(np.square(x))))
    decode = rms(found - want), rms(theirs - want)

    noise = rms(bf16_logits - f32_logits)
    missed = (f32_logits[steps, best] - f32_logits[steps, tokens])[tokens != best]
    allowed = BOUND * 4 * math.sqrt(2) * noise
    errors = {"stages": stages[worst], "logits": first, "logprobs": decode}
    ratios = {what: ours / theirs for what, (ours, theirs) in errors.items()}
    return {
        "case": case, "prompt_tokens": len(answer["prompt_token_ids"]), "tokens": len(tokens),
        "distinct_tokens": len(set(tokens.tolist())), "logits_std": f32_logits.std(), "wrong_patches": patches,
        "worst_stage": worst,
        "stage_error": stages[worst], "logits_error": first, "logprobs_error": decode,
        "best_tokens": [int((tokens == best).sum()), int((bf16_logits.argmax(-1) == best).sum())],
        "missed_by": missed.tolist(), "allowed_miss": allowed, "ratios": ratios,
        "pass": bool(patches == 0 and max(ratios.values()) <= BOUND and (missed <= allowed).all())}, stages


def run_size(args, size):
    folder = args.work / size
    shutil.rmtree(folder, ignore_errors=True)
    clock = time.monotonic()

    def stamp(what):
        nonlocal clock
        print(f"  {time.monotonic() - clock:6.1f} s {what}", flush=True)
        clock = time.monotonic()

    model = folder / "model"
    write_checkpoint(model, size, args.device)
    if args.device == "cuda":
        torch.cuda.empty_cache()
    stamp("write the checkpoint")
    cases = prompts(folder / "media", size == "tiny")
    with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        decode = ["--max-tokens", args.tokens, "--logprobs", args.logprobs]
        runs = {c[0]: [pool.submit(saccade, args, model, c, extra)
                       for extra in (decode, ["--max-tokens", 1, "--dump", folder / c[0]])] for c in cases}
    results, answers = [], {}
    for name, (answer, dump) in runs.items():
        error = answer.exception() or dump.exception()
        if error:
            results.append({"case": name, "error": str(error), "pass": False})
        else:
            answers[name] = answer.result()
    load = answers[min(answers)]["timings_ms"]["load"] / 1e3 if answers else 0
    stamp(f"Saccade, loading {load:.1f} s a time")

    maker, inputs = Inputs(model), {}
    for name, images, frames, question in (c for c in cases if c[0] in answers):
        ids, inputs[name] = maker.make(images, frames, question)
        if ids != answers[name]["prompt_token_ids"]:
            raise RuntimeError(f"{name}: prompt ids differ")
    runs = {}
    reference = Qwen2_5_VLForConditionalGeneration.from_pretrained(model, dtype=torch.bfloat16,
                                                                   attn_implementation="sdpa").eval().to(args.device)
    for dtype in (torch.bfloat16, torch.float32):
        if dtype == torch.float32:
            reference = reference.float()  # to(bfloat16) would round the frequencies of the rotation as well
        for name, answer in answers.items():
            prompt = answer["prompt_token_ids"]
            runs[name, dtype] = transformers_run(reference, prompt + answer["token_ids"], len(prompt), inputs[name])
    del reference
    stamp("transformers")

    for name in answers:
        result, stages = compare(name, inputs[name], answers[name], folder / name, runs[name, torch.bfloat16],
                                 runs[name, torch.float32])
        results.append(result)
        if args.stages or not result["pass"]:
            for stage, (ours, theirs) in stages.items():
                print(f"  {name} {stage}: {ours:.5f} {theirs:.5f} {ours / theirs:.2f}")
    stamp("compare")
    shutil.rmtree(folder)
    return results


def table(size, results):
    print(f"\nqwen2.5-vl {size}: error against float32, Saccade / transformers bfloat16 = ratio (bound {BOUND})")
    print("prompt  tokens  logits std  worst stage                                  first token's logits     "
          "decoded logprobs         best tokens  missed by (allowed)")
    for r in results:
        if "error" in r:
            print(f"{r['case']:7} FAILED: {r['error']}")
            continue
        pair = lambda kind: "{:.5f} / {:.5f} = {:.2f}".format(*r[kind], r[kind][0] / r[kind][1])
        missed = "{:.3f} ({:.3f})".format(max(r["missed_by"], default=0), r["allowed_miss"])
        best = "{}, {} of {}".format(*r["best_tokens"], r["tokens"])
        print(f"{r['case']:7} {r['prompt_tokens']:6}  {r['logits_std']:10.2f}  {r['worst_stage']:18} "
              f"{pair('stage_error'):25} {pair('logits_error'):24} {pair('logprobs_error'):24} {best}  {missed}  "
              f"{'' if r['pass'] else 'FAILED'}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("saccade", type=pathlib.Path, help="the binary")
    parser.add_argument("--size", action="append", choices=shapes.SIZES, help="may be repeated (default tiny)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="of both")
    parser.add_argument("--work", type=pathlib.Path, default=pathlib.Path("/tmp/parity"), help="checkpoints go here")
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--logprobs", type=int, default=20, help="alternatives compared of each token")
    parser.add_argument("--jobs", type=int, default=1, help="runs of Saccade at a time")
    parser.add_argument("--timeout", type=float, default=300, help="seconds for one run of Saccade")
    parser.add_argument("--stages", action="store_true", help="list every stage")
    parser.add_argument("--json", type=pathlib.Path, help="write the results to this file")
    args = parser.parse_args()
    args.saccade = args.saccade.resolve()

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    report = {"bound": BOUND, "torch": torch.__version__, "transformers": transformers.__version__,
              "pillow": PIL.__version__,
              "device": torch.cuda.get_device_name() if args.device == "cuda" else "cpu", "sizes": {}}
    for size in args.size or ["tiny"]:
        report["sizes"][size] = run_size(args, size)
        table(size, report["sizes"][size])
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n")
    sys.exit(0 if all(r["pass"] for results in report["sizes"].values() for r in results) else 1)


if __name__ == "__main__":
    main()
