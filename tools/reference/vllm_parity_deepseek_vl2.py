#!/usr/bin/env python3
"""Compares Saccade with vLLM on a DeepSeek-VL2 checkpoint: text, one picture in tiles, two pictures, three
without tiles.

  make_random_deepseek_vl2.py DIR --size small --spread --set language_config.num_hidden_layers=4 \\
      --set language_config.n_routed_experts=12
  vllm_parity_deepseek_vl2.py build/cpu/apps/saccade DIR PICTURE PICTURE [--json FILE]

vLLM builds the published vision tower whatever config.json says of it, so the tower has its full size. Saccade
answers greedily in bfloat16 on the CPU; vLLM (bfloat16, a GPU) and deepseek_vl2.py (float32, CPU) read prompt and
answer. Prompt ids must be equal in all three: the numbers of tiles and tokens are vLLM's own. The errors of the
log-probabilities of the likeliest tokens against float32 are compared; the median must be at most BOUND times that of
vLLM. Means say little, since a close choice of experts may fall either way.
Exit code 1 if anything differs by more. Reference versions: vLLM 0.26.0, torch 2.11.0.
"""

import argparse
import concurrent.futures
import json
import pathlib
import sys

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

import saccade_run
from deepseek_vl2 import Model, Processor

BOUND = 1.5
TOP = 20


def cases(pictures):
    first, second = pictures
    return [
        ("text", [], "Where does the light of the moon come from, and why does its shape change?"),
        ("picture", [first], "Describe this picture."),
        ("two pictures", [first, second], "What is different in these pictures?"),
        ("three pictures", [first, second, first], "Which of these pictures are alike?"),
    ]


def one_id_a_picture(ids, image_id, counts):
    """vLLM takes one placeholder for each picture and puts in as many as the picture has tokens."""
    out, at, counts = [], 0, iter(counts)
    while at < len(ids):
        out.append(ids[at])
        at += next(counts) if ids[at] == image_id else 1
    return out


def start_vllm(args):
    from vllm import LLM

    return LLM(
        model=str(args.checkpoint),
        dtype="bfloat16",
        enforce_eager=True,
        max_model_len=4096,
        gpu_memory_utilization=args.gpu_memory,
        limit_mm_per_prompt={"image": 4},
        enable_prefix_caching=False,
        mm_processor_cache_gb=0,
        hf_overrides={"architectures": ["DeepseekVLV2ForCausalLM"]},
    )


def vllm_logprobs(llm, prompts):
    """For each (ids, pictures) the ids as vLLM sees them, and of each place {id: log-probability}."""
    from vllm import SamplingParams

    requests = []
    for ids, pictures in prompts:
        request = {"prompt_token_ids": ids}
        if pictures:
            request["multi_modal_data"] = {"image": [Image.open(p).convert("RGB") for p in pictures]}
        requests.append(request)
    out = llm.generate(requests, SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=TOP), use_tqdm=False)
    return [
        (list(o.prompt_token_ids), [{i: v.logprob for i, v in (p or {}).items()} for p in o.prompt_logprobs])
        for o in out
    ]


@torch.no_grad()
def float_logprobs(model, ids, media, image_id, answer):
    """[answer, V] of the last `answer` tokens."""
    logits, _ = model.forward(model.embed(ids, media, image_id), rows=answer + 1)
    return F.log_softmax(logits[:-1], -1).numpy()


def answer_all(args):
    """By Saccade, and float32's reading of it: (name, pictures, ids that vLLM takes, answer, log-probabilities)."""
    processor, model = Processor(args.checkpoint), Model.load(args.checkpoint, torch.float32)
    extra = ["--max-tokens", args.tokens, "--logprobs", TOP]
    done = []
    for name, pictures, question in cases(args.pictures):
        content = [{"type": "image", "path": str(p)} for p in pictures] + [{"type": "text", "text": question}]
        ids, media = processor.prepare([{"role": "user", "content": content}])
        answer = saccade_run.answer(args.saccade, args.checkpoint, question, extra, pictures)
        if answer["prompt_token_ids"] != ids:
            raise RuntimeError(f"{name}: Saccade's prompt ids differ from deepseek_vl2.py's")
        short = one_id_a_picture(ids, processor.image_id, [processor.image_tokens(*crop) for _, crop in media])
        tokens = answer["token_ids"]
        reference = float_logprobs(model, ids + tokens, media, processor.image_id, len(tokens))
        done.append((name, pictures, short + tokens, answer, reference))
        print(f"{name}: {len(ids)} tokens, answered and read", flush=True)
    return done


def compare(name, answer, theirs, reference):
    """`theirs`: ids and log-probabilities of the answer's places, `reference` [answer, V]."""
    ours_error, their_error, best = [], [], [0, 0]
    for step, other, exact in zip(answer["logprobs"], theirs, reference):
        top = {t["id"]: t["logprob"] for t in step["top"]}
        for token in top.keys() & other.keys():
            ours_error.append(abs(top[token] - exact[token]))
            their_error.append(abs(other[token] - exact[token]))
        best[0] += max(top, key=top.get) == exact.argmax()
        best[1] += max(other, key=other.get) == exact.argmax()
    ours, theirs = np.array(ours_error), np.array(their_error)
    return {
        "case": name,
        "prompt_tokens": len(answer["prompt_token_ids"]),
        "tokens": len(answer["token_ids"]),
        "compared": len(ours),
        "spread": float(reference.std()),
        "median_error": [float(np.median(ours)), float(np.median(theirs))],
        "p90_error": [float(np.quantile(ours, 0.9)), float(np.quantile(theirs, 0.9))],
        "best_tokens": [int(n) for n in best],
        "pass": bool(np.median(ours) <= BOUND * np.median(theirs)),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("saccade", type=pathlib.Path)
    parser.add_argument("checkpoint", type=pathlib.Path)
    parser.add_argument("pictures", type=pathlib.Path, nargs=2)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--gpu-memory", type=float, default=0.5, help="share of the GPU's memory that vLLM takes")
    parser.add_argument("--json", type=pathlib.Path)
    args = parser.parse_args()

    with concurrent.futures.ThreadPoolExecutor(1) as pool:  # vLLM takes a minute or more to start
        answering = pool.submit(answer_all, args)
        llm = start_vllm(args)
        done = answering.result()
    seen = vllm_logprobs(llm, [(ids, pictures) for _, pictures, ids, _, _ in done])
    results = []
    print("error of log-probabilities against float32, Saccade / vLLM")
    print(f"{'prompt':<16}{'tokens':>7}{'spread':>8}  {'median':<26}{'90th of 100':<22}best tokens")
    for (name, _, _, answer, reference), (vllm_ids, theirs) in zip(done, seen):
        ids = answer["prompt_token_ids"]
        if vllm_ids != ids + answer["token_ids"]:
            sys.exit(f"{name}: vLLM's prompt ids differ: {len(vllm_ids)} of {len(ids) + len(answer['token_ids'])}")
        result = compare(name, answer, theirs[len(ids) :], reference)
        results.append(result)
        (a, b), (c, d) = result["median_error"], result["p90_error"]
        print(
            f"{name:<16}{len(ids):>7}{result['spread']:>8.2f}  {a:.4f} / {b:.4f} = {a / b:<8.2f}{c:.4f} / {d:.4f}"
            f"       {result['best_tokens'][0]}, {result['best_tokens'][1]} of {result['tokens']}"
            f"{'' if result['pass'] else '  FAILED'}"
        )
    if args.json:
        args.json.write_text(json.dumps({"bound": BOUND, "cases": results}, indent=1) + "\n")
    sys.exit(not all(r["pass"] for r in results))


if __name__ == "__main__":
    main()
