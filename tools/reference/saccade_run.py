"""One answer of the program, for the scripts that compare it."""

import json
import subprocess


def answer(binary, model, question, extra=(), images=(), frames=(), device="cpu", timeout=300):
    """Greedy, past the end of the sentence: the object that `saccade run --json` prints. `extra`: flags."""
    command = [binary, "run", model, "--device", device, "--json", "--quiet", "--temperature", "0", "--ignore-eos"]
    command += ["--prompt", question, *extra]
    for path in images:
        command += ["--image", path]
    if frames:
        command += ["--frames", ",".join(map(str, frames)), "--fps", "1"]
    command = list(map(str, command))
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\nexit code {done.returncode}: {done.stderr}")
    return json.loads(done.stdout)
