"""The loss of several adapters on several tasks: which adapter knows which task, language or domain.

A question of Bactrian-X (Li et al. 2023, arXiv:2305.15011): adapters of one language each over one frozen base.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from llm_adapters_lab.core.injection import Injection
from llm_adapters_lab.core.weights import evaluating
from llm_adapters_lab.errors import BadSpec
from llm_adapters_lab.models.loading import Base
from llm_adapters_lab.results.appearance import looks
from llm_adapters_lab.results.plots.style import BLUE, new, ramp, text
from llm_adapters_lab.runs.record import Run
from llm_adapters_lab.runs.restoring import load_base, restore
from llm_adapters_lab.tasks.encoding import encode
from llm_adapters_lab.tasks.formats import get_format
from llm_adapters_lab.tasks.prompts import template_of
from llm_adapters_lab.tasks.readers import folder_of
from llm_adapters_lab.tasks.registry import get_task
from llm_adapters_lab.tasks.tokens import Sample
from llm_adapters_lab.training.loss import FastPaths, Objective

if TYPE_CHECKING:
    import plotly.graph_objects as go

BATCH = 16


@dataclass(frozen=True)
class LossMatrix:
    """Mean losses on held-out rows.

    Attributes:
        names: of the rows of the matrix: "base", then a name for each run.
        tasks: of its columns.
        losses: nats per counted token, (names, tasks).
        rows: number of held-out rows of each task.
    """

    names: tuple[str, ...]
    tasks: tuple[str, ...]
    losses: tuple[tuple[float, ...], ...]
    rows: tuple[int, ...]

    def figure(self) -> go.Figure:
        """Draw the matrix as a heat map with its values."""
        figure = new("Loss on held-out rows (nats per token)", "", "task", "")
        places = {"x": [text(task) for task in self.tasks], "y": [text(name) for name in self.names]}
        shown = {"text": [[f"{value:.2f}" for value in row] for row in self.losses], "texttemplate": "%{text}"}
        look = {"colorscale": ramp(BLUE), "reversescale": True, "showscale": False, "xgap": 1, "ygap": 1}
        hover = "%{y} on %{x}: %{z:.3f} nats<extra></extra>"
        figure.add_heatmap(z=self.losses, hovertemplate=hover, **places, **shown, **look)
        figure.update_yaxes(autorange="reversed", title=None)
        return figure.update_layout(height=140 + 34 * len(self.names))


def loss_matrix(runs: Sequence[Run], tasks: Sequence[str] = (), rows: int = 96) -> LossMatrix:
    """Measure the loss of the base and of each run's adapter on the test rows of tasks.

    Rows are written as in training, by `data.template`, `data.system` and `data.loss_on` of the first run, and an
    adapter with a part for each group answers a task of the name of a group by that part.

    Args:
        runs: finished, with adapters of one base.
        tasks: names; default: those that the runs were trained on.
        rows: maximum number of rows of each task.

    Raises:
        BadSpec: there is no run, they have different bases, or no row of a task is usable.
        LabError: an adapter, the base or rows cannot be read.
    """
    if not runs:
        raise BadSpec("A loss matrix needs at least one run.")
    specs = [run.spec for run in runs]
    for run, spec in zip(runs, specs, strict=True):
        if spec.adapter is None:
            raise BadSpec(f"The run {run.id} scores the bare base, which is in the matrix anyway. Remove it.")
        if (spec.base_parts, spec.quantization) != (specs[0].base_parts, specs[0].quantization):
            raise BadSpec(f"The runs {runs[0].id} and {run.id} have different bases. Compare adapters of one base.")
    tasks = tuple(tasks) or tuple(dict.fromkeys(spec.data.task for spec in specs))
    base = load_base(specs[0])
    found = {task: _samples(runs[0], base, task, rows) for task in tasks}
    losses = [[_mean_loss(base, None, task, found[task]) for task in tasks]]
    for run in runs:
        _, injection = restore(run, base)
        assert injection is not None
        losses.append([_mean_loss(base, injection, task, found[task]) for task in tasks])
        injection.eject()
    named = looks(runs)
    names = ("base", *(named[run.id].name for run in runs))
    return LossMatrix(names, tasks, tuple(map(tuple, losses)), tuple(len(found[task]) for task in tasks))


def _samples(run: Run, base: Base, name: str, count: int) -> list[Sample]:
    data, task = run.spec.data, get_task(name)
    rows = task.load("test", folder_of(data.root))[:count]
    form = get_format(base.tokenizer, template_of(data.template, task, rows), data.system, data.control_tokens)
    found, left_out = encode(base.tokenizer, rows, form, data.max_tokens, data.loss_on)
    if not found:
        raise BadSpec(f"No test row of {name} is usable. {left_out.text}")
    return found


@torch.no_grad()
def _mean_loss(base: Base, injection: Injection | None, task: str, samples: Sequence[Sample]) -> float:
    model: Any = base.model
    known = {group for adapter in injection.adapters.values() for group in adapter.groups} if injection else set()
    samples = [replace(sample, group=task if task in known else "") for sample in samples]
    objective, total = Objective(model, FastPaths(), base.tokenizer.pad_token_id, injection), []
    with evaluating(model):
        for first in range(0, len(samples), BATCH):
            with objective.loss(model, samples[first : first + BATCH]) as loss:
                total.append(loss.item())
    return math.fsum(total) / sum(sample.counted for sample in samples)
