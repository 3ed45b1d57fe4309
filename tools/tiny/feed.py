"""Draws training blocks in many processes and hands packed batches to the trainer in a fixed order.

Block b holds samples seeded by (seed, 0, b, i); step s draws its samples with a generator seeded by (seed, 1, s) from
the blocks visible at that step. So the data of every step follows from the seed alone, however fast blocks are made.
"""

import multiprocessing as mp
import os
import threading
import time
from pathlib import Path

import numpy as np
import torch

import batches
import scenes


class Plan:
    """How many blocks are visible at a step: some to begin with, then one per `reuse` * block samples drawn."""

    def __init__(self, batch, block, reuse, first, window):
        self.batch, self.block, self.reuse, self.first, self.window = batch, block, reuse, first, window

    def visible(self, step):
        return self.first + int(step * self.batch / (self.block * self.reuse))


def draw_blocks(worker, workers, seed, plan, record, tokenizer, spool, limit):
    torch.set_num_threads(1)
    b = worker
    while True:
        while b >= limit.value:
            time.sleep(0.01)
        make = lambda i: record(scenes.training_sample(np.random.default_rng([seed, 0, b, i])), tokenizer)
        block = batches.Block([make(i) for i in range(plan.block)])
        block.data["pixels"].tofile(spool / f"{b}.pixels")
        with open(spool / f"{b}.part", "wb") as f:
            np.savez(
                f,
                **{k: v for k, v in block.data.items() if k != "pixels"},
                **{"end_" + k: v for k, v in block.ends.items()},
            )
        os.rename(spool / f"{b}.part", spool / f"{b}.npz")
        b += workers


def load_block(spool, b):
    block = batches.Block.__new__(batches.Block)
    path = spool / f"{b}.npz"
    while not path.exists():
        time.sleep(0.005)
    with np.load(path) as stored:
        block.ends = {k[4:]: stored[k] for k in stored.files if k.startswith("end_")}
        block.data = {k: stored[k] for k in stored.files if not k.startswith("end_")}
    return block


def collate_steps(part, parts, seed, plan, rows, slots, layout, spool, queue):
    """Batches of the steps part, part + parts, ..."""
    torch.set_num_threads(1)
    blocks, step = {}, part
    while True:
        top = plan.visible(step)
        low = max(0, top - plan.window)
        for b in [b for b in blocks if b < low]:
            del blocks[b]
        for b in range(low, top):
            if b not in blocks:
                blocks[b] = load_block(spool, b)
        rng = np.random.default_rng([seed, 1, step])
        many = 2 * plan.batch
        which = zip(rng.integers(low, top, many).tolist(), rng.integers(0, plan.block, many).tolist())
        chosen = batches.fill([(blocks[b], i, (b % slots) * rows) for b, i in which], layout)
        batch = batches.collate(chosen, layout, fixed=True)
        queue.put((step, np.concatenate([batch[k].view(np.int32).reshape(-1) for k in sorted(batch)])))
        step += parts


class Feed:
    """record(sample, tokenizer) makes the arrays of a sample, layout says how they lie in a batch."""

    def __init__(self, args, record, tokenizer, layout, device):
        self.plan = Plan(args.batch, args.block, args.reuse, args.first, args.window)
        self.rows, self.slots = int(args.block * layout.patches + 1100 * args.block**0.5), args.window + 64
        self.spool = Path(args.spool)
        self.spool.mkdir(parents=True, exist_ok=True)
        self.limit = mp.Value("q", self.plan.first + 24)
        common = dict(daemon=True)
        self.queues = [mp.Queue(maxsize=6) for _ in range(args.collators)]
        self.processes = [
            mp.Process(
                target=draw_blocks,
                args=(w, args.workers, args.seed, self.plan, record, tokenizer, self.spool, self.limit),
                **common,
            )
            for w in range(args.workers)
        ] + [
            mp.Process(
                target=collate_steps,
                args=(k, args.collators, args.seed, self.plan, self.rows, self.slots, layout, self.spool, queue),
                **common,
            )
            for k, queue in enumerate(self.queues)
        ]
        self.loaded = 0
        self.pool = None
        self.device, self.layout = device, layout
        self.loader = threading.Thread(target=self.load, daemon=True)

    def start(self):
        for p in self.processes:
            p.start()

    def load(self):
        """Uploads the pixels of finished blocks in order."""
        staging = torch.empty(self.rows, 588, dtype=torch.uint8, pin_memory=self.device == "cuda")
        stream = torch.cuda.Stream() if self.device == "cuda" else None
        while True:
            b = self.loaded
            while b >= self.limit.value or not (self.spool / f"{b}.npz").exists():
                time.sleep(0.005)
            path = self.spool / f"{b}.pixels"
            rows = path.stat().st_size // 588
            assert rows <= self.rows, "a block has more patches than its slot"
            with open(path, "rb") as f:
                f.readinto(memoryview(staging.numpy()[:rows]).cast("B"))
            at = (b % self.slots) * self.rows
            with torch.cuda.stream(stream):
                self.pool[at : at + rows].copy_(staging[:rows], non_blocking=True)
            if stream:
                stream.synchronize()
            path.unlink()
            (self.spool / f"{b - self.slots - 40}.npz").unlink(missing_ok=True)
            self.loaded += 1

    def open(self):
        """Makes the device's arrays: the pool of pixels and one batch, which every step overwrites."""
        self.pool = torch.zeros(self.slots * self.rows, 588, dtype=torch.uint8, device=self.device)
        shapes = self.layout.shapes()
        self.flat = torch.zeros(sum(int(np.prod(v)) for v in shapes.values()), dtype=torch.int32, device=self.device)
        self.fields, at = {}, 0
        for name in sorted(shapes):
            size = int(np.prod(shapes[name]))
            self.fields[name] = self.flat[at : at + size].view(shapes[name])
            at += size
        self.fields["weight"] = self.fields["weight"].view(torch.float32)
        cuda = self.device == "cuda"
        self.staging = [torch.zeros(self.flat.shape, dtype=torch.int32, pin_memory=cuda) for _ in range(4)]
        self.copied = [torch.cuda.Event() for _ in self.staging] if cuda else []
        self.loader.start()

    def view(self):
        """The batch as the model takes it."""
        return batches.ready(self.fields, self.pool, self.layout, self.layout.longest())

    def advance(self, step):
        """Brings the batch of a step to the device."""
        self.limit.value = self.plan.visible(step) + 40
        while self.loaded < self.plan.visible(step):
            time.sleep(0.001)
            if not self.loader.is_alive() or not all(p.is_alive() for p in self.processes):
                raise RuntimeError("a process that draws or loads samples has died")
        got, flat = self.queues[step % len(self.queues)].get()
        assert got == step
        k = step % len(self.staging)
        if self.copied:
            self.copied[k].synchronize()
        np.copyto(self.staging[k].numpy(), flat)
        self.flat.copy_(self.staging[k], non_blocking=True)
        if self.copied:
            self.copied[k].record()

    def stop(self):
        for p in self.processes:
            p.terminate()
        for p in self.processes:
            p.join(timeout=5)
