"""Weights of skills and similarities of groups agree with results computed by hand, or say why there are none."""

import json
from typing import Any

import pytest
import torch
from contract import shake, tokens
from torch.nn.functional import cosine_similarity

from llm_adapters_lab import plots
from llm_adapters_lab.core.injection import Injection, inject
from llm_adapters_lab.core.registry import adapter_config
from llm_adapters_lab.errors import NoView
from llm_adapters_lab.inspection import (
    GroupEmbeddings,
    group_blocks,
    group_embeddings,
    group_names,
    group_weights,
    member_names,
    member_weights,
)
from llm_adapters_lab.models import random_models

HOSTILE = '<img src=x onerror="alert(1)">'
NAMES = ("de-en", "fr-en", "de-it")
POLY = {"type": "poly", "rank": 2, "skills": 3, "blocks": 2, "groups": NAMES}
HYPER = {"type": "hyper", "bottleneck": 4, "embedding": 5, "hidden": 8, "code": 4, "groups": NAMES}


def adapted(**fields: Any) -> Injection:
    injection = inject(random_models.tiny("tiny:llama"), adapter_config(fields))
    shake(injection)
    return injection


def test_the_weights_of_a_router_are_those_of_its_formula() -> None:
    injection = adapted(**POLY)
    found = group_weights(injection)
    assert list(found) == list(injection.sites) and group_names(injection) == [*NAMES] and group_blocks(injection) == 2
    for key, adapter in injection.adapters.items():
        opened = 1 / (1 + torch.exp(-adapter.Z.detach()))
        by_hand = opened / (opened[..., 0] + opened[..., 1] + opened[..., 2])[..., None]
        torch.testing.assert_close(found[key], (by_hand[:, 0] + by_hand[:, 1]) / 2)
        torch.testing.assert_close(group_weights(injection, 1)[key], by_hand[:, 1])
        torch.testing.assert_close(found[key].sum(1), torch.ones(3))
        assert not torch.allclose(found[key][0], found[key][1])
    for wrong in (-1, 2):
        with pytest.raises(NoView, match=f"has 2 blocks, numbered from 0, and no {wrong}"):
            group_weights(injection, wrong)


def test_a_skill_that_a_group_alone_takes_is_all_that_it_does() -> None:
    injection = adapted(**POLY | {"blocks": 1})
    for adapter in injection.adapters.values():
        adapter.Z.data[:] = -40
        adapter.Z.data[range(3), 0, [2, 0, 1]] = 40
    for own in group_weights(injection).values():
        torch.testing.assert_close(own, torch.eye(3)[[2, 0, 1]])


@pytest.mark.parametrize("share", ["sites", "none"])
def test_embeddings_are_compared_as_torch_compares_them(share: str) -> None:
    injection = adapted(**HYPER, share=share)
    tables = {id(a.network): a.network.tables["group"].detach() for a in injection.adapters.values()}
    assert len(tables) == (1 if share == "sites" else len(injection.sites))
    rows = torch.cat([*tables.values()], 1)
    (name, found), *rest = group_embeddings(injection).items()
    assert (name, found.names, rest) == ("group", NAMES, [])
    assert torch.equal(found.vectors, rows)
    for i in range(3):
        torch.testing.assert_close(found.cosine()[i], cosine_similarity(rows[i : i + 1], rows), atol=1e-6, rtol=1e-6)


def test_the_ends_of_pairs_are_compared_with_their_like() -> None:
    injection = adapted(**HYPER, pairs=True)
    found = group_embeddings(injection)
    assert {table: own.names for table, own in found.items()} == {"source": ("de", "fr"), "target": ("en", "it")}
    assert found["target"].vectors.shape == (2, 5)


def test_rows_of_a_router_are_joined_over_the_sites() -> None:
    injection = adapted(**POLY)
    (found,) = group_embeddings(injection).values()
    by_hand = torch.stack([torch.cat([a.Z[g].flatten() for a in injection.adapters.values()]) for g in range(3)])
    assert torch.equal(found.vectors, by_hand.detach())


def test_the_map_keeps_distances_in_a_plane_and_has_fixed_signs() -> None:
    flat = torch.tensor([[5.0, 0.0], [0.0, 1.0], [-3.0, 1.0], [-2.0, -2.0]])
    turned = flat @ torch.linalg.qr(torch.randn(7, 7, generator=torch.Generator().manual_seed(1)))[0][:2]
    found = GroupEmbeddings(("a", "b", "c", "d"), turned + 5)
    at, shares = found.plane()
    torch.testing.assert_close(torch.cdist(at, at), torch.cdist(flat, flat), atol=1e-4, rtol=1e-4)
    spread = torch.linalg.eigvalsh(flat.T @ flat).flip(0)
    torch.testing.assert_close(shares, spread / spread.sum(), atol=1e-5, rtol=1e-4)
    assert all(float(column[column.abs().argmax()]) > 0 for column in at.T)
    lonely, rest = GroupEmbeddings(("a", "b"), torch.tensor([[1.0], [3.0]])).plane()
    assert lonely.shape == (2, 2) and rest.tolist() == [1, 0]
    same, none = GroupEmbeddings(("a", "b"), torch.ones(2, 3)).plane()
    assert same.abs().max() == none.abs().max() == 0


def test_parts_of_a_union_are_kept_apart() -> None:
    parts = [{**POLY, "at": "down"}, {**HYPER, "at": "attn"}]
    injection = adapted(type="union", of=parts)
    assert set(group_embeddings(injection)) == {"0/Z", "1/group"}
    assert {injection.sites[key].role for key in group_weights(injection)} == {"down"}
    assert group_names(injection) == [*NAMES]


@torch.no_grad()
def test_a_router_of_its_own_weights_the_members_of_a_site_by_its_formula() -> None:
    injection = adapted(type="molora", rank=2, members=3, at="q")
    key, adapter = next(iter(injection.adapters.items()))
    ids, seen = tokens()[:1], []
    handle = injection.host(key).register_forward_pre_hook(lambda host, args: seen.append(args[0]))
    found = member_weights(injection, ids)
    handle.remove()
    assert list(found) == list(injection.adapters) and member_names(injection) == []
    torch.testing.assert_close(found[key], (seen[0][0] @ adapter.R.T).softmax(-1))
    figure = plots.member_weights_by_site(found, ["a", "b", HOSTILE])
    rows = plots.data(figure)
    assert [row["weight"] for row in rows[:3]] == pytest.approx(found[key].mean(0).tolist())
    assert "<img" not in json.dumps(json.loads(figure.to_json()))


def test_where_there_are_no_parts_the_reason_is_named() -> None:
    plain = adapted(type="lora", rank=2)
    with pytest.raises(NoView, match="'lora' has no inventory of skills"):
        group_weights(plain)
    with pytest.raises(NoView, match="'lora' has no part for each group"):
        group_embeddings(plain)
    with pytest.raises(NoView, match="'hyper' has no inventory of skills"):
        group_weights(adapted(**HYPER))
    for groups in ((), ("one",)):
        alone = adapted(**POLY | {"groups": groups})
        with pytest.raises(NoView, match=r"a single group or none.* Set data\.group"):
            group_embeddings(alone)
        assert all(own.shape == (1, 3) for own in group_weights(alone).values())
    assert group_names(adapted(**POLY | {"groups": ()})) == ["all rows"]


def test_figures_show_these_numbers_and_escape_names() -> None:
    injection = adapted(**POLY | {"groups": ("t-a", "t-b", f"t-{HOSTILE}")})
    weights, names = group_weights(injection), group_names(injection)
    panels = {f"layer {HOSTILE}": weights[key] for key in weights}
    figure = plots.group_weights(panels, names, "poly")
    rows = plots.data(figure)
    assert len(rows) == 9 * len(figure.data) and [row["group"] for row in rows[:4]] == ["a", "a", "a", "b"]
    assert sum(row["weight"] for row in rows[3:6]) == pytest.approx(1)
    assert rows[5]["weight"] == pytest.approx(float(panels[f"layer {HOSTILE}"][1, 2]))
    (found,) = group_embeddings(injection).values()
    likeness, spots = plots.group_similarity(found, "poly"), plots.group_map(found, "poly")
    assert [row["cosine"] for row in plots.data(likeness)] == pytest.approx(found.cosine().flatten().tolist())
    assert [row["component 2"] for row in plots.data(spots)] == pytest.approx(found.plane()[0][:, 1].tolist())
    for each in (figure, likeness, spots):
        assert "<img" not in json.dumps(json.loads(each.to_json()))
    wide = plots.group_weights({"layer 0": torch.ones(2, 40) / 40}, ["a", "b"], None)
    assert wide.data[0].texttemplate is None and figure.layout.meta["least"] < wide.layout.meta["least"]
