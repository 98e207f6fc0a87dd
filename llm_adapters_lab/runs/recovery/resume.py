"""Find where an interrupted run resumes, and make its record fit for it."""

from __future__ import annotations

from typing import Any, NamedTuple

from llm_adapters_lab.core.tensor_files import read_tensors
from llm_adapters_lab.errors import BadSpec
from llm_adapters_lab.files import read_json
from llm_adapters_lab.runs import base_files
from llm_adapters_lab.runs.record import Run
from llm_adapters_lab.runs.spec import RunSpec
from llm_adapters_lab.training import checkpoints
from llm_adapters_lab.training.checkpoints import Checkpoint
from llm_adapters_lab.training.distributed import ProcessGroup


class ResumePoint(NamedTuple):
    """Where a run resumes.

    Attributes:
        trained: only scoring is left.
        checkpoint: from which training resumes; None to start from the beginning.
        faults: descriptions of what could not be used.
    """

    trained: bool = False
    checkpoint: Checkpoint | None = None
    faults: tuple[str, ...] = ()


def find_resume_point(run: Run, spec: RunSpec, hashes: dict[str, Any], fresh: bool, group: ProcessGroup) -> ResumePoint:
    """Prepare a record to resume an earlier attempt, or to start over; the caller holds its lock.

    Args:
        run: the record.
        spec: of the run.
        hashes: of the current base and rows.
        fresh: start over.
        group: the processes that share the run; the main one repairs the record, then the others read it.
    """
    with group.all_or_none():
        found = _repaired(run, spec, hashes, fresh) if group.is_main else ResumePoint()
    trained, step = group.broadcast((found.trained, found.checkpoint.facts["step"] if found.checkpoint else 0))
    with group.all_or_none():
        if not group.is_main:
            facts = {"spec": spec.id, "hashes": hashes}
            found = ResumePoint(trained, checkpoints.read(run.folder, step, facts) if step else None)
    return found


def _repaired(run: Run, spec: RunSpec, hashes: dict[str, Any], fresh: bool) -> ResumePoint:
    run.sweep()
    faults = _damage(run) if not fresh and run.is_trained(spec) else []
    if not fresh and run.is_trained(spec) and not faults:
        run.mend()
        checkpoints.discard(run.folder)
        return ResumePoint(trained=True)
    if not fresh and run.is_of(spec):
        saved, others = checkpoints.newest(run.folder, {"spec": spec.id, "hashes": hashes})
        faults += others
        if saved:
            run.cut(saved.facts["log"])
            checkpoints.discard(run.folder, after=saved.facts["step"])
            return ResumePoint(checkpoint=saved, faults=tuple(faults))
    run.clear()
    written = spec.model_copy(update={"train": spec.train.model_copy(update={"pause_at": None})})
    run.write("spec.json", written.model_dump(mode="json"))
    run.write("hashes.json", hashes)
    return ResumePoint(faults=(*faults, "The training starts again.") if faults else ())


def _damage(run: Run) -> list[str]:
    """Return what is wrong with the file of a trained adapter; a bare base has none."""
    try:
        if (run.folder / "adapter").is_dir():
            read_tensors(run.folder / "adapter" / "adapter.safetensors")
    except BadSpec as error:
        return [f"The trained adapter is damaged. {error}"]
    return []


def refuse_changes(run: Run, spec: RunSpec, hashes: dict[str, Any]) -> None:
    """Refuse to resume an interrupted run with different rows or a different base, tokenizer or configuration.

    Raises:
        BadSpec: they have changed.
    """
    path = run.folder / "hashes.json"
    if not path.is_file() or not run.is_of(spec):
        return
    before, now = (
        {"the base": found["base"], **{f"the {key} rows": value for key, value in found["data"].items()}}
        for found in (read_json(path), hashes)
    )
    unlike = [what for what in before | now if before.get(what) != now.get(what)]
    if unlike := unlike + base_files.changed(read_json(path), hashes):
        raise BadSpec(
            f"The run {run.id} was interrupted, and {' and '.join(unlike)} changed since it began. Restore them to "
            "resume the run, or start over with the current ones: --fresh, or fresh=True."
        )
