"""Make one adapter of several saved ones, and start the training of another from it.

merged = blend(["runs/a/adapter", "runs/b/adapter"], how="align"); merged.save("merged")

`average` takes the mean of the tensors. `delta` takes the mean of the updates B A of low-rank adapters and the best
approximation of their rank. `align` first brings the hidden units of each adapter into the order of the first: units
trained from different seeds are the same up to order, sign or rotation, and their plain mean is neither of them.

For units u of the first and v of another, with rows of all their weights (or with activations) a_u and b_v,

    P = argmin_P sum_uv P_uv ||a_u - b_v||²   over permutations (for odd activations, also with signs),
    Q = argmin_Q sum_u ||a_u - sum_v Q_uv b_v||²   over rotations, between linear maps,

solved by the Hungarian method, and by an SVD (orthogonal Procrustes). Between n and m units P is the optimal transport
of uniform masses: a unit of the first reads the mean of the units that are sent to it, and each writes all it has.

Source: He et al. 2023, arXiv:2308.15982, section 3 (optimal transport between adapters; with equal widths and uniform
masses their plan is a permutation).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import nn

from llm_adapters_lab.config import finite
from llm_adapters_lab.core.adapter import Units
from llm_adapters_lab.core.adapter_config import AdapterConfig, How
from llm_adapters_lab.core.baking import for_groups
from llm_adapters_lab.core.fingerprint import base_hash
from llm_adapters_lab.core.injection import Injection
from llm_adapters_lab.core.registry import get_adapter
from llm_adapters_lab.core.saved_adapters import Saved, digest, read_saved, saved_folder
from llm_adapters_lab.core.saving import check_base_of, load_adapter
from llm_adapters_lab.errors import BadSpec, StateMismatch, WrongBase, listed

Tensors = dict[str, torch.Tensor]
MOST = 2048
"""Largest least common multiple of two widths for which a transport is solved exactly."""
FREE = ("start", "at", "dropout", "init", "init_std", "groups", "train", "router_rate")
"""Fields in which adapters of one shape may differ: they only matter before or during training."""


def blend(
    sources: Sequence[str],
    how: How = "average",
    weights: Sequence[float] = (),
    *,
    model: nn.Module | None = None,
    ids: torch.Tensor | None = None,
) -> Saved:
    """Return one adapter made of saved ones.

    Args:
        sources: runs or folders with adapters of one method and shape; the first gives the order of the units. With
            align, bottlenecks may have different widths, and the first also gives the width.
        how: average, delta or align.
        weights: one for each source; by default, all are equal and sum to 1.
        model: the base; with it, `align` compares activations instead of weights.
        ids: token ids on which these are computed, (B, T).

    Raises:
        BadSpec: sources or weights do not fit together, or the method cannot be blended like this.
        WrongBase: the adapters are of different bases.
    """
    folders = [saved_folder(str(name)) for name in sources]
    found = [read_saved(folder) for folder in folders]
    if not found:
        raise BadSpec("A blend needs at least one saved adapter.")
    shares = list(weights) or [1 / len(found)] * len(found)
    if len(shares) != len(found) or not all(map(finite, shares)):
        raise BadSpec(f"A blend of {len(found)} adapters needs as many finite weights; given were {list(weights)}.")
    first = found[0]
    for other in found[1:]:
        _check_alike(first, other, how)
    if any(part.sparse or part.split or part.quantize for part in first.config.parts) and len(found) > 1:
        raise BadSpec(
            "Masked, split or quantised adapters cannot be blended: their units are not free. Blend plain ones."
        )
    seen = (
        [_activations(model, str(folder), ids) for folder in folders] if model is not None and ids is not None else []
    )
    if len(found) == 1 and shares == [1.0]:
        tensors = dict(first.tensors)
    else:
        tensors = {}
        for site, names in _by_site(first.tensors).items():
            members = [{name: saved.tensors[f"{site}/{name}"].double() for name in names} for saved in found]
            known = [own[site] for own in seen if site in own]
            new = _blend_site(_config_at(first.config, site), members, how, shares, known)
            tensors |= {
                f"{site}/{name}": value.to(first.tensors[f"{site}/{name}"].dtype) for name, value in new.items()
            }
    of = {str(name): digest(folder) for name, folder in zip(sources, folders, strict=True)}
    meta = first.meta | {"blend": {"of": of, "how": how, "weights": shares}}
    config = first.config.model_copy(update={"start": ""})
    return Saved(config, tensors, meta, first.base, f"the blend of {', '.join(map(str, sources))}")


def _check_alike(a: Saved, b: Saved, how: How) -> None:
    if a.config.type != b.config.type:
        raise BadSpec(
            f"{a.name} is {a.config.type!r} and {b.name} is {b.config.type!r}: only one method can be blended."
        )
    faults = [*_unlike(a.config, b.config), *_other_shapes(a.tensors, b.tensors)]
    if faults and not (how == "align" and _differ_in_width(a, b)):
        raise BadSpec(f"{b.name} does not fit {a.name}: {listed(faults)}. Blend adapters of one shape.")
    if a.base and b.base and base_hash(a.base) != base_hash(b.base):
        raise WrongBase(f"{a.name} and {b.name} were trained on different bases, so they have nothing in common.")


def _unlike(a: AdapterConfig, b: AdapterConfig) -> list[str]:
    """Return in words which fields of two configs differ that decide what the same tensors do."""
    if len(a.parts) != len(b.parts) or a.type != b.type:
        return [f"{len(a.parts)} and {len(b.parts)} parts of {a.type} and {b.type}"]
    if a.parts != (a,):
        return [fault for pair in zip(a.parts, b.parts, strict=True) for fault in _unlike(*pair)]
    old, new = (config.model_dump(exclude=set(FREE)) for config in (a, b))
    return [f"{name} is {new[name]!r}, not {old[name]!r}" for name in old if old[name] != new[name]]


def _other_shapes(a: Tensors, b: Tensors) -> list[str]:
    faults = [f"{name} is only in one" for name in a.keys() ^ b.keys()]
    shapes = {name: (tuple(a[name].shape), tuple(b[name].shape)) for name in a.keys() & b.keys()}
    return faults + [f"{name} is {new}, not {old}" for name, (old, new) in shapes.items() if old != new]


def _differ_in_width(a: Saved, b: Saved) -> bool:
    """Return whether two adapters differ in nothing but the number of units, which an alignment can transport."""
    units = get_adapter(a.config.type).cls.units(a.config)
    if units is None or units.symmetry == "linear" or a.tensors.keys() != b.tensors.keys():
        return False
    counts: set[tuple[int, int]] = set()
    for key, tensor in a.tensors.items():
        old, new, axis = [*tensor.shape], [*b.tensors[key].shape], units.axes.get(key.rpartition("/")[2])
        if axis is not None and len(old) == len(new):
            counts.add((old.pop(axis), new.pop(axis)))
        if old != new:
            return False
    if len(counts) != 1 or math.lcm(*min(counts)) > MOST:
        return False
    width = next((name for name, value in a.config if value == min(counts)[0]), "")
    here, there = (saved.config.model_dump(exclude={*FREE, width}) for saved in (a, b))
    return here == there


def _by_site(tensors: Tensors) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for key in tensors:
        site, _, name = key.rpartition("/")
        found.setdefault(site, []).append(name)
    return found


def _config_at(config: AdapterConfig, site: str) -> AdapterConfig:
    number = site.partition("/")[0]
    return config.parts[int(number)] if config.parts != (config,) and number.isdigit() else config


def _blend_site(
    config: AdapterConfig, members: list[Tensors], how: str, shares: Sequence[float], seen: Sequence[torch.Tensor]
) -> Tensors:
    """Return the tensors of one site; the members' are in fp64."""
    units = get_adapter(config.type).cls.units(config)
    if how != "average" and (units is None or (how == "delta" and units.symmetry != "linear")):
        raise BadSpec(f"{config.type!r} with this config has no {how} blend, only how: average.")
    if how == "align" and units is not None:
        moves = [_alignment(units, members[0], other, [*seen[:1], *seen[i : i + 1]]) for i, other in enumerate(members)]
        members = [_moved(units, other, move) for other, move in zip(members, moves, strict=True)]
    new = {name: sum(w * m[name] for w, m in zip(shares, members, strict=True)) for name in members[0]}
    if how == "delta" and units is not None:
        down, up = sorted(units.axes, key=lambda name: units.axes[name])
        u, s, v = torch.linalg.svd(sum(w * m[up] @ m[down] for w, m in zip(shares, members, strict=True)))
        rank, root = len(members[0][down]), s.sqrt()
        new |= {down: root[:rank, None] * v[:rank], up: u[:, :rank] * root[:rank]}
    return new  # type: ignore[return-value]


def _alignment(
    units: Units, first: Tensors, other: Tensors, seen: Sequence[torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Return the matrices (n, m) that bring what m units read, and what they write, into the order of n others."""
    from scipy.optimize import linear_sum_assignment

    if first is other:
        return None
    a, b = (_rows(units, own) for own in (first, other))
    if len(seen) == 2 and units.symmetry != "linear":
        a, b = (z.double().T for z in seen)
    likeness = a @ b.T
    if units.symmetry == "linear":
        u, _, v = torch.linalg.svd(likeness)
        return u @ v, u @ v
    signs = likeness.sign() if units.symmetry == "sign" else torch.ones_like(likeness)
    cost = a.square().sum(1)[:, None] + b.square().sum(1) - 2 * signs * likeness
    n, m = cost.shape
    parts = math.lcm(n, m)  # of equal mass, so that the transport is an assignment
    rows, columns = (torch.arange(parts) // (parts // count) for count in (n, m))
    order = torch.from_numpy(linear_sum_assignment(cost[rows][:, columns].numpy())[1])
    plan = (
        torch.zeros_like(cost).index_put_((rows, columns[order]), torch.ones(parts).to(cost), accumulate=True) / parts
    )
    return n * plan * signs, m * plan * signs


def _rows(units: Units, own: Tensors) -> torch.Tensor:
    """Return all weights of each unit, (units, weights)."""
    return torch.cat(
        [
            own[name].movedim(axis, 0).flatten(1) if own[name].ndim > 1 else own[name][:, None]
            for name, axis in units.axes.items()
        ],
        1,
    )


def _moved(units: Units, own: Tensors, moves: tuple[torch.Tensor, torch.Tensor] | None) -> Tensors:
    if moves is None:
        return own
    turned = {
        name: torch.tensordot(moves[min(axis, 1)], own[name], dims=([1], [axis])).movedim(0, axis)
        for name, axis in units.axes.items()
    }
    return own | turned


@torch.no_grad()
def _activations(model: nn.Module, folder: str, ids: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """Return what the units of an adapter, alone in the model, read at each site: (tokens, units)."""
    injection, found = load_adapter(model, folder, name="blended"), dict[str, torch.Tensor]()
    with ExitStack() as ended:
        ended.callback(injection.eject)
        for key, adapter in injection.adapters.items():
            units = adapter.units(injection.config_of(key))
            name = next((n for n, axis in units.axes.items() if axis == 0), "").rpartition(".")[0] if units else ""
            if name:
                ended.enter_context(adapter.get_submodule(name).register_forward_hook(partial(_keep, found, key)))
        model(input_ids=ids)
    return found


def _keep(found: dict[str, torch.Tensor], key: str, module: nn.Module, args: Any, output: torch.Tensor) -> None:
    found[key] = output.flatten(0, -2).cpu()


def start_of(config: AdapterConfig) -> Saved | None:
    """Return the saved adapter that a config starts from, or None.

    Raises:
        LabError: it cannot be read or blended.
    """
    if not config.start:
        return None
    if isinstance(config.start, str):
        return read_saved(saved_folder(config.start))
    return blend(config.start.blend, config.start.how, config.start.weights)


def begin_from_saved(injection: Injection, tokenizer: Any = None) -> None:
    """Load the saved adapter that the config of an injection starts from, if any; after an error nothing has changed.

    Raises:
        BadSpec: it is another method, or has other settings.
        WrongBase: it was trained on another base.
        StateMismatch: its tensors do not fit.
    """
    if (saved := start_of(injection.config)) is None:
        return
    if faults := _unlike(saved.config, injection.config):
        raise BadSpec(f"adapter.start: the adapter in {saved.name} is another one: {listed(faults)}.")
    check_base_of(saved, injection.model, tokenizer)
    try:
        injection.load_saved(for_groups(saved.tensors, saved.config, injection.config))
    except StateMismatch as error:
        raise StateMismatch(f"adapter.start: {saved.name}. {error}") from None
