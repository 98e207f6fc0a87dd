"""The card of an exported adapter, and the way to the hub: here one on this machine that keeps what it is sent."""

import base64
import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from records import make_run
from small_runs import HOSTILE
from typer.testing import CliRunner

from llm_adapters_lab.adapters.lora import LoRAConfig
from llm_adapters_lab.cli.app import app
from llm_adapters_lab.results.model_card import card, hub_name
from llm_adapters_lab.runs.record import Run
from llm_adapters_lab.runs.spec import RunSpec

LORA = {"type": "lora", "rank": 2, "at": "q,v"}


class FakeHub(ThreadingHTTPServer):
    """Answers what an upload asks, and keeps the files."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.asked: list[tuple[str, str, Any]] = []
        self.private, self.refuses = False, False


class _Handler(BaseHTTPRequestHandler):
    server: FakeHub

    def do_GET(self) -> None:
        self.server.asked.append(("GET", self.path, None))
        self._answer({"id": "me/sums", "private": self.server.private, "siblings": [], "tags": []})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        lines = [json.loads(line) for line in body.splitlines() if line]
        self.server.asked.append(("POST", self.path, lines[0] if lines else None))
        assert self.headers["Authorization"] == "Bearer hf_secret"
        if self.server.refuses:
            self._answer({"error": "You are not allowed to write here"}, 403)
        elif self.path == "/api/repos/create":
            self.server.private = lines[0].get("visibility") == "private" or self.server.private
            self._answer({"url": f"http://127.0.0.1:{self.server.server_port}/me/sums"})
        elif self.path.endswith("/preupload/main"):
            files = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in lines[0]["files"]]
            self._answer({"files": files})
        elif self.path.endswith("/commit/main"):
            for line in lines[1:]:
                assert line["key"] == "file"
                self.server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            url = f"http://127.0.0.1:{self.server.server_port}/me/sums/commit/1"
            self._answer({"commitUrl": url, "commitOid": "1", "pullRequestUrl": None})
        else:  # checks of the README
            self._answer({"errors": [], "warnings": []})

    def _answer(self, value: Any, code: int = 200) -> None:
        content = json.dumps(value).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *words: object) -> None:
        """Say nothing."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub of one's own, where the library of the real one goes."""
    server = FakeHub()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def export(*words: Any) -> Any:
    return CliRunner().invoke(app, ["export", *map(str, words)])


def read(folder: Path) -> tuple[dict[str, Any], str]:
    text = (folder / "README.md").read_text(encoding="utf-8")
    _, head, rest = text.split("---\n", 2)
    return yaml.safe_load(head), rest


def test_the_card_of_a_run_says_all_of_it(finished: tuple[Path, dict[str, str]], tmp_path: Path) -> None:
    root, ids = finished
    done = export(ids["lora"], tmp_path / "out", "--root", root)
    assert done.exit_code == 0, done.output
    head, text = read(tmp_path / "out")
    (model,) = head.pop("model-index")
    assert head == {
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": ["llm-adapters-lab", "adapter", "lora"],
    }
    run = Run(root / ids["lora"])
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:2] == "| "]
    rows = {row["task"]: row for row in (dict(zip(lines[0], line, strict=True)) for line in lines[2:])}
    for task, score in run.summary["scores"].items():
        row = rows[task]
        assert row["accuracy"] == f"{100 * score['accuracy']:.1f} %"
        assert row["95 % interval"] == f"{100 * score['low']:.1f} to {100 * score['high']:.1f} %"
        assert row["chance"] == ("–" if score["chance"] is None else f"{100 * score['chance']:.1f} %")
        assert row["majority"] == f"{100 * score['majority']:.1f} %"
        assert (row["correct"], row["protocol"]) == (f"{score['correct']} of 4", "lab")
    # The hub reads the scores from the head.
    assert model["name"] == "out"
    found = {result["dataset"]["name"]: result["metrics"] for result in model["results"]}
    assert found == {
        task: [{"type": "accuracy", "value": score["accuracy"]}] for task, score in run.summary["scores"].items()
    }
    (first, *_) = ModelCard.load(tmp_path / "out" / "README.md").data.eval_results
    assert (first.dataset_type, first.dataset_split) == ("mini-addsub", "test")
    assert f"run {run.id}" in text and "- base: nano, a teaching model" in text and "seed 0" in text
    assert "float32 on" in text and "null" not in text and "Wilson" in text
    assert "No task has 1 % or more of its test rows in the training data." in text
    # The spec in it is the spec.
    assert RunSpec.parse(yaml.safe_load(text.split("```yaml\n")[1].split("```")[0])).id == run.id
    # And what it says of loading works.
    code = text.split("With LLM Adapters Lab:\n\n```python\n")[1].split("```")[0]
    names: dict[str, Any] = {}
    exec(code.replace("'out'", repr(str(tmp_path / "out"))), names)
    assert names["load_adapter"] and "PeftModel" not in text  # nano is no name that transformers knows


@pytest.mark.parametrize(
    ("base", "name"),
    [
        ("smollm2-135m", "HuggingFaceTB/SmolLM2-135M-Instruct"),
        ("gemma3-270m", "google/gemma-3-270m"),
        ("facebook/opt-125m", "facebook/opt-125m"),
        *((local, "") for local in ("nano", "~/models/opt", "./opt", "models/opt.gguf", "a/b/c")),
    ],
)
def test_only_names_of_the_hub_are_given_to_it(base: str, name: str) -> None:
    assert hub_name(base) == name
    text = card(base, LoRAConfig(at="q"), "peft", None, "me/sums")
    assert ("subject to the Gemma Terms of Use" in text) == (base == "gemma3-270m")
    assert ("base_model:" in text) == ("PeftModel" in text) == bool(name)
    assert "Scores\n\nNot known" in text and "## Spec" not in text
    assert ("snapshot_download('me/sums')" in text) and (f"load_base({name or base!r})" in text)


def test_a_leak_is_a_warning_on_the_card(tmp_path: Path) -> None:
    run = make_run(tmp_path, LORA, {"mini-addsub": 10, "mini-bool": 3})
    summary = run.summary
    found = {"exact": 5, "ngram": 7, "total": 20}
    run.write(
        "summary.json", summary | {"leaks": {"mini-addsub": found, "mini-bool": {**found, "exact": 0, "ngram": 0}}}
    )
    text = card("nano", LoRAConfig(at="q,v"), "lab", run, "out")
    assert r"| mini-addsub\! | 50.0 %" in text and "| mini-bool | 15.0 %" in text
    assert r"**mini-addsub\!: 35 % of the test rows are in the training data.**" in text
    run.write("summary.json", summary)
    assert "was not checked" in card("nano", LoRAConfig(at="q,v"), "lab", run, "out")


def test_hostile_names_are_shown_and_not_obeyed(finished: tuple[Path, dict[str, str]], tmp_path: Path) -> None:
    root, ids = finished
    run = Run(root / ids["own"])
    text = card(f"{HOSTILE} ```\n# Big", LoRAConfig(at="q"), "lab", run, "out")
    outside = text.split("```")[0]
    assert "<script" not in outside.replace(r"\<script", "") and "\n# Big" not in outside
    spec = run.spec.model_copy(update={"base": "x ```` y"})
    made = make_run(tmp_path, LORA, {"mini-addsub": 10})
    made.write("spec.json", spec.model_dump(mode="json"))
    made.write("summary.json", made.summary | {"id": spec.id})
    text = card("nano", LoRAConfig(at="q"), "lab", made, "out")
    assert text.rstrip().endswith("\n`````") and text.count("\n`````") == 2


def test_an_adapter_is_pushed_with_its_card(
    finished: tuple[Path, dict[str, str]], tmp_path: Path, hub: FakeHub
) -> None:
    root, ids = finished
    done = export(ids["lora"], tmp_path / "out", "--root", root, "--push", "me/sums", "--private")
    assert done.exit_code == 0, done.output
    assert f"on the hub: http://127.0.0.1:{hub.server_port}/me/sums" in done.output
    kept = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert hub.files == kept and set(kept) == {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    # Once a day, huggingface_hub also fetches a list of its own.
    assert next(path for method, path, _ in hub.asked if method == "POST") == "/api/repos/create" and hub.private
    assert b"snapshot_download('me/sums')" in kept["README.md"]


def test_what_is_to_be_private_does_not_go_into_a_public_place(
    finished: tuple[Path, dict[str, str]], tmp_path: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, ids = finished
    monkeypatch.setattr(FakeHub, "private", property(lambda self: False, lambda self, value: None), raising=False)
    done = export(ids["lora"], tmp_path / "out", "--root", root, "--push", "me/sums", "--private")
    assert done.exit_code == 2 and "me/sums exists and is public" in done.output
    assert not hub.files


def test_a_refusal_of_the_hub_is_told_and_the_export_stays(
    finished: tuple[Path, dict[str, str]], tmp_path: Path, hub: FakeHub
) -> None:
    root, ids = finished
    hub.refuses = True
    done = export(ids["lora"], tmp_path / "out", "--root", root, "--push", "me/sums")
    assert done.exit_code == 2 and "me/sums was not pushed: " in done.output and "403" in done.output
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()


def test_a_hub_that_is_not_there_is_told(
    finished: tuple[Path, dict[str, str]], tmp_path: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, ids = finished
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:1")
    done = export(ids["lora"], tmp_path / "out", "--root", root, "--push", "me/sums")
    assert done.exit_code == 2 and "me/sums was not pushed: " in done.output and "is complete" in done.output


@pytest.mark.parametrize("name", ["sums", "me/sums/x", "me/su ms", "-/-", "me/" + 100 * "x"])
def test_a_wrong_name_is_refused_before_any_work(name: str, tmp_path: Path, hub: FakeHub) -> None:
    done = export("nosuch", tmp_path / "out", "--push", name)
    assert done.exit_code == 2 and "not of the form owner/name" in done.output
    assert not hub.asked and not (tmp_path / "out").exists()


def test_without_a_token_nothing_is_done(tmp_path: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    done = export("nosuch", tmp_path / "out", "--push", "me/sums")
    assert done.exit_code == 2 and "No token for the hub is known" in done.output and "HF_TOKEN" in done.output
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "switched off by HF_HUB_OFFLINE" in export("nosuch", tmp_path / "out", "--push", "me/sums").output
    assert not hub.asked and not (tmp_path / "out").exists()
