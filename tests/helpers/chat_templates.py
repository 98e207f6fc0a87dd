"""Tokenizers with the chat templates and control tokens of published models, trained on a few sentences."""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

TEMPLATES = Path(__file__).parents[1] / "tasks" / "templates"
LINES = [
    "Two plus 3? 5. And 4? The answer is 9. Be brief. Hello there. Hi! What is the weather in Bonn? It is 12 °C.",
    "assistant user system model tool\n\nthe then there hello he said\n  and\n\n\nso on\n it is",
    "You are a helpful assistant. Knowledge cutoff: 2024-06. Today Date: 26 Jul 2024. Größe naïve 日本",
]
SPLIT_AS_LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class Kind:
    """What of a model's tokenizer a template depends on.

    Attributes:
        begin: the begin token, if any.
        end: the end token.
        control: the other control tokens, separated by spaces.
        words: tokens that are kept whole, but are not control tokens.
        split: how text is split: by "bytes" (GPT-2), by "lines" (Llama 3, Qwen), or by "spaces" (SentencePiece).
        begins: the tokenizer adds the begin token too.
        strips: control tokens take the white space that follows.
        prefix: a space stands before a text.
    """

    begin: str
    end: str
    control: str = ""
    words: str = ""
    split: str = "bytes"
    begins: bool = False
    strips: bool = False
    prefix: bool = False


CALLS = "<tool_call> </tool_call> <tool_response> </tool_response>"
LLAMA = Kind(
    "<|begin_of_text|>",
    "<|eot_id|>",
    "<|start_header_id|> <|end_header_id|> <|eom_id|> <|python_tag|> <|end_of_text|>",
    split="lines",
    begins=True,
)
GEMMA = Kind("<bos>", "<eos>", "<pad> <start_of_turn> <end_of_turn> <start_of_image>", split="spaces", begins=True)
KINDS = {
    "smollm2": Kind("<|im_start|>", "<|im_end|>", "<|endoftext|>"),
    "llama3": LLAMA,
    "llama3_1": LLAMA,
    "gemma": GEMMA,
    "gemma3": GEMMA,
    "mistral_nemo": Kind(
        "<s>",
        "</s>",
        "[INST] [/INST] [AVAILABLE_TOOLS] [/AVAILABLE_TOOLS] [TOOL_CALLS] [TOOL_RESULTS] [/TOOL_RESULTS]",
        split="lines",
        begins=True,
    ),
    "mistral_small": Kind(
        "<s>",
        "</s>",
        "[INST] [/INST] [AVAILABLE_TOOLS] [/AVAILABLE_TOOLS] [TOOL_CALLS] [TOOL_RESULTS] [/TOOL_RESULTS] "
        "[SYSTEM_PROMPT] [/SYSTEM_PROMPT] [CALL_ID] [ARGS] [TOOL_CONTENT] [IMG]",
        split="lines",
        begins=True,
    ),
    "phi3_5": Kind(
        "<s>",
        "<|endoftext|>",
        "<|system|> <|user|> <|assistant|> <|end|>",
        split="spaces",
        strips=True,
        prefix=True,
    ),
    "qwen2_5": Kind("", "<|im_end|>", "<|im_start|> <|endoftext|>", CALLS, split="lines"),
    "qwen3": Kind("", "<|im_end|>", "<|im_start|> <|endoftext|>", f"{CALLS} <think> </think>", split="lines"),
    "qwen3_marked": Kind("", "<|im_end|>", "<|im_start|> <|endoftext|>", f"{CALLS} <think> </think>", split="lines"),
    "gpt_oss": Kind(
        "<|startoftext|>",
        "<|return|>",
        "<|endoftext|> <|start|> <|end|> <|message|> <|channel|> <|constrain|> <|call|>",
        split="lines",
    ),
    "granite3_3": Kind("<|end_of_text|>", "<|end_of_text|>", "<|start_of_role|> <|end_of_role|> <|tool_call|>"),
    "lfm2_5": Kind(
        "<|startoftext|>",
        "<|im_end|>",
        "<|im_start|> <|tool_call_start|> <|tool_call_end|> <|pad|>",
        "<think> </think>",
        split="lines",
        begins=True,
    ),
    "deepseek_r1_distill": Kind(
        "<｜begin▁of▁sentence｜>",
        "<｜end▁of▁sentence｜>",
        "",
        "<｜User｜> <｜Assistant｜> <think> </think>",
        split="lines",
        begins=True,
    ),
}


def template(name: str) -> str:
    """Return the text of a published chat template."""
    return (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")


@cache
def _trained(split: str, prefix: bool) -> str:
    """Return a tokenizer without added tokens, as JSON."""
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<unk>"]
    if split == "spaces":
        tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
        space = normalizers.Replace(" ", "▁")
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), space]) if prefix else space
        special += [f"<0x{byte:02X}>" for byte in range(256)]
        alphabet = []
    else:
        tokenizer = Tokenizer(models.BPE())
        lines = pre_tokenizers.Split(Regex(SPLIT_AS_LLAMA_3), "isolated")
        to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split == "bytes")
        parts = [to_bytes] if split == "bytes" else [lines, to_bytes]
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(parts)
        tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=560, initial_alphabet=alphabet, special_tokens=special, show_progress=False, min_frequency=1
    )
    tokenizer.train_from_iterator(LINES, trainer)
    if split == "spaces":
        steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        tokenizer.decoder = decoders.Sequence(steps + [decoders.Strip(" ", 1, 0)] * prefix)
    found = json.loads(tokenizer.to_str())
    found["added_tokens"] = []
    return json.dumps(found)


def tokenizer(name: str, chat: str | None = None, begins: bool | None = None) -> Any:
    """Return a new tokenizer of a model in `KINDS`.

    Args:
        name: of the model.
        chat: another chat template, as text.
        begins: whether the tokenizer adds the begin token by itself; None: as that of the model.
    """
    kind = KINDS[name]
    inner = Tokenizer.from_str(_trained(kind.split, kind.prefix))
    control = list(dict.fromkeys(filter(None, [kind.begin, kind.end, *kind.control.split()])))
    inner.add_special_tokens([AddedToken(t, special=True, normalized=False, rstrip=kind.strips) for t in control])
    inner.add_tokens([AddedToken(token, special=False, normalized=False) for token in kind.words.split()])
    if kind.begins if begins is None else begins:
        first = inner.token_to_id(kind.begin)
        inner.post_processor = processors.Sequence(
            [
                processors.ByteLevel(trim_offsets=False),
                processors.TemplateProcessing(
                    single=f"{kind.begin} $A", pair=f"{kind.begin} $A $B", special_tokens=[(kind.begin, first)]
                ),
            ]
        )
    made = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token=kind.begin or None,
        eos_token=kind.end,
        pad_token=kind.end,
        clean_up_tokenization_spaces=False,
    )
    made.chat_template = template(name) if chat is None else chat
    return made
