"""Upload an exported adapter to a repository of the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from llm_adapters_lab.errors import BadSpec, CannotWrite


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
