"""Presets: the fields of an adapter, or a whole spec, under a name, in YAML files to read, copy and change.

`preset_files/adapters/<name>.yaml` stands for its fields wherever a spec names the type of an adapter, and
`preset_files/specs/<name>.yaml` for a spec file wherever one is read. To add a preset, add a file.
The first line of each is a comment: the idea and, after "Source:", where it comes from.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from llm_adapters_lab.config import LARGEST, read_yaml
from llm_adapters_lab.core.registry import all_adapters
from llm_adapters_lab.errors import BadSpec, choices

FOLDER = Path(__file__).parent / "preset_files"


@dataclass(frozen=True)
class Preset:
    """One preset file.

    Attributes:
        name: path relative to its folder, without the suffix.
        idea: one line on what it is.
        source: where it comes from.
        text: the file with its comments.
    """

    name: str
    idea: str
    source: str
    text: str

    @cached_property
    def fields(self) -> dict[str, Any]:
        """The content of the file."""
        found: dict[str, Any] = read_yaml(self.text)
        return found


@cache
def adapter_presets() -> dict[str, Preset]:
    """Return the adapter presets by name."""
    return _read(FOLDER / "adapters")


@cache
def spec_presets() -> dict[str, Preset]:
    """Return the spec presets by name."""
    return _read(FOLDER / "specs")


def expand(fields: dict[str, Any]) -> dict[str, Any]:
    """Return an adapter's fields with presets in `type`, its own or a part's, expanded; given fields take precedence.

    Raises:
        BadSpec: there is no adapter or preset of that name; the message lists the nearest ones.
    """
    name, adapters, presets = str(fields["type"]), all_adapters(), adapter_presets()
    if name in adapters:
        return fields | ({"of": [_part(part) for part in of]} if isinstance(of := fields.get("of"), list) else {})
    if name not in presets:
        raise BadSpec(f"There is no adapter {name!r}. {choices(name, [*adapters, *presets])}")
    return presets[name].fields | fields | {"type": presets[name].fields["type"]}


def _part(part: Any) -> Any:
    """Return a part of an adapter with presets expanded; what is no adapter is left for its own config to judge."""
    fields = {"type": part} if isinstance(part, str) and part in adapter_presets() else part
    return expand(fields) if isinstance(fields, dict) and fields.get("type") in adapter_presets() else part


def get_spec_preset(name: str) -> Preset:
    """Return a spec preset by name.

    Raises:
        BadSpec: there is none; the message lists the nearest names.
    """
    known = spec_presets()
    if name not in known:
        raise BadSpec(f"There is no spec preset {name!r}. {choices(name, known)}")
    return known[name]


def is_spec(name: str) -> bool:
    """Return whether a name refers to a spec file or a spec preset, rather than to a run."""
    return Path(name).suffix in (".yaml", ".yml", ".json") or name in spec_presets()


def read_spec(path: str | Path) -> dict[str, Any]:
    """Return the fields in a spec file or, if there is no such file, in the spec preset of that name.

    Raises:
        BadSpec: there is neither, or the file cannot be read or does not hold keys and values.
    """
    try:
        with Path(path).open("rb") as file:
            content = file.read(4 * LARGEST + 1)
    except (FileNotFoundError, NotADirectoryError):
        name, known = Path(path).as_posix(), spec_presets()
        if name in known:
            return known[name].fields
        # A path with the suffix of a spec file was meant as one.
        named = not is_spec(str(path))
        hint = f" There is no preset of that name either. {choices(name, known)}" if named else ""
        raise BadSpec(f"There is no spec file {path}.{hint}") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "a file cannot have that name"
        raise BadSpec(f"The spec file {str(path)!r:.300} cannot be read: {reason}.") from None
    return fields_in(content, path)


def fields_in(content: bytes, path: str | Path) -> dict[str, Any]:
    """Return the fields in the content of a spec file, YAML or JSON; `path` is named in error messages.

    Raises:
        BadSpec: it cannot be read, or does not hold keys and values.
    """
    try:
        fields = read_yaml(content.decode())
    except ValueError as error:
        reason = "it is not text in UTF-8" if isinstance(error, UnicodeDecodeError) else error
        raise BadSpec(f"The spec file {str(path)!r:.300} cannot be read: {reason}.") from None
    if not isinstance(fields, dict):
        raise BadSpec(f"The spec file {path} must hold keys and values, such as `base: nano`.")
    return fields


def _read(folder: Path) -> dict[str, Preset]:
    found = {}
    for path in sorted(folder.rglob("*.yaml"), key=lambda path: path.with_suffix("")):
        text = path.read_text(encoding="utf-8")
        idea, _, source = text.partition("\n")[0].removeprefix("#").strip().partition(" Source: ")
        name = path.relative_to(folder).with_suffix("").as_posix()
        found[name] = Preset(name, idea, source, text)
    return found
