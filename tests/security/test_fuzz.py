"""Fuzz the loaders: any input is accepted or raises a LabError, within seconds, and leaves no folder behind.

A few hundred examples run by default; ``LAB_FUZZ=10000`` sets their total number over all loaders.
"""

from __future__ import annotations

import json
import os
import struct
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
import yaml
from contract import CASES, config, shake
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from llm_adapters_lab.core.injection import inject, injections
from llm_adapters_lab.core.peft_format import to_peft
from llm_adapters_lab.core.registry import all_adapters
from llm_adapters_lab.core.saving import load_adapter, save_adapter
from llm_adapters_lab.errors import LabError
from llm_adapters_lab.models import random_models
from llm_adapters_lab.models.blueprint import Blueprint
from llm_adapters_lab.runs.preflight import check_rows, check_spec
from llm_adapters_lab.runs.rows import read_rows
from llm_adapters_lab.runs.spec import RunSpec
from llm_adapters_lab.tasks.registry import all_tasks

Draw = Callable[[st.SearchStrategy[Any]], Any]
LIMIT = 5.0  # seconds of computing: other work on the machine does not count
WHOLE = int(os.environ.get("LAB_FUZZ", "400"))
FOUND = {"success": 0, "refused": 0}


def part(share: float) -> settings:
    """Return settings for this share of all examples; a failing example is printed in a reproducible form."""
    unlike = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
    return settings(
        max_examples=max(20, round(WHOLE * share)), deadline=None, suppress_health_check=unlike, print_blob=True
    )


@contextmanager
def fair(folder: Path) -> Iterator[None]:
    """Allow a LabError and no other error; assert that it came in time and left no folder."""
    before, began = set(folder.rglob("*")), time.process_time()
    try:
        yield
        FOUND["success"] += 1
    except LabError as error:
        assert str(error).strip()
        FOUND["refused"] += 1
    assert time.process_time() - began < LIMIT
    assert set(folder.rglob("*")) == before


LONG = st.builds(lambda text, times: text * times, st.sampled_from(["a", "9", "é", "q,", "q@9"]), st.just(2000))
ODD_TEXT = LONG | st.sampled_from(
    [
        *("", " ", "\x00", "\ud800", "../..", "/", "~", "~nobody/x", "con", "a\nb", "own:", "own:../x.csv", "own:a/b"),
        *(
            "nan",
            "<img src=x onerror=alert(1)>",
            "[bold]",
            "\x1b[2J",
            "{}",
            "tiny:",
            "tiny:gpt2",
            "q,v@0-99999",
            "mlp.in",
        ),
    ]
)
PLACES = st.sampled_from(["q", "k", "mlp", "down.in"]) | LONG | st.just("q@" + "9" * 5000)
ODD = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20), ODD_TEXT, st.just(10**400), st.binary()
)
NESTED = st.recursive(
    ODD, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
)
GOOD: dict[str, Any] = RunSpec.parse({"adapter": "lora", "eval": {"tasks": ["boolq"]}}).model_dump(mode="json")
LEAVES = [(a,) for a in GOOD] + [(a, b) for a in GOOD if isinstance(GOOD[a], dict) for b in GOOD[a]]


@st.composite
def specs(draw: st.DrawFn) -> Any:
    """A valid spec with a few fields changed, removed or added."""
    spec = json.loads(json.dumps(GOOD))
    for place in draw(st.lists(st.sampled_from(LEAVES), max_size=3)):
        inner = spec
        for key in place[:-1]:
            if not isinstance(inner.get(key), dict):
                inner[key] = {}
            inner = inner[key]
        if draw(st.booleans()):
            inner[place[-1]] = draw(NESTED | st.integers(0, 9) | st.floats(0, 1))
        else:
            inner.pop(place[-1], None)
            inner[draw(st.text(max_size=6))] = draw(ODD)
    kinds = st.sampled_from([*all_adapters(), *all_tasks(), "houlsby"]) | ODD_TEXT
    if draw(st.integers(0, 3)) == 0:
        spec["adapter"] = {
            "type": draw(kinds),
            **draw(st.dictionaries(st.sampled_from(["rank", "at", "alpha"]), ODD | PLACES)),
        }
    return spec


@part(0.35)
@given(specs() | NESTED)
def test_specs(tmp_path: Path, fields: Any) -> None:
    with fair(tmp_path):
        spec = RunSpec.parse(fields)
        assert Path(spec.id).name == spec.id
        assert RunSpec.parse(spec.model_dump(mode="json")).id == spec.id
        check_spec(spec)


class Kept(str):
    """Text of the corpus, abbreviated in output."""

    def __repr__(self) -> str:
        return f"{self[:60]!s} ({len(self)} characters)"


CORPUS = (
    *("a: *b", "&a [*a]", "a: 1\na: 2", "? [1]\n: 2", "!!python/object/apply:os.system [echo]", "seed: 2001-99-99"),
    *("seed: 2001-01-01", "[" * 30_000, "{a: " * 5000, "- " * 20_000, "seed: " + "9" * 45_000, "a: !!binary x", "\x00"),
    *(
        "%YAML 9.9\n---\na: 1",
        "--- 1\n--- 2",
        "seed: 1:1:1",
        "? " * 2000,
        "a: |\n\t b",
        "\ufeffseed: 1",
        "!!set {a, b}",
    ),
    *("x" * 200_000, "a: 'unfinished", "base: !!float x", "<<: {seed: 1}", "<<: 3", "seed: 0x", "? !!omap [a: 1]\n: 1"),
    "\n".join(f"{chr(97 + i)}: &{chr(97 + i)} [{','.join([f'*{chr(96 + i)}'] * 9)}]" for i in range(1, 20)),
)


@part(0.2)
@given(
    st.sampled_from([*map(Kept, CORPUS)])
    | st.text(max_size=60)
    | specs().map(lambda fields: yaml.safe_dump(fields))
    | st.builds(lambda text, cut: text[:cut], st.just(yaml.safe_dump(GOOD)), st.integers(0, 600))
)
def test_spec_files(tmp_path: Path, text: str) -> None:
    file = tmp_path / "spec.yaml"
    file.write_bytes(text.encode(errors="surrogatepass"))
    with fair(tmp_path):
        RunSpec.load(file, {"adapter.rank": 3})


ROW = {"instruction": "Is it so?", "input": "", "output": "7", "answer": "7", "id": "1"}
CELLS = ODD.filter(lambda cell: not isinstance(cell, bytes))
ROWS = st.lists(
    st.dictionaries(
        st.sampled_from([*ROW, "x"]) | st.text(max_size=4), CELLS | st.lists(CELLS, max_size=2), max_size=2
    ).map(lambda change: {**ROW, "id": str(change), **change}),
    max_size=4,
)


def as_csv(rows: list[dict[str, Any]]) -> bytes:
    """Write rows naively: quotes, commas and line ends are not escaped."""
    header = list(dict.fromkeys(key for row in rows for key in row))
    lines = [",".join(header), *(",".join(str(row.get(key, ""))[:400] for key in header) for row in rows)]
    return "\r\n".join(lines).encode(errors="surrogatepass")


def as_parquet(rows: list[dict[str, Any]]) -> bytes:
    """Write rows as parquet, or a plain row if they cannot be written."""
    from pyarrow import ArrowException, BufferOutputStream, Table, parquet

    sink = BufferOutputStream()
    try:
        parquet.write_table(Table.from_pylist(rows), sink)
    except (ArrowException, ValueError, OverflowError, TypeError):
        parquet.write_table(Table.from_pylist([ROW]), sink)
    return bytes(sink.getvalue().to_pybytes())


WRITERS: dict[str, Callable[[Any], bytes]] = {
    "json": lambda rows: json.dumps(rows).encode(),
    "jsonl": lambda rows: "\n".join(map(json.dumps, rows)).encode(),
    "csv": as_csv,
    "parquet": as_parquet,
}
SPICE = [b"\x00", b"\xef\xbb\xbf", b"\r", b"\n\r", b"\xff\xfe", b'"', b"," * 99, b"[" * 99_999, b"1e999", b"\\ud800"]


def damaged(draw: Draw, whole: bytes) -> bytes:
    """Return a file that is truncated, has bytes changed or inserted, or is intact."""
    for _ in range(draw(st.integers(0, 3))):
        place = draw(st.integers(0, len(whole)))
        kind = draw(st.sampled_from(["cut", "flip", "put", "spice"]))
        if kind == "cut":
            whole = whole[:place]
        elif kind == "flip" and place < len(whole):
            whole = whole[:place] + bytes([whole[place] ^ draw(st.integers(1, 255))]) + whole[place + 1 :]
        else:
            more = SPICE[draw(st.integers(0, len(SPICE) - 1))] if kind == "spice" else draw(st.binary(max_size=8))
            whole = whole[:place] + more + whole[place:]
    return whole


NANO = Blueprint("nano")


@part(0.25)
@given(
    st.data(),
    st.sampled_from([*WRITERS]),
    ROWS,
    st.sampled_from(["", "?form=number", "?labels=7|No", "?input=x"]),
)
def test_data_files(tmp_path: Path, data: st.DataObject, form: str, rows: list[dict[str, Any]], query: str) -> None:
    file = tmp_path / f"mine.{form}"
    file.write_bytes(damaged(data.draw, WRITERS[form](rows)))
    with fair(tmp_path):
        name = f"own:{file}{query}"
        spec = RunSpec.parse({"adapter": "lora", "data": {"task": name}, "eval": {"tasks": [name]}})
        found = read_rows(spec)
        assert found.digests()
        check_rows(spec, found, NANO)


MODEL = random_models.tiny("tiny:llama")
PEFT = [case for case in CASES if all_adapters()[CASES[case]["type"]].cls.peft_type]


@cache
def saved(case: str, peft: bool) -> dict[str, bytes]:
    """Return the files of a saved adapter, in the lab's format or in peft's."""
    with tempfile.TemporaryDirectory() as folder:
        injection = inject(MODEL, config(case))
        try:
            shake(injection)
            (to_peft if peft else save_adapter)(injection, folder, "tiny:llama")
        finally:
            injection.eject()
        return {file.name: file.read_bytes() for file in Path(folder).iterdir()}


def with_header(whole: bytes, change: Callable[[dict[str, Any]], None]) -> bytes:
    """Return a safetensors file with a changed header."""
    (size,) = struct.unpack("<Q", whole[:8])
    header = json.loads(whole[8 : 8 + size])
    change(header)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + whole[8 + size :]


def tensors(draw: Draw, whole: bytes) -> bytes:
    """Return a safetensors file with a false header, odd tensors or damaged bytes."""
    kind = draw(st.sampled_from(["header", "tensors", "bytes", "length"]))
    if kind == "bytes":
        return damaged(draw, whole)
    if kind == "length":
        return struct.pack("<Q", draw(st.integers(0, 2**64 - 1))) + whole[8:]
    if kind == "tensors":
        names = draw(st.sets(st.text(max_size=12) | st.sampled_from(["a.b", "base_model.model.x"])))
        made = [torch.zeros(1), torch.zeros(0), torch.ones(3, 3).long(), torch.full((2, 2), float("nan"))]
        return save({name: made[draw(st.integers(0, 3))].clone() for name in names})

    def change(header: dict[str, Any]) -> None:
        name = draw(st.sampled_from(sorted(header)))
        sizes = st.lists(st.integers(-1, 2**63), max_size=3)
        odd = sizes | st.sampled_from(["F64", "I8", "BOOL", "F8_E4M3", "", None])
        header[name][draw(st.sampled_from(["shape", "dtype", "data_offsets", "x"]))] = draw(odd)
        if draw(st.booleans()):
            header[draw(st.text(max_size=5))] = header.pop(name)

    return with_header(whole, change)


def changed(draw: Draw, fields: Any) -> Any:
    """Return JSON with a value replaced, removed or inserted somewhere."""
    if isinstance(fields, dict) and fields and draw(st.integers(0, 4)):
        key = draw(st.sampled_from(sorted(fields)) | st.text(max_size=5))
        if key in fields and draw(st.booleans()):
            return {**fields, key: changed(draw, fields[key])}
        rest = {other: value for other, value in fields.items() if other != key}
        return rest if draw(st.booleans()) else {**rest, key: draw(CELLS)}
    return draw(CELLS | st.lists(CELLS, max_size=2) | st.dictionaries(st.text(max_size=5), CELLS, max_size=2))


@part(0.2)
@given(st.data(), st.sampled_from([(case, False) for case in CASES] + [(case, True) for case in PEFT]))
def test_adapter_folders(tmp_path: Path, data: st.DataObject, which: tuple[str, bool]) -> None:
    for old in tmp_path.iterdir():
        old.unlink()
    files = saved(*which)
    hit = data.draw(st.sets(st.sampled_from(sorted(files)), max_size=2))
    for name, whole in files.items():
        if name in hit and not data.draw(st.integers(0, 9)):
            continue
        if name in hit and name.endswith(".safetensors"):
            whole = tensors(data.draw, whole)
        elif name in hit and data.draw(st.booleans()):
            whole = json.dumps(changed(data.draw, json.loads(whole))).encode()
        elif name in hit:
            whole = damaged(data.draw, whole)
        (tmp_path / name).write_bytes(whole)
    try:
        with fair(tmp_path):
            load_adapter(MODEL, tmp_path)
    finally:
        for injection in injections(MODEL).values():
            injection.eject()


def test_both_outcomes_occur() -> None:
    """A fuzzer whose input is always refused, or never, tests nothing; runs last."""
    assert FOUND["success"] > 20
    assert FOUND["refused"] > 100
