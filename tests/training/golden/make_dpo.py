"""Make dpo.json and dpo_adapter/: the DPO loss of TRL and its gradients, for tests/training/test_dpo.py.

Where the lab and ``pip install --no-deps trl==1.16.0`` are installed:

    python tests/training/golden/make_dpo.py

TRL's own `DPOTrainer.compute_loss` runs on `nano` with a LoRA of peft that is moved away from its start; its reference
is the model with the LoRA switched off. The pairs are questions of mini-addsub with the right and a wrong calculation,
tokenised by the lab. The file has loss, margin, accuracy and mean log-likelihoods for every pair and for all of them,
and the gradients of the last at every matrix of the LoRA as norms.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
import trl
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl.trainer.dpo_trainer import DataCollatorForPreference

from llm_adapters_lab.models.source import NANO
from llm_adapters_lab.tasks.registry import get_task

HERE = Path(__file__).parent
BETAS = (0.1, 0.7)
METRICS = ("rewards/margins", "rewards/accuracies", "logps/chosen", "logps/rejected")


def pairs(tokenizer: Any) -> list[dict[str, list[int]]]:
    """Tokenise four questions, each with its own calculation and that of the next question."""
    rows = get_task("mini-addsub").load("test")[:4]
    ids = [tokenizer(row.output + " .", add_special_tokens=False)["input_ids"] for row in rows]
    return [
        {
            "prompt_ids": tokenizer(row.instruction, add_special_tokens=False)["input_ids"],
            "chosen_ids": [*ids[i], tokenizer.eos_token_id],
            "rejected_ids": [*ids[(i + 1) % 4], tokenizer.eos_token_id],
        }
        for i, row in enumerate(rows)
    ]


def fill(model: Any) -> None:
    """Move the LoRA away from its start, where it has no effect."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in sorted(model.named_parameters()):
            if p.requires_grad:
                p.copy_((0.1 if "lora_A" in name else 0.3) * torch.randn(p.shape, generator=generator))


def main() -> None:
    tokenizer = AutoTokenizer.from_pretrained(NANO)
    made = pairs(tokenizer)
    config = LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
    collate, cases = DataCollatorForPreference(pad_token_id=tokenizer.pad_token_id), []
    for beta in BETAS:
        with tempfile.TemporaryDirectory() as folder:
            args = trl.DPOConfig(
                output_dir=folder, beta=beta, report_to=[], use_cpu=True, bf16=False, gradient_checkpointing=False
            )
            rows = Dataset.from_list([{"prompt": "1", "chosen": "2", "rejected": "3"}])
            trainer = trl.DPOTrainer(
                model=AutoModelForCausalLM.from_pretrained(NANO, dtype=torch.float32),
                args=args,
                train_dataset=rows,
                processing_class=tokenizer,
                peft_config=config,  # a new adapter: with one that exists, TRL takes its start for the reference
            )
        fill(trainer.model)
        for some in ([0], [1], [2], [3], [0, 1, 2, 3]):
            trainer.model.zero_grad()
            loss = trainer.compute_loss(trainer.model, collate([made[i] for i in some]))
            loss.backward()
            logged = {name: trainer._metrics["train"][name][-1] for name in METRICS}
            cases.append({"beta": beta, "pairs": some, "loss": float(loss), **logged})
        cases[-1]["gradients"] = {
            name.replace("base_model.model.", "").replace(".default.weight", ""): float(p.grad.norm())
            for name, p in trainer.model.named_parameters()
            if p.requires_grad
        }
    trainer.model.peft_config["default"].base_model_name_or_path = "nano"
    trainer.model.save_pretrained(HERE / "dpo_adapter")
    (HERE / "dpo_adapter" / "README.md").unlink()
    text = json.dumps({"trl": trl.__version__, "pairs": made, "cases": cases}, indent=1)
    (HERE / "dpo.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
