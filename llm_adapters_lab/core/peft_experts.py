"""peft's layout of LoRA on parameters (`target_parameters`), as used for stacked experts and routers.

peft keeps one pair of matrices for all E experts of a parameter: A (E r, d_in) with the experts one after the other,
and B (d_out, r E) with the experts side by side within each rank. If several parameters of a module are adapted, the
tensors of the last have the plain names, and `base_layer.` stands before those of each earlier one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from llm_adapters_lab.core.injection import Injection
from llm_adapters_lab.core.matrix_hosts import MatrixHost, find_host
from llm_adapters_lab.core.sites import Site
from llm_adapters_lab.core.sublayers import base_modules
from llm_adapters_lab.errors import CannotConvert, StateMismatch

Tensors = dict[str, torch.Tensor]
_A, _B = "lora_A.weight", "lora_B.weight"


def stack(
    injection: Injection, by_site: dict[str, Tensors], fields: dict[str, Any]
) -> tuple[dict[str, Tensors], list[str]]:
    """Bring the tensors of matrices into peft's layout.

    Args:
        injection: the adapter.
        by_site: its tensors in peft's names, by site key.
        fields: of peft's config.

    Returns:
        The tensors by module path, and the paths of the parameters.

    Raises:
        CannotConvert: peft cannot adapt a parameter in this way.
    """
    result: dict[str, Tensors] = {}
    groups: dict[tuple[str, str], dict[int, tuple[MatrixHost, Tensors]]] = {}
    for key, tensors in by_site.items():
        site, host = injection.sites.get(key), injection.host(key)
        if site is None or not isinstance(host, MatrixHost):
            result[site.path if site else ""] = tensors
            continue
        path = site.path.removesuffix(f".{host.index}").removesuffix(f".{host.name}")
        groups.setdefault((path, host.name), {})[host.index] = host, tensors
        if tensors.keys() != {_A, _B} or fields.get("lora_dropout") or site.side == "in":
            raise CannotConvert(
                f"Of the methods on parameters, peft has plain LoRA without dropout; {key} has another."
            )
    for path in dict.fromkeys(path for path, _ in groups):
        names = [name for name in injection.model.get_submodule(path)._parameters if (path, name) in groups]
        for depth, name in enumerate(reversed(names)):
            own = groups[path, name]
            host = next(iter(own.values()))[0]
            count = 1 if host.index < 0 else len(host.stored)
            if len(own) != count:
                raise CannotConvert(f"peft adapts all {count} experts of {path}.{name} or none; here {len(own)} are.")
            pairs = [_turned(*own[index]) for index in sorted(own)]
            a = torch.cat([pair[0] for pair in pairs])
            b = torch.stack([pair[1] for pair in pairs], dim=2).flatten(1)
            result.setdefault(path, {}).update({"base_layer." * depth + _A: a, "base_layer." * depth + _B: b})
    return result, [f"{path}.{name}" for path, name in groups]


def unstack(
    model: nn.Module, by_module: dict[str, Tensors], fields: dict[str, Any], projections: dict[str, Site]
) -> tuple[dict[str, Tensors], list[str]]:
    """Undo `stack`.

    Args:
        model: the base.
        by_module: tensors by module path.
        fields: of peft's config.
        projections: the sites of the base by path.

    Returns:
        The tensors by path, those of a matrix under that of its site; and the paths that the config names.

    Raises:
        CannotConvert: the parameters are not named, or one of them is no site.
        StateMismatch: the tensors do not have the shapes of the parameters.
    """
    targets: Any = fields.get("target_parameters") or []
    if not isinstance(targets, list) or not all(isinstance(target, str) for target in targets):
        raise CannotConvert(f"target_parameters = {targets!r:.200} is no list of names. Nothing was loaded.")
    result, named = {path: dict(tensors) for path, tensors in by_module.items()}, list[str]()
    for path, module in base_modules(model) if targets else ():
        names = [name for name in module._parameters if f".{path}.{name}".endswith(tuple(f".{t}" for t in targets))]
        for depth, name in enumerate(reversed(names)):
            parameter = module.get_parameter(name)
            count = len(parameter) if parameter.ndim == 3 else 1
            sites = [f"{path}.{name}.{e}" for e in range(count)] if parameter.ndim == 3 else [f"{path}.{name}"]
            if missing := [site for site in sites if site not in projections]:
                raise CannotConvert(
                    f"target_parameters = {targets!r:.200}: the lab puts no adapter at {missing[0]}. "
                    "Nothing was loaded."
                )
            named += sites
            own = result.get(path, {})
            a, b = (own.pop("base_layer." * depth + end, None) for end in (_A, _B))
            if a is None or b is None:
                continue
            if len(a) % count or b.shape[1] != len(a):
                raise StateMismatch(f"{path}.{name} has {count} experts, but A {tuple(a.shape)}, B {tuple(b.shape)}.")
            pairs = zip(a.reshape(count, -1, a.shape[1]), b.reshape(len(b), -1, count).unbind(2), strict=True)
            for site, (a_e, b_e) in zip(sites, pairs, strict=True):
                host = find_host(model, projections[site])
                assert isinstance(host, MatrixHost)
                result[site] = dict(zip((_A, _B), _turned(host, {_A: a_e, _B: b_e}), strict=True))
    return {path: tensors for path, tensors in result.items() if tensors}, named


def _turned(host: MatrixHost, tensors: Tensors) -> tuple[torch.Tensor, torch.Tensor]:
    """Return A and B, exchanged where peft takes the input of a parameter for its output; its own inverse."""
    a, b = tensors[_A], tensors[_B]
    assumed = host.index >= 0 and bool(getattr(host.owner[0], "is_transposed", False))
    return (b.T, a.T) if assumed != host.transposed else (a, b)
