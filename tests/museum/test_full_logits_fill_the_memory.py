"""The logits of whole sequences fill the memory where the vocabulary is large.

Area: training
Elsewhere: Automodel#3907 and #2336, transformers#46145: 8 x 512 tokens x 262,144 words are 4 GB in fp32.
Here: the output head runs where a label or an option is counted, and nowhere else. Where that is everywhere, as with
the loss on all tokens, training runs it on chunks of labels: of 262,144 words 64 at a time, however many rows.
Verdict: right → right
"""

import torch
from small_bases import samples

from llm_adapters_lab.evaluation.likelihood import Question, choice_scores
from llm_adapters_lab.models.loading import load_base
from llm_adapters_lab.tasks.registry import get_task
from llm_adapters_lab.tasks.tokens import IGNORED, Sample
from llm_adapters_lab.training.loss import FastPaths, Objective


def test_the_head_runs_only_where_it_counts() -> None:
    base, positions = load_base("nano"), []
    head = base.model.get_output_embeddings()
    head.register_forward_hook(lambda module, args, out: positions.append(out[..., 0].numel()))
    rows = [Sample(s.id, s.ids * 20, (*[IGNORED] * 157, *s.ids[:3])) for s in samples(8)]
    for paths in (FastPaths(label_head=True), FastPaths(label_head=True, packing=True)):
        with Objective(base.model, paths).loss(base.model, rows) as loss:
            loss.backward()
        assert positions.pop() == 8 * 3
    with Objective(base.model, FastPaths(label_head=True, head_chunk=5)).loss(base.model, rows) as loss:
        loss.backward()
    assert max(positions) == 5
    # Twice for one label: to end the pass, and to see what is trained. That is the head too, so it is recomputed.
    assert sum(positions) == 2 + 2 * 8 * 3
    positions.clear()
    questions = [Question(row, list(range(3, 153))) for row in get_task("mini-bool").load("test", None)[:8]]
    with torch.no_grad():
        choice_scores(base.model, base.tokenizer, get_task("mini-bool"), questions, "qa")
    # Once for the last column of each prompt, and for each of two labels as long as it is.
    assert max(positions) <= 8 * 2 * 8
