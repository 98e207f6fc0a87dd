"""The views of Inspect: each draws figures for one run, one text and a selection of sites."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from llm_adapters_lab.core.injection import Injection
from llm_adapters_lab.core.sites import OUTER
from llm_adapters_lab.errors import LabError, NoView
from llm_adapters_lab.inspection import (
    ablations,
    activation_metrics,
    group_parts,
    heads,
    members,
    probes,
    routing,
    token_choice,
    units,
    weight_metrics,
)
from llm_adapters_lab.inspection.dataset_activity import KINDS, ActivityMoments
from llm_adapters_lab.inspection.recorder import Recorder
from llm_adapters_lab.results import plots
from llm_adapters_lab.results.formatting import percent, site_name, site_names
from llm_adapters_lab.runs.record import Run, find_run
from widgets.figures.figure_card import Drawing, drawing
from widgets.kit.loaded_runs import LoadedRun, TokenizedText, token_texts

ALL, LINE = "all", 41
"""All sites or layers; characters in a line of a strip of tokens."""
UNITS_AT_ONCE = 3
"""Maximum number of sites whose units are shown together."""
LAYERS_AT_ONCE = 6
"""Maximum number of layers whose skills are shown side by side."""
Drawings = Sequence[Drawing]
Row = tuple[torch.Tensor, torch.Tensor]
"""Token ids and labels of a row."""


@dataclass(frozen=True)
class Request:
    """The input of a view: a run, a text, a selection of sites, and the rows of a task.

    Attributes:
        loaded: the run with its model.
        text: empty for views that need none.
        kind: name of a kind of site, such as "q"; `ALL` for all.
        layer: number of a layer; `ALL` for all.
        rows: tokens and labels of the rows of a task.
        control: ids of control tokens.
        stopped: asked between two rows; whether to draw what there is.
        progress: called with the number of rows so far and of all.
    """

    loaded: LoadedRun
    text: TokenizedText
    kind: str = ALL
    layer: str = ALL
    rows: Sequence[Row] = ()
    control: Sequence[int] = ()
    stopped: Callable[[], bool] = field(default=lambda: False)
    progress: Callable[[int, int], object] = field(default=lambda done, total: None)

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

    @property
    def roles(self) -> dict[str, str]:
        """The role of each site by key, such as "q" or "down.in"."""
        return roles_of(self.injection)

    def sites(self) -> list[str]:
        """Return the keys of the selected sites.

        Raises:
            NoView: there are none.
        """
        places = site_names(self.injection.sites, self.roles)
        found = [
            key for key, (layer, kind) in places.items() if self.kind in (ALL, kind) and self.layer in (ALL, str(layer))
        ]
        if places and not found:
            raise NoView(f"There is no adapter at {self.kind} in layer {self.layer}. Choose another site.")
        return found


def roles_of(injection: Injection) -> dict[str, str]:
    """Return the names of sites that are no plain modules, for `site_names`."""
    found = {key: site.role + ".in" * (site.side == "in") for key, site in injection.sites.items()}
    return {key: role for key, role in found.items() if not role.startswith("module")}


@dataclass(frozen=True)
class View:
    """A view.

    Attributes:
        group: the part of the rail that it is in.
        label: its short name there.
        icon: name of its sketch.
        draw: computes its figures.
        description: one line about what is shown.
        check: raises `NoView` with the reason if it does not apply to a run with its model.
        needs: "text" for a text, "range" for a range of its tokens, "site" for a selection of sites, "rows" for the
            rows of a task.
        columns: number of figures side by side on a wide page.
        source: the function whose docstring names the source of the method.
    """

    group: str
    label: str
    icon: str
    draw: Callable[[Request], Drawings]
    description: str
    check: Callable[[LoadedRun], object] = lambda loaded: None
    needs: Sequence[str] = ()
    columns: int = 1
    source: Callable[..., Any] | None = None

    def reason(self, loaded: LoadedRun) -> str:
        """Return why the view does not apply to a run; "" if it does."""
        try:
            self.check(loaded)
        except LabError as error:
            return str(error)
        return ""


def _placement(request: Request) -> Drawings:
    anatomy, sites = request.injection.anatomy, request.injection.sites.values()
    return [drawing(plots.placement(anatomy, sites, request.name), request.name)]


def _norms(relative: bool, request: Request) -> Drawings:
    found = weight_metrics.norms(request.injection)
    figure = plots.site_norms(found, request.name, relative=relative, roles=request.roles)
    return [drawing(figure, request.name, link="site")]


def _spectra(request: Request) -> Drawings:
    found = {}
    for key in request.sites():
        try:
            found[key] = weight_metrics.spectrum(weight_metrics.weight_change(request.injection, key))
        except NoView:
            if request.kind != ALL:
                raise
    return [drawing(plots.spectra(found, request.name, roles=request.roles), request.name)]


def _heads(request: Request) -> Drawings:
    found = heads.head_changes(request.injection)
    shown = []
    for role in heads.ROLES:
        changes = {change.layer: change for change in found.values() if change.role == role}
        if changes:
            values = {layer: changes[layer].change for layer in sorted(changes)}
            words = f"‖ΔW_h‖ of each head; relative to the base {_range(changes.values())}"
            figure = plots.layer_heads(values, request.name, title=role, unit="‖ΔW_h‖", words=words)
            shown.append(drawing(figure, f"{request.name}: {role}", link="site"))
    return shown


def _range(changes: Any) -> str:
    shares = torch.cat([change.relative for change in changes])
    shares = shares[shares.isfinite()]
    return f"{100 * float(shares.min()):.1f} to {percent(float(shares.max()))}" if len(shares) else "unknown"


def _training(request: Request) -> Drawings:
    return [drawing(plots.norm_evolution(request.loaded.run, request.roles), request.name, link="site")]


def _merges(request: Request) -> Drawings:
    return [drawing(plots.merged_ranks(request.loaded.run, kind=request.name))]


def _units(request: Request) -> Drawings:
    injection, tokenizer = request.injection, request.loaded.tokenizer
    able = units.reading_sites(injection)
    keys = [key for key in request.sites() if key in able]
    if not keys:
        raise NoView("The units of these sites do not read the residual stream. Choose another site.")
    places, count = site_names(injection.sites, request.roles), len(keys)
    keys = _spread(keys, UNITS_AT_ONCE)
    shown = []
    for key in keys:
        for found in units.unit_tokens(injection, key, vocabulary=len(tokenizer)):
            known = sorted({*found.high.flatten().tolist(), *found.low.flatten().tolist()})
            names = dict(zip(known, token_texts(tokenizer, known), strict=True))
            norm = f"through {found.norm.rpartition('.')[2]}" if found.norm else "scaled to unit size"
            words = f"embeddings {norm}"
            title = site_name(*places[key]) + (f" ({len(keys)} of {count} sites)" if count > len(keys) else "")
            shown.append(drawing(plots.unit_tokens(found, names, title=title, words=words)))
    return shown


def _spread(keys: Sequence[str], most: int) -> list[str]:
    """Return some of the keys, evenly spaced from the first to the last."""
    count = len(keys)
    return [*keys] if count <= most else [keys[round(i * (count - 1) / (most - 1))] for i in range(most)]


def _skills(request: Request) -> Drawings:
    """Draw the layers side by side, for each kind of site; of a single layer its blocks."""
    injection, places = request.injection, site_names(request.injection.sites, request.roles)
    weights, groups = group_parts.group_weights(injection), group_parts.group_names(injection)
    kinds: dict[str, list[str]] = {}
    for key in request.sites():
        if key in weights:
            kinds.setdefault(places[key][1], []).append(key)
    if not kinds:
        raise NoView("There is no inventory of skills at these sites. Choose another site.")
    blocks, shown = group_parts.group_blocks(injection), []
    for kind, keys in kinds.items():
        own, title = _spread(keys, LAYERS_AT_ONCE), kind
        panels = {f"layer {places[key][0]}": weights[key] for key in own}
        words = f"weight of each skill, mean of {blocks} blocks" if blocks > 1 else "weight of each skill"
        if len(keys) > len(own):
            title = f"{kind} ({len(own)} of {len(keys)} layers)"
        elif len(keys) == 1 and blocks > 1:
            by_block = [group_parts.group_weights(injection, number)[keys[0]] for number in range(blocks)]
            panels = {"mean": weights[keys[0]]} | {f"block {number}": each for number, each in enumerate(by_block)}
            title, words = site_name(*places[keys[0]]), "weight of each skill, by block of input and output"
        figure = plots.group_weights(
            panels, groups, request.name, title=title, words=f"{words}; a row sums to 1, an even share is pale"
        )
        shown.append(drawing(figure, link="site"))
    return shown


def _groups(request: Request) -> Drawings:
    tables, shown = group_parts.group_embeddings(request.injection), []
    for table, found in tables.items():
        of = f"{table}: " if len(tables) > 1 else ""
        shown.append(drawing(plots.group_similarity(found, request.name), f"{of}similarity"))
        shown.append(drawing(plots.group_map(found, request.name), f"{of}map"))
    return shown


def _lens(request: Request) -> Drawings:
    text, tokenizer = request.text, request.loaded.tokenizer
    ids, tokens = text.ids[: text.last + 1], text.words[: text.last + 1]
    found = probes.both(request.injection, lambda: probes.logit_lens(request.model, ids, k=1))
    known = {token for lens in found for token in lens.top.flatten().tolist()}
    names = dict(zip(known, token_texts(tokenizer, list(known)), strict=True))
    bare, adapted = ([[names[int(t)] for t in row[-len(ids) :]] for row in lens.top[..., 0]] for lens in found)
    chances = [lens.probability[..., 0][:, -len(ids) :].cpu() for lens in found]
    ranks = [lens.target_rank[:, -len(ids) :].cpu() for lens in found]
    # The target of the last position is the prediction of each model.
    wanted = [lens.target_probability[:, -len(ids) :].cpu().clamp(min=1e-30) for lens in found]
    change = (wanted[0].log() - wanted[1].log())[:, : len(ids) - 1]
    shown = [
        drawing(plots.lens_grid(tokens, bare, chances[0], rank=ranks[0], name="base"), "base", link="token"),
        drawing(
            plots.lens_grid(tokens, adapted, chances[1], base=bare, rank=ranks[1], name=request.name),
            request.name,
            link="token",
        ),
    ]
    if len(ids) > 1:
        words = "change of −ln p of the token that follows, in nats; blue: likelier with the adapter"
        look: dict[str, Any] = {"unit": "change (nats)", "words": words, "names": _after(len(change))}
        figure = plots.layer_tokens(tokens[:-1], change, request.name, title="difference", **look)
        shown.append(drawing(figure, link="token"))
    return shown


def _after(count: int) -> list[str]:
    """Return what the residual streams are called that `probes.streams` returns."""
    return ["input", *(str(layer) for layer in range(count - 1))]


def _losses(request: Request) -> Drawings:
    text = request.text
    found = probes.both(request.injection, lambda: probes.token_loss(request.model, text.ids).cpu())
    bare, adapted = (_in_range(text, loss) for loss in found)
    look: dict[str, Any] = {"unit": "loss (nats)", "line": LINE}
    strips = [
        plots.token_strip(text.words, bare, title="base", words=_mean_of(bare), **look),
        plots.token_strip(text.words, adapted, title=request.name, words=_mean_of(adapted), **look),
        plots.token_strip(text.words, adapted - bare, title="difference", line=LINE),
    ]
    highest = float(torch.stack([bare, adapted]).nan_to_num().max()) or 1.0
    for strip in strips[:2]:  # the same scale for both
        strip.update_traces(marker={"cmax": highest, "colorbar": {"tickvals": [0, highest]}})
    return [drawing(strip, link="token") for strip in strips]


def _mean_of(loss: torch.Tensor) -> str:
    return f"mean {float(loss.nanmean()):.3f} nats; stronger: less expected"


def _in_range(text: TokenizedText, loss: torch.Tensor) -> torch.Tensor:
    """Return a loss for each token, NaN outside the range."""
    values = torch.full((len(text.ids),), float("nan"))
    values[text.first : text.last + 1] = loss.float()[text.first - 1 : text.last]
    return values


def _mean_loss(text: TokenizedText, model: Any, ids: torch.Tensor) -> float:
    return float(probes.token_loss(model, ids)[text.first - 1 : text.last].mean())


def _ablation(request: Request) -> Drawings:
    score = partial(_mean_loss, request.text)
    found = ablations.ablation(request.model, request.text.ids, request.injection, score)
    return [drawing(plots.ablation_bars(found, request.name), request.name)]


def _scaling(request: Request) -> Drawings:
    score = partial(_mean_loss, request.text)
    found = ablations.interpolation(request.model, request.text.ids, request.injection, score=score)
    return [drawing(plots.interpolation_curve(found, request.name), request.name)]


def _similarity(request: Request) -> Drawings:
    text = request.text
    found = probes.both(request.injection, lambda: probes.streams(request.model, text.ids))
    plain, adapted = (stream[:, -len(text.ids) :] for stream in found)
    cosine = activation_metrics.cosine(plain, adapted)
    cka = torch.tensor([activation_metrics.cka(x, y) for x, y in zip(plain, adapted, strict=True)])
    sizes = [z.float().norm(dim=-1).cpu() for z in (plain, adapted)]
    moved = (adapted.float() - plain.float()).norm(dim=-1).cpu() / sizes[0]
    grids = [
        ("base", sizes[0], "‖h‖", "size of the residual stream after each layer"),
        (request.name, sizes[1], "‖h‖", "the same with the adapter"),
        ("difference", moved, "‖Δh‖ / ‖h‖", "how far the adapter moves it, Δh = h′ − h"),
    ]
    figures = [
        plots.layer_tokens(text.words, z, request.name, title=title, unit=unit, words=words, names=_after(len(z)))
        for title, z, unit, words in grids
    ]
    curve = plots.stream_similarity(cosine.cpu(), cka, request.name)
    return [*(drawing(figure, link="token") for figure in figures), drawing(curve, "Similarity")]


def _contributions(request: Request) -> Drawings:
    places, keys = site_names(request.injection.sites, request.roles), request.sites()
    with torch.no_grad(), _recorder(request.loaded) as seen:
        request.model(input_ids=request.text.ids[None].to(request.model.device), use_cache=False)
    kinds: dict[str, list[str]] = {}
    for key in seen:
        if key in keys:
            kinds.setdefault(places[key][1], []).append(key)
    if not kinds:
        raise NoView("Nothing that the adapter adds at this site can be recorded. Choose another site.")
    return [_contribution(request, kind, own, seen) for kind, own in kinds.items()]


def _contribution(request: Request, kind: str, keys: Sequence[str], seen: Recorder) -> Drawing:
    text, places = request.text, site_names(request.injection.sites, request.roles)
    shares = []
    for key in keys:
        added, base = seen[key].contributions[request.injection.name][0], seen[key].base[0]
        shares.append((added.float().norm(dim=-1) / base.float().norm(dim=-1))[-len(text.ids) :])
    unit, words = "‖c‖ / ‖y‖", "relative to the output of the base at the same site"
    if len(shares) == 1:
        title = site_name(*places[keys[0]])
        figure = plots.token_strip(text.words, shares[0], title=title, words=words, unit=unit, line=LINE)
    else:
        layers = [str(places[key][0]) for key in keys]
        figure = plots.layer_tokens(
            text.words, torch.stack(shares), request.name, title=kind, unit=unit, words=words, names=layers
        )
    return drawing(figure, link="token")


def _recorder(loaded: LoadedRun) -> Recorder:
    if not loaded.injection.sites:
        raise NoView(f"{loaded.injection.config.type!r} acts on the whole model and has no sites.")
    return Recorder(loaded.model, what=("base", "contributions"), device="cpu")


def _activity(request: Request) -> Drawings:
    """Draw the activity over the rows of a task; the model is free for others between two rows."""
    moments = ActivityMoments(request.injection, request.control)
    for done, (ids, labels) in enumerate(request.rows):
        request.progress(done, len(request.rows))
        if request.stopped():
            break
        with request.loaded.lock:
            moments.add(ids, labels)
    if not moments.rows:
        raise NoView("No row was read.")
    table = moments.table()
    figures = [plots.activity(table, kind, request.name, roles=request.roles) for kind in KINDS]
    return [drawing(figure, link="site") for figure in figures]


def _virtual(request: Request) -> Drawings:
    shares = probes.virtual_shares(request.model, request.text.ids, request.injection)
    means = {layer: share.mean(dim=1) for layer, share in shares.items()}
    words = "share of the attention that the tokens of the text give to virtual tokens, mean over the text"
    by_head = plots.layer_heads(means, request.name, title="by head", unit="share", words=words, top=1.0)
    by_token = plots.layer_tokens(
        request.text.words,
        torch.stack([share.mean(dim=0) for share in shares.values()]),
        request.name,
        title="by token",
        unit="share",
        words="the same by token, mean over the heads",
        names=[str(layer) for layer in shares],
    )
    return [drawing(by_head), drawing(by_token)]


def _members(request: Request) -> Drawings:
    injection, text = request.injection, request.text
    weights = members.member_weights(injection, text.ids[None].to(request.model.device))
    draw = partial(plots.member_weights, tokens=text.words, kind=request.name)
    if (streams := weights.get("model")) is not None:
        numbers = [f"stream {i}" for i in range(streams.shape[1])]
        return [drawing(draw({"model": streams}, names=numbers, title="Weights of the streams"), link="token")]
    own = {key: weights[key][-len(text.ids) :] for key in request.sites() if key in weights}
    if not own:
        raise NoView("There are no members at these sites. Choose another site.")
    names = _member_names(request)
    if names:  # the same at every site
        figures = [draw(own, names=names), plots.member_weights_by_site(own, names, request.name, roles=request.roles)]
        return [drawing(figures[0], "by token", link="token"), drawing(figures[1], "by site")]
    places, keys = site_names(injection.sites, request.roles), _spread([*own], UNITS_AT_ONCE)
    shown = []
    for key in keys:
        title = site_name(*places[key]) + (f" ({len(keys)} of {len(own)} sites)" if len(own) > len(keys) else "")
        numbers = [f"member {i}" for i in range(own[key].shape[1])]
        shown.append(drawing(draw({key: own[key]}, names=numbers, title=title), link="token"))
    return shown


def _tokens_run(request: Request) -> Drawings:
    text = request.text
    found = token_choice.tokens_run(request.injection, text.ids[None].to(request.model.device))
    own = {key: found[key] for key in request.sites() if key in found}
    return [drawing(plots.tokens_run(own, text.words, request.name, roles=request.roles), link="token")]


def _member_names(request: Request) -> list[str]:
    """Return the names of members, with the tasks of those that are runs in the same folder."""
    names, run = members.member_names(request.injection), request.loaded.run
    if len(names) < 2:
        return names
    found = []
    for name in names:
        try:
            found.append(find_run(name, run.folder.parent).spec.data.task)
        except LabError:
            found.append(Path(name).name)
    return found if len(set(found)) == len(names) else [Path(name).name for name in names]


def _expert_loads(request: Request) -> Drawings:
    found = probes.both(request.injection, lambda: routing.expert_loads(request.model, [request.text.ids]))
    return [drawing(plots.expert_loads(*found, request.name))]


def _has_sites(loaded: LoadedRun) -> None:
    if not loaded.injection.sites:
        raise NoView(f"{loaded.injection.config.type!r} acts on the whole model and sits at no site.")


def _has_change(loaded: LoadedRun) -> None:
    _has_sites(loaded)
    weight_metrics.changes(loaded.injection, next(iter(loaded.injection.sites)))


def _has_matrix(loaded: LoadedRun) -> None:
    """Try one site of each kind, until one has a ΔW that is a matrix."""
    _has_sites(loaded)
    kinds: dict[Any, str] = {}
    for key, site in loaded.injection.sites.items():
        kinds.setdefault((site.role, site.side), key)
    for number, key in enumerate(kinds.values(), 1):
        try:
            weight_metrics.weight_change(loaded.injection, key)
        except NoView:
            if number == len(kinds):
                raise
        else:
            return


def _has_heads(loaded: LoadedRun) -> None:
    injection = loaded.injection
    heads.head_changes(injection, [key for key, site in injection.sites.items() if site.role in heads.ROLES][:1])


def _has_norms(loaded: LoadedRun) -> None:
    if next(iter(_norm_events(loaded.run)), None) is None:
        raise NoView("The run recorded no norms while it trained. Set train.probe_every to record them.")


def _norm_events(run: Run) -> Iterator[Any]:
    return iter(run.events("Norms"))


def _has_merges(loaded: LoadedRun) -> None:
    if next(iter(loaded.run.events("Merged")), None) is None:
        raise NoView("Nothing was merged while the run trained. Set train.regime to train it by several heads.")


def _has_choice(loaded: LoadedRun) -> None:
    token_choice.tokens_run(loaded.injection, torch.zeros(1, 2, dtype=torch.long, device=loaded.model.device))


def _has_units(loaded: LoadedRun) -> None:
    if not units.reading_sites(loaded.injection):
        places = [key for key, site in loaded.injection.sites.items() if site.role not in OUTER]
        if places:
            units.unit_tokens(loaded.injection, places[0], k=1, limit=1)  # raises the reason
        raise NoView(f"{loaded.injection.config.type!r} has no down projection that reads the residual stream.")


def _has_virtual(loaded: LoadedRun) -> None:
    if not probes.has_virtual_tokens(loaded.injection):
        raise NoView(f"{loaded.injection.config.type!r} has no virtual tokens.")
    Recorder(loaded.model, "attn?", "pattern")


def _has_one_stream(loaded: LoadedRun) -> None:
    Recorder(loaded.model, "layers")


def _has_members(loaded: LoadedRun) -> None:
    members.member_weights(loaded.injection, torch.zeros(1, 2, dtype=torch.long, device=loaded.model.device))


def _has_skills(loaded: LoadedRun) -> None:
    group_parts.group_blocks(loaded.injection)


def _has_groups(loaded: LoadedRun) -> None:
    group_parts.group_embeddings(loaded.injection)


def _has_experts(loaded: LoadedRun) -> None:
    if not routing.has_experts(loaded.injection.anatomy):
        raise NoView(f"{loaded.run.spec.base} has no routed experts.")


def _has_layers(loaded: LoadedRun) -> None:
    if not list(weight_metrics.by_layer(loaded.injection)):
        raise NoView(f"{loaded.injection.config.type!r} is one adapter for all layers; no layer can be switched off.")


def _has_scale(loaded: LoadedRun) -> None:
    _has_sites(loaded)
    nothing = torch.zeros(2, dtype=torch.long)
    try:
        ablations.interpolation(loaded.model, nothing, loaded.injection, [1.0], lambda model, ids: 0.0)
    except NoView:  # names the adapter as it is called in the model
        raise NoView(f"What {loaded.injection.config.type!r} does is no sum that could be scaled.") from None


_WEIGHTS, _ACTIVATIONS, _TOKENS, _BEHAVIOUR = "Weights", "Activations", "Tokens", "Behaviour"
_RANGE = ("text", "range")
VIEWS = {
    "Placement": View(
        _WEIGHTS,
        "Placement",
        "placement",
        _placement,
        "The projections of every layer in order of execution; adapted ones are filled.",
    ),
    "Update norm ‖ΔW‖": View(
        _WEIGHTS,
        "Update norm",
        "norms",
        partial(_norms, False),
        "‖ΔW‖, the Frobenius norm of what merging would add to the weights of a site.",
        _has_change,
    ),
    "Relative update norm ‖ΔW‖ / ‖W‖": View(
        _WEIGHTS,
        "Relative norm",
        "relative",
        partial(_norms, True),
        "‖ΔW‖ / ‖W‖, relative to the weights of the base, in percent.",
        _has_change,
    ),
    "Singular values of ΔW": View(
        _WEIGHTS,
        "Singular values",
        "spectrum",
        _spectra,
        "σ₁ ≥ σ₂ ≥ … of ΔW at each site; effective rank exp(−Σ pᵢ ln pᵢ) with pᵢ = σᵢ / Σσ.",
        _has_matrix,
        ("site",),
        source=weight_metrics.effective_rank,
    ),
    "ΔW by head": View(
        _WEIGHTS,
        "ΔW by head",
        "heads",
        _heads,
        "‖ΔW_h‖ of each attention head: its rows of q, k and v, its columns of o. The squares sum to ‖ΔW‖².",
        _has_heads,
        columns=2,
    ),
    "Distance from initialisation over training": View(
        _WEIGHTS,
        "Over training",
        "training",
        _training,
        "‖θ − θ₀‖ of the adapter's own tensors at each site, as recorded; the slider selects the step.",
        _has_norms,
    ),
    "Rank of the merged update": View(
        _WEIGHTS,
        "Rank of merges",
        "merges",
        _merges,
        "Number of singular values of what the heads have merged so far that are above 0.0001 of the largest, as "
        "recorded.",
        _has_merges,
    ),
    "What units read": View(
        _WEIGHTS,
        "What units read",
        "units",
        _units,
        "The tokens whose embeddings a unit of the down projection responds to most, with either sign, in standard "
        "deviations over the vocabulary; the units that tell tokens apart best.",
        _has_units,
        ("site",),
        source=units.unit_tokens,
    ),
    "Skills of groups": View(
        _WEIGHTS,
        "Skills",
        "skills",
        _skills,
        "How much of each skill of the inventory a group takes, by layer; of a single layer, by block. The skills of a "
        "layer are its own: the same number in another layer is another skill.",
        _has_skills,
        ("site",),
    ),
    "Similarity of groups": View(
        _WEIGHTS,
        "Groups",
        "groups",
        _groups,
        "Which groups are alike: the cosine of what each has of its own, its embedding or its rows of the router, and "
        "the same on a map, the plane of the first two principal components.",
        _has_groups,
        columns=2,
    ),
    "Residual-stream similarity": View(
        _ACTIVATIONS,
        "Residual stream",
        "similarity",
        _similarity,
        "The residual stream h without and h′ with the adapter: sizes, cos(h, h′) at each token, and linear CKA "
        "‖YᵀX‖² / (‖XᵀX‖ ‖YᵀY‖) over all tokens.",
        _has_one_stream,
        ("text",),
        columns=3,
        source=activation_metrics.cka,
    ),
    "Adapter contribution per token": View(
        _ACTIVATIONS,
        "Contribution",
        "contribution",
        _contributions,
        "‖c‖ / ‖y‖: what the adapter adds at a site relative to the output of the base, for each token.",
        _recorder,
        ("text", "site"),
        columns=2,
    ),
    "Activity over a data set": View(
        _ACTIVATIONS,
        "Over a data set",
        "dataset",
        _activity,
        "Mean and standard deviation of ‖c‖ / ‖y‖ at each site over all tokens of the rows of a task: of prompts, of "
        "answers, and control tokens.",
        _recorder,
        ("rows",),
        columns=3,
    ),
    "Attention on virtual tokens": View(
        _ACTIVATIONS,
        "Virtual tokens",
        "virtual",
        _virtual,
        "Share of the attention that goes to the virtual tokens of the adapter, by layer and head.",
        _has_virtual,
        ("text",),
        columns=2,
        source=probes.virtual_shares,
    ),
    "Expert load": View(
        _ACTIVATIONS,
        "Expert load",
        "experts",
        _expert_loads,
        "Share of the assignments of tokens to the routed experts of each layer, without and with the adapter; colour: "
        "relative to an even share.",
        _has_experts,
        ("text",),
    ),
    "Weights of members": View(
        _ACTIVATIONS,
        "Members",
        "members",
        _members,
        "The weight that the adapter gives to each of its members: for each token, mean over the selected sites, and "
        "for each site, mean over the tokens. In a mixture, each site has members of its own. Or the weights of the "
        "streams that a row runs in.",
        _has_members,
        ("text", "site"),
    ),
    "Tokens that run": View(
        _ACTIVATIONS,
        "Tokens that run",
        "tokens",
        _tokens_run,
        "Which tokens run through the MLP of each layer; the others take the way of the adapter alone.",
        _has_choice,
        ("text", "site"),
        source=token_choice.tokens_run,
    ),
    "Loss per token": View(
        _TOKENS,
        "Loss per token",
        "loss",
        _losses,
        "−ln p(token | preceding tokens), in nats: of the base, with the adapter, and the difference.",
        needs=_RANGE,
        columns=3,
    ),
    "Logit lens": View(
        _TOKENS,
        "Logit lens",
        "lens",
        _lens,
        "softmax(head(norm(h))) of the residual stream h after each layer: of the base, with the adapter, and the "
        "difference.",
        _has_one_stream,
        _RANGE,
        columns=2,
        source=probes.logit_lens,
    ),
    "Layer ablation": View(
        _BEHAVIOUR,
        "Layer ablation",
        "ablation",
        _ablation,
        "Increase of the mean loss of the selected tokens when the adapter of one layer is disabled.",
        _has_layers,
        _RANGE,
    ),
    "Scaling λ": View(
        _BEHAVIOUR,
        "Scaling λ",
        "scaling",
        _scaling,
        "Mean loss of the selected tokens with y + λ (Δ(x, y) − y) at every site, over λ.",
        _has_scale,
        _RANGE,
    ),
}
"""All views by name, in the order of the rail."""


def draw(view: View, request: Request) -> list[Drawing]:
    """Return the drawings of a view; nobody else uses the model meanwhile, unless it reads row after row."""
    with nullcontext() if "rows" in view.needs else request.loaded.lock:
        return list(view.draw(request))
