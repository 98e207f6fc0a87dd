"""Processor time of the commands that need no model: user and system seconds, the best of some repetitions.

python benchmarks/command_line.py --root runs --repeat 3
"""

import argparse
import json
import resource
import subprocess
import sys

COMMANDS = ["--help", "list --json", "tasks", "adapters", "adapters lora", "presets", "models", "run nowhere.yaml"]
COMMANDS += ["run quickstart --set adapter.rank=0", "run quickstart --set base=nanno", "show nothing"]


def seconds(words: list[str]) -> float:
    """Return the processor time of one command, in seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "llm_adapters_lab", *words], capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Measure every command and print the seconds as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", default="runs", help="folder of runs to list")
    parser.add_argument("--repeat", type=int, default=3, help="number of repetitions")
    given = parser.parse_args()
    found = {}
    for command in COMMANDS:
        words = command.split() + (["--root", given.root] if command.startswith(("list", "show")) else [])
        found[command] = round(min(seconds(words) for _ in range(given.repeat)), 3)
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
