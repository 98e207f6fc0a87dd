"""The survey adapts every kind of family, and tells what it cannot build, run or adapt."""

import json

import pytest
from typer.testing import CliRunner

from llm_adapters_lab.cli.app import app
from llm_adapters_lab.core.injection import Injection
from llm_adapters_lab.errors import CannotMerge
from llm_adapters_lab.models import random_models
from llm_adapters_lab.runs import survey as module
from llm_adapters_lab.runs.survey import NONE, UNMERGED, YES, summary, survey

KINDS = {
    "gpt2": "attn 0-1; mlp 0-1",
    "mixtral": "attn 0-3; experts 0-3; router 0-3",
    "gpt_oss": "attn 0-3; experts 0-3; router 0-3",
    "deepseek_v3": "attn 0-3; mlp 0; experts 1-3; shared 1-3; router 1-3",
    "jamba": "ssm 0,2; mlp 0,2; attn 1,3; experts 1,3; router 1,3",
    "lfm2": "conv 0,2; mlp 0-3; attn 1,3",
    "mamba2": "ssm 0-3",
    "zamba2": "ssm 0-3; attn 1,3; mlp 1,3",
}


@pytest.mark.parametrize("family", KINDS)
def test_a_family_is_adapted_everywhere(family: str) -> None:
    (found,) = survey([family])
    assert found.adapted and not found.fault
    assert found.sublayers == KINDS[family]
    expected = UNMERGED if family == "zamba2" else YES
    assert found.mixers == found.both == expected
    assert found.mlp == (NONE if family == "mamba2" else expected)
    assert (found.cache, found.training) == (YES, YES)


def test_what_cannot_be_built_is_no_refusal() -> None:
    found = list(survey(["dbrx", "llama"]))
    assert not found[0].built and found[0].fault.startswith("not built: ")
    assert summary(found) == "1 of 1 families are adapted (100.0 %); 2 in all."


def test_a_model_that_cannot_be_read_says_why() -> None:
    (found,) = survey(["blt"])
    assert not found.adapted and found.fault


@pytest.mark.parametrize(
    ("name", "broken", "fault"),
    [
        ("_move", lambda injection: None, "has no effect"),
        ("merge", lambda injection: injection.eject(), "answers otherwise when merged"),
        ("_stepwise", lambda model, ids: None, NONE),
    ],
)
def test_the_survey_sees_faults(name: str, broken: object, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, name, broken)
    (found,) = survey(["llama"])
    assert (found.cache if name == "_stepwise" else found.mixers) == fault
    assert found.adapted == (name == "_stepwise")


def test_the_survey_sees_a_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "merge", merge_but_keep)
    monkeypatch.setattr(Injection, "detach", lambda self: None)
    (found,) = survey(["llama"])
    assert found.mixers == "leaves a trace when ejected" and not found.adapted


def merge_but_keep(injection: Injection) -> None:
    raise CannotMerge("not tried")


def test_every_causal_family_has_a_tiny_configuration() -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    families, built = random_models.causal_families(), []
    assert families == sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    for family in families:
        try:
            random_models.tiny_config(f"tiny:{family}")
        except Exception as error:
            assert str(error)
        else:
            built.append(family)
    assert set(random_models.TINY) <= {*families, "gemma3"} and len(built) >= 0.95 * len(families)


def test_the_command_prints_and_writes_a_page(tmp_path) -> None:
    page = tmp_path / "page.md"
    result = CliRunner().invoke(app, ["survey", "llama", "--json", "--out", str(page)])
    assert result.exit_code == 0 and json.loads(result.stdout)[0]["adapted"] == YES
    assert "| llama | yes | attn 0-1; mlp 0-1 | yes | yes | yes | yes |" in page.read_text()
    assert CliRunner().invoke(app, ["survey", "nothing"]).exit_code == 2
