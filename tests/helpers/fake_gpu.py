"""Train on a GPU that is not there: the programs of `test_fake_gpu.py`, in a process with the driver of fake_gpu.cpp.

Tensors are fake. They have a shape and a device but no content, and two on different devices cannot be combined, as on
a real GPU. Numbers that are read are 0.
"""

from __future__ import annotations

import json
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, cast

import torch
from contract import CASES
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from llm_adapters_lab.core.injection import inject
from llm_adapters_lab.core.registry import all_adapters, get_adapter
from llm_adapters_lab.events import Event, FellBack, Step
from llm_adapters_lab.models.blueprint import Blueprint
from llm_adapters_lab.models.random_models import TINY
from llm_adapters_lab.runs.forecast import memory, rough
from llm_adapters_lab.runs.forecast.memory import Peak
from llm_adapters_lab.runs.spec import RunSpec
from llm_adapters_lab.tasks.tokens import IGNORED, Sample
from llm_adapters_lab.training import batches, fast_paths, loss, packing
from llm_adapters_lab.training.joint import JointTrainer, Member
from llm_adapters_lab.training.loop import train
from llm_adapters_lab.training.loss import FastPaths
from llm_adapters_lab.training.spec import TrainSpec
from llm_adapters_lab.training.step import GradientComputer

GPU = torch.device("cuda", 0)
ROWS = [
    Sample(str(i), ids := (5, 6, 7, *range(8, 8 + n)), (IGNORED,) * 4 + ids[4:]) for i, n in enumerate((9, 4, 12, 6))
]
PAIRS = [Sample(s.id, 2 * s.ids, (*s.labels, IGNORED, *s.labels[1:]), starts=(len(s.ids),)) for s in ROWS]
pinned: list[torch.Size] = []


class OneGpu:
    """What the training asks of Accelerate, which would look for a real GPU."""

    device, num_processes, process_index, is_main_process, scaler = GPU, 1, 0, True, None

    def backward(self, total: torch.Tensor) -> None:
        total.backward()  # type: ignore[no-untyped-call]

    def reduce(self, value: torch.Tensor, how: str) -> torch.Tensor:
        assert value.device == GPU
        return value

    def clip_grad_norm_(self, parameters: Any, limit: float) -> torch.Tensor:
        return torch.nn.utils.clip_grad_norm_(parameters, limit)

    def prepare_optimizer(self, optimizer: Any) -> Any:
        return optimizer

    def prepare_model(self, model: Any, evaluation_mode: bool) -> Any:
        assert {p.device for p in model.parameters()} == {GPU}
        return model

    def unwrap_model(self, model: Any, keep_fp32_wrapper: bool) -> Any:
        return model


class Waiting(ThreadPoolExecutor):
    """Does the work in its thread, while this one waits: fake tensors can only be used by one thread at a time."""

    def submit(self, *work: Any, **options: Any) -> Future[Any]:
        done = super().submit(*work, **options)
        done.result()
        return done


background = Waiting(1, "rows")


class Counting(Peak):
    """Also counts what is pinned; two tensors are never equal."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation."""
        if func is torch.ops.aten.equal.default:
            return False
        if func is torch.ops.aten._pin_memory.default:
            pinned.append(args[0].shape)
        return super().__torch_dispatch__(func, types, args, kwargs)


@contextmanager
def fake() -> Iterator[None]:
    """Make all tensors fake, those of the thread that lays out rows as well."""
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, Counting() as peak:
        for enter in (mode.__enter__, peak.__enter__):
            background.submit(enter)
        try:
            yield
        finally:
            for leave in (peak.__exit__, mode.__exit__):
                background.submit(leave, None, None, None)


def trained(
    adapter: dict[str, Any],
    rows: list[Sample] = ROWS,
    dtype: torch.dtype = torch.float32,
    family: str = "llama",
    **plan: Any,
) -> tuple[list[Event], FastPaths]:
    """Train an adapter in a tiny model for two steps, and return the events and the fast paths that were taken."""
    with fake(), nullcontext() if dtype == torch.float32 else torch.autocast("cuda", dtype):
        model = Blueprint(f"tiny:{family}").build("cuda", dtype)
        injection = inject(model, get_adapter(adapter["type"]).config.model_validate(adapter))
        given = TrainSpec.model_validate({"batch": 4, "max_steps": 2, "epochs": 9, "precision": "fp32"} | plan)
        gradients, gpu = GradientComputer(model, injection, rows, given, 0), cast(Any, OneGpu())
        events = list(train(model, injection, rows, given, gpu, gradients=gradients))
        fell_back = [event.reason for event in events if isinstance(event, FellBack)]
        # Whether bf16 is only rounding is a matter of numbers; any other error is a fault.
        assert not any("nothing" in reason and "Dynamic" not in reason for reason in fell_back), fell_back
        assert {p.device for p in injection.parameters()} == {GPU} and sum(isinstance(e, Step) for e in events) == 2
        with gradients.ready(gpu) as prepared:  # `train` would check the numbers of the best adapter
            assert gradients.validate(gpu, prepared, rows[:2])[0] == 0
        return events, gradients.objective.fast_paths


def smoothly(**plan: Any) -> FastPaths:
    """Train LoRA, expect that all fast paths of the plan hold, and return them."""
    events, taken = trained(LORA, **plan)
    assert not [event for event in events if isinstance(event, FellBack)]
    return taken


def prefetched() -> None:
    """The rows of the second step are laid out in the background."""
    before, threads = packing.send, []

    def send(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
        threads.append(threading.current_thread().name)
        return before(tensor, device)

    packing.send = send  # type: ignore[assignment]
    pinned.clear()
    taken = smoothly()
    packing.send = before
    assert taken.packing and taken.share_prefix and taken.label_head and not taken.head_chunk
    assert any(name.startswith("rows") for name in threads) and len(pinned) >= len(threads)


def in_chunks() -> None:
    """The head computes the logits of a few labels at a time."""
    before, fast_paths.HEAD_BYTES["cuda"] = fast_paths.HEAD_BYTES["cuda"], 4096
    try:
        assert 0 < smoothly().head_chunk < 20
    finally:
        fast_paths.HEAD_BYTES["cuda"] = before


def together() -> None:
    """Two adapters share a pass."""
    with fake():
        model: Any = Blueprint("tiny:llama").build("cuda")
        plan, trainer = TrainSpec(batch=4, max_steps=2, epochs=9, precision="fp32"), JointTrainer(model)
        assert trainer.tokens == 8192
        made = []
        for name in "ab":
            injection = inject(model, get_adapter("lora").config.model_validate(LORA), name=name)
            made.append(Member(trainer, model, injection, ROWS, plan, 0))
            injection.detach()
        trainer.start()
        assert [member.obstacle for member in made] == ["", ""]
        trainings = [
            train(model, m.injection, ROWS, plan, OneGpu(), gradients=m)
            for m in made  # type: ignore[arg-type]
        ]
        for step in range(2):
            trainer.begin_step("ab", step)
            for training in trainings:
                event = next(training)
                while not isinstance(event, Step):
                    assert not isinstance(event, FellBack), event
                    event = next(training)
        trainer.finish()


def out_of_memory() -> None:
    """Micro-batches are halved, and the memory of the failed step is given back."""
    with fake():
        model: Any = Blueprint("tiny:llama").build("cuda")
        injection = inject(model, get_adapter("lora").config.model_validate(LORA))
        plan, gpu = TrainSpec(batch=4, precision="fp32"), cast(Any, OneGpu())
        gradients = GradientComputer(model, injection, ROWS, plan, 0)
        whole, emptied = gradients.objective.loss, list[bool]()

        @contextmanager
        def loss(prepared: Any, samples: Any) -> Iterator[torch.Tensor]:
            if len(samples) > 2:
                raise torch.OutOfMemoryError
            with whole(prepared, samples) as found:
                yield found

        gradients.objective.loss = loss  # type: ignore[method-assign]
        torch.cuda.empty_cache = lambda: emptied.append(True)
        with gradients.ready(gpu) as prepared:
            gradients.step(gpu, prepared, ROWS)
        assert gradients.halvings == 1 and emptied == [True]
        assert all(p.grad is not None and p.grad.device == GPU for p in injection.parameters())


def speed() -> None:
    """The speed of the machine is measured on the GPU, once it has finished."""
    waited: list[bool] = []
    torch.cuda.synchronize = lambda *_: waited.append(True)  # type: ignore[assignment]
    with fake():
        assert rough._measure(torch.bfloat16).operations > 0
    assert waited


def forecast(**changes: Any) -> None:
    """The estimate of memory is made for the GPU."""
    fields = {"base": "nano", "adapter": LORA, "train": TRAIN, "dtype": "bf16"}
    memory.Peak = Counting  # type: ignore[misc]
    pinned.clear()
    found = memory.estimate(RunSpec.parse(fields | changes), ROWS)
    assert found is not None and found.step > 0 and pinned


def misplaced() -> None:
    """Control: rows that stay on the CPU are an error."""
    before = batches.send
    batches.send = lambda tensor, device: tensor  # type: ignore[assignment]
    try:
        trained(LORA, packing=False)
    except RuntimeError as error:
        assert "device" in str(error), error
        return
    finally:
        batches.send = before
    raise AssertionError("The rows were on the CPU, and nothing has failed.")


LORA = {"type": "lora", "rank": 4, "at": "q,v,up,down"}
PISSA = LORA | {"rank": 2, "alpha": 2, "init": "pissa"}
TRAIN = {"batch": 4, "precision": "bf16"}
BY_NUMBERS = ("coda",)
"""Adapters that run for as many tokens as numbers decide."""
PROGRAMS: dict[str, Callable[[], object]] = {
    "control": misplaced,
    "packed, prefetched": prefetched,
    "padded": partial(smoothly, packing=False),
    "all logits": partial(smoothly, packing=False, label_head=False),
    "head in chunks": in_chunks,
    "checkpointing": partial(smoothly, gradient_checkpointing=True),
    "micro-batches": partial(smoothly, micro_batch=1),
    "deterministic": partial(smoothly, deterministic=True),
    "bf16": lambda: trained(LORA, dtype=torch.bfloat16, precision="bf16"),
    "pairs": lambda: trained(LORA, rows=PAIRS, objective="dpo"),
    "study": together,
    "out of memory": out_of_memory,
    "speed": speed,
    "estimate": forecast,
    "estimate of heads": lambda: forecast(adapter=PISSA, train=TRAIN | {"regime": {"name": "hd-pissa", "heads": 2}}),
    "estimate in 4 bits": lambda: forecast(quantization="nf4-double"),
    **{f"tiny:{family}": partial(trained, {"type": "lora"}, family=family) for family in TINY if family != "llama"},
    **{name: partial(trained, CASES[name]) for name in all_adapters() if name not in BY_NUMBERS},
}


def main() -> None:
    """Run all programs, and print what each has raised, or "", as JSON."""
    fake_tensor.init_gpu_context = lambda device: None
    FakeTensorMode.avoid_device_init = property(lambda self: True)  # type: ignore[assignment]
    torch.cuda.is_available = lambda: True
    loss._background = lambda: background  # type: ignore[assignment]
    torch.cuda.is_bf16_supported = lambda *_, **__: True  # type: ignore[assignment]
    torch.cuda.get_rng_state = lambda *_: torch.zeros(8)  # type: ignore[assignment]
    torch.cuda.empty_cache = lambda: None
    found = {}
    for name in sys.argv[1:] or PROGRAMS:
        try:
            PROGRAMS[name]()
            found[name] = ""
        except Exception as error:
            found[name] = "".join(traceback.format_exception(error)[-3:])
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
