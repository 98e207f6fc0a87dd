"""A published recipe trains on one prompt and is scored on another.

Area: scoring
Elsewhere: LLM-Adapters#58, #38, #64, #63, #70, #16, #26, #45: published rows are not reached, and nobody can say why.
Before: the presets of the paper trained on a plain prompt and scored on one indented by 16 spaces.
Here: they train and score on the original's own prompts, both indented. For each published row, `docs/published` and
    `compare --paper` say what the code really does, and what users report.
Verdict: silent → right
"""

from llm_adapters_lab.evaluation.predictions import scoring_template
from llm_adapters_lab.results.published_results import names, published, remarks
from llm_adapters_lab.runs.presets import spec_presets
from llm_adapters_lab.runs.spec import RunSpec
from llm_adapters_lab.tasks.base import Example
from llm_adapters_lab.tasks.prompts import prompt
from llm_adapters_lab.tasks.registry import get_task

INDENT = 16 * " "


def test_training_and_scoring_prompts_differ() -> None:
    row, asked = Example("1", "1 + 1?", "", "2", "2"), f"\n\n{INDENT}### Instruction:\n{INDENT}1 + 1?\n"
    for name in [name for name in spec_presets() if name.startswith("paper/")]:
        spec = RunSpec.load(name)
        trained = prompt(row, str(spec.data.template))
        scored = prompt(row, scoring_template(get_task("gsm8k"), spec.eval.protocol, spec.data.template))
        assert trained.endswith(f"the request.  {asked}{INDENT}\n{INDENT}### Response:\n{INDENT}")
        assert scored.endswith(f"the request. {asked}\n{INDENT}### Response:\n{INDENT}")
        assert trained.split() == scored.split()
    for name in names():
        assert remarks(name) and all(row["remarks"] for row in published(name))
    told = " ".join(text for row in published("llama-7b-lora") for text in row["remarks"])
    assert all(f"#{thread}" in told for thread in (58, 38, 64, 70, 16, 26, 45, 63, 59, 21))
