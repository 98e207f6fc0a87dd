"""The choice of a method: adapters and presets by family, with what each can do and what it costs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from llm_adapters_lab.core.adapter import World
from llm_adapters_lab.core.registry import Entry, all_adapters, get_adapter
from llm_adapters_lab.models.blueprint import Blueprint
from llm_adapters_lab.results.formatting import count
from llm_adapters_lab.runs.presets import adapter_presets, expand
from llm_adapters_lab.runs.spec import RunSpec
from widgets.forms.adapter_info import NO_ADAPTER
from widgets.forms.picker import Option, Picker
from widgets.kit.panel import Panel, schedule

Counts = Callable[[str], int]
"""Returns the number of trainable parameters with a method or preset; raises if it is not known."""
FAMILIES = ("Low-rank", "Bottleneck", "Prompt", "Scale and shift", "Selective", "Full", "Tokens")
"""The families that come first, in this order."""


class MethodPicker(Panel):
    """A choice of one of all adapters and adapter presets, or of none.

    Attributes:
        widget: the list.
        counts: if given, the numbers of trainable parameters, which are counted when the list opens.
    """

    def __init__(self, counts: Counts | None = None) -> None:
        """Choose none."""
        super().__init__()
        self.counts = counts
        options = method_options()
        self.widget = Picker(name="method", value=NO_ADAPTER, search=f"Search {len(options) - 1} methods")
        self.widget.offer(options)
        self.widget.observe(self._chosen, "value")
        self.widget.observe(self._opened, "opened")

    @property
    def value(self) -> str:
        """Name of the adapter or preset; `NO_ADAPTER` for the bare base. Setting it does not tell the observers."""
        return str(self.widget.value)

    @value.setter
    def value(self, name: str) -> None:
        self.widget.value = name

    @property
    def disabled(self) -> bool:
        """Whether the method cannot be changed."""
        return bool(self.widget.disabled)

    @disabled.setter
    def disabled(self, disabled: bool) -> None:
        self.widget.disabled = disabled

    def _chosen(self, _: Any) -> None:
        self._notify()

    def _opened(self, change: Any) -> None:
        if change["new"]:
            schedule(self._count)

    async def _count(self) -> None:
        """Show the number of parameters of each method."""
        if self.counts is None:
            return
        options, counts = method_options(), self.counts
        amounts = await asyncio.to_thread(lambda: [_amount(counts, each.value) for each in options])
        self.widget.offer(replace(each, amount=amount) for each, amount in zip(options, amounts, strict=True))


def _amount(counts: Counts, name: str) -> str:
    try:
        return count(counts(name)) if name else ""
    except Exception:  # it cannot be placed in this base; a module of someone else may raise anything
        return ""


def counts_in(base: Blueprint) -> Counts:
    """Return a function for the number of parameters that a method or preset with its defaults has in a base.

    It counts by formula and changes no model, so that it can run in any thread.
    """
    world = World(base.skeleton, base.anatomy)

    def counts(name: str) -> int:
        config = RunSpec.parse({"adapter": {"type": name}}).adapter
        assert config is not None
        cls = get_adapter(config.type).cls
        return cls.parameter_count(config, cls.sites(base.anatomy, base.skeleton, config.at), world)

    return counts


def method_options() -> list[Option]:
    """Return no adapter, and all adapters and presets, each preset behind the adapters of its family."""
    options = [
        Option(name, *_named(entry.idea, name), chips(entry), _family(entry)) for name, entry in all_adapters().items()
    ]
    for name, preset in adapter_presets().items():
        entry = get_adapter(expand({"type": name})["type"])
        options.append(Option(name, name, preset.idea, ("preset", *chips(entry)), _family(entry)))
    order = {family: place for place, family in enumerate(FAMILIES)}
    options.sort(key=lambda each: (order.get(each.group, len(order)), each.group))
    return [Option(NO_ADAPTER, "No adapter", "the base as it is: nothing is trained"), *options]


def chips(entry: Entry) -> tuple[str, ...]:
    """Return what an adapter can do beyond training, and what it cannot, in a few words."""
    cls = entry.cls
    can = {
        "merges": cls.merged is not None and not cls.trains_base,
        "peft": bool(cls.peft_type),
        "experts": cls.experts,
        "no 4-bit bases": cls.trains_base,
    }
    return tuple(word for word, yes in can.items() if yes)


def _family(entry: Entry) -> str:
    return str(entry.cls.family)


def _named(idea: str, name: str) -> tuple[str, str]:
    """Return the name of a method and its idea, from the first line of its file."""
    title, colon, rest = idea.partition(": ")
    return (title, rest) if colon else (name, idea)
