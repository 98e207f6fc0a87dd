"""A chat model before and after LoRA on chats: does it answer, and does it stop?

    python benchmarks/chat.py --base smollm2-135m --out benchmarks/chat.json

64 rows of `messages` and 60 other questions of the same five kinds are made here. The base is asked by its own chat
template and by the plain prompt alpaca, before and after training on each. Prints accuracy, in how many answers the end
token came by itself, and 95 % intervals (Wilson) of both.
"""

import argparse
import json
import tempfile
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

from llm_adapters_lab import RunSpec, run
from llm_adapters_lab.evaluation.statistics import wilson

TRAIN, TEST = 64, 60
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = "January February March April May June July August September October November December".split()
YOUNG = (
    "cow:calf sheep:lamb dog:puppy cat:kitten horse:foal goat:kid duck:duckling frog:tadpole kangaroo:joey bear:cub "
    "lion:cub deer:fawn goose:gosling pig:piglet hen:chick swan:cygnet owl:owlet"
)
WAYS = (("", "chat"), ("", "alpaca"), ("chat", "chat"), ("chat", "alpaca"), ("alpaca", "alpaca"))
"""Template of the training, if any, and of the questions."""
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def kinds() -> list[list[tuple[str, str, str]]]:
    """Return question, answer in a sentence and short answer, of each kind."""
    pairs = [pair.split(":") for pair in YOUNG.split()]
    following = [(names, i) for names in (DAYS, MONTHS) for i in range(len(names))]
    counting = [(a, b) for a in range(2, 12) for b in range(2, 8)]
    return [
        [
            (f"What comes after {names[i - 1]}?", f"After {names[i - 1]} comes {names[i]}.", names[i])
            for names, i in following
        ],
        [(f"What is a young {a} called?", f"A young {a} is called a {young}.", young) for a, young in pairs],
        [(f"What is {a} plus {b}?", f"{a} plus {b} is {a + b}.", str(a + b)) for a, b in counting],
        [
            (f"Which letter follows {a.upper()}?", f"{a.upper()} is followed by {b.upper()}.", b.upper())
            for a, b in pairwise(LETTERS)
        ],
        [(f"How many letters has the word {a}?", f"The word {a} has {len(a)} letters.", str(len(a))) for a, _ in pairs],
    ]


def rows() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the rows to train on and those to ask; they share no question."""
    rng, made = Random("chats"), kinds()
    for part in made:
        rng.shuffle(part)

    def turns() -> Iterator[dict[str, Any]]:
        for number in range(max(map(len, made))):
            for part in made:
                if number < len(part):
                    asked, said, answer = part[number]
                    chat = [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
                    yield {"messages": chat, "answer": answer}

    found = list(turns())
    return found[:TRAIN], found[TRAIN : TRAIN + TEST]


def measure(base: str, steps: int) -> list[dict[str, Any]]:
    """Return a row for each way of training and asking."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        train, test = Path(folder) / "train.jsonl", Path(folder) / "test.jsonl"
        learnt, asking = rows()
        train.write_text("\n".join(json.dumps({"messages": row["messages"]}) for row in learnt))
        test.write_text("\n".join(map(json.dumps, asking)))
        for trained, asked in WAYS:
            fields: dict[str, Any] = {"base": base, "dtype": "fp32"}
            fields["eval"] = {"tasks": [f"own:{test}?form=text"], "template": asked, "max_new_tokens": 48}
            if trained:
                fields["adapter"] = {"type": "lora", "rank": 8, "at": "q,k,v,o,gate,up,down"}
                fields["data"] = {"task": f"own:{train}?form=text", "template": trained, "max_tokens": 128}
                fields["train"] = {"max_steps": steps, "epochs": 100, "batch": 8, "learning_rate": 1e-3}
            record = run(RunSpec.parse(fields), root=Path(folder) / "runs")
            answers = list(record.predictions())
            said = [row["text"].lower().replace(".", " ").split() for row in answers]
            counts = {
                "right": sum(row["gold"].lower() in words for row, words in zip(answers, said, strict=True)),
                "ended": sum(not row["cut"] for row in answers),
            }
            intervals = {f"{k}_interval": [round(x, 3) for x in wilson(n, len(answers))] for k, n in counts.items()}
            ways = {"trained": trained or "not", "asked": asked, "rows": len(answers)}
            found.append(ways | counts | intervals | {"example": answers[0]["text"]})
            print(json.dumps(found[-1]), flush=True)
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    results = {"base": given.base, "steps": given.steps, "results": measure(given.base, given.steps)}
    if given.out:
        given.out.write_text(json.dumps(results, indent=1) + "\n")
