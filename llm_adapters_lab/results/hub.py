"""Hub: put an exported folder into a repository of the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from llm_adapters_lab.errors import BadSpec, CannotPush


def check_push(name: str) -> None:
    """Find what would keep an adapter from the hub, before it is exported.

    Args:
        name: of the repository, as owner/name.

    Raises:
        BadSpec: it has another form.
        CannotPush: no token is known, or the hub is switched off.
    """
    from huggingface_hub import constants, get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(name)
        wrong = "" if name.count("/") == 1 else "the owner is missing"
    except HFValidationError as error:
        wrong = str(error)
    if wrong:
        raise BadSpec(f"--push {name!r:.100} is no name of the form owner/name: {wrong}.")
    if constants.HF_HUB_OFFLINE:
        raise CannotPush("The hub is switched off by HF_HUB_OFFLINE. Unset it, or export without --push.")
    if not get_token():
        raise CannotPush(
            "No token of the hub is known, and without one nothing can be written there. Make one with write access at "
            "https://huggingface.co/settings/tokens, then `hf auth login`, or set HF_TOKEN."
        )


def push(folder: Path, name: str, private: bool) -> str:
    """Upload a folder into a repository, which is made if need be; returns its address.

    Raises:
        CannotPush: the hub refuses, or does not answer.
    """
    from huggingface_hub import HfApi, errors

    api = HfApi()
    try:
        place = api.create_repo(name, private=private, exist_ok=True)
        if private and not api.model_info(name).private:
            raise CannotPush(f"{name} exists and is public. Make it private there first, or choose another name.")
        api.upload_folder(repo_id=name, folder_path=folder, commit_message="Adapter from LLM Adapters Lab")
    except (errors.HTTPError, OSError) as error:  # type: ignore[attr-defined]
        first = str(error).strip().partition("\n")[0]
        raise CannotPush(f"{name} was not pushed: {first} The export itself is whole, in {folder}.") from None
    return str(place)
