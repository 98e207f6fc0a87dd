"""Write what EleutherAI's lm-eval says of the options of some rows, for tests/test_golden.py to compare with.

    python tests/golden/make_lm_eval.py nano mini-bool 100
    python tests/golden/make_lm_eval.py smollm2-135m arc-e 100 --root DATA

It needs `pip install lm-eval==0.4.13` beside the lab, and no network: the rows are given to lm-eval as local task
files, once with the prompt and the labels, once with the bare question and the text of the options.
"""

import argparse
import importlib.metadata
import json
import tempfile
from hashlib import sha256
from pathlib import Path

import torch
import yaml

from llm_adapters_lab.evaluation.likelihood import has_option_texts
from llm_adapters_lab.evaluation.statistics import options
from llm_adapters_lab.models import loading
from llm_adapters_lab.tasks import prompts
from llm_adapters_lab.tasks.base import Example, Task
from llm_adapters_lab.tasks.registry import get_task

HERE = Path(__file__).parent


def rows_of(task: Task, examples: list[Example], kind: str) -> list[dict]:
    rows = []
    for example in examples:
        if kind == "text" and not has_option_texts(example):
            continue
        if kind == "label":
            names = options(example.instruction, task.labels)
            choices = [prompts.label_target(name, example, task.template) for name in names]
            context = prompts.prompt(example, task.template)
        else:
            names = [label for label, _ in example.options]
            choices, context = [f" {text}" for _, text in example.options], prompts.cloze(example)
        gold = list(names).index(example.answer)
        rows.append({"id": example.id, "context": context, "names": names, "choices": choices, "gold": gold})
    return rows


def ask(base: loading.Base, rows: list[dict], kind: str) -> dict[str, dict]:
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        settings = {
            **{"task": f"golden_{kind}", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(file)}}},
            **{"test_split": "test", "output_type": "multiple_choice", "doc_to_text": "{{context}}"},
            **{"doc_to_choice": "choices", "doc_to_target": "gold", "target_delimiter": ""},
            "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        }
        (Path(folder) / "golden.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
        model = HFLM(pretrained=base.model, tokenizer=base.tokenizer, batch_size=8)
        manager = TaskManager(include_path=folder, include_defaults=False)
        settings = {"task_manager": manager, "log_samples": True, "bootstrap_iters": 0}
        done = simple_evaluate(model, tasks=[f"golden_{kind}"], **settings)
    result = {}
    for sample in done["samples"][f"golden_{kind}"]:
        doc = sample["doc"]
        values = [round(float(response[0]), 4) for response in sample["filtered_resps"]]
        result[doc["id"]] = {
            "prompt_hash": sha256(doc["context"].encode()).hexdigest(),
            "scores": dict(zip(doc["names"], values, strict=True)),
            "correct": bool(sample["acc"]),
        }
    return result


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("base")
    parser.add_argument("task")
    parser.add_argument("rows", type=int)
    parser.add_argument("--root", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    base, task = loading.load_base(asked.base), get_task(asked.task)
    examples = task.load("test", asked.root)[: asked.rows]
    found = {"base": asked.base, "task": asked.task, "lm_eval": importlib.metadata.version("lm_eval")}
    for kind in ("label", "text"):
        rows = rows_of(task, examples, kind)
        found[kind] = ask(base, rows, kind) if rows else {}
    path = HERE / f"lm_eval_{asked.base}_{asked.task}.json"
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(path, {kind: sum(item["correct"] for item in found[kind].values()) for kind in ("label", "text")})


if __name__ == "__main__":
    main()
