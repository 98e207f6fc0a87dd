"""Bases on the Hugging Face Hub: which are on this machine, and whether one can be had, without waiting for retries."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from llm_adapters_lab.errors import ModelUnavailable

PREFIX = "models--"


def cached_models() -> list[str]:
    """Return the ids of the models in the cache of huggingface_hub whose configuration is there, the newest first."""
    from huggingface_hub import constants

    found: dict[str, float] = {}
    with suppress(OSError), os.scandir(constants.HF_HUB_CACHE) as folders:
        for folder in folders:
            if folder.name.startswith(PREFIX):
                name = folder.name.removeprefix(PREFIX).replace("--", "/")
                if cached_config(name):
                    found[name] = folder.stat().st_mtime
    return sorted(found, key=found.__getitem__, reverse=True)


def cached_config(name: str) -> dict[str, Any]:
    """Return the content of the config.json of a hub id in the cache; {} if it is not there."""
    from huggingface_hub import try_to_load_from_cache

    with suppress(OSError, ValueError):  # such as a name that is no hub id
        path = try_to_load_from_cache(name, "config.json")
        return read_config(Path(path)) if isinstance(path, str) else {}
    return {}


def read_config(path: Path) -> dict[str, Any]:
    """Return the content of a config.json; {} if it cannot be read."""
    with suppress(OSError, ValueError):
        content = json.loads(path.read_text(encoding="utf-8"))
        return content if isinstance(content, dict) else {}
    return {}


def require_model(name: str, seconds: float = 3) -> bool:
    """Return whether the hub has answered for a model; False if it has not, but the model is in the cache.

    One request, where loading a model repeats each of several.

    Args:
        name: hub id.
        seconds: to wait for each part of the answer.

    Raises:
        ModelUnavailable: there is no such model, or it is neither reachable nor in the cache.
    """
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, HFValidationError, RepositoryNotFoundError

    site = constants.ENDPOINT
    try:
        get_hf_file_metadata(hf_hub_url(name, "config.json"), timeout=seconds)
        return True
    except GatedRepoError as error:
        raise ModelUnavailable(
            f"{name} asks for consent: accept its terms at {site}/{name} and log in with `hf auth login`."
        ) from error
    except RepositoryNotFoundError as error:
        raise ModelUnavailable(f"There is no model {name} on {site}, or it is private (`hf auth login`).") from error
    except EntryNotFoundError as error:
        raise ModelUnavailable(f"{name} on {site} has no config.json, so it is no base that can be loaded.") from error
    except HFValidationError as error:
        raise ModelUnavailable(f"{name!r:.100} is no hub id: a hub id has the form owner/name.") from error
    except Exception as error:  # the libraries below share no error class
        if cached_config(name):
            return False
        raise unreachable(name) from error


def unreachable(name: str) -> ModelUnavailable:
    """Return the error for a hub id that is not in the cache while the hub does not answer."""
    from huggingface_hub import constants

    return ModelUnavailable(
        f"{name} is not on this machine, and {constants.ENDPOINT} does not answer. Choose a base that is here, or try "
        "again online."
    )


@contextmanager
def offline() -> Iterator[None]:
    """Read hub ids from the cache only, without a request for each file. Holds for all threads."""
    from huggingface_hub import constants

    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
