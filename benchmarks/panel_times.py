"""How long the lab takes to appear, to answer an edit and to show a selection, and how long it blocks the event loop.

    python benchmarks/panel_times.py --root runs --rounds 5

A process plays the kernel: an event loop in which a ticker notices every delay, so that "blocked" is the longest time
in which no click would have been answered. Times of a browser are not included. The runs are shown, not changed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

TICK = 0.005


class Ticker:
    """Notices how long the event loop was busy; `worst` is the longest delay in seconds since the last `reset`."""

    def __init__(self) -> None:
        """Start noticing."""
        self.worst = 0.0
        self._task = asyncio.get_running_loop().create_task(self._watch())

    def reset(self) -> float:
        """Return the longest delay and start again."""
        found, self.worst = self.worst, 0.0
        return found

    async def _watch(self) -> None:
        while True:
            began = time.perf_counter()
            await asyncio.sleep(TICK)
            self.worst = max(self.worst, time.perf_counter() - began - TICK)


async def measure(root: str) -> dict[str, Any]:
    """Return wall seconds, processor seconds and the longest delay of each step."""
    found: dict[str, Any] = {}
    ticker = Ticker()
    await asyncio.sleep(0.05)

    async def step(name: str, act: Callable[[], object], done: Callable[[], object]) -> None:
        ticker.reset()
        wall, cpu = time.perf_counter(), time.process_time()
        act()
        returned = time.perf_counter() - wall
        while not done():
            await asyncio.sleep(TICK)
        spent = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu, "returned": returned}
        await asyncio.sleep(0.1)
        found[name] = {key: round(value, 4) for key, value in {**spent, "blocked": ticker.reset()}.items()}

    made: dict[str, Any] = {}

    def show() -> None:
        from widgets import Lab

        made["lab"] = Lab(root)

    await step("Lab() to all places", show, lambda: {"setup", "playground"} <= made["lab"].__dict__.keys())
    lab = made["lab"]
    await asyncio.sleep(3)
    setup, bar = lab.setup, lab.bar

    def changed(before: str) -> Callable[[], bool]:
        return lambda: bar.line.value != before

    def write(text: str) -> Callable[[], None]:
        return lambda: setattr(setup.method.form.controls["rank"].entry, "value", text)

    await step("edit to bar", write("16"), changed(bar.line.value))
    costs = bar.costs.widget.value
    await step("edit to parameters", write("32"), lambda: bar.costs.widget.value != costs)
    await step(
        "list of 18 runs to bar",
        write("1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18"),
        lambda: "18 runs" in bar.line.value,
    )
    await step("wrong value to bar", write("0"), lambda: "✗" in bar.remark.value)
    write("8")()
    for place in ("Monitor", "Compare", "Inspect", "Playground", "Setup"):
        await step(f"open {place}", partial(lab.open, place), lambda: True)
        await asyncio.sleep(1)
    runs = list(lab.workspace.runs.entries)
    for count in {min(number, len(runs)) for number in (1, 30, len(runs))}:
        for place in ("Monitor", "Compare"):
            lab.workspace.selection.ids = []
            lab.open(place)
            await asyncio.sleep(1)
            name = f"select {count} runs in {place}"
            await step(name, partial(setattr, lab.workspace.selection, "ids", runs[:count]), lambda: True)
            await asyncio.sleep(1.5)  # work continues outside the loop
            found[name]["blocked"] = round(max(found[name]["blocked"], ticker.reset()), 4)
    lab.close()
    return found


def main() -> None:
    """Measure several times, each in a new process, and print the medians."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--root", default="runs", help="folder of runs to show")
    parser.add_argument("--rounds", type=int, default=3, help="number of processes")
    parser.add_argument("--out", type=Path, help="file for the result as JSON")
    parser.add_argument("--once", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.once:
        print(json.dumps(asyncio.run(measure(options.root))))
        return
    rounds = []
    for _ in range(options.rounds):
        line = [sys.executable, __file__, "--root", options.root, "--once"]
        rounds.append(
            json.loads(subprocess.run(line, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
        )
    steps = {
        name: {key: statistics.median(each[name][key] for each in rounds) for key in rounds[0][name]}
        for name in rounds[0]
    }
    print(f"{'step':32}{'wall s':>9}{'cpu s':>9}{'blocked s':>11}")
    for name, values in steps.items():
        print(f"{name:32}{values['wall']:9.3f}{values['cpu']:9.3f}{values['blocked']:11.3f}")
    if options.out:
        options.out.write_text(json.dumps(steps, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
