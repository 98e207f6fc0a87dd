"""The batch size changes the answers.

Area: scoring
Elsewhere: lm-eval#3055 (BoolQ 0.780 or 0.802), LLM-Adapters#64 (57.5 or 68.9), LlamaFactory#1256, t-zero#29.
Before: the same answers in fp32, but neither batch nor dtype stood beside a score.
Here: in fp32 batches of 1, 4 and 32 give the same answers; in half precision a few flip, so every score names its dtype
and batch.
Verdict: silent → told
"""

from llm_adapters_lab.evaluation.predictions import evaluate
from llm_adapters_lab.models.loading import load_base
from llm_adapters_lab.results.formatting import score_cells
from llm_adapters_lab.tasks.registry import get_task


def test_answers_in_fp32_do_not_depend_on_the_batch() -> None:
    base, task = load_base("nano", "fp32"), get_task("mini-addsub")
    rows = task.load("test", None)[:48]
    found = []
    for batch, order in ((1, rows), (4, rows[::-1]), (32, rows)):
        answers = evaluate(base.model, base.tokenizer, task, order, batch=batch, max_new_tokens=12)
        found.append({p["id"]: (p["text"], p["tokens"], p["cut"]) for p in answers})
    assert found[0] == found[1] == found[2]
    assert len(set(found[0].values())) > 1
    score = {"accuracy": 0.5, "template": "qa", "dtype": "bfloat16", "batch": 32, "by_limit": 0.25}
    cells = score_cells(score)
    assert (cells["prompt"], cells["dtype"], cells["batch"], cells["by limit"]) == ("qa", "bfloat16", 32, "25.0 %")
