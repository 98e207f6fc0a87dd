"""Where the files of a base are; needs neither torch nor transformers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from llm_adapters_lab.models.hub import require_model
from llm_adapters_lab.models.pypi_bases import PYPI_BASES, locate
from llm_adapters_lab.models.spec import check_base

FOLDERS = {name: Path(__file__).parent / name.replace("-", "_") for name in ("nano", "nano-moe")}
"""Where the packaged teaching models are."""
NANO = FOLDERS["nano"]
BLANK = "nano-blank"
"""Config and tokenizer of `nano` with random weights, for training from scratch."""
FOLDERS[BLANK] = NANO


@dataclass(frozen=True, eq=False)
class Source:
    """What names a base, and where its files are.

    Attributes:
        name: of a packaged base (`models.spec.PACKAGED`), `tiny:<family>`, a local folder, a GGUF file, or a hub id.
        trust_remote_code: run model code that comes with a hub repository.
        roles: patterns of module paths by role, for a model whose modules cannot be told apart; see `describe_anatomy`.
        tokens: new tokens, see `core.vocabulary.add_tokens`; tokenizer, skeleton and loaded model have them.
    """

    name: str
    trust_remote_code: bool = False
    roles: Mapping[str, str] = field(default_factory=dict)
    tokens: Mapping[str, str] = field(default_factory=dict)

    @property
    def tiny(self) -> bool:
        """Whether it is one of the random models for tests, which have no files."""
        return self.name.startswith("tiny:")

    @property
    def random(self) -> bool:
        """Whether its weights are random, and come from no file."""
        return self.tiny or self.name == BLANK

    @cached_property
    def source(self) -> tuple[str, dict[str, str]]:
        """What transformers is to load from, a folder or a hub id, and the options that go with it.

        Raises:
            ModelUnavailable: there is no such folder, file or packaged model.
        """
        if self.name in FOLDERS:
            return str(FOLDERS[self.name]), {}
        if self.name in PYPI_BASES:
            return locate(self.name), {}
        if (path := check_base(self.name)) and path.suffix == ".gguf":
            return str(path.parent), {"gguf_file": path.name}
        if path is None and not self.tiny:
            require_model(self.name)
        return str(path or self.name), {}
