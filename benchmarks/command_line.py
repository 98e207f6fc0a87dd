"""Processor time of starting up: user and system seconds, the best of some repetitions.

Printed are `import llm_adapters_lab`, a run that is finished already, the way from the shell to the first training step
of `nano` (the clock's seconds too), and the commands that need no model.

OMP_NUM_THREADS=1 python benchmarks/command_line.py --root runs --repeat 3
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

LAB = ["-m", "llm_adapters_lab"]
COMMANDS = ["--help", "list --json", "tasks", "adapters", "adapters lora", "presets", "models", "run nowhere.yaml"]
COMMANDS += ["run quickstart --set adapter.rank=0", "run quickstart --set base=nanno", "show nothing"]
SHORT = ["--set", "train.max_steps=1", "--set", "data.rows=32", "--set", "eval.rows=2"]
"""What makes `quickstart` end soon."""


def seconds(words: list[str]) -> float:
    """Return the processor time of one call of Python, in seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *words], capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def first_step(spec: str) -> tuple[float, float]:
    """Return the processor time and the clock's time from the shell to the first step of a run, in seconds."""
    with tempfile.TemporaryDirectory() as root:
        began = time.perf_counter()
        run = psutil.Popen([sys.executable, *LAB, "run", spec, "--root", root], stdout=subprocess.DEVNULL)
        try:
            while not any('"event": "Step"' in log.read_text() for log in Path(root).glob("*/events.jsonl")):
                if run.poll() is not None:
                    raise SystemExit(f"The run of {spec} ended without a step.")
                time.sleep(0.01)
            return sum(run.cpu_times()[:4]), time.perf_counter() - began
        finally:
            run.kill()
            run.wait()


def main() -> None:
    """Measure everything and print the seconds as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--root", default="runs", help="folder of runs to list")
    parser.add_argument("--repeat", type=int, default=3, help="number of repetitions")
    given = parser.parse_args()
    times = range(given.repeat)
    found = {"import llm_adapters_lab": min(seconds(["-c", "import llm_adapters_lab"]) for _ in times)}
    with tempfile.TemporaryDirectory() as root:
        words = [*LAB, "run", "quickstart", *SHORT, "--root", root]
        seconds(words)
        found["run, finished already"] = min(seconds(words) for _ in times)
    found["first step, processor"], found["first step, clock"] = map(
        min, zip(*(first_step("quickstart") for _ in times), strict=True)
    )
    for command in COMMANDS:
        words = command.split() + (["--root", given.root] if command.startswith(("list", "show")) else [])
        found[command] = min(seconds([*LAB, *words]) for _ in times)
    print(json.dumps({name: round(value, 3) for name, value in found.items()}, indent=2))


if __name__ == "__main__":
    main()
