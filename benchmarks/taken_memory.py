"""Another program takes the GPU's memory while a training begins: the plan gives way, and the training goes on.

    python benchmarks/taken_memory.py --output DIR [--labels 670091] [--left 3.0] [engine train flags]

Trains under an 8 GB card's limit on synthetic data. As soon as the plan is made, a second process takes the memory of
the GPU but for --left GiB. Prints what the run said of it, its plan and its exit code; ends with 1 if the training did
not complete all steps, or was not short of memory at all.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from large_run import Session, device_name, prepare, train_flags

from engine.runs import RunDirectory

GIB = 2**30
TAKE = """
import sys, torch
torch.cuda.mem_get_info()
print("ready", flush=True)
left = float(sys.stdin.readline())
taken = torch.empty(int(torch.cuda.mem_get_info()[0] - left * 2**30), dtype=torch.uint8, device="cuda")
print(taken.numel(), flush=True)
sys.stdin.readline()
"""


def options() -> tuple[argparse.Namespace, list[str]]:
    """The script's own options, and all others, which go to `engine train`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--labels", default="670091")
    parser.add_argument("--left", type=float, default=3.0, metavar="GIB")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--output", type=Path, required=True)
    o, more = parser.parse_known_args()
    fixed = {"texts": 2000, "tokens": 128, "encoder_shape": "bert-base", "profile": "8gb", "fan_in": "auto"}
    fixed |= {"batch_size": 128, "kill_at": 0, "device": "cuda"}
    return argparse.Namespace(**vars(o), **fixed), more


def main() -> None:
    o, more = options()
    o.output = o.output.absolute()
    (o.output / "runs").mkdir(parents=True, exist_ok=True)
    data, encoder, _ = prepare(o)
    before = set((o.output / "runs").glob("2*"))
    pipe = subprocess.PIPE
    other = subprocess.Popen([sys.executable, "-c", TAKE], stdin=pipe, stdout=pipe, text=True)
    other.stdout.readline()
    session, run, taken = Session(train_flags(o, data, encoder, more), o.output / "taken.log"), None, 0
    try:
        for _ in session.watch():
            run = run or next((RunDirectory(path) for path in set((o.output / "runs").glob("2*")) - before), None)
            if run and not taken and any(e["text"].startswith("plan ") for e in run.events(["message"])):
                print(o.left, file=other.stdin, flush=True)
                taken = int(other.stdout.readline())
    finally:
        other.communicate("\n")
    if run is None or not taken:
        session.fail("the training ended before its plan")
    plan, said = run.read_json("plan.json"), [event["text"] for event in run.events(["message"])]
    print(f"{device_name()}\n`python benchmarks/taken_memory.py {' '.join(sys.argv[1:])}`\n")
    print(
        f"{taken / GIB:.2f} GiB taken by another process, {o.left} GiB left; exit code {session.process.returncode}\n"
    )
    print("\n".join(text for text in said if text.startswith(("plan ", "memory ", "confirmed"))))
    print({key: plan[key] for key in ("micro_batch", "checkpoint_every", "optimizer_in_backward", "fan_in", "notches")})
    if session.process.returncode:
        print(session.log.read_text()[-1000:])
    raise SystemExit(0 if session.process.returncode == 0 and plan["notches"] else 1)


if __name__ == "__main__":
    main()
