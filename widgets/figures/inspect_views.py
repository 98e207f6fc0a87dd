"""What the inspect panel can show: each view computed for one run, one text and one choice of sites, as figures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from llm_adapters_lab.core.sites import Site
from llm_adapters_lab.errors import NoView
from llm_adapters_lab.inspection import ablations, probes, weight_metrics
from llm_adapters_lab.inspection.recorder import Recorder
from llm_adapters_lab.results import plots
from llm_adapters_lab.results.plots.style import place
from widgets.kit.model_cache import Loaded
from widgets.kit.tokenized_text import Text, words_of

if TYPE_CHECKING:
    import plotly.graph_objects as go

ALL, LINE = "all", 64


@dataclass(frozen=True)
class Asked:
    """What a view is asked for.

    Attributes:
        loaded: the run with its model.
        text: empty for views that need none.
        kind: kind of site, such as "self_attn.q_proj"; `ALL` for all.
        layer: number of a layer; `ALL` for all.
    """

    loaded: Loaded
    text: Text
    kind: str = ALL
    layer: str = ALL

    @property
    def name(self) -> str:
        """Type of the adapter."""
        return self.loaded.injection.config.type

    def sites(self) -> list[str]:
        """Return the keys of the sites that are asked for.

        Raises:
            NoView: there are none.
        """
        found = [key for key in self.loaded.injection.sites if self._fits(*place(key))]
        if not found and self.loaded.injection.sites:
            raise NoView(f"There is no adapter at {self.kind!r} in layer {self.layer}. Choose another site.")
        return found

    def _fits(self, layer: int | None, kind: str) -> bool:
        return self.kind in (ALL, kind) and self.layer in (ALL, str(layer))


@dataclass(frozen=True)
class View:
    """A view.

    Attributes:
        draw: makes its figures.
        words: what is drawn, in a line.
        source: what has its source in its docstring.
        needs: "text" for a text, "range" for a choice among its tokens, "site" for one among the sites.
    """

    draw: Callable[[Asked], Sequence[go.Figure]]
    words: str
    source: Callable[..., Any] | None = None
    needs: frozenset[str] = frozenset()


def _placement(asked: Asked) -> Sequence[go.Figure]:
    injection = asked.loaded.injection
    return [plots.placement(injection.anatomy, injection.sites.values(), asked.name)]


def _norms(asked: Asked, *, relative: bool) -> Sequence[go.Figure]:
    return [plots.site_norms(weight_metrics.norms(asked.loaded.injection), asked.name, relative=relative)]


def _spectra(asked: Asked) -> Sequence[go.Figure]:
    injection, keys = asked.loaded.injection, asked.sites()
    if asked.kind == asked.layer == ALL:
        return [plots.spectra(weight_metrics.spectra(injection), asked.name)]
    found = {key: weight_metrics.spectrum(weight_metrics.weight_change(injection, key)) for key in keys}
    return [plots.spectra(found, asked.name)]


def _lens(asked: Asked) -> Sequence[go.Figure]:
    loaded, text = asked.loaded, asked.text
    ids, tokens = text.ids[: text.last + 1], text.words[: text.last + 1]
    found = probes.both(loaded.injection, lambda: probes.logit_lens(loaded.model, ids, k=1))
    known = {token for lens in found for token in lens.top.flatten().tolist()}
    names = dict(zip(known, words_of(loaded.tokenizer, list(known)), strict=True))
    bare, adapted = ([[names[int(t)] for t in row[-len(ids) :]] for row in lens.top[..., 0]] for lens in found)
    chances = [lens.probability[..., 0][:, -len(ids) :].cpu() for lens in found]
    ranks = [lens.target_rank[:, -len(ids) :].cpu() for lens in found]
    return [
        plots.lens_grid(tokens, adapted, chances[1], base=bare, rank=ranks[1], name=asked.name),
        plots.lens_grid(tokens, bare, chances[0], rank=ranks[0], name="base"),
    ]


def _losses(asked: Asked) -> Sequence[go.Figure]:
    loaded, text = asked.loaded, asked.text
    found = probes.both(loaded.injection, lambda: probes.token_loss(loaded.model, text.ids).cpu())
    bare, adapted = (_within(text, loss) for loss in found)
    each: dict[str, Any] = {"unit": "loss (nats)", "words": "the stronger, the less the model expected the token"}
    each["line"] = LINE
    strips = [
        plots.token_strip(text.words, adapted - bare, line=LINE),
        plots.token_strip(text.words, adapted, title=f"Loss of each token: {asked.name}", **each),
        plots.token_strip(text.words, bare, title="Loss of each token: base", **each),
    ]
    most = float(torch.stack([bare, adapted]).nan_to_num().max()) or 1.0
    for strip in strips[1:]:  # one scale, so that before and after can be compared
        strip.update_traces(marker={"cmax": most, "colorbar": {"tickvals": [0, most]}})
    return strips


def _within(text: Text, loss: torch.Tensor) -> torch.Tensor:
    """Return a value for each token, not a number outside the range."""
    values = torch.full((len(text.ids),), float("nan"))
    values[text.first : text.last + 1] = loss.float()[text.first - 1 : text.last]
    return values


def _score(text: Text, model: Any, ids: torch.Tensor) -> float:
    return float(probes.token_loss(model, ids)[text.first - 1 : text.last].mean())


def _ablation(asked: Asked) -> Sequence[go.Figure]:
    loaded, text = asked.loaded, asked.text
    found = ablations.ablation(loaded.model, text.ids, loaded.injection, partial(_score, text))
    return [plots.ablation_bars(found, asked.name)]


def _interpolation(asked: Asked) -> Sequence[go.Figure]:
    loaded, text = asked.loaded, asked.text
    score = partial(_score, text)
    found = ablations.interpolation(loaded.model, text.ids, loaded.injection, score=score)
    return [plots.interpolation_curve(found, asked.name)]


def _similarity(asked: Asked) -> Sequence[go.Figure]:
    loaded = asked.loaded
    cosine, cka = probes.layer_similarity(loaded.model, asked.text.ids, loaded.injection)
    return [plots.stream_similarity(cosine.cpu(), cka, asked.name)]


def _added(asked: Asked) -> Sequence[go.Figure]:
    sites = asked.loaded.injection.sites
    if not sites:
        raise NoView(f"{asked.name!r} acts on the whole model: there is no site at which it adds something.")
    kinds: dict[str, list[str]] = {}
    for key in asked.sites():
        kinds.setdefault(place(key)[1], []).append(key)
    return [_added_at(asked, kind, keys) for kind, keys in kinds.items()]


def _added_at(asked: Asked, kind: str, keys: Sequence[str]) -> go.Figure:
    model, injection, text = asked.loaded.model, asked.loaded.injection, asked.text
    terms = [_term(injection.sites[key]) for key in keys]
    with torch.no_grad(), Recorder(model, terms, ("base", "contributions"), device="cpu") as seen:
        model(input_ids=text.ids[None].to(model.device), use_cache=False)
    shares = []
    for key in keys:
        added, base = seen[key].contributions[injection.name][0], seen[key].base[0]
        shares.append((added.float().norm(dim=-1) / base.float().norm(dim=-1))[-len(text.ids) :])
    title, unit = f"Added by {asked.name}: {kind}", "‖c‖ / ‖y‖"
    if len(shares) == 1:
        words = f"at {keys[0]}, beside what the base computes there"
        return plots.token_strip(text.words, shares[0], title=title, words=words, unit=unit, line=LINE)
    words = "in each layer, beside what the base computes at the same place"
    return plots.layer_tokens(text.words, torch.stack(shares), asked.name, title=title, unit=unit, words=words)


def _term(site: Site) -> str:
    """Return a site as a placement."""
    if site.role == "module" or site.layer < 0:
        return site.path
    return f"{site.role}{'.in' if site.side == 'in' else ''}@{site.layer}"


def _recorded(asked: Asked) -> Sequence[go.Figure]:
    return [plots.norm_evolution(asked.loaded.run)]


_TEXT, _RANGE, _SITE = frozenset({"text"}), frozenset({"text", "range"}), frozenset({"site"})
VIEWS = {
    "where it sits": View(_placement, "The projections of every layer in order of execution, those adapted filled."),
    "size of the change": View(
        partial(_norms, relative=False), "‖Δθ‖, the Frobenius norm of what merging would add to the weights of a site."
    ),
    "size of the change beside the weights": View(
        partial(_norms, relative=True), "‖Δθ‖ / ‖θ‖, the same beside the weights of the base, in percent."
    ),
    "singular values of the change": View(
        _spectra,
        "σ₁ ≥ σ₂ ≥ … of ΔW at each site; effective rank exp(−Σ pᵢ ln pᵢ) with pᵢ = σᵢ / Σσ.",
        weight_metrics.effective_rank,
        _SITE,
    ),
    "growth during training": View(
        _recorded, "‖θ − θ₀‖ of the adapter's own tensors at each site, as recorded; move the slider for earlier steps."
    ),
    "loss of each token": View(
        _losses,
        "−ln p(token | those before it), in nats; first with the adapter less without it, then each.",
        None,
        _RANGE,
    ),
    "logit lens": View(
        _lens,
        "softmax(head(norm(h))) of the stream h after each layer, read with the model's own ending: with the adapter, "
        "then without.",
        probes.logit_lens,
        _RANGE,
    ),
    "stream with and without": View(
        _similarity,
        "cos(h, h′) of the residual stream at each token, and linear CKA ‖YᵀX‖² / (‖XᵀX‖ ‖YᵀY‖) over all of them.",
        weight_metrics.cka,
        _TEXT,
    ),
    "added at a site": View(
        _added,
        "‖c‖ / ‖y‖: what the adapter adds beside what the base computes there, token by token.",
        None,
        _TEXT | _SITE,
    ),
    "one layer switched off": View(
        _ablation,
        "Mean loss of the chosen tokens without the adapter of one layer, less that with all of it.",
        None,
        _RANGE,
    ),
    "more or less of it": View(
        _interpolation, "Mean loss of the chosen tokens with y + λ (Δ(x, y) − y) at every site, over λ.", None, _RANGE
    ),
}
"""All views by the name they have in the list."""
