"""Documents that are packed into one row see each other.

Area: training
Elsewhere: trl#784, #805, #1235, functionary#265, nanoVLM#201, #204, LlamaFactory#7318, unsloth#126, torchtune#875
Before: documents were not read.
Here: attention stays within a document and positions restart with it; its first token is predicted by none before it,
    so that the losses are those of documents in rows of their own.
Verdict: refused → right
"""

import pytest
import torch

from llm_adapters_lab.models.loading import load_base
from llm_adapters_lab.tasks.base import Example
from llm_adapters_lab.tasks.encoding import encode_text
from llm_adapters_lab.tasks.tokens import documents
from llm_adapters_lab.training.loss import FastPaths, Objective


@pytest.mark.parametrize("paths", [FastPaths(), FastPaths(packing=True), FastPaths(True, True, True)])
@torch.no_grad()
def test_documents_in_one_row_see_each_other(paths: FastPaths) -> None:
    base = load_base("nano", "fp32")
    texts = ["two plus 3 is 5 .", "ann has 4 pens .", "7 is more than 6 ."]
    (row,), _ = encode_text(base.tokenizer, [Example(text, "", "", text, "") for text in texts], 256)
    assert len(row.starts) == 2
    objective = Objective(base.model, paths)
    found = []
    for sample in (row, *documents([row])):
        with objective.losses(base.model, [sample]) as losses:
            found.append(losses.clone())
    together, *alone = found
    assert len(together) == row.counted == len(row.ids) - 3
    assert torch.allclose(together, torch.cat(alone), atol=1e-5)
