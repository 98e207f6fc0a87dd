"""torch.compile for the decoder layers of a model, including their adapters."""

from __future__ import annotations

import os
import shutil

import torch
from torch import nn

from llm_adapters_lab.core.anatomy import Anatomy
from llm_adapters_lab.errors import BadSpec


def find_compiler() -> str:
    """Return the path of the C++ compiler that torch.compile needs on the CPU, or ""."""
    names = (os.environ.get("CXX", ""), "c++", "g++", "clang++")
    return next((path for name in names if name and (path := shutil.which(name))), "")


def require_compiler(device: str) -> None:
    """Check that layers can be compiled for a device.

    Raises:
        BadSpec: it is the CPU, and there is no C++ compiler.
    """
    if device == "cpu" and not find_compiler():
        raise BadSpec(
            "train.compile needs a C++ compiler (c++, g++ or clang++, or the one named by CXX), and none was found. "
            "Install one, or set train.compile to false."
        )


class CompiledLayers:
    """The decoder layers of a model, compiled within `with`, unchanged outside it.

    They are compiled one by one, when first called; as all layers are alike, the code of the first serves all of them.
    """

    def __init__(self, model: nn.Module, anatomy: Anatomy, backend: str = "inductor") -> None:
        """Prepare the compiled calls of a model that has its adapters.

        Raises:
            BadSpec: there is no compiler for the device of the model.
        """
        require_compiler(next(model.parameters()).device.type)
        layers = [model.get_submodule(path) for path in anatomy.layers]
        self._calls = [(layer, torch.compile(layer._call_impl, dynamic=True, backend=backend)) for layer in layers]

    def __enter__(self) -> None:
        for layer, call in self._calls:
            layer._compiled_call_impl = call

    def __exit__(self, *error: object) -> None:
        for layer, _ in self._calls:
            layer._compiled_call_impl = None
