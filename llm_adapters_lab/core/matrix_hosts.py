"""Adapters at matrices that are no modules: experts stacked in one parameter, and the weights of routers.

A `MatrixHost` is a projection in all respects but one: nothing calls it. While the module that owns the parameter runs,
an `AdaptedParameter` stands in for it, and whatever is multiplied by a matrix of it passes through the adapters of that
matrix too. Only the rows routed to an expert are computed, as in the base, whatever way the base computes them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear

from llm_adapters_lab.core import weights
from llm_adapters_lab.core.sites import Site
from llm_adapters_lab.errors import CannotInject

HOSTS = "adapted_parameters"
"""Attribute of a module that holds the hosts of its parameters, by parameter and index."""


class MatrixHost(nn.Module):
    """One matrix of a parameter as a projection.

    Attributes:
        owner: the module that has the parameter, in a tuple.
        caller: the module that runs while the parameter is used, in a tuple: the owner, or the router it is part of.
        name: of the parameter.
        index: of the matrix in a parameter of three dimensions; -1 if the parameter is the matrix.
        transposed: whether it is stored as (d_in, d_out).
    """

    def __init__(self, caller: nn.Module, owner: nn.Module, name: str, index: int, site: Site) -> None:
        """Find the matrix of a site."""
        super().__init__()
        self.caller, self.owner, self.name, self.index = (caller,), (owner,), name, index
        self.in_features, self.out_features = site.d_in, site.d_out
        shape = self.stored.shape[-2:]
        square = shape[0] == shape[1]
        self.transposed = bool(getattr(owner, "is_transposed", False)) if square else shape[0] == site.d_in

    @property
    def stored(self) -> torch.Tensor:
        """The parameter."""
        value: Any = self.owner[0]._parameters[self.name]
        return value.tensor if isinstance(value, AdaptedParameter) else value

    @property
    def weight(self) -> torch.Tensor:
        """The matrix (d_out, d_in), a view of the parameter."""
        matrix = self.stored if self.index < 0 else self.stored[self.index]
        return matrix.T if self.transposed else matrix

    def run(self, x: torch.Tensor, multiply: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """Return the product of x (..., d_in) and the matrix, with the adapters at its input and output."""
        inner, outer = getattr(self, "input_adapters", None), getattr(self, "adapters", None)
        if inner is not None:
            x = inner.fold(None, x)
        y = multiply(x)
        return y if outer is None else outer.fold(x, y)

    def mount(self) -> None:
        """Register this host with the owner, which then has an `AdaptedParameter` while the caller runs."""
        owner, caller = self.owner[0], self.caller[0]
        if not hasattr(owner, HOSTS):
            owner.add_module(HOSTS, nn.ModuleDict())
            before = caller.register_forward_pre_hook(_stand_in)
            after = caller.register_forward_hook(restore, always_call=True)
            owner.__dict__["adapted_handles"] = (before, after)
        getattr(owner, HOSTS)[f"{self.name}:{self.index}"] = self

    def unmount(self) -> None:
        """Undo `mount`, once no adapter is left."""
        owner = self.owner[0]
        hosts: Any = getattr(owner, HOSTS)
        del hosts[f"{self.name}:{self.index}"]
        if not hosts:
            for handle in owner.__dict__.pop("adapted_handles"):
                handle.remove()
            delattr(owner, HOSTS)


def find_host(model: nn.Module, site: Site) -> nn.Module:
    """Return the module at which the adapter of a site sits; of a matrix that has none yet, a new one.

    Raises:
        CannotInject: the parameter is offloaded or quantised.
    """
    try:
        return model.get_submodule(site.path)
    except AttributeError:
        path, _, last = site.path.rpartition(".")
    try:
        owner, name, index = model.get_submodule(path), last, -1
    except AttributeError:
        path, _, name = path.rpartition(".")
        owner, index = model.get_submodule(path), int(last)
    if weights.is_offloaded(owner) or name not in owner._parameters:
        raise CannotInject(f"{site.path} is offloaded or quantised. Load the base unquantised, on one device.")
    known: Any = getattr(owner, HOSTS, {})
    key = f"{name}:{index}"
    part = isinstance(owner, nn.Linear) and "." in path
    caller = model.get_submodule(path.rpartition(".")[0]) if part else owner
    return known[key] if key in known else MatrixHost(caller, owner, name, index, site)


def _stand_in(module: nn.Module, args: tuple[Any, ...]) -> None:
    restore(module)
    for owner in (module, *module.children()):
        by_name: dict[str, dict[int, MatrixHost]] = {}
        hosts: Any = getattr(owner, HOSTS, nn.ModuleDict())
        for host in hosts.values():
            by_name.setdefault(host.name, {})[host.index] = host
        parameters: dict[str, Any] = owner._parameters
        for name, own in by_name.items():
            parameters[name] = AdaptedParameter(parameters[name], own)


def restore(module: nn.Module, *hook_args: Any) -> None:
    """Put a module's own parameters back; a forward hook, which a KeyboardInterrupt in `forward` skips."""
    for owner in (module, *module.children()):
        parameters: dict[str, Any] = owner._parameters
        for name, value in parameters.items():
            if isinstance(value, AdaptedParameter):
                parameters[name] = value.tensor


class AdaptedParameter:
    """A parameter whose products pass through adapters.

    Attributes:
        tensor: the parameter, or a matrix, several matrices or a transpose of it.
        hosts: of its matrices, by index; by -1 if the tensor is one matrix.
        rows: indices of the matrices, if the tensor is a selection with one for each row of what it multiplies.
    """

    def __init__(self, tensor: torch.Tensor, hosts: Mapping[int, MatrixHost], rows: torch.Tensor | None = None) -> None:
        """Stand in for a tensor."""
        self.tensor, self.hosts, self.rows = tensor, hosts, rows

    def __getattr__(self, name: str) -> Any:
        """Return what does not depend on the values, such as shape, dtype and device."""
        if name in {"shape", "dtype", "device", "ndim", "requires_grad", "is_meta", "layout"}:
            return getattr(self.tensor, name)
        if name in {"size", "dim", "data_ptr", "numel", "stride", "is_contiguous", "is_floating_point", "element_size"}:
            return getattr(self.tensor, name)
        raise AttributeError(name)

    def __len__(self) -> int:
        """Return the number of matrices."""
        return len(self.tensor)

    def __getitem__(self, index: Any) -> Any:
        """Return one matrix, or one for each of several rows."""
        if isinstance(index, torch.Tensor) and index.ndim == 1 and index.numel() != 1:
            return AdaptedParameter(self.tensor[index], self.hosts, index)
        if not isinstance(index, int | torch.Tensor) or self.tensor.ndim != 3 or self.rows is not None:
            raise _unknown(f"[{index}]")
        one = int(index)
        matrix = self.tensor[one]
        return AdaptedParameter(matrix, {-1: self.hosts[one]}) if one in self.hosts else matrix

    def transpose(self, first: int, second: int) -> AdaptedParameter:
        """Return the same with the sides of its matrices exchanged."""
        if {first % self.tensor.ndim, second % self.tensor.ndim} != {self.tensor.ndim - 2, self.tensor.ndim - 1}:
            raise _unknown("transpose")
        return AdaptedParameter(self.tensor.transpose(first, second), self.hosts, self.rows)

    @property
    def mT(self) -> AdaptedParameter:
        """The same with the sides of its matrices exchanged."""
        return self.transpose(-1, -2)

    T = mT

    def contiguous(self) -> AdaptedParameter:
        """Return the same."""
        return AdaptedParameter(self.tensor.contiguous(), self.hosts, self.rows)

    def to(self, *args: Any, **kwargs: Any) -> AdaptedParameter:
        """Return the same on another device or in another dtype."""
        return AdaptedParameter(self.tensor.to(*args, **kwargs), self.hosts, self.rows)

    type = to

    def float(self) -> AdaptedParameter:
        """Return the same in fp32."""
        return self.to(torch.float32)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Multiply, and pass the product through the adapters.

        Raises:
            CannotInject: the function is none of the products that models use.
        """
        name, given = getattr(func, "__name__", str(func)), dict(kwargs or {})
        if name == "linear":
            x, self = args[0], args[1]
            added = args[2] if len(args) > 2 else given.get("bias")
            y = self.hosts[-1].run(x, lambda x: linear(x, self.tensor))
            return y if added is None else y + added
        if name in ("matmul", "mm", "__matmul__", "bmm", "__rmatmul__", "grouped_mm", "_grouped_mm"):
            left, right = args[:2]
            swapped = isinstance(left, cls)
            self, x = (left, right) if swapped else (right, left)

            def multiply(x: torch.Tensor) -> torch.Tensor:
                found: torch.Tensor = func(*((self.tensor, x) if swapped else (x, self.tensor)), *args[2:], **given)
                return found

            if self.rows is None and self.tensor.ndim == 2:
                return self.hosts[-1].run(x, multiply)
            if name.endswith("grouped_mm"):
                return self._run([0, *given.get("offs", args[-1]).tolist()], x, multiply)
            return self._run_each(x, multiply, swapped)
        raise _unknown(name)

    def _run_each(self, x: torch.Tensor, multiply: Callable[..., torch.Tensor], swapped: bool) -> torch.Tensor:
        """Multiply matrix by matrix along the first dimension: x (n, tokens, d_in), or swapped (n, d_in, tokens)."""
        ids = range(len(self.tensor)) if self.rows is None else self.rows.tolist()
        order = sorted(range(len(ids)), key=ids.__getitem__)
        back = torch.tensor(order, device=self.device).argsort()
        ends = [sum(own <= e for own in ids) for e in range(max(ids, default=0) + 1)]

        def turned(x: torch.Tensor) -> torch.Tensor:
            if not swapped:
                return multiply(x[back])[order]
            # With the strides that the base gives to x: for other ones, other kernels round differently.
            return multiply(x[back].mT.clone(memory_format=torch.contiguous_format)).mT[order]

        y = self._run([0, *ends], (x.mT if swapped else x)[order], turned)[back]
        return y.mT if swapped else y

    def _run(
        self, bounds: list[int], x: torch.Tensor, multiply: Callable[[torch.Tensor], torch.Tensor]
    ) -> torch.Tensor:
        """Multiply all at once; the rows from bounds[e] to bounds[e + 1] are those of matrix e."""
        spans = list(pairwise(bounds))
        hosts = {e: self.hosts[e] for e, (first, last) in enumerate(spans) if e in self.hosts and last > first}
        inner = {e: chain for e, host in hosts.items() if (chain := getattr(host, "input_adapters", None)) is not None}
        outer = {e: chain for e, host in hosts.items() if (chain := getattr(host, "adapters", None)) is not None}
        tail = [x[bounds[-1] :]] if len(x) > bounds[-1] else []
        if inner:
            parts = [inner[e].fold(None, x[i:j]) if e in inner else x[i:j] for e, (i, j) in enumerate(spans)]
            x = torch.cat([*parts, *tail])
        y = multiply(x)
        if outer:
            tail = [y[bounds[-1] :]] if tail else []
            parts = [outer[e].fold(x[i:j], y[i:j]) if e in outer else y[i:j] for e, (i, j) in enumerate(spans)]
            y = torch.cat([*parts, *tail])
        return y


def _unknown(name: str) -> CannotInject:
    return CannotInject(
        f"The base uses a parameter with experts or a router through {name}, which adapters cannot follow. "
        "Put the adapter at other projections."
    )
