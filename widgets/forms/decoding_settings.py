"""How answers are generated: their length, temperature, top-p and seed, on one line."""

from __future__ import annotations

from typing import Any

import ipywidgets as W

from llm_adapters_lab.evaluation.decoding import Sampler, make_sampler
from llm_adapters_lab.markup import el
from widgets.kit.elements import field

MAX_NEW_TOKENS = 4096
GREEDY = "Temperature 0 is greedy decoding, as in the evaluation: always the likeliest token."


class DecodingSettings:
    """Five fields.

    Attributes:
        limit: maximum number of tokens of an answer.
        temperature: 0 for greedy decoding, for which the others are disabled.
        top_p: probability of the tokens that are drawn from.
        seed: of the draws.
        widgets: all of them, for a row.
    """

    def __init__(self) -> None:
        """Decode greedily."""
        whole, real = W.BoundedIntText, W.BoundedFloatText
        self.limit = field(whole, "max new tokens", "158px", value=32, min=1, max=MAX_NEW_TOKENS)
        self.limit.tooltip = "Maximum length of an answer, in tokens"
        self.temperature = field(real, "temperature", "136px", value=0, min=0, max=5, step=0.1)
        self.temperature.tooltip = GREEDY
        self.top_p = field(real, "top-p", "96px", value=1, min=0.01, max=1, step=0.05)
        self.top_p.tooltip = "Draw from the likeliest tokens that together have this probability"
        self.seed = field(whole, "seed", "96px", value=0, min=0, max=2**31 - 1)
        self.seed.tooltip = "Seed of the draws; each column uses the same"
        self._words = W.HTML()
        fields = (self.limit, self.temperature, self.top_p, self.seed)
        self.widgets = (*(each.add_class("lab-setting") for each in fields), self._words)
        self.temperature.observe(self._changed, "value")
        self._changed()

    def sampler(self) -> Sampler:
        """Return a sampler for one answer."""
        return make_sampler(self.temperature.value, self.seed.value, self.top_p.value)

    def _changed(self, _: Any = None) -> None:
        greedy = self.temperature.value == 0
        self.top_p.disabled = self.seed.disabled = greedy
        self._words.value = el("span", "greedy" if greedy else "sampled", class_="lab-muted", title=GREEDY)
