"""The structure of the code, counted from its imports: rooms, arrows between them, circles, lines, hubs.

    python tests/helpers/house.py [FOLDER]      # a checkout; default: this one

A room is a folder or a file that lies directly in `llm_adapters_lab`. An arrow goes from a room to each other room that
it imports, wherever in a file the import stands. It points up if the imported file imports the importing one in turn,
by whatever way. A circle is a set of files each of which reaches every other.
"""

from __future__ import annotations

import ast
import sys
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

LAB = "llm_adapters_lab"
Graph = dict[str, set[str]]


def files(root: Path, package: str = LAB) -> list[Path]:
    return sorted((root / package).rglob("*.py"))


def module(root: Path, path: Path) -> str:
    return ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


def imported(tree: ast.AST, known: set[str]) -> Iterator[str]:
    """Yield the modules of the project that a file imports, also inside functions and for type checking."""
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            while name and name not in known:
                name = name.rpartition(".")[0]
            if name:
                yield name


def graph(root: Path, package: str = LAB) -> Graph:
    """Return what each module of a package imports of the others."""
    known = {module(root, path): path for path in files(root, package)}
    return {
        name: set(imported(ast.parse(path.read_text(encoding="utf-8")), set(known))) - {name}
        for name, path in known.items()
    }


def room(name: str) -> str:
    parts = name.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def circles(arrows: Graph) -> list[list[str]]:
    """Return the sets of nodes that reach each other."""

    @cache
    def reached(start: str) -> frozenset[str]:
        seen: set[str] = set()
        todo = [start]
        while todo:
            for name in arrows[todo.pop()] - seen:
                seen.add(name)
                todo.append(name)
        return frozenset(seen)

    groups: dict[frozenset[str], list[str]] = defaultdict(list)
    for name in arrows:
        mutual = frozenset(other for other in reached(name) | {name} if name in reached(other) or other == name)
        groups[mutual].append(name)
    return sorted(sorted(group) for mutual, group in groups.items() if len(mutual) > 1)


def upward(arrows: Graph) -> list[tuple[str, str]]:
    """Return the imports that close a circle, fewest first: within each, those against the majority's direction."""
    found = []
    for circle in circles(arrows):
        inside = {name: arrows[name] & set(circle) for name in circle}
        while left := circles(inside):
            # Cut the import whose loss leaves the fewest files in circles.
            edges = [(a, b) for group in left for a in group for b in inside[a] if b in group]

            def remaining(edge: tuple[str, str], inside: Graph = inside) -> tuple[int, tuple[str, str]]:
                cut = {name: others - {edge[1]} if name == edge[0] else others for name, others in inside.items()}
                return sum(map(len, circles(cut))), edge

            source, target = min(edges, key=remaining)
            inside[source] = inside[source] - {target}
            found.append((source, target))
    return found


def between_rooms(arrows: Graph) -> Graph:
    found: Graph = defaultdict(set)
    for name, others in arrows.items():
        found[room(name)] |= {room(other) for other in others} - {room(name)}
    return dict(found)


def floors(arrows: Graph) -> int:
    """Return the length of the longest chain of imports, circles counted as one."""
    cut = {name: set(others) for name, others in arrows.items()}
    for source, target in upward(arrows):
        cut[source].discard(target)

    @cache
    def depth(name: str) -> int:
        return 1 + max((depth(other) for other in cut[name]), default=0)

    return max(map(depth, cut))


def lines(root: Path, package: str = LAB) -> dict[str, int]:
    found: dict[str, int] = defaultdict(int)
    for path in files(root, package):
        found[room(module(root, path))] += len(path.read_text(encoding="utf-8").splitlines())
    return dict(found)


def main() -> None:
    root = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parents[2]).resolve()
    arrows, size = graph(root), lines(root)
    rooms = between_rooms(arrows)
    print(f"files {len(arrows)}, rooms {len(rooms)}, floors {floors(rooms)} (of files {floors(arrows)})")
    print(f"arrows between rooms {sum(map(len, rooms.values()))}, between files {sum(map(len, arrows.values()))}")
    print(f"arrows upward: between rooms {len(upward(rooms))}, between files {len(upward(arrows))}")
    for source, target in upward(arrows):
        print(f"    {source} -> {target}")
    print(f"circles of files {len(circles(arrows))}: {[len(c) for c in circles(arrows)]}")
    print(
        f"lines {sum(size.values()):,}: " + ", ".join(f"{k} {v}" for k, v in sorted(size.items(), key=lambda x: -x[1]))
    )
    hubs = sorted(arrows, key=lambda name: -len(arrows[name]))[:10]
    print("imports of the largest hubs: " + ", ".join(f"{h.removeprefix(LAB + '.')} {len(arrows[h])}" for h in hubs))


if __name__ == "__main__":
    main()
