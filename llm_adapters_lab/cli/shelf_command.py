"""The command for a shelf of saved adapters: shelf."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from llm_adapters_lab.cli.arguments import Root
from llm_adapters_lab.cli.console import Output, say, show_rows, with_json
from llm_adapters_lab.errors import BadSpec

if TYPE_CHECKING:
    from llm_adapters_lab.results.shelf import Card, Shelf

Action = Literal["list", "add", "remove", "search", "pick", "show"]
WANTED = {"add": "SOURCE: a run, a folder, or owner/name on the hub", "remove": "NAME", "show": "NAME"}
WANTED |= {"search": "TEXT", "pick": "PROMPT"}


@with_json
def shelf(
    action: Annotated[Action, typer.Argument(help="What to do.")] = "list",
    what: Annotated[str, typer.Argument(help="Source, name, text or prompt.")] = "",
    place: Annotated[Path, typer.Option("--shelf", metavar="FOLDER", help="The shelf.")] = Path("shelf"),
    name: Annotated[str, typer.Option("--as", metavar="NAME", help="With add: its name on the shelf.")] = "",
    about: Annotated[str, typer.Option(metavar="TEXT", help="With add: what it is for.")] = "",
    licence: Annotated[str, typer.Option(metavar="NAME", help="With add: its licence.")] = "",
    base: Annotated[str, typer.Option(metavar="MODEL", help="Only adapters of this base.")] = "",
    hub: Annotated[bool, typer.Option("--hub", help="With search: look on the Hugging Face hub instead.")] = False,
    root: Root = Path("runs"),
) -> Output:
    """Keep saved adapters in a folder: list, add, remove, search, show a card, or pick some for a prompt.

    pick chooses by what the adapters were trained on, and prints their weights in a mix.
    """
    if (action in WANTED) != bool(what):
        raise BadSpec(f"shelf {action} " + (f"needs {WANTED[action]}." if action in WANTED else "takes no argument."))
    if action != "add" and (given := [o for o, v in (("--as", name), ("--about", about), ("--licence", licence)) if v]):
        raise BadSpec(f"{given[0]} is for shelf add. Remove it.")
    if hub and action != "search":
        raise BadSpec("--hub is for shelf search. Remove it.")
    if hub:
        from llm_adapters_lab.results.hub import find

        names = find(what)
        return Output(names, lambda: say("\n".join(names) or "The hub has no adapter of the lab that matches."))
    from llm_adapters_lab.core.saved_adapters import looking_in
    from llm_adapters_lab.results.shelf import Shelf

    kept = Shelf(place)
    if action == "add":
        with looking_in(root):
            card = kept.add(what, name, description=about, licence=licence)
        return Output(card.model_dump(mode="json"), lambda: say(f"{card.name}: {kept.root / card.name}"))
    if action == "remove":
        kept.remove(what)
        return Output({"removed": what}, lambda: say(f"{what} is removed."))
    if action == "show":
        card = kept.card(what)
        return Output(card.model_dump(mode="json"), lambda: _show(card))
    if action == "pick":
        return _pick(kept, what, base)
    ranked = (
        kept.search(what, base or None) if action == "search" else [(card, None) for card in kept.select(base or None)]
    )
    rows = [_row(card) | ({} if near is None else {"similarity": round(near, 3)}) for card, near in ranked]
    return Output(rows, lambda: show_rows(rows) if rows else say(f"No adapter on {kept.root} is found."))


def _row(card: Card) -> dict[str, Any]:
    scores = ", ".join(f"{task} {100 * accuracy:.1f} %" for task, (accuracy, _) in card.scores.items())
    fields = {"name": card.name, "type": card.type, "base": card.base, "task": card.task, "accuracy": scores}
    return fields | {"about": card.description.partition("\n")[0][:80]}


def _show(card: Card) -> None:
    for key, value in (_row(card) | {"licence": card.licence, "origin": card.origin, "digest": card.digest}).items():
        if value:
            say(f"{key}: {value}")
    for question in card.questions[:3]:
        say(f"trained on: {question:.200}")


def _pick(kept: Shelf, prompt: str, base: str) -> Output:
    names = {card.base for card in kept.select() if card.questions}
    if not base and len(names) != 1:
        raise BadSpec(f"The adapters on {kept.root} are of {len(names)} bases. Choose one with --base.")
    from llm_adapters_lab.models import load_base
    from llm_adapters_lab.results.picking import Picker

    loaded = load_base(base or min(names))
    chosen = Picker(kept.questions(base or None), loaded.model, loaded.tokenizer).pick(prompt)

    def show() -> None:
        for name, share in chosen.items():
            say(f"{share:.2f} {name}")
        if not chosen:
            say("No adapter is near enough: use the bare base.")

    return Output(chosen, show)
