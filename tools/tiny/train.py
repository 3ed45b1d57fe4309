"""Trains a tiny model and writes its folder. See README.md for the commands of the committed checkpoints."""

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

import batches
import draw
import families
import feed
import grounding
import optimizer
import scenes


def held_out_record(task):
    """Records of a held-out sample: with its answer, and of kind grounding also without."""
    record, seed, kind, i, tokenizer = task
    rng = np.random.default_rng([seed, 2, scenes.STYLE.kinds.index(kind), i])
    sample, tokenizer = scenes.held_out_sample(rng, kind), Tokenizer.from_file(tokenizer)
    return record(sample, tokenizer), record(sample, tokenizer, open_end=True) if kind == "grounding" else None


def exact_turns(logits, batch):
    """Per turn: whether every answer token is the most likely one, which is when greedy decoding gives the answer."""
    right = (logits.argmax(-1) == batch["labels"]).to(torch.int32)
    wrong = torch.zeros(len(batch["kinds"]), dtype=torch.int32, device=right.device).index_add_(
        0, batch["owner"], 1 - right
    )
    return wrong == 0


def greedy(model, prompts, packing, layout, device, dtype, end, most=64):
    """Tokens of greedy decoding after each prompt (a record with an open end), up to the token `end`."""
    pixels = torch.from_numpy(batches.Block(prompts).data["pixels"]).to(device)
    said = [[] for _ in prompts]
    for _ in range(most):
        block = batches.Block(prompts)
        batch = batches.gather([(block, i, 0) for i in range(len(prompts))], layout, pixels, device)
        batch["asked"] = batch["sequences"][0][1:].long() - 1
        for tokens, token in zip(said, model(batch, dtype).argmax(-1).tolist()):
            if end not in tokens:
                tokens.append(token)
        if all(end in tokens for tokens in said):
            break
        prompts = [packing.extended(p, tokens[-1]) for p, tokens in zip(prompts, said)]
    return [tokens[: tokens.index(end)] if end in tokens else tokens for tokens in said]


@torch.no_grad()
def evaluate(model, records, family, layout, tokenizer, device, dtype=torch.bfloat16):
    """Part of the last turns answered exactly, by kind; boxes need only overlap by half."""
    full = [r for r, _ in records]
    block = batches.Block(full)
    pixels = torch.from_numpy(block.data["pixels"]).to(device)
    exact = []
    for at in range(0, len(full), 128):
        some = range(at, min(at + 128, len(full)))
        batch = batches.gather([(block, i, 0) for i in some], layout, pixels, device)
        turns = np.cumsum(np.diff(block.ends["kinds"])[at : at + 128])
        exact += exact_turns(model(batch, dtype), batch).cpu().numpy()[turns - 1].tolist()
    boxed = [i for i, (_, prompt) in enumerate(records) if prompt]
    for at in range(0, len(boxed), 128):
        some = boxed[at : at + 128]
        end = tokenizer.token_to_id(family.checkpoint.END)
        said = greedy(model, [records[i][1] for i in some], family.packing, layout, device, dtype, end)
        for i, tokens in zip(some, said):
            truth = full[i]["ids"][full[i]["turn"] > 0][:-1].tolist()
            texts = [tokenizer.decode(t, skip_special_tokens=False) for t in (tokens, truth)]
            exact[i] = grounding.right(*texts)
    right, total = np.zeros(len(layout.kinds)), np.zeros(len(layout.kinds))
    for record, good in zip(full, exact):
        right[record["kinds"][-1]] += good
        total[record["kinds"][-1]] += 1
    report = {k: right[i] / total[i] for i, k in enumerate(layout.kinds) if total[i]}
    report["overall"] = right.sum() / total.sum()
    return report


def load(model, path):
    model.load_published({k: v.float() for k, v in load_file(path).items()})


def save(model, path):
    weights = {k: v.detach().to(torch.bfloat16).cpu().contiguous() for k, v in model.published().items()}
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
    add("--model", choices=list(families.PACKAGES), default="qwen2.5-vl")
    add("--out", type=Path, required=True, help="folder of the checkpoint")
    add("--log", type=Path, default=Path("build/tiny"), help="folder of train.log and heldout.json")
    add("--init", type=Path, help="checkpoint folder to start from")
    add("--tokenizer", type=Path, help="tokenizer.json to use; learnt anew if not given")
    add("--steps", type=int, default=1 << 30)
    add("--seconds", type=float, default=1e9, help="stop after this time; the learning rate falls to zero by then")
    add("--seed", type=int, default=1)
    add("--batch", type=int, default=260, help="samples of a step, about: the capacity of the layout decides")
    add("--lr", type=float, default=3e-3)
    add("--flat", type=float, default=0.35, help="part of the run before the learning rate falls")
    add("--room", type=float, default=1.0, help="part of the capacity to use, for trials on a CPU")
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
    family = families.use(args.model)
    begin = time.time()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    torch.backends.cuda.enable_cudnn_sdp(False)  # flash attention is as fast at these sizes
    shutil.rmtree(args.spool, ignore_errors=True)
    tokenizer = family.checkpoint.write_files(args.out, args.tokenizer)
    layout = family.packing.layout(tokenizer)
    layout.capacity.update({k: int(v * args.room) // 4 * 4 for k, v in layout.capacity.items()})
    scenes.handwriting(False)
    draw.noise_bank()
    args.log.mkdir(parents=True, exist_ok=True)
    log_file = open(args.log / "train.log", "w")

    def log(text):
        print(text, flush=True)
        log_file.write(text + "\n")
        log_file.flush()

    record, file = family.packing.record, str(args.out / "tokenizer.json")
    tasks = [(record, args.seed, k, i, file) for k in layout.kinds for i in range(args.held_out)]
    with Pool(args.workers) as pool:  # before CUDA starts: workers are forked
        records = pool.map(held_out_record, tasks, chunksize=16)
    source = feed.Feed(args, record, tokenizer, layout, device)
    source.start()
    log(f"{time.time() - begin:.1f} s: {len(records)} held-out samples")

    torch.manual_seed(args.seed)
    model = family.model.Model(family.checkpoint.config(tokenizer))
    if args.init:
        load(model, args.init / "model.safetensors")
    model.to(device)
    log(f"{sum(p.numel() for p in model.parameters())} parameters, device {device}, arguments {vars(args)}")
    if device == "cuda":
        torch.cuda.set_stream(torch.cuda.Stream())
    eager = [(part, part.forward) for part in model.COMPILED]
    if args.compile:
        for part, forward in eager:
            part.forward = torch.compile(forward, dynamic=False)
    muon, adam = optimizer.build(model)
    muon_lr, adam_lr = torch.zeros((), device=device), adam.param_groups[0]["lr"]
    sums = torch.zeros(2, len(layout.kinds) + 1, device=device)
    running = torch.zeros((), device=device)
    source.open()

    def train_step():
        batch = source.view()
        logits = model(batch, dtype).float()
        loss = (F.cross_entropy(logits, batch["labels"], reduction="none") * batch["weight"]).sum() / batch[
            "weight"
        ].sum()
        (loss + model.penalty).backward()
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
            report = {k: right[i] / total[i] for i, k in enumerate(layout.kinds) if total[i]}
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
    for part, forward in eager:
        part.forward = forward
    load(model, args.out / "model.safetensors")
    report = evaluate(model.eval(), records, family, layout, tokenizer, device, dtype)
    log("held out: " + line(report))
    (args.log / "heldout.json").write_text(
        json.dumps({k: round(float(v), 4) for k, v in report.items()}, indent=2) + "\n"
    )
    shutil.rmtree(args.spool, ignore_errors=True)


if __name__ == "__main__":
    main()
