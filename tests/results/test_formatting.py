"""The formats that every front end shares: shares, sizes, durations, dates and the names of sites."""

import time

import pytest

from llm_adapters_lab.results.formatting import (
    about,
    ago,
    clock,
    count,
    date,
    interval,
    percent,
    site_name,
    site_names,
    size,
    spread,
)

NOON = time.mktime((2025, 11, 28, 12, 0, 0, 0, 0, -1))
LAYER = "model.layers.3."


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (percent(0.91666), "91.7 %"),
        (percent(None), "–"),
        (percent(0.065, 2), "6.50 %"),
        (interval(0.123, 0.456), "12.3 to 45.6 %"),
        (spread([]), "–"),
        (spread([0.9]), "90.0 %"),
        (spread([0.897, 0.843, 0.807]), "84.9 ± 4.5 % (3 seeds)"),
        (clock(42.4), "0:42"),
        (clock(3800), "1:03:20"),
        (clock(59.7), "1:00"),
        (clock(None), "–"),
        (about(None), "–"),
        (about(1), "about 1 s"),
        (about(42), "about 40 s"),
        (about(59), "about 1 min"),
        (about(350), "about 6 min"),
        (about(9000), "about 2.5 h"),
    ],
)
def test_values_have_one_form(text, expected):
    assert text == expected


def test_numbers_keep_three_digits():
    numbers = (7, 999, 1000, 12_345, 86_016, 999_499, 999_600, 1_310_000, 6.74e9, 2e12)
    words = ["7", "999", "1k", "12.3k", "86k", "999k", "1M", "1.31M", "6.74B", "2T"]
    assert [count(number) for number in numbers] == words
    assert count(None) == "–"
    sizes = (0, 999, 344_100, 5_270_000, 999_700_000, 2.5e9, 7e15)
    assert [size(n) for n in sizes] == ["0 B", "999 B", "344 kB", "5.27 MB", "1 GB", "2.5 GB", "7,000 TB"]


@pytest.mark.parametrize(
    ("past", "words"),
    [
        (-5, "just now"),  # of a clock that differs
        (0, "just now"),
        (50, "1 min ago"),
        (300, "5 min ago"),
        (3590, "1 h ago"),
        (3 * 3600, "3 h ago"),
        (22 * 3600, "yesterday 14:00"),
        (16 * 86400, "12 Nov 12:00"),
        (400 * 86400, "24 Oct 2024 "),
    ],
)
def test_dates_are_told_as_people_tell_them(past, words):
    assert ago(NOON - past, NOON).startswith(words)


def test_a_full_date_has_year_and_seconds():
    assert date(NOON + 3) == "2025-11-28 12:00:03"


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("self_attn.q_proj", "q"),
        ("self_attn.out_proj", "self_attn.out_proj"),
        ("mamba.in_proj", "mamba.in_proj"),
        ("mlp.down_proj:mlp", "mlp"),
        ("self_attn.o_proj:attn:in", "attn.in"),
        ("self_attn.q_proj:in", "q.in"),
        ("mlp.experts.7.up_proj", "mlp.experts.7.up_proj"),
        ("cross_attn.q_proj", "cross_attn.q_proj"),
        ("input_layernorm", "input_layernorm"),
    ],
)
def test_a_site_is_named_by_its_role(path, name):
    assert site_names([LAYER + path]) == {LAYER + path: (3, name)}


def test_sites_that_would_share_a_name_keep_their_paths():
    keys = [f"model.layers.{layer}.{path}" for layer in (0, 1) for path in ("mlp.up_proj", "extra.up_proj")]
    assert [name for _, name in site_names(keys[:3]).values()] == ["mlp.up_proj", "extra.up_proj", "mlp.up_proj"]


def test_a_known_model_names_its_sites():
    found = site_names(["h.0.attn.c_attn", "wte"], {"h.0.attn.c_attn": "qkv", "wte": "embed"})
    assert [site_name(*place) for place in found.values()] == ["qkv, layer 0", "embed"]


def test_sites_of_the_parts_of_an_adapter_have_names_of_their_own():
    keys = [
        "0/model.layers.3.self_attn.q_proj",
        "0/model.layers.3.self_attn.v_proj",
        "1/model.layers.3.self_attn.q_proj",
    ]
    names = ["self_attn.q_proj (part 1)", "v", "self_attn.q_proj (part 2)"]
    assert site_names(keys) == {key: (3, name) for key, name in zip(keys, names, strict=True)}
    assert site_names(keys[1:]) == {keys[1]: (3, "v"), keys[2]: (3, "q")}
