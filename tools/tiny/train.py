"""Trains the tiny Qwen2.5-VL and writes its folder. See README.md for the command of the committed checkpoint."""

import argparse
import json
import shutil
import time
from multiprocessing import Pool
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

import checkpoint
import draw
import feed
import optimizer
import packing
import scenes
from model import Layer, Model, VisionBlock


def held_out_record(task):
    seed, kind, i, tokenizer = task
    rng = np.random.default_rng([seed, 2, scenes.KINDS.index(kind), i])
    return packing.record(scenes.held_out_sample(rng, kind), Tokenizer.from_file(tokenizer))


def exact_turns(logits, batch):
    """Per turn: whether every answer token is the most likely one, which is when greedy decoding gives the answer."""
    right = (logits.argmax(-1) == batch["labels"]).to(torch.int32)
    wrong = torch.zeros(len(batch["kinds"]), dtype=torch.int32, device=right.device).index_add_(
        0, batch["owner"], 1 - right
    )
    return wrong == 0


@torch.no_grad()
def evaluate(model, records, special, device, dtype=torch.bfloat16):
    block = packing.Block(records)
    pixels = torch.from_numpy(block.data["pixels"]).to(device)
    right, total = np.zeros(len(scenes.KINDS)), np.zeros(len(scenes.KINDS))
    for at in range(0, len(records), 128):
        batch = packing.gather([(block, i, 0) for i in range(at, min(at + 128, len(records)))], special, pixels, device)
        exact = exact_turns(model(batch, dtype), batch).cpu().numpy()
        kinds = batch["kinds"].cpu().numpy()
        turns = np.diff(block.ends["kinds"])[at : at + 128]
        for end, n in zip(np.cumsum(turns), turns):
            right[kinds[end - 1]] += exact[end - 1]
            total[kinds[end - 1]] += 1
    report = {k: right[i] / total[i] for i, k in enumerate(scenes.KINDS) if total[i]}
    report["overall"] = right.sum() / total.sum()
    return report


def save(model, path):
    weights = {k: v.detach().to(torch.bfloat16).cpu().contiguous() for k, v in model.state_dict().items()}
    save_file(weights, path, metadata={"format": "pt"})


def rate(progress, step, warm=150, flat=0.35):
    """Warm up, hold, then fall linearly to zero."""
    down = 1.0 if progress < flat else max(0.0, (1 - progress) / (1 - flat))
    return min(1.0, (step + 1) / warm) * down


def line(report):
    return " ".join(f"{k} {100 * v:.1f}" for k, v in report.items())


def main():
    parser = argparse.ArgumentParser()
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder of the checkpoint")
    add("--log", type=Path, default=Path("build/tiny"), help="folder of train.log and heldout.json")
    add("--init", type=Path, help="checkpoint folder to start from")
    add("--tokenizer", type=Path, help="tokenizer.json to use; learnt anew if not given")
    add("--steps", type=int, default=1 << 30)
    add("--seconds", type=float, default=1e9, help="stop after this time; the learning rate falls to zero by then")
    add("--seed", type=int, default=1)
    add("--batch", type=int, default=260, help="samples of a step, about: packing.CAPACITY decides")
    add("--lr", type=float, default=3e-3)
    add("--flat", type=float, default=0.35, help="part of the run before the learning rate falls")
    add("--room", type=float, default=1.0, help="part of packing.CAPACITY to use, for trials on a CPU")
    add("--block", type=int, default=512, help="samples in a block")
    add("--reuse", type=float, default=3.0, help="how often a sample is used on average")
    add("--first", type=int, default=16, help="blocks drawn before the first step")
    add("--window", type=int, default=320, help="latest blocks that steps draw from")
    add("--workers", type=int, default=13)
    add("--collators", type=int, default=2)
    add("--held-out", type=int, default=200, help="held-out samples per kind")
    add("--spool", default="/dev/shm/tiny-spool")
    add("--graph", action="store_true", help="replay each step as one CUDA graph")
    add("--compile", action="store_true", help="compile the blocks of both towers")
    add("--fonts", type=Path, help="folder of the DejaVu fonts")
    args = parser.parse_args()
    if args.fonts:
        draw.FONT_FOLDER = args.fonts
    packing.CAPACITY.update({k: int(v * args.room) // 4 * 4 for k, v in packing.CAPACITY.items()})
    begin = time.time()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    shutil.rmtree(args.spool, ignore_errors=True)
    tokenizer = checkpoint.write_files(args.out, args.tokenizer)
    special = {k: tokenizer.token_to_id(f"<|{k}|>") for k in ("image_pad", "video_pad")}
    scenes.handwriting(False)
    draw.noise_bank()
    args.log.mkdir(parents=True, exist_ok=True)
    log_file = open(args.log / "train.log", "w")

    def log(text):
        print(text, flush=True)
        log_file.write(text + "\n")
        log_file.flush()

    tasks = [(args.seed, k, i, str(args.out / "tokenizer.json")) for k in scenes.KINDS for i in range(args.held_out)]
    with Pool(args.workers) as pool:  # before CUDA starts: workers are forked
        records = pool.map(held_out_record, tasks, chunksize=16)
    source = feed.Feed(args, tokenizer, special, device)
    source.start()
    log(f"{time.time() - begin:.1f} s: {len(records)} held-out samples")

    torch.manual_seed(args.seed)
    model = Model(checkpoint.config(tokenizer))
    if args.init:
        model.load_state_dict({k: v.float() for k, v in load_file(args.init / "model.safetensors").items()})
    model.to(device)
    log(f"{sum(p.numel() for p in model.parameters())} parameters, device {device}, arguments {vars(args)}")
    if device == "cuda":
        torch.cuda.set_stream(torch.cuda.Stream())
    eager = VisionBlock.forward, Layer.forward
    if args.compile:
        VisionBlock.forward = torch.compile(VisionBlock.forward, dynamic=False)
        Layer.forward = torch.compile(Layer.forward, dynamic=False)
    muon, adam = optimizer.build(model)
    muon_lr, adam_lr = torch.zeros((), device=device), adam.param_groups[0]["lr"]
    sums = torch.zeros(2, len(scenes.KINDS) + 1, device=device)
    running = torch.zeros((), device=device)
    source.open()

    def train_step():
        batch = source.view()
        logits = model(batch, dtype).float()
        loss = (F.cross_entropy(logits, batch["labels"], reduction="none") * batch["weight"]).sum() / batch[
            "weight"
        ].sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adam.step()
        muon.step(muon_lr)
        with torch.no_grad():
            running.add_(loss.detach())
            exact = exact_turns(logits, batch).float()
            sums[0].index_add_(0, batch["kinds"], exact)
            sums[1].index_add_(0, batch["kinds"], torch.ones_like(exact))

    graph = None
    step, waited, reported = 0, 0.0, 0
    start = saved = time.time()
    while True:
        progress = max(step / args.steps, (time.time() - start) / args.seconds)
        if progress >= 1:
            break
        t = time.time()
        source.advance(step)
        waited += time.time() - t
        lr = args.lr * rate(progress, step, flat=args.flat)
        muon_lr.fill_(lr)
        adam_lr.fill_(0.6 * lr)
        if graph:
            graph.replay()
        else:
            train_step()
            model.zero_grad(set_to_none=True)
            if args.graph and step == 10:
                torch.cuda.synchronize()
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph, stream=torch.cuda.current_stream(), capture_error_mode="thread_local"):
                    train_step()
                log(f"captured a step after {time.time() - start:.1f} s")
        step += 1
        if step % 500 == 0 or step in (1, 10, 50, 200):
            right, total = sums.cpu().numpy()
            report = {k: right[i] / total[i] for i, k in enumerate(scenes.KINDS) if total[i]}
            now = time.time() - start
            log(
                f"step {step} {now:.1f} s wait {waited:.1f} s lr {lr:.2e} loss {running.item() / (step - reported):.4f} "
                f"blocks {source.loaded} | {line(report)}"
            )
            sums.zero_()
            running.zero_()
            reported = step
            if time.time() - saved > 60:
                save(model, args.out / "model.safetensors")
                saved = time.time()
    log(f"trained {step} steps in {time.time() - start:.1f} s, {source.loaded} blocks of {args.block} samples")
    source.stop()
    save(model, args.out / "model.safetensors")
    if device == "cuda":
        log(f"peak GPU memory {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB")
    VisionBlock.forward, Layer.forward = eager
    model.load_state_dict({k: v.float() for k, v in load_file(args.out / "model.safetensors").items()})
    report = evaluate(model.eval(), records, special, device, dtype)
    log("held out: " + line(report))
    (args.log / "heldout.json").write_text(
        json.dumps({k: round(float(v), 4) for k, v in report.items()}, indent=2) + "\n"
    )
    shutil.rmtree(args.spool, ignore_errors=True)


if __name__ == "__main__":
    main()
