"""Models of finished runs: loaded once, however many panels look at one, and gone when none does any more."""

from __future__ import annotations

import gc
import threading
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakValueDictionary

import torch

from llm_adapters_lab.core.injection import Injection
from llm_adapters_lab.errors import BadSpec
from llm_adapters_lab.runs.record import Run
from llm_adapters_lab.runs.restoring import restore
from llm_adapters_lab.runs.spec import RunSpec


@dataclass(eq=False)
class Loaded:
    """A run with its model in memory.

    Attributes:
        run: the record.
        spec: of the run.
        model: with the adapter in it.
        tokenizer: of the model.
        injection: the adapter.
        lock: hold it while the model works; whoever switches the adapter off does so for everybody.
    """

    run: Run
    spec: RunSpec
    model: Any
    tokenizer: Any
    injection: Injection
    lock: threading.Lock = field(default_factory=threading.Lock)


_known: WeakValueDictionary[tuple[str, int], Loaded] = WeakValueDictionary()
_loading = threading.Lock()


def load(run: Run) -> Loaded:
    """Return the model of a run, loaded if nobody has it yet, on the GPU where there is one.

    Raises:
        BadSpec: the run has no trained adapter.
        LabError: the base is gone, or another one by now.
    """
    with _loading:
        file = run.folder / "adapter" / "adapter.safetensors"
        # The time tells a run that was done anew from the one in memory.
        key = (str(run.folder.resolve()), file.stat().st_mtime_ns if file.is_file() else 0)
        if (found := _known.get(key)) is not None:
            return found
        base, injection = restore(run)
        if injection is None or base.tokenizer is None:
            raise BadSpec(f"The run {run.id} has no adapter to look at, or no tokenizer. Choose another one.")
        if torch.cuda.is_available():
            base.model.to("cuda")
        loaded = _known[key] = Loaded(run, run.spec, base.model, base.tokenizer, injection)
        return loaded


def tidy() -> None:
    """Give back the memory of models that nobody holds any more: their parts point at each other."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
