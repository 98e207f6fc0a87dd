"""LLM Adapters Lab: choose an adapter, train it, look inside, compare.

    from llm_adapters_lab import RunSpec, run
    run(RunSpec.load("papermill_runs/specs/nano-lora.yaml")).summary

Names are loaded when first used, so that importing the package costs next to nothing.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from llm_adapters_lab._lazy import attach
from llm_adapters_lab._version import __version__ as __version__

if TYPE_CHECKING:
    from llm_adapters_lab import inspection as inspection
    from llm_adapters_lab import results as results
    from llm_adapters_lab.core.adapter import Adapter as Adapter
    from llm_adapters_lab.core.adapter_config import AdapterConfig as AdapterConfig
    from llm_adapters_lab.core.anatomy import Anatomy as Anatomy
    from llm_adapters_lab.core.composition import merge_mix as merge_mix
    from llm_adapters_lab.core.composition import mix as mix
    from llm_adapters_lab.core.composition import stack as stack
    from llm_adapters_lab.core.injection import Injection as Injection
    from llm_adapters_lab.core.injection import inject as inject
    from llm_adapters_lab.core.merging import merge as merge
    from llm_adapters_lab.core.registry import register_adapter as register_adapter
    from llm_adapters_lab.core.saving import load_adapter as load_adapter
    from llm_adapters_lab.core.saving import save_adapter as save_adapter
    from llm_adapters_lab.core.sites import Site as Site
    from llm_adapters_lab.errors import LabError as LabError
    from llm_adapters_lab.inspection.recorder import Recorder as Recorder
    from llm_adapters_lab.models.loading import load_base as load_base
    from llm_adapters_lab.results import plots as plots
    from llm_adapters_lab.results.comparison import compare as compare
    from llm_adapters_lab.results.reports import report as report
    from llm_adapters_lab.runs.execution import run as run
    from llm_adapters_lab.runs.preview import dry_run as dry_run
    from llm_adapters_lab.runs.record import Run as Run
    from llm_adapters_lab.runs.record import find_run as find_run
    from llm_adapters_lab.runs.record import list_runs as list_runs
    from llm_adapters_lab.runs.restoring import restore as restore
    from llm_adapters_lab.runs.spec import RunSpec as RunSpec
    from llm_adapters_lab.sweeps.spec import Sweep as Sweep
    from llm_adapters_lab.sweeps.studies import study as study
    from llm_adapters_lab.sweeps.sweeping import sweep as sweep
    from llm_adapters_lab.tasks.registry import get_task as get_task

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "runs.execution": "run",
        "runs.preview": "dry_run",
        "runs.spec": "RunSpec",
        "runs.record": "Run list_runs find_run",
        "runs.restoring": "restore",
        "sweeps.spec": "Sweep",
        "sweeps.sweeping": "sweep",
        "sweeps.studies": "study",
        "models.loading": "load_base",
        "core.injection": "inject Injection",
        "core.merging": "merge",
        "core.composition": "stack mix merge_mix",
        "core.saving": "load_adapter save_adapter",
        "core.adapter": "Adapter",
        "core.adapter_config": "AdapterConfig",
        "core.registry": "register_adapter",
        "core.anatomy": "Anatomy",
        "core.sites": "Site",
        "inspection.recorder": "Recorder",
        ".": "inspection results",
        "results": "plots",
        "results.comparison": "compare",
        "results.reports": "report",
        "tasks.registry": "get_task",
        "errors": "LabError",
    },
)
__all__ += ["__version__"]

# transformers imports torchao wherever it is installed, which then reports every kernel that is not for this machine.
for _talker in ("torchao", "torch.utils._pytree"):
    logging.getLogger(_talker).setLevel(logging.ERROR)
