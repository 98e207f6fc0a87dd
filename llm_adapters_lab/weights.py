"""Read and write the weight of a linear projection, whatever class holds it.

Everything else in the lab sees one orientation, (d_out, d_in), so GPT-2's transposed Conv1D is a case here only.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from llm_adapters_lab.errors import CannotMerge


def dims(module: nn.Module) -> tuple[int, int] | None:
    """Return (d_in, d_out) of a linear projection, or None for any other module.

    Quantised layers count: they are subclasses of `torch.nn.Linear` or carry `in_features` and `out_features`.
    """
    if isinstance(module, Conv1D):
        return module.nx, module.nf
    d_in, d_out = getattr(module, "in_features", None), getattr(module, "out_features", None)
    if isinstance(d_in, int) and isinstance(d_out, int):
        return d_in, d_out
    return None


def read(module: nn.Module) -> torch.Tensor:
    """Return the weight of a linear projection as (d_out, d_in), without a copy.

    Raises:
        CannotMerge: the weight is quantised or not a plain floating-point matrix.
    """
    weight = getattr(module, "weight", None)
    if not isinstance(weight, torch.Tensor) or weight.ndim != 2 or not weight.is_floating_point():
        raise CannotMerge(
            f"The weight of a {type(module).__name__} cannot be read as a plain matrix. "
            "Load the base unquantised (fp32, bf16 or fp16) to merge."
        )
    return weight.T if isinstance(module, Conv1D) else weight


@torch.no_grad()
def write(module: nn.Module, weight: torch.Tensor) -> None:
    """Replace the weight of a linear projection in place.

    Args:
        module: a module that `read` accepts.
        weight: the new weight, (d_out, d_in), of any floating dtype.
    """
    read(module).copy_(weight)
