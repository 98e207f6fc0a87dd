"""A shelf: a folder of saved adapters with cards, to list, search, load and name in specs.

<folder>/shelf.json       the cards, by name
         NAME/adapter/    a saved adapter, as `save_adapter` writes it

shelf = Shelf("~/adapters")
shelf.add("runs/nano-lora-1", "sums")        # a run, a folder, or owner/name on the hub
shelf.search("two steps")                    # cards, the most similar first
shelf.load(model, "sums")
RunSpec.parse({"adapter": {"type": "lora", "start": "~/adapters/sums"}})

What a card says comes from whoever wrote it: it is text, never markup or a path. An adapter whose files are not those
that were added is refused. Source of the idea: AdapterHub, Pfeiffer et al. 2020, arXiv:2007.07779.
"""

from __future__ import annotations

import math
import os
import re
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator
from torch import nn

from llm_adapters_lab.config import Part, parse
from llm_adapters_lab.core.composition import mix, stack
from llm_adapters_lab.core.fingerprint import check_fingerprint
from llm_adapters_lab.core.injection import Injection, injections
from llm_adapters_lab.core.saved_adapters import FILES, SHELF, digest, read_saved, saved_folder
from llm_adapters_lab.core.saving import load_adapter
from llm_adapters_lab.errors import BadSpec, WrongBase, choices
from llm_adapters_lab.files import read_json, write_json, writing
from llm_adapters_lab.results import hub
from llm_adapters_lab.results.picking import QUESTIONS, training_questions
from llm_adapters_lab.runs.record import Run

NAME = r"[a-z0-9][a-z0-9_-]{0,63}"


class Card(Part):
    """What a shelf knows of an adapter.

    Attributes:
        name: on the shelf.
        digest: of its files.
        base: name of the base.
        type: of the adapter.
        task: that it was trained on; empty if unknown.
        description: free text.
        questions: some of its training questions, for `Picker`.
        scores: accuracy (0 to 1) and number of rows by task.
        licence: of the adapter; empty if unknown.
        origin: run, folder or repository that it came from.
    """

    name: str = Field(pattern=f"^{NAME}$")
    digest: str = Field(pattern="^[0-9a-f]{64}$")
    base: str = Field(default="", max_length=500)
    type: str = Field(default="", max_length=64)
    task: str = Field(default="", max_length=500)
    description: str = Field(default="", max_length=4000)
    questions: tuple[str, ...] = Field(default=(), max_length=QUESTIONS)
    scores: dict[str, tuple[float, int]] = Field(default_factory=dict)
    licence: str = Field(default="", max_length=200)
    origin: str = Field(default="", max_length=500)

    @field_validator("base", "type", "task", "description", "licence", "origin", mode="after")
    @classmethod
    def _plain(cls, text: str) -> str:
        return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", "", text)

    @property
    def texts(self) -> tuple[str, str]:
        """What a search finds it by: name, task, method and description; and the training questions."""
        return " ".join((self.name, self.task, self.type, self.description)), " ".join(self.questions)


class Shelf:
    """The adapters of a folder.

    Args:
        root: the folder; created with the first adapter.

    Raises:
        BadSpec: its shelf.json is damaged.
    """

    def __init__(self, root: str | Path) -> None:
        """Read the cards."""
        self.root = Path(os.path.expanduser(root))
        self._file = self.root / SHELF
        self.cards: dict[str, Card] = self._read() if self._file.is_file() else {}

    def add(self, source: str | Path, name: str = "", *, description: str = "", licence: str = "") -> Card:
        """Copy a saved adapter onto the shelf; one of the same name is replaced.

        Args:
            source: a run or the beginning of its id, a folder, or owner/name of a repository on the hub.
            name: lowercase letters, digits, - and _; by default, the name of the source.
            description: what it is for.
            licence: of the adapter.

        Raises:
            BadSpec: there is no adapter, or it is in the format of peft; or the name is not allowed, or belongs to a
                folder that is not on the shelf.
            LabError: the hub does not answer.
        """
        source, described = str(source), ""
        try:
            folder = saved_folder(source)
        except BadSpec:
            if not re.fullmatch(r"[\w.-]+/[\w.-]+", source) or Path(source).exists():
                raise
            folder = hub.pull(source)
            described = hub.card_text(folder)
        run = Run(folder.parent) if (folder.parent / "spec.json").is_file() else None
        name = name or re.sub(r"[^a-z0-9_-]+", "-", (run.id if run else Path(source).name).lower()).strip("-_")[:64]
        saved = read_saved(folder)  # refused here if it cannot be loaded later
        known: dict[str, Any] = {"task": "", "questions": (), "scores": {}}
        if run:
            known["task"], scores = run.spec.data.task, run.summary.get("scores", {})
            known["scores"] = {task: (score["accuracy"], score["total"]) for task, score in scores.items()}
            known["questions"] = training_questions(run)
        fields = {"name": name, "digest": digest(folder), "base": str(saved.meta.get("base", ""))} | known
        fields |= {"type": saved.config.type, "licence": licence, "origin": run.id if run else source}
        card = parse(Card, fields | {"description": description or described[:4000]}, "card.")
        place = self.root / card.name / "adapter"
        if place.parent.exists() and card.name not in self.cards:
            raise BadSpec(f"{place.parent} exists, and is not on the shelf. Choose another name, or another shelf.")
        if place.resolve() != folder.resolve():
            with writing(place):
                shutil.rmtree(place, ignore_errors=True)
                place.mkdir(parents=True, exist_ok=True)
                for file in FILES:
                    if (folder / file).is_file():
                        shutil.copyfile(folder / file, place / file)
        self.cards[card.name] = card
        self._write()
        return card

    def remove(self, name: str) -> None:
        """Delete an adapter from the shelf.

        Raises:
            BadSpec: there is none of that name.
        """
        self.card(name)
        place = self.root / name / "adapter"
        with writing(self.root):
            for file in FILES:  # whatever else is there is not the shelf's
                (place / file).unlink(missing_ok=True)
            for folder in (place, place.parent):
                if folder.is_dir() and not any(folder.iterdir()):
                    folder.rmdir()
        del self.cards[name]
        self._write()

    def card(self, name: str) -> Card:
        """Return the card of a name.

        Raises:
            BadSpec: there is none.
        """
        if name not in self.cards:
            raise BadSpec(f"There is no adapter {name!r:.100} on the shelf {self.root}. {choices(name, self.cards)}")
        return self.cards[name]

    def select(self, base: str | nn.Module | None = None) -> list[Card]:
        """Return the cards by name.

        Args:
            base: only adapters of a base of that name, or, for a model, those whose fingerprint fits it.
        """
        found = [self.cards[name] for name in sorted(self.cards)]
        if base is None:
            return found
        if isinstance(base, str):
            return [card for card in found if card.base == base]
        return [card for card in found if self._fits(card, base)]

    def search(self, text: str, base: str | nn.Module | None = None) -> list[tuple[Card, float]]:
        """Return the cards that share words with a text, the most similar first, with the similarity from 0 to 1.

        The similarity is the cosine of the counts of words, each times log((1 + cards) / (1 + cards with the word)) + 1
        (TF-IDF), with the description of a card or with its questions, whichever is higher.
        """
        found = self.select(base)
        described, asked = (similarities(text, [card.texts[i] for card in found]) for i in (0, 1))
        ranked = list(zip(found, map(max, described, asked), strict=True))
        return sorted(((card, near) for card, near in ranked if near > 0), key=lambda pair: -pair[1])

    def folder(self, name: str) -> Path:
        """Return the folder of an adapter, for `start`, `of` and `blend`.

        Raises:
            BadSpec: there is none, or its files have changed since it was added.
        """
        self.card(name)
        return saved_folder(str(self.root / name))

    def load(self, model: nn.Module, name: str, tokenizer: Any = None) -> Injection:
        """Put an adapter into a model, under its name with _ for -.

        Raises:
            LabError: as `folder` and `load_adapter`.
        """
        return load_adapter(model, self.folder(name), name=adapter_name(name), tokenizer=tokenizer)

    def questions(self, base: str | nn.Module | None = None) -> dict[str, tuple[str, ...]]:
        """Return the training questions on the cards by name, for `Picker`; `base` as in `select`."""
        return {card.name: card.questions for card in self.select(base) if card.questions}

    def use(self, model: nn.Module, shares: Mapping[str, float], tokenizer: Any = None) -> None:
        """Mix adapters in a model, and load those that are not in it yet; without any, the bare base answers.

        Args:
            model: their base.
            shares: weights by name, as `Picker.pick` returns them.
            tokenizer: of the base.

        Raises:
            LabError: as `load`.
        """
        for name in shares:
            if adapter_name(name) not in injections(model):
                self.load(model, name, tokenizer)
        if shares:
            mix(model, {adapter_name(name): share for name, share in shares.items()})
        else:
            stack(model)

    def _fits(self, card: Card, model: nn.Module) -> bool:
        folder = self.folder(card.name)
        try:
            check_fingerprint(read_json(folder / "base.json"), model, folder)
        except (WrongBase, BadSpec, OSError):
            return False
        return True

    def _read(self) -> dict[str, Card]:
        found = read_json(self._file).get("cards")
        if not isinstance(found, list):
            raise BadSpec(f"{self._file} has no list of cards. Restore it, or add the adapters to a new shelf.")
        cards = [parse(Card, fields, f"{self._file}: cards[{i}].") for i, fields in enumerate(found)]
        if len({card.name for card in cards}) < len(cards):
            raise BadSpec(f"{self._file} has two cards of one name. Remove one of them.")
        return {card.name: card for card in cards}

    def _write(self) -> None:
        with writing(self._file):
            write_json(self._file, {"cards": [card.model_dump(mode="json") for _, card in sorted(self.cards.items())]})


def adapter_name(name: str) -> str:
    """Return the name that an adapter of the shelf has in a model."""
    plain = name.replace("-", "_")
    return plain if plain.isidentifier() else f"a_{plain}"


def similarities(text: str, documents: Sequence[str]) -> list[float]:
    """Return the cosine similarity of a text to each document by TF-IDF."""
    holding = Counter(word for document in documents for word in {*_words(document)})

    def vector(text: str) -> dict[str, float]:
        counts = Counter(_words(text))
        found = {w: n * (1 + math.log((1 + len(documents)) / (1 + holding[w]))) for w, n in counts.items()}
        length = math.sqrt(sum(value * value for value in found.values())) or 1.0
        return {word: value / length for word, value in found.items()}

    asked = vector(text)
    vectors = [vector(document) for document in documents]
    return [sum(weight * other.get(word, 0.0) for word, weight in asked.items()) for other in vectors]


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.casefold())
