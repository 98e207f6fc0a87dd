"""Soak: small runs in real processes, killed again and again at random moments; counts what is lost and what differs.

    python benchmarks/soak.py --kills 200 --minutes 30 --seed 0

Every run is killed one to six times, up to 50 ms after its logs have grown by a random number of lines. It is resumed
after each kill, and finally compared with an uninterrupted run: events, losses, adapter, answers and summary must be
bit-identical, except for times. The soak stops after a number of kills or minutes, prints its counts as JSON, and fails
if a run was lost or differed.
"""

import argparse
import json
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1] / name) for name in ("", "tests", "tests/faults")]

from nursery import FIELDS, Nursery
from records import timeless

from llm_adapters_lab.runs.event_log import last_event
from llm_adapters_lab.runs.record import Run
from llm_adapters_lab.runs.spec import RunSpec


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=200, help="stop after this many kills")
    parser.add_argument("--minutes", type=float, default=30.0, help="stop after this many minutes, if that is sooner")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, Nursery(Path(folder)) as nursery:
        found = soak(nursery, Path(folder), options.kills, options.minutes, random.Random(options.seed))
    print(json.dumps(found, indent=2))
    return int(bool(found["lost"] or found["differing"]) or not found["kills"])


def soak(nursery: Nursery, folder: Path, kills: int, minutes: float, chance: random.Random) -> dict[str, Any]:
    name = RunSpec.parse(FIELDS).id
    spec = folder / "spec.json"
    spec.write_text(json.dumps(FIELDS), encoding="utf-8")
    child = nursery.start("run", spec, "--root", folder / "whole")
    assert child.wait() == 0, child.said
    whole, total = timeless(Run(folder / "whole" / name)), lines(folder / "whole" / name)
    found = {"kills": 0, "runs": 0, "lost": 0, "differing": 0}
    after: Counter[str] = Counter()
    began = time.monotonic()
    while found["kills"] < kills and time.monotonic() - began < 60 * minutes:
        root = folder / str(found["runs"])
        for _ in range(chance.randint(1, 6)):
            now = min(lines(root / name), total)
            target = round(chance.triangular(now, total, now))
            child = nursery.start("run", spec, "--root", root)
            while lines(root / name) < target and child.poll() is None:
                time.sleep(0.005)
            time.sleep(chance.uniform(0.0, 0.05))
            child.send(signal.SIGKILL)
            if child.wait() == 0:  # it was done before
                break
            found["kills"] += 1
            after[(last_event(Run(root / name)) or {}).get("event", "nothing")] += 1
        child = nursery.start("run", spec, "--root", root)
        found["runs"] += 1
        if child.wait() != 0 or not Run(root / name).done:
            found["lost"] += 1
            print(child.said, file=sys.stderr)
        elif unlike := [key for key, value in timeless(Run(root / name)).items() if value != whole[key]]:
            found["differing"] += 1
            print(f"{root / name} differs in {', '.join(unlike)}", file=sys.stderr)
    return {**found, "killed_after": dict(after.most_common()), "minutes": round((time.monotonic() - began) / 60, 1)}


def lines(folder: Path) -> int:
    """Return how much a run has said and answered."""
    count = 0
    for name in ("events.jsonl", "predictions.jsonl"):
        with suppress(FileNotFoundError):  # not there yet, or just removed for a restart
            count += (folder / name).read_bytes().count(b"\n")
    return count


if __name__ == "__main__":
    sys.exit(main())
