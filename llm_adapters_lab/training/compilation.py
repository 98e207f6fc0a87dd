"""torch.compile for the decoder layers of a model, adapters and all, while they are asked for."""

from __future__ import annotations

import os
import shutil
from typing import Any

import torch
from torch import nn

from llm_adapters_lab.core.anatomy import Anatomy
from llm_adapters_lab.errors import BadSpec


def compiler() -> str:
    """Return the path of the C++ compiler that torch.compile needs for the CPU; empty if there is none."""
    names = (os.environ.get("CXX", ""), "c++", "g++", "clang++")
    return next((path for name in names if name and (path := shutil.which(name))), "")


def require_compiler(device: str) -> None:
    """Refuse to compile for a device for which that cannot be done.

    Raises:
        BadSpec: it is the CPU and there is no C++ compiler.
    """
    if device == "cpu" and not compiler():
        raise BadSpec(
            "train.compile needs a C++ compiler (c++, g++ or clang++, or one that CXX names), and none was found. "
            "Install one, or set train.compile to false."
        )


class Layers:
    """The decoder layers of a model, compiled inside `with`; outside it is as it was.

    Layers are compiled one by one, because they are alike: what is compiled for the first serves them all.
    """

    def __init__(self, model: nn.Module, anatomy: Anatomy, backend: str = "inductor") -> None:
        """Compile nothing yet; that happens when a layer is first called.

        Args:
            model: with its adapters in it.
            anatomy: of the model.
            backend: of torch.compile.

        Raises:
            BadSpec: nothing can be compiled for the device of the model.
        """
        require_compiler(next(model.parameters()).device.type)
        self._layers = [model.get_submodule(path) for path in anatomy.layers]
        self._calls: list[Any] = [
            torch.compile(layer._call_impl, dynamic=True, backend=backend) for layer in self._layers
        ]

    def __enter__(self) -> None:
        """Put the compiled calls in place."""
        for layer, call in zip(self._layers, self._calls, strict=True):
            layer._compiled_call_impl = call

    def __exit__(self, *error: object) -> None:
        """Take them out again."""
        for layer in self._layers:
            layer._compiled_call_impl = None
