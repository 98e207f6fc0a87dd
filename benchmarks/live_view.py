"""What a lab that follows a run costs its training, with a real kernel beside a real run; written as JSON.

    python benchmarks/live_view.py --pairs 6 --seconds 10

A kernel shows the lab, starts a long run of small steps on `nano` in its own process, and looks once a second. Its
steps a second are counted by turns while the kernel works and while it is suspended, and the two of a pair compared.
The processor time of the kernel does not depend on what else the machine does: 1.8 s a minute are 3 % of a core.
The page's browser is not counted: it may be anywhere.
"""

import argparse
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path

import psutil
from jupyter_client.manager import start_new_kernel

from llm_adapters_lab.runs.background import stop
from llm_adapters_lab.runs.event_log import last_event
from llm_adapters_lab.runs.processes import lives
from llm_adapters_lab.runs.record import Run, list_runs
from llm_adapters_lab.runs.status import beside

FOLLOW = """
from llm_adapters_lab import RunSpec
from widgets import Lab
lab = Lab("runs", RunSpec.load("quickstart", {"train.batch": 4, "train.max_steps": 20_000, "train.epochs": 1000}))
lab.bar.start.click()
lab
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--pairs", type=int, default=6, help="of measurements")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each measurement")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), options.pairs, options.seconds)
    options.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=2))


def measure(folder: Path, pairs: int, seconds: float) -> dict:
    """Return steps a second of each pair, the median of their ratios, and the kernel's processor time a minute."""
    manager, client = start_new_kernel(cwd=str(folder), env=os.environ | {"OMP_NUM_THREADS": "1"})
    try:
        reply = client.execute_interactive(FOLLOW, timeout=120, output_hook=lambda message: None)["content"]
        if reply["status"] != "ok":
            sys.exit(f"{reply['ename']}: {reply['evalue']}")
        (run,) = wait_for(lambda: list_runs(folder / "runs"))
        wait_for(lambda: (last_event(run) or {}).get("step", 0) > 20)
        kernel = psutil.Process(manager.provisioner.pid)
        found: list[dict[str, float]] = []
        used = watched = 0.0
        for number in range(pairs):
            rates = {}
            for followed in (True, False) if number % 2 else (False, True):
                if not followed:
                    kernel.suspend()
                before, began = sum(kernel.cpu_times()[:2]), time.monotonic()
                rates["followed" if followed else "alone"] = steps_a_second(run, seconds)
                if followed:
                    used += sum(kernel.cpu_times()[:2]) - before
                    watched += time.monotonic() - began
                kernel.resume()
                time.sleep(2)  # what has piled up is taken in outside the measurement
            found.append(rates)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
        for record in list_runs(folder / "runs"):
            end(record)
    ratios = [rates["followed"] / rates["alone"] for rates in found]
    middle = {"median_ratio": statistics.median(ratios), "kernel_cpu_seconds_a_minute": 60 * used / watched}
    return {**middle, "steps_a_second": found, "cores": os.cpu_count(), "load": os.getloadavg()[1]}


def steps_a_second(run: Run, seconds: float) -> float:
    """Count the steps of a run for a while."""
    first, began = step(run), time.monotonic()
    time.sleep(seconds)
    return (step(run) - first) / (time.monotonic() - began)


def step(run: Run) -> int:
    """Return the step that a run has reached; now and then the last event is of another kind."""
    return wait_for(lambda: (last_event(run) or {}).get("step"))


def wait_for(true):
    """Wait until something is true, and return it."""
    until = time.monotonic() + 120
    while not (found := true()):
        if time.monotonic() > until:
            sys.exit("timed out after two minutes")
        time.sleep(0.02)
    return found


def end(run: Run) -> None:
    """End the process of a run, and wait for it."""
    stop(run)
    process = json.loads(beside(run, "json").read_text(encoding="utf-8"))
    wait_for(lambda: not lives(process))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    main()
