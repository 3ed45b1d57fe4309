#!/usr/bin/env python3
"""Saccade beside llama.cpp on one machine in one go: prefill and decode of the same shapes in bf16, text only.

usage: beside_llama_cpp.py SACCADE LLAMA_BENCH MODEL.gguf OUT.json [--synthetic NAME] [--prompt 128] [--tokens 24] [--rounds 3]
  LLAMA_BENCH and MODEL.gguf: llama.cpp's llama-bench and its bf16 conversion of the same shapes.
The two take turns, so that a busy minute of the machine hits both.
"""
import argparse
import json
import statistics
import subprocess
import tempfile

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
for name in ("saccade", "llama_bench", "gguf", "out"):
    parser.add_argument(name)
parser.add_argument("--synthetic", default="qwen2.5-vl-3b")
parser.add_argument("--prompt", type=int, default=128)
parser.add_argument("--tokens", type=int, default=24)
parser.add_argument("--rounds", type=int, default=3)
parser.add_argument("--threads", type=int, default=2)
args = parser.parse_args()


def saccade():
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        subprocess.run([args.saccade, "bench", "--synthetic", args.synthetic, "--prompt-tokens", str(args.prompt), "--tokens",
                        str(args.tokens), "--runs", "3", "--threads", str(args.threads), "--quiet", "--json", file.name],
                       check=True, stdout=subprocess.DEVNULL)
        return json.load(open(file.name))


def llama():
    out = subprocess.run([args.llama_bench, "-m", args.gguf, "-p", str(args.prompt), "-n", str(args.tokens), "-t",
                          str(args.threads), "-r", "3", "-o", "json"], check=True, capture_output=True, text=True).stdout
    rows = json.loads(out)
    return {"prefill": next(r["avg_ts"] for r in rows if r["n_gen"] == 0),
            "decode": next(r["avg_ts"] for r in rows if r["n_prompt"] == 0), "build": rows[0].get("build_commit")}


ours, theirs = [], []
for _ in range(args.rounds):
    ours.append(saccade())
    theirs.append(llama())

result = {"what": __doc__.split("\n")[0], "saccade": ours, "llama.cpp": theirs}
for stage in ("prefill", "decode"):
    a = statistics.median(r["rates"][stage]["tokens_per_second"] for r in ours)
    b = statistics.median(r[stage] for r in theirs)
    result[stage] = {"saccade": a, "llama.cpp": b, "ratio": a / b}
    print(f"{stage}: saccade {a:.2f} tok/s, llama.cpp {b:.2f} tok/s, ratio {a / b:.2f}")
json.dump(result, open(args.out, "w"), indent=1)
