"""Record and edit what a model computes while it runs; nothing stays behind.

with Recorder(model, at="attn+mlp", what=("y", "contributions")) as seen:
    model(**batch)
seen["model.layers.0.mlp.down_proj:mlp"].y                                # (rows, tokens, d)
seen["model.layers.0.mlp.down_proj:mlp"].contributions["default"]         # what the adapter of that name added

with Recorder(model, at="layers", what="y", reduce="covariance") as seen: # flat memory over any number of prompts
    for batch in batches: model(**batch)

with Recorder(model, edit=scale_adapter("default", 0.5)): model(**batch)  # at half its strength
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from types import TracebackType
from typing import Any, get_args

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from llm_adapters_lab.core.anatomy import Anatomy
from llm_adapters_lab.core.hooks import AdapterChain
from llm_adapters_lab.core.weights import row_scale
from llm_adapters_lab.errors import BadSpec, NoView, choices
from llm_adapters_lab.inspection.interventions import AdapterScale, Edit
from llm_adapters_lab.inspection.recording import Moment, Recording, Reduce, What
from llm_adapters_lab.inspection.targets import (
    chains,
    check_adapters,
    check_rows,
    eager_attention,
    find_sites,
    on_stream,
)
from llm_adapters_lab.inspection.token_selection import ForwardCall, Tokens, check_tokens
from llm_adapters_lab.signatures import checked


class Recorder(Mapping[str, Recording]):
    """Records, and edits, inside a `with` block; a mapping from site keys to what was recorded there.

    Keys come in the order in which their outputs were computed. Module outputs are recorded, so quantised bases need
    nothing special. A pass that gradient checkpointing recomputes is edited like the first one and recorded once; call
    `backward` before the next forward call then. Of nested recorders, the inner one sees the outer one's edits. Inject
    adapters first.
    """

    @checked
    def __init__(
        self,
        model: nn.Module,
        at: str | Sequence[str] | None = None,
        what: What | Sequence[What] = "y",
        tokens: Tokens = None,
        reduce: Reduce = None,
        edit: Edit | AdapterScale | Mapping[str, Edit | AdapterScale] | None = None,
        *,
        device: str | torch.device | None = None,
    ) -> None:
        """Choose what to record; hooks exist only inside the block.

        Args:
            model: any decoder, with or without adapters.
            at: a placement, in which `attn` and `mlp` are whole sublayers; "layers" for the residual stream, with the
                keys "embed" for the input of the first layer and the path of each layer for its output; the path of any
                module; or several of these. Default: the sites of the model's adapters. "embed" plus all sublayers is
                the output of the last layer, unless a norm follows each sublayer (Gemma 2 and 3, OLMo 2, GLM 4).
            what: any of x, y, base, grad, pattern, contributions; see `Recording`. Adapters elsewhere in the model
                affect base too. pattern switches attention to its eager form inside the block, and is recorded under
                the key of the attention sublayer of each layer in `at`.
            tokens: which tokens of each call to record and edit: None for all, "last" for the last one that the
                attention mask counts, a position, a slice, a list of positions, or a boolean mask (rows, tokens).
                Virtual tokens that adapters prepend are not among them.
            reduce: None keeps tensors. "mean", "norm" (the mean of ||z||) and "covariance" keep running moments over
                the selected tokens of all calls, in fp64. A function is applied to the selected tokens (n, d) of each
                call, and its result kept. Padding is left out of both.
            edit: of y, for all sites or by key: `interventions.zero`, `replace(value)`, `add(value)`,
                `scale_adapter(name, factor)`, or any function of y.
            device: where to keep tensors; default: where they were computed.

        Raises:
            NoView: the model cannot show what is asked for; the message says why.
            BadSpec: the placement or another choice is not understood.
        """
        check_tokens(tokens)
        self.model, self.what = model, frozenset([what] if isinstance(what, str) else what)
        for name in sorted(self.what - set(get_args(What))):
            raise BadSpec(f"A recorder does not know {name!r}. {choices(name, get_args(What))}")
        if isinstance(reduce, str) and reduce not in get_args(Moment):
            raise BadSpec(f"A recorder does not know the reduction {reduce!r}. {choices(reduce, get_args(Moment))}")
        if reduce and "pattern" in self.what:
            raise NoView("Attention patterns differ in size from call to call: record them without a reduction.")
        self.anatomy, self.tokens, self.reduce = Anatomy.of(model), tokens, reduce
        self._sites = find_sites(model, self.anatomy, at)
        layers = {site.layer for site in self._sites.values()} if "pattern" in self.what else ()
        exits = {s.path for s in self.anatomy.projections if s.role == "o"}  # of attention with a pattern
        self._attentions = [s for s in self.anatomy.sublayers if s.path in exits and s.layer in layers]
        if isinstance(edit, Mapping) and (unknown := set(edit) - set(self._sites)):
            raise BadSpec(f"There is nothing to edit at {min(unknown)!r}. {choices(min(unknown), self._sites)}")
        check_adapters(model, self._sites, self.what, edit)
        check_rows(model.get_submodule(self.anatomy.decoder))
        # Several keys can refer to the output of one module, which a single edit reaches once.
        once = {(site.path, site.side == "in"): key for key, site in reversed(self._sites.items())}
        self._edits = dict(edit) if isinstance(edit, Mapping) else dict.fromkeys(once.values(), edit) if edit else {}
        keys = [*(self._sites if self.what != {"pattern"} else ()), *(site.key for site in self._attentions)]
        masked = isinstance(tokens, torch.Tensor)
        self._seen = {key: Recording(key, self.what, reduce, device, masked) for key in keys}
        self._order: dict[str, None] = {}
        self._numbers = itertools.count()
        self._running: list[ForwardCall] = []
        self._call: ForwardCall | None = None
        self._open = False

    def __getitem__(self, key: str) -> Recording:
        """Return what was recorded at a site."""
        if key not in self._seen:
            raise KeyError(f"{key!r} is not recorded. {choices(key, self._seen)}")
        return self._seen[key]

    def __iter__(self) -> Iterator[str]:
        """Yield the keys in order of execution; before the first call, in order of layers."""
        yield from (key for key in dict.fromkeys([*self._order, *self._seen]) if key in self._seen)

    def __len__(self) -> int:
        """Return the number of sites."""
        return len(self._seen)

    def __enter__(self) -> Recorder:
        """Register the hooks."""
        self._running, self._call = [], None
        with ExitStack() as stack:
            if self._attentions:
                stack.enter_context(eager_attention(self.model))
            for handle in self._hooks():
                stack.callback(handle.remove)
            self._exit, self._open = stack.pop_all(), True
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Remove them."""
        self._open = False
        self._exit.close()

    def _hooks(self) -> Iterator[RemovableHandle]:
        whole = dict.fromkeys([self.model, self.model.get_submodule(self.anatomy.decoder)])
        for module in whole:
            yield module.register_forward_pre_hook(self._begin, prepend=True, with_kwargs=True)
        for key, site in self._sites.items():
            host, reader = (self.model.get_submodule(path) for path in (site.path, site.reader or site.path))
            inside, gated = site.side == "in", any(chain.gates() for chain in chains(self.model, site))
            for chain in chains(self.model, site):
                for name, adapter in chain.items():
                    yield adapter.register_forward_hook(partial(self._adapter, key, name, chain))
            # The first hook sees what the module computes, the last one what adapters made of it.
            if "x" in self.what:
                yield on_stream(reader, partial(self._keep, key, "x"), inside=True, first=inside or gated)
            if "base" in self.what:
                yield on_stream(host, partial(self._keep, key, "base"), inside=inside, first=True)
            yield on_stream(host, partial(self._finish, key), inside=inside, first=False)
        for site in self._attentions:
            attention = self.model.get_submodule(site.path.rpartition(".")[0])
            yield attention.register_forward_hook(partial(self._attend, site.key))
        for module in whole:
            yield module.register_forward_hook(self._end, always_call=True)

    def _begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._call = ForwardCall.of(module, args, kwargs, self.tokens, self.reduce is not None)
        self._running.append(self._call)

    def _end(self, module: nn.Module, args: Any, output: Any) -> None:
        del self._running[-1:]
        self._call = self._running[-1] if self._running else self._call  # edits what is recomputed later

    def _keep(self, key: str, kind: str, z: torch.Tensor) -> None:
        if not self._running:  # a recomputation
            return
        call = self._running[-1]
        part = call.select_queries(z) if kind == "pattern" else call.select(z)
        self._seen[key].add(kind, next(self._numbers), part)

    def _finish(self, key: str, y: torch.Tensor) -> torch.Tensor:
        """Edit y, record it and wait for its gradient; return what the model continues with."""
        edit = self._edits.get(key)
        if self._call and edit is not None and not isinstance(edit, AdapterScale):
            y = self._call.edit(y, edit)
        self._order.setdefault(key)
        if "y" in self.what:
            self._keep(key, "y", y)
        if "grad" in self.what and torch.is_grad_enabled():
            # Nothing before the first trainable tensor has a gradient: it begins here.
            y = y if y.requires_grad else y.detach().requires_grad_()
            if self._running:
                self._await_gradient(key, next(self._numbers), self._running[-1], y)
        return y

    def _await_gradient(self, key: str, number: int, call: ForwardCall, y: torch.Tensor) -> None:
        def arrive(gradient: torch.Tensor) -> None:
            handle.remove()
            if self._open:
                self._seen[key].add("grad", number, call.select(gradient))

        # The hook goes with its graph, so calls without `backward` leave nothing.
        handle = y.register_hook(arrive)  # type: ignore[no-untyped-call]

    def _adapter(
        self, key: str, name: str, chain: AdapterChain, module: nn.Module, args: Any, out: torch.Tensor
    ) -> Any:
        edit, before = self._edits.get(key), args[1]
        if self._call and isinstance(edit, AdapterScale) and edit.name == name:
            # `lerp` is exact at 0 and at 1.
            out = self._call.edit(out, lambda y, b: b.lerp(y, edit.factor), before.to(out.dtype))
        if "contributions" in self.what:
            scale = row_scale(chain.table[0]) if chain.table else 1.0
            self._keep(key, f"contributions/{name}", (out - before) * chain.mix.get(name, 1.0) * scale)
        return out

    def _attend(self, key: str, module: nn.Module, args: Any, output: Any) -> None:
        weights = output[1] if isinstance(output, tuple) and len(output) > 1 else None
        if not isinstance(weights, torch.Tensor) or weights.ndim != 4:
            raise NoView(f"{type(module).__name__} returns no attention weights, so it has no pattern to record.")
        self._order.setdefault(key)
        self._keep(key, "pattern", weights)
