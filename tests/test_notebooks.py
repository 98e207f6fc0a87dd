"""Notebooks and spec files: clean, parameterised like a spec, and running as the command line does."""

import ast
import json
from pathlib import Path
from typing import Any

import nbformat
import papermill
import pytest
import torch
import yaml
from papermill.exceptions import PapermillExecutionError
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from llm_adapters_lab.record import Run
from llm_adapters_lab.run import run
from llm_adapters_lab.spec import RunSpec

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "papermill_runs" / "run.ipynb"
NOTEBOOKS = [NOTEBOOK, *sorted((ROOT / "notebooks").glob("*.ipynb"))]
SPECS = sorted((ROOT / "papermill_runs" / "specs").glob("*.yaml"))
EXTRA = {"root", "compare"}
pytestmark = pytest.mark.filterwarnings("default")  # papermill, jupyter_client and zmq have warnings of their own


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the folder of a random model of 30,000 parameters whose tokens are bytes."""
    folder = str(tmp_path_factory.mktemp("tiny"))
    alphabet = ["<end>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", pad_token="<end>").save_pretrained(folder)
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    ids = {"vocab_size": len(alphabet), "bos_token_id": None, "eos_token_id": 0, "pad_token_id": 0}
    LlamaForCausalLM(LlamaConfig(**shape, **ids)).save_pretrained(folder)
    return folder


def small(base: str) -> dict[str, Any]:
    return {
        "base": base,
        "adapter": {"type": "lora", "rank": 2},
        "data": {"rows": 8, "validation": 2},
        "train": {"max_steps": 3, "batch": 2},
        "eval": {"tasks": ["mini-addsub"], "rows": 2, "max_new_tokens": 2},
    }


def execute(out: Path, parameters: dict[str, Any]) -> Any:
    return papermill.execute_notebook(
        NOTEBOOK, out, parameters, cwd=ROOT, progress_bar=False, start_timeout=60, execution_timeout=240
    )


def parameter_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_is_valid_without_outputs_and_starts_with_its_parameters(path: Path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not [cell for cell in code if cell.outputs or cell.execution_count]
    assert parameter_cells(notebook) == code[:1]
    assert "widgets" not in notebook.metadata


def test_the_parameters_are_the_fields_of_a_spec_with_its_defaults():
    (cell,) = parameter_cells(nbformat.read(NOTEBOOK, as_version=4))
    values = {line.targets[0].id: ast.literal_eval(line.value) for line in ast.parse(cell.source).body}
    assert set(values) == set(RunSpec.model_fields) | EXTRA
    # A key that a spec file leaves out must mean the same here as on the command line.
    assert RunSpec.parse({key: value for key, value in values.items() if key not in EXTRA}) == RunSpec()


@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.stem)
def test_every_spec_file_is_valid_and_fits_the_notebook(path: Path):
    spec = RunSpec.load(path)
    assert spec.eval.tasks
    assert set(yaml.safe_load(path.read_text(encoding="utf-8"))) <= set(RunSpec.model_fields)


@pytest.mark.slow
def test_the_notebook_gives_the_run_of_the_library_with_figures_and_report(tiny: str, tmp_path: Path):
    fields = small(tiny)
    direct = run(RunSpec.parse(fields), root=tmp_path / "direct")
    bare = run(RunSpec.parse({**fields, "adapter": None}), root=tmp_path / "runs")
    here = {"root": str(tmp_path / "runs"), "compare": [bare.id]}
    notebook = execute(tmp_path / "out.ipynb", {**fields, **here})
    record = Run(tmp_path / "runs" / direct.id)
    assert record.summary["scores"] == direct.summary["scores"]
    assert [e["loss"] for e in record.events("Step")] == [e["loss"] for e in direct.events("Step")]
    outputs = {cell.id: cell.get("outputs", []) for cell in notebook.cells}
    for cell in ("loss", "norms", "accuracy", "cost"):
        assert "application/vnd.plotly.v1+json" in outputs[cell][0]["data"], cell
    assert "mini-addsub" in json.dumps(outputs["table"])
    assert (record.folder / "report.html").stat().st_size < 6_000_000


@pytest.mark.slow
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"adaptor": {"type": "lora"}}, "'adaptor' is not a parameter of this notebook. Did you mean 'adapter'"),
        ({"train": {"learning_rat": 0.1}}, "'train.learning_rat' is not a known key. Did you mean 'learning_rate'"),
    ],
)
def test_a_misspelt_parameter_stops_the_notebook(tmp_path: Path, wrong: dict[str, Any], message: str):
    with pytest.raises(PapermillExecutionError) as caught:
        execute(tmp_path / "out.ipynb", {"root": str(tmp_path / "runs"), **wrong})
    assert message in str(caught.value)
    assert not (tmp_path / "runs").exists()
