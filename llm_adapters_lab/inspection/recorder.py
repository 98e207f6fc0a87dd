"""Look inside a model while it runs, and change what it computes; nothing stays behind.

with Recorder(model, at="attn+mlp", what=("y", "contributions")) as seen:
    model(**batch)
seen["model.layers.0.mlp.down_proj:mlp"].y                                # (rows, tokens, d)
seen["model.layers.0.mlp.down_proj:mlp"].contributions["default"]         # what the adapter of that name added

with Recorder(model, at="layers", what="y", reduce="covariance") as seen: # flat memory over any number of prompts
    for batch in batches: model(**batch)

with Recorder(model, edit=scale_adapter("default", 0.5)): model(**batch)  # at half its strength
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from types import TracebackType
from typing import Any, get_args
from weakref import WeakValueDictionary

import torch
from torch import nn

from llm_adapters_lab.core.anatomy import Anatomy
from llm_adapters_lab.core.hooks import Chain
from llm_adapters_lab.errors import BadSpec, CannotRecord, choices
from llm_adapters_lab.inspection.interventions import AdapterScale, Edit
from llm_adapters_lab.inspection.recording import Recording, Reduce, What
from llm_adapters_lab.inspection.targets import (
    attentions,
    check_adapters,
    eager_attention,
    entering,
    leaving,
    places,
    refuse_compiled,
    with_entering,
    with_leaving,
)
from llm_adapters_lab.inspection.token_selection import Call, Tokens


class Recorder(Mapping[str, Recording]):
    """Records, and edits, inside a `with` block; a mapping from site keys to what was seen there.

    Keys come in the order in which their outputs were computed. The outputs are those of modules, so quantised bases
    need nothing special. Recomputation by gradient checkpointing is edited like the first pass and recorded once, as
    only what happens while the decoder runs is recorded; then `backward` comes before the next call. Of recorders
    within one another the inner one sees what the outer one made of y. Inject adapters before.
    """

    def __init__(
        self,
        model: nn.Module,
        at: str | Sequence[str] | None = None,
        what: What | Sequence[What] = "y",
        tokens: Tokens = None,
        reduce: Reduce | None = None,
        edit: Edit | AdapterScale | Mapping[str, Edit | AdapterScale] | None = None,
        *,
        device: str | torch.device | None = None,
    ) -> None:
        """Choose what to watch; hooks are put in when the block begins.

        Args:
            model: any decoder, with or without adapters.
            at: a placement, in which `attn` and `mlp` are whole sublayers; "layers" for the residual stream, keyed
                "embed" for what enters the first layer and by path for what each one passes on; the path of any
                module; or several of these. Default: where the model's adapters sit. "embed" and all sublayers add up
                to the last layer, but where a norm follows a sublayer: Gemma 2 and 3, OLMo 2, GLM 4.
            what: any of x, y, base, grad, pattern, contributions; see `Recording`. Adapters elsewhere in the model act
                on base too. pattern switches attention to its eager form for the block and is kept under the key of
                the attention sublayer of each layer in `at`.
            tokens: which tokens of each call are recorded and edited: None for all, "last" for the last that the
                attention mask counts, a position, a slice, a list of positions, or a boolean mask (rows, tokens).
                Virtual tokens that adapters put in front are no tokens of the call.
            reduce: None keeps tensors. "mean", "norm" (the mean of ||z||) and "covariance" keep running moments over
                all selected tokens of all calls but padding, in fp64.
            edit: of y, for all sites or by key: `edits.zero`, `edits.replace(value)`, `edits.add(value)`,
                `edits.scale_adapter(name, factor)` or a function of y.
            device: where tensors are kept; default: where they were computed.

        Raises:
            CannotRecord: the model cannot show what is asked for; the message says why.
            BadSpec: the placement or another choice is not understood.
        """
        refuse_compiled(model)
        self.model, self.what = model, frozenset([what] if isinstance(what, str) else what)
        for name in sorted(self.what - set(get_args(What))):
            raise BadSpec(f"A recorder does not know {name!r}. {choices(name, get_args(What))}")
        if reduce is not None and reduce not in get_args(Reduce):
            raise BadSpec(f"A recorder does not know the reduction {reduce!r}. {choices(reduce, get_args(Reduce))}")
        if reduce and "pattern" in self.what:
            raise CannotRecord("Attention patterns differ in size from call to call: record them without a reduction.")
        self.anatomy, self.tokens, self.reduce = Anatomy.of(model), tokens, reduce
        self._places = places(model, self.anatomy, at)
        self._attentions = attentions(self.anatomy, self._places) if "pattern" in self.what else {}
        if isinstance(edit, Mapping) and (unknown := set(edit) - set(self._places)):
            raise BadSpec(f"There is nothing to edit at {min(unknown)!r}. {choices(min(unknown), self._places)}")
        # Several keys can mean the output of one module, which one edit for all reaches once.
        once = {(place.path, place.inside): key for key, place in reversed(self._places.items())}
        self._edits = dict(edit) if isinstance(edit, Mapping) else dict.fromkeys(once.values(), edit) if edit else {}
        scaled = {key: e.name for key, e in self._edits.items() if isinstance(e, AdapterScale)}
        check_adapters(model, self._places, self.what, scaled, everywhere=isinstance(edit, Mapping))
        keys = dict.fromkeys([*(self._places if self.what != {"pattern"} else ()), *self._attentions])
        masked = isinstance(tokens, torch.Tensor)
        self._seen = {key: Recording(key, self.what, reduce, device, masked) for key in keys}
        self._order: dict[str, None] = {}
        self._running: list[Call] = []
        self._call: Call | None = None
        # Weak: what waits for a gradient goes when its graph does, so that calls without `backward` leave nothing.
        self._awaited: WeakValueDictionary[int, Any] = WeakValueDictionary()
        self._numbers = itertools.count()

    def __getitem__(self, key: str) -> Recording:
        """Return what was recorded at a site."""
        if key not in self._seen:
            raise KeyError(f"{key!r} is not recorded. {choices(key, self._seen)}")
        return self._seen[key]

    def __iter__(self) -> Iterator[str]:
        """Yield the keys in order of execution, before the first call in order of layers."""
        yield from (key for key in dict.fromkeys([*self._order, *self._seen]) if key in self._seen)

    def __len__(self) -> int:
        """Return the number of sites."""
        return len(self._seen)

    def __enter__(self) -> Recorder:
        """Put the hooks in."""
        self._running, self._call = [], None
        with ExitStack() as stack:
            stack.callback(self._forget)
            if self._attentions:
                stack.enter_context(eager_attention(self.model))
            for handle in self._hooks():
                stack.callback(handle.remove)
            self._exit = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Take everything out again."""
        self._exit.close()

    def _forget(self) -> None:
        for handle in list(self._awaited.values()):
            handle.remove()

    def _hooks(self) -> Iterator[Any]:
        """Put every hook in, yielding its handle."""
        decoder = self.model.get_submodule(self.anatomy.decoder)
        for module in (whole := dict.fromkeys([self.model, decoder])):
            begin = partial(self._begin, tuple(inspect.signature(module.forward).parameters))
            yield module.register_forward_pre_hook(begin, prepend=True, with_kwargs=True)
        for key, place in self._places.items():
            host, reader = self.model.get_submodule(place.path), self.model.get_submodule(place.reader)
            for chain in place.chains(self.model):
                for name, adapter in chain.items():
                    yield adapter.register_forward_hook(partial(self._adapter, key, name, chain))
            # The first hook sees what the module computes, the last one what adapters made of it.
            if place.inside:
                before = partial(self._enter, key, ("x", "base"))
                yield host.register_forward_pre_hook(before, prepend=True, with_kwargs=True)
                yield host.register_forward_pre_hook(partial(self._change_input, key), with_kwargs=True)
            else:
                yield reader.register_forward_pre_hook(partial(self._enter, key, ("x",)), with_kwargs=True)
                yield host.register_forward_hook(partial(self._leave, key), prepend=True)
                yield host.register_forward_hook(partial(self._change_output, key))
        for key, path in self._attentions.items():
            yield self.model.get_submodule(path).register_forward_hook(partial(self._attend, key))
        for module in whole:
            yield module.register_forward_hook(self._end, always_call=True)

    def _begin(self, names: tuple[str, ...], module: nn.Module, args: Any, kwargs: Any) -> None:
        self._call = Call.of({**dict(zip(names, args, strict=False)), **kwargs})
        self._running.append(self._call)

    def _end(self, module: nn.Module, args: Any, output: Any) -> None:
        del self._running[-1:]
        self._call = self._running[-1] if self._running else self._call

    def _keep(self, key: str, kind: str, z: torch.Tensor) -> None:
        if self._running and kind.partition("/")[0] in self.what:
            part = self._running[-1].select(z, self.tokens, self.reduce is not None)
            self._seen[key].keep(kind, next(self._numbers), part)

    def _enter(self, key: str, kinds: tuple[str, ...], module: nn.Module, args: Any, kwargs: Any) -> None:
        for kind in self.what & set(kinds):
            self._keep(key, kind, entering(args, kwargs))

    def _leave(self, key: str, module: nn.Module, args: Any, output: Any) -> None:
        if "base" in self.what:
            self._keep(key, "base", leaving(output))

    def _change_input(self, key: str, module: nn.Module, args: Any, kwargs: Any) -> Any:
        return with_entering(args, kwargs, self._pass(key, entering(args, kwargs)))

    def _change_output(self, key: str, module: nn.Module, args: Any, output: Any) -> Any:
        return with_leaving(output, self._pass(key, leaving(output)))

    def _pass(self, key: str, y: torch.Tensor) -> torch.Tensor:
        """Edit y, record it and await its gradient; return what the model goes on with."""
        edit = self._edits.get(key)
        if self._call and edit is not None and not isinstance(edit, AdapterScale):
            y = self._call.edit(y, self.tokens, edit)
        if self._running:
            self._order.setdefault(key)
        self._keep(key, "y", y)
        if "grad" in self.what and torch.is_grad_enabled():
            # Nothing before the first trainable tensor has a gradient of its own accord: there it begins here.
            y = y if y.requires_grad else y.detach().requires_grad_()
            if self._running:
                self._await(key, y, self._running[-1])
        return y

    def _await(self, key: str, y: torch.Tensor, call: Call) -> None:
        number = next(self._numbers)

        def arrive(gradient: torch.Tensor) -> None:
            handle.remove()
            part = call.select(gradient, self.tokens, self.reduce is not None)
            self._seen[key].keep("grad", number, part)

        handle = self._awaited[number] = y.register_hook(arrive)  # type: ignore[no-untyped-call]

    def _adapter(self, key: str, name: str, chain: Chain, module: nn.Module, args: Any, out: torch.Tensor) -> Any:
        edit, before = self._edits.get(key), args[1]
        if self._call and isinstance(edit, AdapterScale) and edit.name == name:
            # `lerp` is exact at 0 and at 1.
            out = self._call.edit(out, self.tokens, lambda y, b: b.lerp(y, edit.factor), before.to(out.dtype))
        if "contributions" in self.what:
            self._keep(key, f"contributions/{name}", (out - before) * chain.mix.get(name, 1.0))
        return out

    def _attend(self, key: str, module: nn.Module, args: Any, output: Any) -> None:
        weights = output[1] if isinstance(output, tuple) and len(output) > 1 else None
        if not isinstance(weights, torch.Tensor) or weights.ndim != 4:
            raise CannotRecord(f"{type(module).__name__} gives no attention weights, so it has no pattern to record.")
        if self._running:
            self._order.setdefault(key)
            part = self._running[-1].select_queries(weights, self.tokens)
            self._seen[key].keep("pattern", next(self._numbers), part)
