"""LLM Adapters Lab: choose an adapter, train it, look inside, compare.

    from llm_adapters_lab import RunSpec, run
    run(RunSpec.load("papermill_runs/specs/nano-lora.yaml")).summary

Names are loaded when first used, so that importing the package costs next to nothing.
"""

from __future__ import annotations

import importlib
import logging
import sys
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llm_adapters_lab.adapter import Adapter, AdapterConfig, register
    from llm_adapters_lab.anatomy import Anatomy, Site
    from llm_adapters_lab.compose import merge_mix, mix, stack
    from llm_adapters_lab.errors import LabError
    from llm_adapters_lab.evaluate import evaluate
    from llm_adapters_lab.inject import Injection, inject
    from llm_adapters_lab.models import load
    from llm_adapters_lab.record import Run, find, runs
    from llm_adapters_lab.recorder import Recorder
    from llm_adapters_lab.rehearsal import dry_run
    from llm_adapters_lab.run import run
    from llm_adapters_lab.saving import load_adapter, save_adapter
    from llm_adapters_lab.spec import RunSpec
    from llm_adapters_lab.study import study
    from llm_adapters_lab.sweep import sweep
    from llm_adapters_lab.sweep_file import Sweep
    from llm_adapters_lab.train import train

__version__ = "0.1.0"

__all__ = [
    "run",
    "dry_run",
    "RunSpec",
    "Run",
    "runs",
    "find",
    "study",
    "sweep",
    "Sweep",
    "inject",
    "Injection",
    "stack",
    "mix",
    "merge_mix",
    "load_adapter",
    "save_adapter",
    "Recorder",
    "Anatomy",
    "Site",
    "Adapter",
    "AdapterConfig",
    "register",
    "load",
    "train",
    "evaluate",
    "LabError",
    "__version__",
]

_HOME = {
    **{"run": "run", "RunSpec": "spec", "Run": "record", "runs": "record", "find": "record", "load": "models"},
    **{"inject": "inject", "Injection": "inject", "Anatomy": "anatomy", "Site": "anatomy", "Adapter": "adapter"},
    **{"AdapterConfig": "adapter", "register": "adapter", "train": "train", "evaluate": "evaluate"},
    **{"LabError": "errors", "stack": "compose", "mix": "compose", "merge_mix": "compose"},
    **{"load_adapter": "saving", "save_adapter": "saving", "Recorder": "recorder"},
    **{"sweep": "sweep", "Sweep": "sweep_file", "study": "study", "dry_run": "rehearsal"},
}


# transformers imports torchao wherever it is installed, which then tells of every kernel that is not for this machine.
for _teller in ("torchao", "torch.utils._pytree"):
    logging.getLogger(_teller).setLevel(logging.ERROR)


class _Package(types.ModuleType):
    def __setattr__(self, name: str, value: Any) -> None:
        # Importing the submodule `run` would set the attribute `run` of the package to the module and hide the function
        # of that name, depending on who imported what first. Here the name always means the function.
        if not (isinstance(value, types.ModuleType) and name in _HOME):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
