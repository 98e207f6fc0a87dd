"""A tokenizer does not fit its model: no end token, or tokens without an embedding.

Area: tokens
Elsewhere: unsloth#3428, axolotl#2277; trl#1623, #2059, alignment-handbook#127
Before: a TypeError without an end token, an IndexError for a token beyond the embeddings.
Here: both are refused by name before anything is loaded; tokens that no row uses do not matter.
Verdict: crash → refused
"""

import json
from pathlib import Path

import pytest
from small_bases import nano_copy
from transformers import AutoTokenizer

from llm_adapters_lab.errors import BadSpec
from llm_adapters_lab.models.blueprint import Blueprint
from llm_adapters_lab.runs.preflight import preflight
from llm_adapters_lab.runs.spec import RunSpec


@pytest.mark.parametrize("adapter", [None, "lora"])
def test_a_tokenizer_does_not_fit_its_model(adapter: str | None, tmp_path: Path) -> None:
    def check(base: str, said: str = "hello") -> None:
        (tmp_path / "x.jsonl").write_text(json.dumps({"instruction": f"say {said}", "answer": "a"}))
        task = f"own:{tmp_path / 'x.jsonl'}"
        spec = RunSpec.parse({"base": base, "adapter": adapter, "data": {"task": task}, "eval": {"tasks": [task]}})
        preflight(spec, Blueprint(base))

    settings = nano_copy(tmp_path / "no_end") / "tokenizer_config.json"
    kept = {
        key: value for key, value in json.loads(settings.read_text()).items() if key not in ("eos_token", "pad_token")
    }
    settings.write_text(json.dumps(kept))
    with pytest.raises(BadSpec, match="no end token.*Set eos_token.*id 2"):
        check(str(settings.parent))
    larger = str(nano_copy(tmp_path / "larger"))
    tokenizer = AutoTokenizer.from_pretrained(larger)
    tokenizer.add_tokens(["<extra>"])
    tokenizer.save_pretrained(larger)
    check(larger)
    with pytest.raises(BadSpec, match="'<extra>', token 293, but the model has only 293 embeddings"):
        check(larger, "<extra>")
