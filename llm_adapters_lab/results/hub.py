"""Adapters on the Hugging Face hub: upload an exported one, find one, download one."""

from __future__ import annotations

from pathlib import Path

from llm_adapters_lab.errors import BadSpec, CannotWrite, LabError

LIBRARY = "llm-adapters-lab"
"""Tag of the repositories with adapters of the lab."""


def check_push(name: str) -> None:
    """Find what would prevent an upload, before the adapter is exported.

    Args:
        name: of the repository, as owner/name.

    Raises:
        BadSpec: it has another form.
        CannotWrite: no token is known, or the hub is switched off.
    """
    from huggingface_hub import constants, get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    wrong = {0: "the owner is missing", 1: ""}.get(name.count("/"), "it has more than one slash")
    try:
        validate_repo_id(name if not wrong else "owner/name")
    except HFValidationError as error:
        wrong = str(error).removesuffix(".")
    if wrong:
        raise BadSpec(f"--push {name!r:.100} is not of the form owner/name: {wrong}.")
    if constants.HF_HUB_OFFLINE:
        raise CannotWrite("The hub is switched off by HF_HUB_OFFLINE. Unset it, or export without --push.")
    if not get_token():
        raise CannotWrite(
            "No token for the hub is known. Make one with write access at https://huggingface.co/settings/tokens, "
            "then `hf auth login`, or set HF_TOKEN."
        )


def push(folder: Path, name: str, private: bool) -> str:
    """Upload a folder to a repository, which is created if necessary; return its address.

    Raises:
        CannotWrite: the hub refuses or does not answer.
    """
    from huggingface_hub import HfApi, errors

    api = HfApi()
    try:
        place = api.create_repo(name, private=private, exist_ok=True)
        if private and not api.model_info(name).private:
            raise CannotWrite(f"{name} exists and is public. Make it private there first, or choose another name.")
        api.upload_folder(repo_id=name, folder_path=folder, commit_message="Adapter from LLM Adapters Lab")
    except CannotWrite:
        raise
    except (errors.HTTPError, OSError) as error:  # type: ignore[attr-defined]
        first = str(error).strip().partition("\n")[0]
        raise CannotWrite(f"{name} was not pushed: {first} The export in {folder} is complete.") from None
    return str(place)


def pull(name: str) -> Path:
    """Download a saved adapter, only its safetensors, JSON and README.md, and return its folder.

    Raises:
        LabError: the hub does not answer, or the repository has no adapter of the lab.
    """
    from huggingface_hub import errors, snapshot_download

    try:
        folder = Path(snapshot_download(name, allow_patterns=["*.safetensors", "*.json", "README.md"]))
    except (errors.HTTPError, errors.LocalEntryNotFoundError, OSError, ValueError) as error:  # type: ignore[attr-defined]
        first = str(error).strip().partition("\n")[0]
        raise LabError(f"The adapter {name} cannot be downloaded: {first}") from None
    if not (folder / "adapter.json").is_file():
        raise BadSpec(f"The repository {name} has no adapter.json, so it is no adapter of the lab.")
    return folder


def card_text(folder: Path) -> str:
    """Return the text of the README.md of a downloaded repository, without its header; empty if there is none."""
    if not (folder / "README.md").is_file():
        return ""
    text = (folder / "README.md").read_text(encoding="utf-8", errors="replace")
    return text.split("---", 2)[-1].strip() if text.startswith("---") else text.strip()


def find(text: str, most: int = 20) -> list[str]:
    """Return the names of repositories on the hub with adapters of the lab that match a text.

    Raises:
        LabError: the hub does not answer.
    """
    from huggingface_hub import HfApi, errors

    try:
        return [found.id for found in HfApi().list_models(search=text, filter=LIBRARY, limit=most)]
    except (errors.HTTPError, OSError) as error:  # type: ignore[attr-defined]
        raise LabError(f"The hub cannot be searched: {str(error).strip().partition(chr(10))[0]}") from None
