"""The grid of sites: text and cells agree in every family, and the browser's changes reach the kernel."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from odd_models import decoder, encoder_decoder, family

from llm_adapters_lab.core import placement
from llm_adapters_lab.core.anatomy import Anatomy
from llm_adapters_lab.core.sites import OUTER
from llm_adapters_lab.models.blueprint import blueprint
from llm_adapters_lab.models.random_models import TINY
from widgets.forms.placement_grid import MAX_ROWS, PlacementGrid, cells, column, folded, placement_of

SMALL = blueprint("nano").anatomy
LLAMA = blueprint("tiny:llama").anatomy
ODD = ["jamba", "qwen3_next", "deepseek_v3", "zamba2", "gemma4_text", "mixtral", "mamba2"]
PAIRS = ["t5", "bart"]


def anatomy_of(name):
    if name in PAIRS:
        return Anatomy.of(encoder_decoder(name))
    return Anatomy.of(family(name)) if name in ODD else blueprint(f"tiny:{name}").anatomy


def grid(anatomy, at, level="projection", **options):
    heard = []
    made = PlacementGrid(lambda: heard.append(placement_of(made.selected, anatomy)))
    made.show(anatomy, level, placement.sites(anatomy, at, level), **options)
    return made, heard


@pytest.mark.parametrize("text", ["q,v", "q@1", "attn", "mlp@0", "q+down@1", "down.in", "attn.in,mlp.in", "embed,head"])
@pytest.mark.parametrize("level", ["projection", "sublayer"])
def test_cells_show_the_text(text, level):
    made, heard = grid(LLAMA, text, level)
    assert made.selected == {(s.layer, column(s)) for s in placement.sites(LLAMA, text, level)}
    assert {(layer, name) for name, own in made.widget.selected.items() for layer in own} == made.selected
    assert {name for _, name in made.selected} <= {*made.shown} and not heard


def test_changes_in_the_browser_become_text():
    made, heard = grid(LLAMA, "q,v")
    made.widget.selected = {"q": [0, 1], "down": [1]}
    made.widget.selected = {"q": [0, 1], "down": [1], "v": [0, 1]}
    made.widget.selected = {}
    assert heard == ["q+down@1", "q,v+down@1", ""]
    made.widget.selected = {"q": [0, 99], "none": [0]}  # no cells of this model
    assert made.selected == {(0, "q")}


def test_rarer_columns_appear_on_request_or_when_used():
    made, _ = grid(LLAMA, "q,v")
    assert made.shown == ("q", "k", "v", "o", "gate", "up", "down")
    made.show(LLAMA, "projection", placement.sites(LLAMA, "down.in"))
    assert made.shown[-1] == "down.in" and "q.in" not in made.shown
    made.widget.selected = {}
    made.show(LLAMA, "projection", ())
    assert "down.in" in made.shown  # it stays although it is cleared
    made.widget.everything = True
    assert {"q.in", "attn.in", "down.in", "embed"} <= {*made.shown} and made.widget.rows == [[0, 1], [-1]]
    made.widget.everything = False
    made.show(LLAMA, "projection", (), everything=True)
    assert "q.in" in made.shown and not made.widget.more


def test_consecutive_layers_share_a_row_until_the_text_separates_them():
    made, _ = grid(SMALL, "q,v")
    assert made.widget.rows == [[0, 1, 2, 3, 4, 5]]
    made.show(SMALL, "projection", placement.sites(SMALL, "q,v@2-3"))
    assert made.widget.rows == [[0, 1], [2, 3], [4, 5]]
    made.widget.selected = {"q": [0, 1, 2, 3], "v": [2]}  # a click moves no row
    made.show(SMALL, "projection", placement.sites(SMALL, "q@0-3+v@2"))
    assert made.widget.rows == [[0, 1], [2, 3], [4, 5]]


def test_layers_that_alternate_share_two_rows():
    kinds = {layer: layer % 2 for layer in range(80)}
    assert folded(kinds) == [[*range(0, 80, 2)], [*range(1, 80, 2)]]
    assert folded(dict.fromkeys(range(80), 0)) == [[*range(80)]]
    assert len(folded({layer: layer // 20 for layer in range(80)})) == 4 <= MAX_ROWS


def test_typed_layers_hold_for_every_selected_column():
    made, heard = grid(SMALL, "q,down")
    made.widget.layers = "1-2, -1"
    assert heard == ["q,down@1-2,5"] and made.widget.rows == [[0], [1, 2], [3, 4], [5]]
    made.widget.layers = "3-99"
    assert "layers 3-99" in made.widget.fault and len(heard) == 1
    made.widget.layers = "q"
    assert "write them as 0-7" in made.widget.fault
    made.widget.layers = "all"
    assert heard[-1] == "q,down" and not made.widget.fault
    made.widget.selected = {}
    made.widget.layers = "2-3"  # no column is selected: the rows are split, to be clicked
    assert heard[-1] == "" and len(heard) == 3 and made.widget.rows == [[0, 1], [2, 3], [4, 5]]


def test_a_cell_tells_path_widths_and_parameters():
    made, _ = grid(LLAMA, "q", parameters=lambda site: site.d_in + site.d_out)
    assert made.widget.about["down"] == [[0, 1, "model.layers.*.mlp.down_proj", 64, 32, 1, 96]]
    made.show(LLAMA, "projection", ())
    assert made.widget.about["down"][0][-1] is None


def test_the_experts_of_a_layer_are_one_cell():
    jamba = anatomy_of("jamba")
    made, heard = grid(jamba, "q?,experts.down?", parameters=lambda site: 2)
    assert made.selected == {(1, "q"), (1, "experts.down")} and made.widget.rows == [[0], [1]]
    path = "model.layers.*.feed_forward.experts.down_proj.0"
    assert made.widget.about["experts.down"] == [[1, 1, path, 64, 32, 4, 8]]
    assert {"name": "experts.down", "group": "experts", "short": "down"} in made.widget.head
    assert "router" not in made.shown
    made.widget.everything = True
    assert "router" in made.shown
    made.widget.selected = {"experts.down": [1], "router": [1]}
    assert heard == ["experts.down,router@1"]


def test_nothing_is_shown_when_cleared():
    made, heard = grid(LLAMA, "q,v")
    made.clear()
    assert not made.shown and not made.selected and not made.widget.selected and not heard
    made.show(LLAMA, "projection", placement.sites(LLAMA, "q,v"))
    assert made.shown and made.widget.rows == [[0, 1]]


@pytest.mark.parametrize("name", [*TINY, *ODD, *PAIRS])
def test_the_placement_of_cells_selects_them_in_every_family(name):
    anatomy = anatomy_of(name)
    for level in ("projection", "sublayer"):
        for cell in cells(anatomy):
            if level == "projection" and cell[1].removeprefix("encoder.") in ("attn", "mlp", "cross", "shared", "ssm"):
                continue
            for chosen in ({cell}, {c for c in cells(anatomy) if c[1] == cell[1]}):
                text = placement_of(chosen, anatomy)
                made, heard = grid(anatomy, text, level)
                assert made.selected == chosen, text
                made.widget.selected = dict(made.widget.selected)
                made.widget.layers = ""
                assert placement_of(made.selected, anatomy) == text and not heard


def test_the_placement_of_cells_selects_them_where_some_layers_lack_a_role():
    fields = {"hidden_size_per_layer_input": 0, "global_head_dim": 16, "attention_k_eq_v": True}
    anatomy = Anatomy.of(decoder("gemma4_text", layer_types=["sliding_attention", "full_attention"], **fields))
    every = {(layer, name) for layer, name in cells(anatomy) if name in ("q", "v")}
    assert every == {(0, "q"), (1, "q"), (0, "v")} and placement_of(every, anatomy) == "q+v@0"
    for text in ("q+v@0", "q,v?"):
        assert {(s.layer, column(s)) for s in placement.sites(anatomy, text)} == every


def test_the_placement_agrees_with_describe():
    picked = [s for s in SMALL.projections if (s.role in ("q", "v") and s.layer in (1, 2, 3, 5)) or s.role == "down"]
    text = placement_of({(s.layer, s.role) for s in picked}, SMALL)
    assert text == "q,v@1-3,5+down"
    again = placement.describe(SMALL, [s.path for s in picked])
    assert placement.sites(SMALL, again) == placement.sites(SMALL, text)


@settings(max_examples=60, deadline=None)
@given(st.sets(st.sampled_from(sorted(cells(SMALL))), min_size=1))
def test_any_selection_of_cells_has_a_placement(chosen):
    text = placement_of(chosen, SMALL)
    made, _ = grid(SMALL, text, "sublayer")
    assert made.selected == chosen
    assert {name for layer, name in chosen if layer < 0} <= {*OUTER}
