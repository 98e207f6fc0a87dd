"""Digests of the files of a base, which decide a result beside its weights; they are read, but nothing is loaded."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llm_adapters_lab.errors import LabError
from llm_adapters_lab.files import read_json
from llm_adapters_lab.models.pypi_bases import PYPI_BASES
from llm_adapters_lab.models.source import Source
from llm_adapters_lab.runs.record import Run
from llm_adapters_lab.tasks.custom import PREFIX

FILES = {
    "config": "config.json *.py",
    "generation": "generation_config.json",
    "tokenizer": "*token*.json vocab* merges.txt *.model *.tiktoken",
    "template": "chat_template*",
}
NAMES = {
    "config": "the model configuration",
    "generation": "the generation configuration",
    "tokenizer": "the tokenizer",
    "template": "the chat template",
    "gguf": "the GGUF file",
    "weights": "the weights",
    "adapters": "the saved adapters that it is made from",
}
"""The entries that `hashes` of a record may have besides "base" and "data", and what they are called."""
_UNIMPORTANT = ("transformers_version", "_name_or_path", "chat_template")
_READ = 2**24
"""Bytes of large files that are read, evenly spaced."""


def file_hashes(plan: Source) -> dict[str, str]:
    """Return the SHA-256 of what a base's files hold besides weights, by the keys of `NAMES`; {} without files."""
    place = _place(plan)
    if place is None or place.is_file():
        return {"gguf": _sampled([place])} if place else {}
    found: dict[str, list[Any]] = {key: [] for key in FILES}
    for key, patterns in FILES.items():
        for path in sorted({path for pattern in patterns.split() for path in place.glob(pattern) if path.is_file()}):
            content: Any = hashlib.sha256(path.read_bytes()).hexdigest()
            if path.name.endswith("config.json"):  # however it is written
                content = read_json(path)
                if text := content.get("chat_template"):
                    found["template"].append(text)
                content = {name: value for name, value in content.items() if name not in _UNIMPORTANT}
            if path.suffix != ".py" or plan.trust_remote_code:
                found[key].append([path.name, content])
    texts = {key: json.dumps(parts, sort_keys=True) if parts else "" for key, parts in found.items()}
    return {key: text and hashlib.sha256(text.encode()).hexdigest() for key, text in texts.items()}


def weight_hash(plan: Source) -> dict[str, str]:
    """Return the SHA-256 of the files of a base's weights, of large ones by samples; {} without files.

    The fingerprint identifies a base better, but needs it in memory.
    """
    place = _place(plan)
    files = sorted(place.glob("*.safetensors")) if place and place.is_dir() else []
    return {"weights": _sampled(files)} if files else {}


def changed(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Return the names of what two `hashes` differ in, apart from base and data.

    What a record does not hold, is not compared; "" stands for no such file.
    """
    return [name for key, name in NAMES.items() if key in before and before[key] != now.get(key)]


def changed_since(record: Run, adapters: Callable[[], dict[str, Any]] = dict) -> list[str] | None:
    """Return the names of what has changed since a finished run, its rows apart; None if the files cannot be read.

    Args:
        record: of the run.
        adapters: returns the digests of the saved adapters that it names.
    """
    spec, known = record.spec, record.summary.get("hashes", {})
    if not known.keys() & NAMES.keys() or spec.base in PYPI_BASES:  # whose file has a known hash
        return []
    try:
        plan = Source(*spec.base_parts)
        now = file_hashes(plan) | weight_hash(plan)
        return changed(known, now | adapters()) if now else []
    except (LabError, OSError, ValueError):
        return None


def unchanged(record: Run) -> bool:
    """Return whether nothing that a finished run was made from has changed; False also where finding out takes torch.

    For an answer at once; `hashes.outdated` and `rows.outdated` say what has changed.
    """
    spec = record.spec
    if (spec.adapter and spec.adapter.saved) or any(t.startswith(PREFIX) for t in (spec.data.task, *spec.eval.tasks)):
        return False
    return changed_since(record) == []


def _place(plan: Source) -> Path | None:
    """Return the folder or GGUF file of a base, without looking for it on the network; None for a random one."""
    if plan.random:
        return None
    source, options = plan.source
    if options:
        return Path(source) / options["gguf_file"]
    if os.path.isdir(source):
        return Path(source) if os.path.isfile(Path(source) / "config.json") else None
    from transformers.utils.hub import cached_file

    found = cached_file(source, "config.json", local_files_only=True, _raise_exceptions_for_missing_entries=False)
    return Path(found).parent if found else None


def _sampled(paths: list[Path]) -> str:
    sizes = [path.stat().st_size for path in paths]
    digest = hashlib.sha256(json.dumps(sizes).encode())
    step = max(4096, sum(sizes) * 4096 // _READ)
    for path, size in zip(paths, sizes, strict=True):
        with path.open("rb") as file:
            for start in range(0, size, step):
                file.seek(start)
                digest.update(file.read(4096))
    return digest.hexdigest()
