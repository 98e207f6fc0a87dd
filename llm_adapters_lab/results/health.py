"""Whether a training goes well, judged by its curves: sentences with a number and an advice."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence

from llm_adapters_lab.events import LeftOut
from llm_adapters_lab.results.curves import Curves
from llm_adapters_lab.results.formatting import percent

ENOUGH = 20
"""Steps that must be known before most judgements."""
SOLVED = 0.01
"""Loss, in nats per label, below which a task counts as solved."""
SPIKE, EXPLODED, SLOW, DROPPED = 10.0, 3.0, 0.5, 0.1
"""Gradient norm as a multiple of its median, loss as one of its lowest mean, speed as a share of the median, and share
of dropped rows, from which on something is said."""


def hints(curves: Curves) -> list[str]:
    """Return what is remarkable about a training, the most serious first; empty if all is well.

    Args:
        curves: of a run, which may be active.
    """
    checks: tuple[Callable[[Curves], str], ...] = (
        _not_finite,
        _nothing_learnt,
        _exploding,
        _not_falling,
        _spikes,
        _dropped_rows,
        _overfitting,
        _solved,
        _slower,
    )
    return [text for check in checks if (text := check(curves))]


def _not_finite(curves: Curves) -> str:
    for name, words in (("loss", "loss"), ("gradient_norm", "gradient norm")):
        for step, value in zip(curves.columns["step"], curves.columns[name], strict=True):
            if not math.isfinite(value):
                return (
                    f"The {words} is {value} since step {step:.0f}. Lower train.learning_rate, lengthen train.warmup, "
                    "or use bf16 or fp32."
                )
    return ""


def _nothing_learnt(curves: Curves) -> str:
    norms = curves.columns["gradient_norm"]
    if len(norms) < 3 or any(norms):
        return ""
    loss = curves.columns["loss"][-1]
    if loss == 0:
        return (
            f"Loss and gradient are 0 in all {len(norms)} steps: no label is counted. "
            "Check data.max_tokens and data.loss_on in the rows of Setup."
        )
    return (
        f"The gradient is 0 in all {len(norms)} steps, at a loss of {loss:.3g}: the adapter does not learn. "
        "Check its placement and initialisation."
    )


def _exploding(curves: Curves) -> str:
    means = _means(curves)
    if len(means) < 4:
        return ""
    lowest = min(range(len(means)), key=lambda at: means[at][1])
    step, least = means[lowest]
    last = means[-1][1]
    if last > max(EXPLODED * least, least + 0.5) and lowest < len(means) - 1:
        return (
            f"The loss rose from {least:.3g} (step {step}) to {last:.3g} (step {means[-1][0]}). "
            f"Lower train.learning_rate, at most {_rate(curves):.1e} so far, or lengthen train.warmup."
        )
    return ""


def _not_falling(curves: Curves) -> str:
    loss, planned = curves.columns["loss"], curves.planned
    if len(loss) < 2 * ENOUGH or len(loss) < 0.2 * planned:
        return ""
    first, last = statistics.fmean(loss[:ENOUGH]), statistics.fmean(loss[-ENOUGH:])
    if last < 0.97 * first or last < SOLVED or last > EXPLODED * first:
        return ""
    return (
        f"The loss does not fall: {first:.3g} over the first {ENOUGH} steps, {last:.3g} over the last {ENOUGH}. "
        f"Raise train.learning_rate (up to {_rate(curves):.1e} so far), or check the rows in Setup."
    )


def _spikes(curves: Curves) -> str:
    norms, steps = curves.columns["gradient_norm"], curves.columns["step"]
    # The first steps may have the largest gradients, and those of a task that is solved vary by orders of magnitude.
    above = max(norms[:ENOUGH], default=math.inf)
    large = (at for at in range(ENOUGH, len(norms)) if norms[at] > above)
    high = [at for at in large if norms[at] > SPIKE * _usual(norms, at)]
    if not high:
        return ""
    top = max(high, key=lambda at: norms[at])
    times = "once" if len(high) == 1 else f"{len(high)} times"
    return (
        f"The gradient norm jumped {times}, to {norms[top]:.3g} at step {steps[top]:.0f} "
        f"(median before {_usual(norms, top):.3g}). Keep train.clip at 1 or below, or lengthen train.warmup."
    )


def _usual(norms: Sequence[float], at: int) -> float:
    return statistics.median(norms[max(0, at - 2 * ENOUGH) : at])


def _dropped_rows(curves: Curves) -> str:
    told = curves.last.get("LeftOut")
    if not told:
        return ""
    found = LeftOut(**{key: value for key, value in told.items() if key != "event"})
    if found.dropped < DROPPED * found.rows:
        return ""
    return f"{percent(found.dropped / found.rows, 0)} of the rows are not learnt. {found.text} Raise data.max_tokens?"


def _overfitting(curves: Curves) -> str:
    if len(curves.validation) < 3:
        return ""
    step, least = min(curves.validation, key=lambda point: point[1])
    at, last = curves.validation[-1]
    if at == step or last < 1.1 * least or last < least + 0.02:
        return ""
    return (
        f"The validation loss rose from {least:.3g} (step {step}) to {last:.3g} (step {at}). "
        f"The adapter of step {step} is kept; fewer epochs would do."
    )


def _solved(curves: Curves) -> str:
    means = _means(curves)
    solved = len(means)
    while solved and means[solved - 1][1] < SOLVED:
        solved -= 1
    if solved == len(means):
        return ""
    since, steps = means[solved - 1][0] if solved else 1, curves.columns["step"][-1]
    enough = math.ceil(1.5 * since)
    if steps - since < 0.1 * curves.planned or enough > 0.7 * curves.planned:
        return ""
    return (
        f"The loss is below {SOLVED} since step {since} of {curves.planned}: the task is solved. "
        f"train.max_steps = {enough} would be enough."
    )


def _slower(curves: Curves) -> str:
    count = len(curves)
    if count < 3 * ENOUGH:
        return ""
    pieces = [curves.speed(begin, begin + ENOUGH) for begin in range(0, count - ENOUGH + 1, ENOUGH)]
    usual, now = statistics.median(pieces), curves.speed(count - ENOUGH, count)
    if now > SLOW * usual or usual <= 0:
        return ""
    return (
        f"The speed fell to {now:,.0f} tokens/s from {usual:,.0f}. "
        "Other programs may take the processors, or memory is being swapped."
    )


def _means(curves: Curves) -> Sequence[tuple[int, float]]:
    """Return the last step and the mean loss of every `ENOUGH` steps."""
    loss, steps = curves.columns["loss"], curves.columns["step"]
    return [
        (int(steps[end - 1]), statistics.fmean(loss[end - ENOUGH : end]))
        for end in range(ENOUGH, len(loss) + 1, ENOUGH)
    ]


def _rate(curves: Curves) -> float:
    return max(curves.columns["learning_rate"])
