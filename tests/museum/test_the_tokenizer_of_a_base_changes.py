"""The tokenizer or a configuration of a base changes between two runs of a spec.

Area: tokens
Elsewhere: axolotl#1265, Soup#1067: a cache of token ids outlives its tokenizer.
Before: an interrupted run went on with other token ids, a finished one was returned without a word.
Here: their hashes are in the record; a finished run says what changed, an interrupted one is refused.
Verdict: silent → refused
"""

import threading
from pathlib import Path

import pytest
from small_bases import nano_copy, scale_weight, swap_digits

from llm_adapters_lab.errors import BadSpec
from llm_adapters_lab.events import Event, Step
from llm_adapters_lab.runs.execution import run
from llm_adapters_lab.runs.spec import RunSpec


def test_a_changed_tokenizer_is_noticed_and_refused(tmp_path: Path) -> None:
    base, stop = nano_copy(tmp_path / "base"), threading.Event()
    plan = {"batch": 4, "max_steps": 4}
    spec = RunSpec.parse({"base": str(base), "adapter": "lora", "data": {"rows": 16}, "train": plan})

    def stop_early(event: Event) -> None:
        if isinstance(event, Step):
            stop.set()

    done = run(spec, root=tmp_path / "runs")
    other = RunSpec.parse({**spec.model_dump(mode="json"), "seed": 1})
    assert not run(other, root=tmp_path / "runs", stop=stop, on_event=stop_early).done
    swap_digits(base)
    with pytest.warns(UserWarning, match="the tokenizer changed since the run"):
        assert run(spec, root=tmp_path / "runs") == done
    with pytest.raises(BadSpec, match="was interrupted, and the tokenizer changed"):
        run(other, root=tmp_path / "runs")
    scale_weight(base, "norm.weight", 1.5)
    with pytest.warns(UserWarning, match="the tokenizer and the weights changed"):
        run(spec, root=tmp_path / "runs")
