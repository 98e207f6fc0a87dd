"""Pre-train `nano`: ``python benchmarks/nano/pretrain.py OUT`` writes the model folder with its card.

``--model nano-moe`` trains the mixture of experts on the same documents with the same tokenizer.

Everything is seeded. Other processors and torch versions round differently, so the weights can differ in the last bits;
the card has the checksum of the weights beside it.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import os
import platform
import string
import time
from itertools import islice
from pathlib import Path
from typing import Any

import corpus
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

MODELS: dict[str, tuple[Any, Any, dict[str, Any], torch.dtype]] = {
    "nano": (LlamaConfig, LlamaForCausalLM, {"num_hidden_layers": 6, "intermediate_size": 384}, torch.float32),
    "nano-moe": (
        MixtralConfig,
        MixtralForCausalLM,
        {
            "num_hidden_layers": 4,
            "intermediate_size": 128,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},  # that of nano
            "router_aux_loss_coef": 0.02,  # that of Mixtral 8x7B
        },
        torch.float16,
    ),
}
"""Of each model: configuration, class, sizes, and the type its weights are saved in."""
DEFAULTS = {"model": "nano", "steps": 3600, "lr": 2e-3}
SPECIAL = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
CARD = """---
license: apache-2.0
language: en
library_name: transformers
pipeline_tag: text-generation
---
# {model}

A {kind} of {params:,} parameters, small enough to ship and to adapt in two minutes on two processor
cores. It has read generated number stories, calculations and comparisons, and never a question with its answer:
given one, it continues the story; what it knows is there for an adapter to bring out.

| | |
|---|---|
| layers, width, feed-forward width, heads | {layers}, {width}, {wide}, {heads} |
{experts}| positions it was trained on | {length} tokens |
| vocabulary | {vocabulary} tokens: the words of the grammar, digits, single characters for anything else |
| recipe | `python benchmarks/nano/pretrain.py OUT{options}` |
| data | `benchmarks/nano/corpus.py`, seed {seed}: {documents:,} documents, {tokens:,} tokens seen |
| optimiser | AdamW, learning rate {lr:g}, {warmup} warm-up steps, cosine to a twentieth; {batch} x {length} tokens |
| steps, seconds | {steps}, {seconds:.0f} on {threads} threads ({machine}) |
| final loss (mean of the last 100 steps) | {loss:.4f} nats per token |
| versions | torch {torch}, transformers {transformers} |
| sha256 of model.safetensors | `{sha256}` |

Prompts: lower case, marks set apart: `tom has 12 apples . tom finds 7 more apples .` Numbers up to 60 in sums, up to
108 in products; beyond that it guesses. English outside the vocabulary is spelt in characters and means nothing to it.
It has read all words, sentence forms and pairs of operands, including those of the test splits: the embedded tasks
test whether an adapter brings out what is there for question forms it has not seen, not whether it learns new
calculations. It compares numbers well but has not learnt to judge a claim: after a comparison its "true" or "false" is
right half of the time. For teaching and tests only.
"""


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Return the tokenizer: whole words, one token per digit, else characters; later pieces of a word have ``##``.

    Decoding joins the pieces: ``1 ##9`` is 19.
    """
    signs = string.digits + string.ascii_lowercase + string.punctuation
    pieces = [*SPECIAL.values(), *signs, *("##" + c for c in string.digits + string.ascii_lowercase)]
    pieces += [word for word in corpus.vocabulary() if word not in pieces]
    vocabulary = {piece: at for at, piece in enumerate(pieces)}
    core = Tokenizer(models.WordPiece(vocabulary, unk_token=SPECIAL["unk_token"], max_input_chars_per_word=200))
    core.normalizer = normalizers.Sequence([normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase()])
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", vocabulary["<s>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, **SPECIAL, model_max_length=256, clean_up_tokenization_spaces=False
    )


def build_model(vocabulary: int, model: str = "nano") -> PreTrainedModel:
    """Return the untrained model of that name, for a vocabulary of that size."""
    make_config, make_model, sizes, _ = MODELS[model]
    config = make_config(
        **sizes,
        vocab_size=vocabulary,
        hidden_size=128,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        initializer_range=0.04,
    )
    return make_model(config)


def pack(tokenizer: PreTrainedTokenizerFast, seed: int, tokens: int) -> tuple[torch.Tensor, int]:
    """Return a stream of `tokens` token ids, documents between ``<s>`` and ``</s>``, and the number of documents."""
    stream: list[int] = []
    source, count = corpus.documents(seed), 0
    while len(stream) < tokens:
        for ids in tokenizer(list(islice(source, 10_000)))["input_ids"]:
            stream += [*ids, tokenizer.eos_token_id]
            count += 1
    return torch.tensor(stream[:tokens], dtype=torch.int16), count


def pretrain(out: Path, model: str, steps: int, batch: int, length: int, lr: float, seed: int) -> None:
    """Train the model and write its folder.

    Args:
        out: the folder to write.
        model: its name, a key of `MODELS`.
        steps: number of optimiser steps.
        batch: sequences per step.
        length: tokens per sequence.
        lr: peak learning rate.
        seed: seed of the weights and the documents.
    """
    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    trained = build_model(len(tokenizer), model)
    stream, documents = pack(tokenizer, seed, steps * batch * length)
    warmup = min(200, steps // 10)
    began = time.perf_counter()
    loss = fit(trained, stream.view(steps, batch, length), lr, warmup)
    seconds = time.perf_counter() - began
    trained.to(MODELS[model][-1]).save_pretrained(out)
    tokenizer.save_pretrained(out)
    facts: dict[str, Any] = {
        "model": model,
        "steps": steps,
        "batch": batch,
        "length": length,
        "lr": lr,
        "seed": seed,
        "warmup": warmup,
    }
    facts |= {"documents": documents, "tokens": stream.numel(), "vocabulary": len(tokenizer)}
    write_card(out, trained, {**facts, "seconds": seconds, "loss": loss})


def fit(model: PreTrainedModel, rows: torch.Tensor, lr: float, warmup: int) -> float:
    """Train on all rows once and return the mean loss of the last 100 steps.

    A mixture adds its router loss in training, and saves a configuration without it, as published mixtures do.

    Args:
        model: trained in place, then in evaluation mode.
        rows: token ids, (steps, batch, length).
        lr: peak learning rate.
        warmup: steps until the peak.
    """
    steps = len(rows)

    def scale(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.05 + 0.475 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))

    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": 0.05},
        {"params": [p for p in model.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, scale)
    losses: list[float] = []
    router: dict[str, bool] = {"output_router_logits": True} if hasattr(model, "router_aux_loss_coef") else {}
    model.train()
    for step in range(steps):
        ids = rows[step].long()
        loss = model(input_ids=ids, labels=ids, use_cache=False, **router).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        if step % 100 == 99 or step == steps - 1:
            print(f"step {step + 1} loss {sum(losses[-100:]) / len(losses[-100:]):.4f}", flush=True)
    model.eval()
    return sum(losses[-100:]) / len(losses[-100:])


def write_card(out: Path, model: PreTrainedModel, facts: dict[str, Any]) -> None:
    """Write README.md beside the weights, from the settings and results of the training."""
    import transformers

    config = model.config
    options = "".join(f" --{name} {facts[name]}" for name in ("model", "steps", "lr") if facts[name] != DEFAULTS[name])
    experts, kind = "", "LLaMA-architecture model"
    if hasattr(config, "num_local_experts"):
        kind = "Mixtral-architecture mixture of experts"
        experts = (
            f"| experts in each layer, of which a token visits | {config.num_local_experts}, "
            f"{config.num_experts_per_tok} |\n| router loss, part of the loss below | coefficient "
            f"{config.router_aux_loss_coef} |\n"
        )
    card = CARD.format(
        experts=experts,
        kind=kind,
        options=options,
        params=model.num_parameters(),
        layers=config.num_hidden_layers,
        width=config.hidden_size,
        wide=config.intermediate_size,
        heads=config.num_attention_heads,
        threads=torch.get_num_threads(),
        machine=f"{platform.machine()}, {os.cpu_count()} cores",
        torch=torch.__version__,
        transformers=transformers.__version__,
        sha256=hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest(),
        **facts,
    )
    (out / "README.md").write_text(card, encoding="utf-8")


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--model", choices=MODELS, default=DEFAULTS["model"], help="which one")
    parser.add_argument("--steps", type=int, default=DEFAULTS["steps"], help="optimiser steps")
    parser.add_argument("--batch", type=int, default=16, help="sequences per step")
    parser.add_argument("--length", type=int, default=128, help="tokens per sequence")
    parser.add_argument("--lr", type=float, default=DEFAULTS["lr"], help="peak learning rate")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and documents")
    options = vars(parser.parse_args())
    pretrain(**options)


if __name__ == "__main__":
    main()
