#!/usr/bin/env python3
"""Saccade beside vLLM and transformers on one machine in one go: the reference jobs, greedy, random weights of published shapes.

usage: beside_peers.py SACCADE OUT.json --image PHOTO [--image2 PHOTO] [--video CLIP | --frames A,B,...]
                       [--peers DIR --vllm-models DIR] [--model qwen2.5-vl-3b ...] [--job image ...] [--device cuda]

jobs: image     one photo and "Describe this image."
      images    three photos: the first, the second, the first
      video     a clip at one frame a second, each of at most 151200 pixels
      text      997 tokens
      sweep     the text, several at once (--batches)
      pictures  the photo, several at once (--picture-batches)
Without --job, all for which files are given. The peers generate 128 tokens, and one to know the time of the first; Saccade --tokens.

--peers names a folder with vllm_bench.py (called as: MODEL_FOLDER TAG [QUANT], with JOBS and MEDIA in its environment) and
hf_bench.py (called without arguments), which print lines such as
  RESULT 3b image1: prompt 997 tokens, e2e 128 0.474 s (min 0.470), first token 75.8 ms (min 75), decode 319 tok/s (3.13 ms/step)
  HF 3b compile=True: e2e 997+128 0.761 s, first token 120 ms, decode 198 tok/s
--vllm-models names a folder with config, tokenizer and processor of each shape (qwen3b, qwen7b); --media the pictures under the
names that vllm_bench.py expects (default: the folder of --image). A job or peer that fails is reported and left out.

A ratio is the peer's time over Saccade's: above 1, Saccade is faster. Saccade starts from encoded files, vLLM from decoded pictures
and the transformers script from patches, so decoding counts against Saccade.
"""
import argparse
import datetime
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile

PEER_NAMES = {"qwen2.5-vl-3b": ("3b", "qwen3b"), "qwen2.5-vl-7b": ("7b", "qwen7b")}  # tag, folder of --vllm-models
VLLM_KINDS = {"image": "image", "images": "multi", "video": "video", "text": "text", "sweep": "sweep", "pictures": "imgsweep"}
RESULT = re.compile(r"^RESULT (\S+) (.+): prompt (\d+) tokens, e2e \d+ ([\d.]+) s .*first token ([\d.]+) ms .*\(([\d.]+) ms/step\)")
HF = re.compile(r"^HF (\S+) compile=(\w+): e2e (\d+)\+\d+ ([\d.]+) s, first token ([\d.]+) ms, decode ([\d.]+) tok/s")


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, usage=argparse.SUPPRESS)
    parser.add_argument("saccade", help="the program")
    parser.add_argument("out", help="JSON of all results")
    parser.add_argument("--model", action="append", help="synthetic model, may be repeated (default: qwen2.5-vl-3b and -7b)")
    parser.add_argument("--job", action="append", choices=VLLM_KINDS, help="may be repeated (default: all)")
    parser.add_argument("--image", help="the first photo")
    parser.add_argument("--image2", help="the second photo (default: the first)")
    parser.add_argument("--video", help="a clip")
    parser.add_argument("--frames", help="the clip as pictures, separated by commas")
    parser.add_argument("--tokens", type=int, default=128, help="tokens to generate (default 128)")
    parser.add_argument("--runs", type=int, default=5, help="timed runs of a job (default 5)")
    parser.add_argument("--rounds", type=int, default=1, help="the programs take turns this often (default 1)")
    parser.add_argument("--batches", default="2,4,8,16,32,64", help="texts at once in the sweep")
    parser.add_argument("--picture-batches", default="8,32", help="photos at once")
    parser.add_argument("--device", help="of Saccade (default: its own choice)")
    parser.add_argument("--saccade-flags", default="", help="more flags of saccade bench, separated by spaces")
    parser.add_argument("--peers", help="folder of the peers' scripts")
    parser.add_argument("--peer-python", default=sys.executable, help="interpreter of the peers' scripts (default: this one)")
    parser.add_argument("--vllm-models", help="folder of model folders; without it vLLM is left out")
    parser.add_argument("--quant", action="append", help="also vLLM in this form: fp8, awq, gptq8; may be repeated")
    parser.add_argument("--media", help="folder of the peers' pictures (default: that of --image)")
    parser.add_argument("--no-hf", action="store_true", help="leave transformers out")
    parser.add_argument("--limit", type=int, default=600, help="seconds that a command may take (default 600)")
    parser.add_argument("--dry-run", action="store_true", help="print the commands only")
    return parser.parse_args()


def saccade_jobs(args):
    """(name, flags) of each run of `saccade bench`; names are those of vllm_bench.py."""
    image = ["--image", args.image, "--prompt", "Describe this image."]
    text = ["--prompt-tokens", "997"]
    clip = ["--frames", args.frames, "--fps", "1"] if args.frames else ["--video", args.video or "", "--fps", "1"]
    numbers = lambda s: [n for n in s.split(",") if n]
    jobs = {
        "image": [("image1", image)],
        "images": [("images3", ["--image", args.image, "--image", args.image2 or args.image, *image])],
        "video": [("video", [*clip, "--max-pixels", "151200", "--prompt", "Describe this video."])],
        "text": [("text997", text)],
        "sweep": [(f"text997 batch {n}", [*text, "--batch", n]) for n in numbers(args.batches)],
        "pictures": [(f"image1 batch {n}", [*image, "--batch", n]) for n in numbers(args.picture_batches)],
    }
    given = {"image": args.image, "images": args.image, "pictures": args.image, "video": args.video or args.frames}
    return {name: jobs[name] for name in args.job or jobs if given.get(name, True)}


def run(command, args, environment=None, keep_partial=False):
    """The command's output, or None where it failed or was not to run. `keep_partial`: what it wrote before it failed too."""
    changed = [f"{k}={v}" for k, v in (environment or {}).items()]
    print("+", *changed, *(repr(part) if " " in part else part for part in command), file=sys.stderr, flush=True)
    if args.dry_run:
        return None
    try:
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
                                 env={**os.environ, **(environment or {})})
    except OSError as error:
        print(f"  failed: {error}", file=sys.stderr)
        return None
    try:
        out, errors = child.communicate(timeout=args.limit)
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)  # with the workers that it may have started
        out, errors = child.communicate()
        errors += f"took longer than {args.limit} s"
    if child.returncode != 0:
        print(f"  failed ({child.returncode}): {(errors.strip().splitlines() or ['no message'])[-1]}", file=sys.stderr)
    return out if child.returncode == 0 or keep_partial else None


def without_folders(command):
    """Results do not say where things lay."""
    return " ".join(os.path.basename(part.rstrip("/")) for part in command)


def row(prompt, total_s, first_ms, step_ms):
    return {"prompt_tokens": prompt, "total_s": total_s, "first_token_ms": first_ms, "step_ms": step_ms}


def run_saccade(model, flags, args):
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "report.json")
        command = [args.saccade, "bench", "--synthetic", model, *flags, "--tokens", str(args.tokens), "--runs", str(args.runs), "--quiet",
                   "--json", path, *(["--device", args.device] if args.device else []), *args.saccade_flags.split()]
        if run(command, args) is None:
            return None, None
        with open(path) as file:
            report = json.load(file)
    report["command"] = without_folders(report["command"].split())
    total, first = (report["summary_ms"][stage]["median"] for stage in ("total", "first_token"))
    steps = report["generated_tokens"] - 1
    return row(report["prompt_tokens"], total / 1e3, first, (total - first) / steps if steps else 0), report


def run_vllm(model, quant, jobs, args):
    tag, folder = PEER_NAMES[model]
    environment = {"JOBS": ",".join(VLLM_KINDS[job] for job in jobs), "MEDIA": args.media or os.path.dirname(os.path.abspath(args.image or "."))}
    script = os.path.join(args.peers, "vllm_bench.py")
    command = [args.peer_python, script, os.path.join(args.vllm_models, folder), tag, *([quant] if quant else [])]
    found = (RESULT.match(line) for line in (run(command, args, environment, keep_partial=True) or "").splitlines())
    # The name of the video ends in its size.
    return {m[2].split(" (")[0]: row(int(m[3]), float(m[4]), float(m[5]), float(m[6])) for m in found if m}


def run_hf(args):
    results = {}
    for line in (run([args.peer_python, os.path.join(args.peers, "hf_bench.py")], args, keep_partial=True) or "").splitlines():
        if m := HF.match(line):
            name = "transformers compiled" if m[2] == "True" else "transformers"
            results.setdefault((m[1], name), {})["image1"] = row(int(m[3]), float(m[4]), float(m[5]), 1e3 / float(m[6]))
    return results


def median(rows):
    return {key: statistics.median(r[key] for r in rows) for key in rows[0]}


def table(results):
    """One line per model, job and program, with the peers' ratios."""
    lines = [("model", "job", "program", "prompt", "total s", "first ms", "ms/step", "x total", "x first", "x step")]
    for model, jobs in results.items():
        for job, programs in jobs.items():
            ours = programs.get("saccade")
            for program, r in programs.items():
                ratios = ["", "", ""]
                if ours and program != "saccade":
                    ratios = [f"{r[key] / ours[key]:.2f}" if ours[key] else "" for key in ("total_s", "first_token_ms", "step_ms")]
                lines.append((model, job, program, f"{r['prompt_tokens']:.0f}", f"{r['total_s']:.3f}", f"{r['first_token_ms']:.1f}",
                              f"{r['step_ms']:.3f}", *ratios))
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    aligned = lambda line: "  ".join(cell.ljust(w) if i < 3 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths)))
    return "\n".join(aligned(line).rstrip() for line in lines)


def gpu_name():
    try:
        query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
        return subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip().splitlines()
    except (OSError, subprocess.CalledProcessError):
        return []


def main():
    args = arguments()
    models, jobs = args.model or list(PEER_NAMES), saccade_jobs(args)
    samples, reports = {}, []

    def add(model, job, program, result):
        samples.setdefault(model, {}).setdefault(job, {}).setdefault(program, []).append(result)

    for _ in range(args.rounds):
        for model in models:
            for name, flags in (run for runs in jobs.values() for run in runs):
                result, report = run_saccade(model, flags, args)
                if result:
                    add(model, name, "saccade", result)
                    reports.append({"job": name, **report})
            if args.peers and args.vllm_models and model in PEER_NAMES:
                for quant in ["", *(args.quant or [])]:
                    for name, result in run_vllm(model, quant, jobs, args).items():
                        add(model, name, f"vLLM {quant}".strip(), result)
        if args.peers and not args.no_hf and "image" in jobs:
            for (tag, program), results in run_hf(args).items():
                for model in (m for m in models if PEER_NAMES.get(m, "")[0] == tag):
                    add(model, "image1", program, results["image1"])
    if args.dry_run:
        return 0
    results = {m: {j: {p: median(r) for p, r in programs.items()} for j, programs in by_job.items()} for m, by_job in samples.items()}
    if not results:
        print("beside_peers: no job succeeded", file=sys.stderr)
        return 1
    with open(args.out, "w") as file:
        json.dump({"what": __doc__.split("\n")[0], "command": without_folders(sys.argv),
                   "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"), "gpu": gpu_name(), "tokens": args.tokens,
                   "rounds": args.rounds, "results": results, "samples": samples, "saccade": reports}, file, indent=1)
        file.write("\n")
    print(table(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
