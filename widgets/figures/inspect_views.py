"""The views of the inspect panel: each computes figures for one run, one text and a selection of sites."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import plotly.graph_objects as go
import torch

from llm_adapters_lab.core.injection import Injection
from llm_adapters_lab.core.sites import Site
from llm_adapters_lab.errors import NoView
from llm_adapters_lab.inspection import ablations, activation_metrics, probes, routing, weight_metrics
from llm_adapters_lab.inspection.recorder import Recorder
from llm_adapters_lab.results import plots
from llm_adapters_lab.results.formatting import place
from widgets.kit.loaded_runs import LoadedRun, TokenizedText, token_texts

ALL, LINE = "all", 64
Figures = Sequence[go.Figure]


@dataclass(frozen=True)
class Request:
    """The input of a view: a run, a text and a selection of sites.

    Attributes:
        loaded: the run with its model.
        text: empty for views that need none.
        kind: kind of site, such as "self_attn.q_proj"; `ALL` for all.
        layer: number of a layer; `ALL` for all.
    """

    loaded: LoadedRun
    text: TokenizedText
    kind: str = ALL
    layer: str = ALL

    @property
    def model(self) -> Any:
        """The model."""
        return self.loaded.model

    @property
    def injection(self) -> Injection:
        """The adapter."""
        return self.loaded.injection

    @property
    def name(self) -> str:
        """Type of the adapter."""
        return self.injection.config.type

    def sites(self) -> list[str]:
        """Return the keys of the selected sites.

        Raises:
            NoView: there are none.
        """
        places = {key: place(key) for key in self.injection.sites}
        found = [
            key for key, (layer, kind) in places.items() if self.kind in (ALL, kind) and self.layer in (ALL, str(layer))
        ]
        if places and not found:
            raise NoView(f"There is no adapter at {self.kind!r} in layer {self.layer}. Choose another site.")
        return found


@dataclass(frozen=True)
class View:
    """A view.

    Attributes:
        draw: computes its figures.
        description: one line about what is shown.
        needs: "text" for a text, "range" for a range of its tokens, "site" for a selection of sites, "experts" for a
            mixture of experts.
        source: the function whose docstring names the source of the method.
    """

    draw: Callable[[Request], Figures]
    description: str
    needs: Sequence[str] = ()
    source: Callable[..., Any] | None = None


def _spectra(request: Request) -> Figures:
    keys = request.sites()
    if request.kind == request.layer == ALL:
        return [plots.spectra(weight_metrics.spectra(request.injection), request.name)]
    found = {key: weight_metrics.spectrum(weight_metrics.weight_change(request.injection, key)) for key in keys}
    return [plots.spectra(found, request.name)]


def _lens(request: Request) -> Figures:
    text, tokenizer = request.text, request.loaded.tokenizer
    ids, tokens = text.ids[: text.last + 1], text.words[: text.last + 1]
    found = probes.both(request.injection, lambda: probes.logit_lens(request.model, ids, k=1))
    known = {token for lens in found for token in lens.top.flatten().tolist()}
    names = dict(zip(known, token_texts(tokenizer, list(known)), strict=True))
    bare, adapted = ([[names[int(t)] for t in row[-len(ids) :]] for row in lens.top[..., 0]] for lens in found)
    chances = [lens.probability[..., 0][:, -len(ids) :].cpu() for lens in found]
    ranks = [lens.target_rank[:, -len(ids) :].cpu() for lens in found]
    return [
        plots.lens_grid(tokens, adapted, chances[1], base=bare, rank=ranks[1], name=request.name),
        plots.lens_grid(tokens, bare, chances[0], rank=ranks[0], name="base"),
    ]


def _losses(request: Request) -> Figures:
    text = request.text
    found = probes.both(request.injection, lambda: probes.token_loss(request.model, text.ids).cpu())
    bare, adapted = (_in_range(text, loss) for loss in found)
    look: dict[str, Any] = {"unit": "loss (nats)", "words": "the stronger, the less the model expected the token"}
    strips = [
        plots.token_strip(text.words, adapted - bare, line=LINE),
        plots.token_strip(text.words, adapted, title=f"Loss per token: {request.name}", line=LINE, **look),
        plots.token_strip(text.words, bare, title="Loss per token: base", line=LINE, **look),
    ]
    highest = float(torch.stack([bare, adapted]).nan_to_num().max()) or 1.0
    for strip in strips[1:]:  # the same scale for both
        strip.update_traces(marker={"cmax": highest, "colorbar": {"tickvals": [0, highest]}})
    return strips


def _in_range(text: TokenizedText, loss: torch.Tensor) -> torch.Tensor:
    """Return a loss for each token, NaN outside the range."""
    values = torch.full((len(text.ids),), float("nan"))
    values[text.first : text.last + 1] = loss.float()[text.first - 1 : text.last]
    return values


def _mean_loss(text: TokenizedText, model: Any, ids: torch.Tensor) -> float:
    return float(probes.token_loss(model, ids)[text.first - 1 : text.last].mean())


def _ablation(request: Request) -> Figures:
    score = partial(_mean_loss, request.text)
    found = ablations.ablation(request.model, request.text.ids, request.injection, score)
    return [plots.ablation_bars(found, request.name)]


def _scaling(request: Request) -> Figures:
    score = partial(_mean_loss, request.text)
    found = ablations.interpolation(request.model, request.text.ids, request.injection, score=score)
    return [plots.interpolation_curve(found, request.name)]


def _similarity(request: Request) -> Figures:
    cosine, cka = probes.layer_similarity(request.model, request.text.ids, request.injection)
    return [plots.stream_similarity(cosine.cpu(), cka, request.name)]


def _contributions(request: Request) -> Figures:
    if not request.injection.sites:
        raise NoView(f"{request.name!r} acts on the whole model and has no sites. Choose another view.")
    kinds: dict[str, list[str]] = {}
    for key in request.sites():
        kinds.setdefault(place(key)[1], []).append(key)
    return [_contribution(request, kind, keys) for kind, keys in kinds.items()]


def _contribution(request: Request, kind: str, keys: Sequence[str]) -> go.Figure:
    model, injection, text = request.model, request.injection, request.text
    terms = [_term(injection.sites[key]) for key in keys]
    with torch.no_grad(), Recorder(model, terms, ("base", "contributions"), device="cpu") as seen:
        model(input_ids=text.ids[None].to(model.device), use_cache=False)
    shares = []
    for key, term in zip(keys, terms, strict=True):
        found = seen[key if key in seen else term]
        added, base = found.contributions[injection.name][0], found.base[0]
        shares.append((added.float().norm(dim=-1) / base.float().norm(dim=-1))[-len(text.ids) :])
    title, unit = f"Contribution of {request.name}: {kind}", "‖c‖ / ‖y‖"
    if len(shares) == 1:
        words = f"at {keys[0]}, relative to the output of the base"
        return plots.token_strip(text.words, shares[0], title=title, words=words, unit=unit, line=LINE)
    words = "in each layer, relative to the output of the base at the same site"
    return plots.layer_tokens(text.words, torch.stack(shares), request.name, title=title, unit=unit, words=words)


def _expert_loads(request: Request) -> Figures:
    found = probes.both(request.injection, lambda: routing.expert_loads(request.model, [request.text.ids]))
    return [plots.expert_loads(*found, request.name)]


def _term(site: Site) -> str:
    """Return a site as a placement."""
    if site.role == "module" or site.layer < 0:
        return site.path
    return f"{site.role}{'.in' if site.side == 'in' else ''}@{site.layer}"


_RANGE = ("text", "range")
VIEWS = {
    "Placement": View(
        lambda r: [plots.placement(r.injection.anatomy, r.injection.sites.values(), r.name)],
        "The projections of every layer in order of execution; adapted ones are filled.",
    ),
    "Update norm ‖ΔW‖": View(
        lambda r: [plots.site_norms(weight_metrics.norms(r.injection), r.name)],
        "‖ΔW‖, the Frobenius norm of what merging would add to the weights of a site.",
    ),
    "Relative update norm ‖ΔW‖ / ‖W‖": View(
        lambda r: [plots.site_norms(weight_metrics.norms(r.injection), r.name, relative=True)],
        "‖ΔW‖ / ‖W‖, relative to the weights of the base, in percent.",
    ),
    "Singular values of ΔW": View(
        _spectra,
        "σ₁ ≥ σ₂ ≥ … of ΔW at each site; effective rank exp(−Σ pᵢ ln pᵢ) with pᵢ = σᵢ / Σσ.",
        ("site",),
        weight_metrics.effective_rank,
    ),
    "Distance from initialisation over training": View(
        lambda r: [plots.norm_evolution(r.loaded.run)],
        "‖θ − θ₀‖ of the adapter's own tensors at each site, as recorded; the slider selects the step.",
    ),
    "Loss per token": View(
        _losses,
        "−ln p(token | preceding tokens), in nats: the difference due to the adapter, then with and without it.",
        _RANGE,
    ),
    "Logit lens": View(
        _lens,
        "softmax(head(norm(h))) of the residual stream h after each layer, first with the adapter, then without.",
        _RANGE,
        probes.logit_lens,
    ),
    "Residual-stream similarity": View(
        _similarity,
        "cos(h, h′) of the residual streams without and with the adapter at each token, and linear CKA "
        "‖YᵀX‖² / (‖XᵀX‖ ‖YᵀY‖) over all tokens.",
        ("text",),
        activation_metrics.cka,
    ),
    "Adapter contribution per token": View(
        _contributions,
        "‖c‖ / ‖y‖: what the adapter adds at a site relative to the output of the base, for each token.",
        ("text", "site"),
    ),
    "Layer ablation": View(
        _ablation, "Increase of the mean loss of the selected tokens when the adapter of one layer is disabled.", _RANGE
    ),
    "Scaling λ": View(
        _scaling, "Mean loss of the selected tokens with y + λ (Δ(x, y) − y) at every site, over λ.", _RANGE
    ),
    "Expert load": View(
        _expert_loads,
        "Share of the assignments of tokens to the routed experts of each layer, without and with the adapter; colour: "
        "relative to an even share.",
        ("text", "experts"),
    ),
}
"""All views by name."""
