"""A form made from a config's own fields: their types choose the controls, their descriptions explain them.

Nothing is checked here. What stands in the controls goes through the config, and what the config has to say against it
stands under the field, in the words that the command line would use.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Generic, TypeVar

import ipywidgets as W
from pydantic import BaseModel

from llm_adapters_lab.config import faults, parse
from llm_adapters_lab.errors import BadSpec
from widgets.forms.controls import NAME_WIDTH, Control, constant, control, help_text, is_group
from widgets.kit.errors import message, note, why
from widgets.kit.panel import Panel

M = TypeVar("M", bound=BaseModel)


class Form(Panel, Generic[M]):
    """Controls for the fields of a config.

    Attributes:
        model: the config's class.
        widget: what is shown; the form itself shows it too.
        controls: by field; fields with a single possible value have none.
        errors: the line under each field.
        problem: the line under all of them, for what concerns no single field.
    """

    def __init__(
        self,
        model: type[M],
        value: M | Mapping[str, Any] | None = None,
        skip: Collection[str] = (),
        *,
        offers: Mapping[str, Sequence[str]] | None = None,
        prefix: str = "",
    ) -> None:
        """Build the controls.

        Args:
            model: a pydantic model.
            value: what to show at first, as a config or as some of its fields; the rest are the defaults.
            skip: fields without a control; they keep the value they have.
            offers: names to choose from, by field.
            prefix: stands before the fields in messages, e.g. "adapter.".
        """
        super().__init__()
        self.model, self.prefix = model, prefix
        self.controls: dict[str, Control] = {}
        self.errors: dict[str, Any] = {}
        self.problem.layout.margin = f"0 0 0 {NAME_WIDTH}"
        self._kept: dict[str, Any] = {}
        self._value: M | None = None
        self._quiet = False
        rows = []
        # What has fields of its own comes last: it is the rarer choice.
        for name, field in sorted(model.model_fields.items(), key=lambda item: is_group(item[1])):
            if only := constant(field):
                self._kept[name] = only[0]
            elif name not in skip:
                made = control(name, field, (offers or {}).get(name, ()))
                made.entry.observe(self._changed, "value")
                self.controls[name] = made
                self.errors[name] = W.HTML()
                below = [W.HTML(note(help_text(field))), self.errors[name]]
                indented = W.VBox(below, layout=W.Layout(margin=f"-2px 0 4px calc({NAME_WIDTH} + 8px)"))
                rows.append(W.VBox([made.widget, indented]))
        self.widget = W.VBox([*rows, self.problem])
        self.value = value

    @property
    def fields(self) -> dict[str, Any]:
        """What stands in the controls, as plain data, valid or not."""
        return {name: made.read() for name, made in self.controls.items()}

    @property
    def value(self) -> M | None:
        """The config, or None while something is wrong; set to a config, some fields of one, or None for defaults."""
        return self._value

    @value.setter
    def value(self, value: M | Mapping[str, Any] | None) -> None:
        given = {name: getattr(value, name) for name in self.model.model_fields} if isinstance(value, BaseModel) else {}
        if isinstance(value, Mapping):
            given = dict(value)
        if unknown := set(given) - set(self.model.model_fields):
            parse(self.model, {name: given[name] for name in unknown}, self.prefix)
        self._quiet = True
        try:
            for name, field in self.model.model_fields.items():
                if name in self.controls:
                    default = None if field.is_required() else field.get_default(call_default_factory=True)
                    self.controls[name].write(given.get(name, default))
                elif name in given and not constant(field):
                    self._kept[name] = given[name]
        finally:
            self._quiet = False
        self._changed(None)

    def _changed(self, change: Any) -> None:
        if self._quiet:
            return
        found = self._validate()
        for name, line in self.errors.items():
            line.value = message("\n".join(text for place, text in found if place == name))
        rest = [text for place, text in found if place not in self.errors]
        for observer in self._observers:
            try:
                observer(self)
            except Exception as error:  # an exception in a callback is seen nowhere else
                rest.append(why(error))
        self.problem.value = message("\n".join(rest))

    def _validate(self) -> list[tuple[str, str]]:
        """Set the value, and return what is wrong as (field, message) pairs."""
        given, self._value = {**self._kept, **self.fields}, None
        try:
            self._value = parse(self.model, given, self.prefix)
        except BadSpec as error:
            return faults(self.model, given, self.prefix) or [("", str(error))]
        except Exception as error:  # a config of someone else may fail in any way while a value is being typed
            return [("", why(error))]
        return []
