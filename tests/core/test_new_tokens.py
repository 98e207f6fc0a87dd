"""New tokens: their rows are trained, saved, merged, exported and imported, with equal logits in all five ways."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from contract import config, logits, shake
from peft_folders import PEFT_WARNINGS, move
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from llm_adapters_lab.core import vocabulary
from llm_adapters_lab.core.composition import merge_mix, mix
from llm_adapters_lab.core.injection import inject, injections
from llm_adapters_lab.core.merging import temporarily_merged
from llm_adapters_lab.core.peft_format import from_peft, to_peft
from llm_adapters_lab.core.saving import load_adapter, save_adapter, save_merged
from llm_adapters_lab.core.vocabulary import add_tokens
from llm_adapters_lab.errors import BadSpec, CannotConvert, CannotInject, StateMismatch, WrongBase
from llm_adapters_lab.models import random_models
from llm_adapters_lab.models.blueprint import Blueprint
from llm_adapters_lab.models.loading import load_base
from llm_adapters_lab.models.source import NANO
from llm_adapters_lab.runs.execution import run
from llm_adapters_lab.runs.preflight import preflight
from llm_adapters_lab.runs.restoring import restore
from llm_adapters_lab.runs.spec import RunSpec
from llm_adapters_lab.tasks.tokens import Sample
from llm_adapters_lab.training.loss import FastPaths, Objective

pytestmark = [*PEFT_WARNINGS, pytest.mark.filterwarnings("ignore::UserWarning:peft")]
TOKENS = {"<tool>": "the dog", "<end>": ""}
Maker = Callable[[], tuple[Any, Any]]


def words(count: int) -> Any:
    """Return a tokenizer of so many tokens."""
    vocabulary = {word: i for i, word in enumerate(["<unk>", "<s>", "</s>", "the", "dog"])}
    vocabulary |= {f"w{i}": i for i in range(5, count)}
    plain = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    plain.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=plain, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def untie(model: Any) -> Any:
    model.config.tie_word_embeddings = False
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().flip(0) * 1.5)
    return model


def plain(kind: str) -> tuple[Any, Any]:
    """Return a model and its tokenizer: the packaged one, which is tied, or a tiny one."""
    if kind == "nano":
        return AutoModelForCausalLM.from_pretrained(NANO).eval(), AutoTokenizer.from_pretrained(NANO)
    family, _, count = kind.partition("-")  # tiny models have 128 rows
    return random_models.tiny(f"tiny:{family}"), words(int(count))


BASES = pytest.mark.parametrize("kind", ["nano", "llama-128", "gemma3-120"])  # tied; untied; tied, scaled, spare rows
ADAPTERS = pytest.mark.parametrize("adapter", ["lora", "trainable-tokens"])


def trained(kind: str, adapter: str) -> tuple[Any, Any, Any]:
    model, tokenizer = plain(kind)
    add_tokens(model, tokenizer, TOKENS)
    injection = inject(model, config(adapter, **({"ids": []} if adapter == "trainable-tokens" else {})))
    shake(injection)
    return model, tokenizer, injection


def close(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    """Return whether logits are equal to 1e-5 of the largest."""
    return bool((found - wanted).abs().max() <= 1e-5 * wanted.abs().max().clamp(min=1))


def asked(tokenizer: Any) -> torch.Tensor:
    return torch.tensor([tokenizer("the dog <tool> the <end> dog", add_special_tokens=False)["input_ids"]])


@ADAPTERS
@BASES
def test_logits_are_equal_in_five_ways(kind: str, adapter: str, tmp_path: Path) -> None:
    model, tokenizer, injection = trained(kind, adapter)
    ids = asked(tokenizer)
    assert set(tokenizer.convert_tokens_to_ids(list(TOKENS))) <= set(ids[0].tolist())
    wanted = logits(model, ids)
    with injection.disabled():
        assert (logits(model, ids) - wanted).abs().max() > 0.01
    with temporarily_merged(injection) as merged:
        assert merged
        assert close(logits(model, ids), wanted)
    save_adapter(injection, tmp_path / "lab")
    to_peft(injection, tmp_path / "peft", tokenizer=tokenizer)

    other, own = plain(kind)
    load_adapter(other, tmp_path / "lab", tokenizer=own)
    assert asked(own).equal(ids)
    assert torch.equal(logits(other, ids), wanted)

    other, own = plain(kind)
    imported = from_peft(other, tmp_path / "peft", tokenizer=own)
    assert asked(own).equal(ids)
    assert close(logits(other, ids), wanted)
    assert imported.tokens == injection.tokens

    other, _ = plain(kind)
    own = AutoTokenizer.from_pretrained(tmp_path / "peft")
    other.resize_token_embeddings(max(len(own), other.config.vocab_size), mean_resizing=False)
    assert close(logits(peft.PeftModel.from_pretrained(other, tmp_path / "peft").eval(), ids), wanted)

    save_merged(injection, tmp_path / "merged", tokenizer)
    assert close(logits(model, ids), wanted)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    assert close(logits(again, asked(AutoTokenizer.from_pretrained(tmp_path / "merged"))), wanted)
    assert (again.lm_head.weight is again.model.embed_tokens.weight) == (kind != "llama-128")


@BASES
def test_only_the_rows_are_trained_and_saved(kind: str, tmp_path: Path) -> None:
    model, _ = plain(kind)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    _, _, injection = made = trained(kind, "trainable-tokens")
    tied, width = made[0].lm_head.weight is made[0].model.embed_tokens.weight, model.config.hidden_size
    assert injection.count() == 2 * width * (1 if tied else 2)
    assert len(injection.state_dict()) == (1 if tied else 2)
    save_adapter(injection, tmp_path / "lab")
    meta = json.loads((tmp_path / "lab" / "adapter.json").read_text())
    assert meta["tokens"] == TOKENS
    assert meta["token_ids"] == made[1].convert_tokens_to_ids(list(TOKENS))
    save_merged(injection, tmp_path / "merged", made[1])
    for name, p in made[0].named_parameters():
        old = before[name]
        if "embed" in name or "lm_head" in name:
            kept = [i for i in range(len(old)) if i not in meta["token_ids"]]
            assert torch.equal(p[kept], old[kept])
        else:
            assert torch.equal(p, old)


@pytest.mark.parametrize("family", ["llama", "gemma2", "phi"])  # untied; tied; untied with a bias at the head
def test_rows_start_from_the_mean_of_words_or_of_the_embedding(family: str) -> None:
    model, tokenizer = plain(f"{family}-120")
    hosts = [model.get_input_embeddings(), model.get_output_embeddings()]
    with torch.no_grad():
        hosts[0].weight[120:] = 100.0  # rows that no token uses do not count
    tables = [host.weight.detach().clone() for host in hosts]
    if hosts[1].bias is not None:
        nn.init.ones_(hosts[1].bias)
    state = torch.get_rng_state()
    add_tokens(model, tokenizer, TOKENS | {f"<{i}>": "" for i in range(10)})
    assert torch.equal(torch.get_rng_state(), state)
    hosts = [model.get_input_embeddings(), model.get_output_embeddings()]
    assert (hosts[0].weight is hosts[1].weight) == (family == "gemma2")
    for host, table in zip(hosts, tables, strict=True):
        assert len(host.weight) == 132
        assert host.weight[120].allclose(table[[3, 4]].mean(0), atol=1e-6)
        assert host.weight[[121, 131]].allclose(table[:120].mean(0), atol=1e-6)
        assert torch.equal(host.weight[:120], table[:120])
    if family == "phi":
        assert hosts[1].bias.tolist() == [1] * 120 + [0] * 12
    injection = inject(model, config("lora"))
    ids = asked(tokenizer)
    with injection.disabled():
        off = logits(model, ids)
    assert torch.equal(logits(model, ids), off)  # the start is the base
    shake(injection)
    wanted = logits(model, ids)
    with temporarily_merged(injection):
        assert logits(model, ids).allclose(wanted, atol=1e-5)
    if family == "phi":
        with pytest.raises(CannotConvert, match="leaves out the bias of lm_head"):
            to_peft(injection, "unused", tokenizer=tokenizer)


@pytest.mark.parametrize(
    ("tokens", "match"),
    [
        ({"</s>": ""}, r"'</s>' is a token of this base already \(id 2\)"),
        ({"the": ""}, "'the' is a token of this base already"),
        ({" \n": ""}, "is blank"),
        ({"<a>": "  "}, "'<a>' starts from '  ', in which there is no known token"),
        ({"<a>": "№№"}, "in which there is no known token"),
        ({"<a>": "", "<b>": "the <a>"}, "'<b>' cannot start from 'the <a>', which has the new token '<a>' in it"),
    ],
)
def test_bad_tokens_are_named_and_nothing_changes(tokens: dict[str, str], match: str) -> None:
    model, tokenizer = plain("llama-128")
    with pytest.raises(BadSpec, match=match):
        add_tokens(model, tokenizer, tokens)
    assert (len(tokenizer), len(model.lm_head.weight), vocabulary.new_tokens(model)) == (128, 128, {})


def test_bad_tokens_are_named_before_any_weight_loads() -> None:
    for tokens, match in (
        (["<a>", "<a>"], "names '<a>' twice"),
        ([""], "tokens"),
        ([{"text": "<a>", "begin": "x"}], "begin"),
    ):
        with pytest.raises(BadSpec, match=match):
            RunSpec.parse({"tokens": tokens})
    spec = RunSpec.parse({"adapter": "lora", "data": {"task": "mini-math", "rows": 8}, "tokens": ["</s>"]})
    with pytest.raises(BadSpec, match="'</s>' is a token of this base already"):
        preflight(spec, Blueprint(*spec.base_parts))
    spec = RunSpec.parse({"base": "tiny:llama", "tokens": ["<a>"]})
    with pytest.raises(BadSpec, match="has no tokenizer"):
        load_base(Blueprint(*spec.base_parts))


def test_after_an_error_the_model_is_as_before(tmp_path: Path) -> None:
    _, _, injection = trained("gemma3-120", "lora")
    save_adapter(injection, tmp_path / "lab")
    _, _, injection = trained("llama-128", "lora")
    save_adapter(injection, tmp_path / "other")
    for folder, kind, error in (("lab", "llama-128", WrongBase), ("other", "llama-128", StateMismatch)):
        model, tokenizer = plain(kind)
        before = {name: p.detach().clone() for name, p in model.state_dict().items()}
        if error is StateMismatch:
            (tmp_path / "other" / "adapter.safetensors").write_bytes(
                (tmp_path / "lab" / "adapter.safetensors").read_bytes()
            )
        with pytest.raises(error):
            load_adapter(model, tmp_path / folder, tokenizer=tokenizer)
        assert len(tokenizer) == 128
        assert model.config.vocab_size == 128
        assert not injections(model)
        assert not vocabulary.new_tokens(model)
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    model, tokenizer = plain("gemma3-120")  # spare rows, which are overwritten meanwhile
    before = {name: p.detach().clone() for name, p in model.state_dict().items()}
    with pytest.raises(KeyError), vocabulary.extended(model, tokenizer, TOKENS):
        assert not torch.equal(model.lm_head.weight, before["lm_head.weight"])
        raise KeyError
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@BASES
def test_rows_are_mixed_and_merged_with_other_adapters(kind: str) -> None:
    model, tokenizer, _ = trained(kind, "lora")
    shake(inject(model, config("lora", rank=2), name="other"))
    mix(model, {"default": 0.7, "other": 0.3})
    wanted = logits(model, asked(tokenizer))
    merge_mix(model)
    assert close(logits(model, asked(tokenizer)), wanted)


@pytest.mark.parametrize("modifier", ["sparse", "quantize"])
def test_rows_are_not_masked_or_packed(modifier: str) -> None:
    fields = {modifier: {"score": "random"} if modifier == "sparse" else {}}
    model, tokenizer = plain("llama-128")
    with pytest.raises(CannotInject, match="'trainable-tokens' trains the base's own parameters"):
        inject(model, config("trainable-tokens", **fields))
    add_tokens(model, tokenizer, TOKENS)
    wanted = logits(model, asked(tokenizer))
    inject(model, config("lora", **fields))
    assert torch.equal(logits(model, asked(tokenizer)), wanted)


def test_rows_are_not_put_under_other_ids(tmp_path: Path) -> None:
    _, tokenizer, injection = trained("gemma3-120", "lora")
    save_adapter(injection, tmp_path / "lab")
    to_peft(injection, tmp_path / "peft", tokenizer=tokenizer)
    other = words(40)
    for folder, error, match in (
        ("lab", WrongBase, "ids 40, 41 here, but the adapter in .* has rows of 120, 121"),
        ("peft", StateMismatch, r"'<tool>' \(id 120\), '<end>' \(id 121\), but the next free id .* is 40"),
    ):
        model, _ = plain("gemma3-120")
        with pytest.raises(error, match=match):
            load_adapter(model, tmp_path / folder, tokenizer=other, check_base=False)
        assert len(other) == 40
        assert not injections(model)


def test_what_cannot_be_combined_is_refused_by_name(tmp_path: Path) -> None:
    model, tokenizer = plain("llama-128")
    injection = inject(model, config("trainable-tokens", ids=[]))
    assert injection.tokens == [2]  # the end token
    injection.eject()
    model.config.eos_token_id = None
    with pytest.raises(CannotInject, match="has no tokens to train"):
        inject(model, config("trainable-tokens", ids=[]))
    with pytest.raises(CannotInject, match="has 128 rows, and token 128 is to be trained"):
        inject(model, config("lora"), tokens=[128])
    add_tokens(model, tokenizer, TOKENS)
    for at in ("embed", "head"):
        with pytest.raises(CannotInject, match=f"'lora' at '{at}' and rows of new tokens"):
            inject(model, config("lora", at=at))
    with pytest.raises(WrongBase, match="has the new tokens '<tool>', '<end>', asked for are '<x>'"):
        add_tokens(model, tokenizer, {"<x>": ""})
    injection = inject(model, config("full-fine-tuning"))
    assert not injection.tokens  # it trains the rows itself
    injection.eject()
    injection = inject(model, config("ia3"))
    for save, match in ((to_peft, "beside LoRA only, not beside IA3"), (save_merged, "pass its tokenizer")):
        with pytest.raises((BadSpec, CannotConvert), match=match):
            save(injection, tmp_path / "folder")


@BASES
def test_folders_of_peft_are_read(kind: str, tmp_path: Path) -> None:
    def made(by: int = 2) -> tuple[Any, Any]:
        model, tokenizer = plain(kind)
        with torch.random.fork_rng():
            torch.manual_seed(5)
            model.resize_token_embeddings(model.config.vocab_size + by, mean_resizing=False)
        return model, tokenizer

    model, _ = made()
    rows = len(model.lm_head.weight)
    new = [rows - 2, rows - 1]
    ids, targets = torch.tensor([[4, rows - 1, 3, rows - 2, 5]]), {"target_modules": ["q_proj"], "r": 2}
    cases = {
        "list": peft.LoraConfig(**targets, trainable_token_indices=new),
        "rows": peft.TrainableTokensConfig(token_indices=[3, *new]),
    }
    if kind == "llama-128":
        both: dict[str, Any] = {"embed_tokens": new[:1], "lm_head": [3, *new]}
        cases |= {
            "dict": peft.LoraConfig(**targets, trainable_token_indices=both),
            "two": peft.TrainableTokensConfig(token_indices=new, target_modules=["embed_tokens", "lm_head"]),
        }
    for name, settings in cases.items():
        other = peft.get_peft_model(made()[0], settings).eval()
        move(other)
        wanted = logits(other, ids)
        other.save_pretrained(tmp_path / name)  # of nano, which is a folder, with the whole embedding
        mine, tokenizer = made()
        injection = load_adapter(mine, tmp_path / name, tokenizer=tokenizer)
        assert logits(mine, ids).allclose(wanted, atol=1e-5), name
        save_adapter(injection, tmp_path / f"{name}-lab")
        again, tokenizer = made()
        load_adapter(again, tmp_path / f"{name}-lab", tokenizer=tokenizer)
        assert logits(again, ids).allclose(wanted, atol=1e-5)
    if kind != "gemma3-120":
        with pytest.raises((CannotInject, CannotConvert), match="rows"):
            load_adapter(plain(kind)[0], tmp_path / "list")


def test_fast_paths_compute_the_same_loss_and_gradients() -> None:
    model, tokenizer, injection = trained("gemma3-120", "lora")
    tool = tokenizer.convert_tokens_to_ids("<tool>")
    ids = (3, tool, 4, tool, 7, 3)
    samples = [Sample("a", ids, (-100, -100, *ids[2:])), Sample("b", ids[:4], (-100, *ids[1:4]))]
    found = []
    for paths in (FastPaths(), FastPaths(label_head=True), FastPaths(label_head=True, packing=True)):
        model.zero_grad()
        with Objective(model, paths, injection=injection).loss(model, samples) as loss:
            loss.backward()
        found.append((loss.detach(), [p.grad.clone() for p in injection.parameters() if p.grad is not None]))
    for loss, gradients in found[1:]:
        assert loss.allclose(found[0][0], rtol=1e-5)
        for mine, other in zip(gradients, found[0][1], strict=True):
            assert mine.allclose(other, atol=1e-4)


def test_a_run_trains_new_tokens_and_is_restored(tmp_path: Path) -> None:
    rows = [{"instruction": f"say {i} <tool>", "answer": f"<tool> {i}"} for i in range(8)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    task = f"own:{tmp_path / 'rows.jsonl'}"
    fields = {
        "adapter": {"type": "lora", "rank": 2},
        "tokens": [{"text": "<tool>", "start": "the number"}, "<never>"],
        "data": {"task": task},
        "train": {"max_steps": 3, "batch": 4, "learning_rate": 0.05},
        "eval": {"tasks": [task], "rows": 2},
    }
    spec = RunSpec.parse(fields)
    assert spec.id != RunSpec.parse(fields | {"tokens": []}).id
    assert (
        RunSpec.parse(fields | {"tokens": []}).id
        == RunSpec.parse({k: v for k, v in fields.items() if k != "tokens"}).id
    )
    record = run(spec, root=tmp_path / "runs")
    base, injection = restore(record)
    assert injection is not None
    assert len(base.tokenizer) == len(base.model.lm_head.weight) == 295
    rows_ = injection.adapters["model.embed_tokens:tokens"]
    moved = (rows_.rows - rows_.start).abs().sum(1)  # type: ignore[operator]
    assert moved[0] > 0.01
    assert record.summary["trainable_parameters"] == injection.count()
