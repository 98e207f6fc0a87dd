"""A blueprint: everything that can be known of a base before its weights are read."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property, lru_cache
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from llm_adapters_lab.core import quantized
from llm_adapters_lab.core.anatomy import Anatomy, describe_anatomy
from llm_adapters_lab.core.vocabulary import extend_model, extend_tokenizer
from llm_adapters_lab.errors import BadSpec, LabError, ModelUnavailable
from llm_adapters_lab.models.pypi_bases import PYPI_BASES
from llm_adapters_lab.models.random_models import tiny_config
from llm_adapters_lab.models.source import Source
from llm_adapters_lab.models.spec import Quantization
from llm_adapters_lab.models.trust import check_model


class Blueprint(Source):
    """A base without its weights. Each part is read when it is first asked for, and once."""

    @cached_property
    def config(self) -> Any:
        """The configuration of the model.

        Raises:
            ModelUnavailable: it was not found, or it leads to files that are not opened.
        """
        with self.naming_errors():
            if self.tiny:
                return tiny_config(self.name)
            source, options = self.source
            config = AutoConfig.from_pretrained(source, trust_remote_code=self.trust_remote_code, **options)
            check_model(source, self.name, config, weights=not options)
            return config

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer; None for a tiny random model.

        Raises:
            ModelUnavailable: nothing was found under that name.
            BadSpec: it has one of the new tokens already, or cannot get it.
        """
        if self.tiny:
            return None
        with self.naming_errors():
            source, options = self.source
            tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=self.trust_remote_code, **options)
            if self.tokens:
                extend_tokenizer(tokenizer, self.tokens)
            return tokenizer

    def usable_tokenizer(self, trains: bool) -> Any:
        """Return the tokenizer.

        Raises:
            BadSpec: there is none, or it has no token that ends an answer, which training needs.
        """
        if (tokenizer := self.tokenizer) is None:
            raise BadSpec(f"{self.name} has no tokenizer, so it cannot read text. Choose another base.")
        if tokenizer.eos_token_id is None and (trains or tokenizer.pad_token_id is None):
            stated = getattr(self.config.get_text_config(decoder=True), "eos_token_id", None)
            hint = f", perhaps the one of id {stated}, which its config.json names" if stated is not None else ""
            raise BadSpec(
                f"The tokenizer of {self.name} has no end token, so no answer would end. Set eos_token in its "
                f"tokenizer_config.json{hint}."
            )
        return tokenizer

    def check_ids(self, ids: Iterable[int]) -> None:
        """Refuse token ids for which the model has no embedding.

        Raises:
            BadSpec: there are some; the message names one.
        """
        if (highest := max(ids, default=0)) >= self.embeddings:
            raise BadSpec(
                f"The tokenizer of {self.name} makes {self.tokenizer.convert_ids_to_tokens(highest)!r}, token "
                f"{highest}, but the model has only {self.embeddings} embeddings. Use the tokenizer that belongs to the"
                " model, or save the model with more embeddings (resize_token_embeddings of transformers)."
            )

    @property
    def embeddings(self) -> int:
        """Number of tokens for which the model has an embedding."""
        return int(self.skeleton.get_input_embeddings().weight.shape[0])  # type: ignore[operator]

    @property
    def context(self) -> int | None:
        """Number of tokens that fit the model; None where it states no limit."""
        return getattr(self.config.get_text_config(decoder=True), "max_position_embeddings", None)

    @property
    def tokenizer_if_any(self) -> Any:
        """The tokenizer, or None if there is none or its files are missing."""
        try:
            return self.tokenizer
        except ModelUnavailable:
            return None

    @cached_property
    def skeleton(self) -> nn.Module:
        """The model on the meta device: enough for anatomy, placements and counts."""
        return self.build("meta")

    @cached_property
    def anatomy(self) -> Anatomy:
        """The anatomy of the model.

        Raises:
            UnknownAnatomy: the model is not a decoder whose parts can be told apart.
        """
        return Anatomy.of(self.skeleton)

    def build(self, device: str, dtype: torch.dtype = torch.float32) -> nn.Module:
        """Return the model with random weights (on the meta device: with none), in evaluation mode.

        Raises:
            ModelUnavailable: the configuration was not found, or it leads to files that are not opened.
        """
        config = copy.deepcopy(self.config)
        with self.naming_errors(), torch.device(device):
            model: nn.Module = AutoModelForCausalLM.from_config(
                config, trust_remote_code=self.trust_remote_code, dtype=dtype
            )
        if self.tokens:
            extend_model(model, self.usable_tokenizer(trains=False), self.tokens)
        describe_anatomy(model, self.roles)
        return model.eval()

    def quantization(self, asked: Quantization) -> str:
        """Return the quantisation of the loaded base: the one that a spec asks for, else the one its files have."""
        return asked if asked != "none" else quantized.loaded_scheme(self.config)

    @contextmanager
    def naming_errors(self) -> Iterator[None]:
        """Turn what the libraries raise over a model's files, which share no error class, into an error that names it.

        One thread at a time: transformers gives two that load at once a model without its head.
        """
        try:
            with _ONE_BY_ONE:
                yield
        except LabError:
            raise
        except Exception as error:
            raise self._unavailable(error) from error

    def _unavailable(self, error: Exception) -> ModelUnavailable:
        first = str(error).strip().partition("\n")[0]
        if base := PYPI_BASES.get(self.name):
            return ModelUnavailable(
                f"{self.name} is neither installed nor reachable. Either {base.install}, or make the hub id {base.hub} "
                f"reachable. ({first})"
            )
        return ModelUnavailable(
            f"The model {self.name!r} could not be loaded. It was looked for as a packaged model, a local folder, a "
            f"GGUF file and a hub id with safetensors weights. ({first})"
        )


_Pairs = tuple[tuple[str, str], ...]
_ONE_BY_ONE = threading.RLock()


def blueprint(
    name: str,
    trust_remote_code: bool = False,
    roles: Mapping[str, str] | None = None,
    tokens: Mapping[str, str] | None = None,
) -> Blueprint:
    """Return the blueprint of a base, the same one for repeated calls; the last eight are kept.

    For forms, which ask at every edit. A run reads its own, so that it sees what is on disk now.
    """
    return _blueprint(name, trust_remote_code, tuple((roles or {}).items()), tuple((tokens or {}).items()))


@lru_cache(maxsize=8)
def _blueprint(name: str, trust_remote_code: bool, roles: _Pairs, tokens: _Pairs) -> Blueprint:
    return Blueprint(name, trust_remote_code, dict(roles), dict(tokens))
