"""What an adapter with a part for each group has learnt: which skills a group takes, and which groups are alike.

weights = group_weights(injection)                  # of an inventory of skills, by site: (groups, skills)
for table, found in group_embeddings(injection).items():
    found.names, found.cosine(), found.plane()      # how alike the groups are, and where they are on a map
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn.functional import normalize

from llm_adapters_lab.core.injection import Injection
from llm_adapters_lab.errors import NoView

ALL_ROWS = "all rows"
"""Name of the only part of an adapter that was trained without groups."""


@torch.no_grad()
def group_weights(injection: Injection, block: int | None = None) -> dict[str, torch.Tensor]:
    """Return how much of each skill of an inventory the groups take, by site key: (groups, skills), each row sums to 1.

    The skills of a site are its own: skill 1 of one layer has nothing to do with skill 1 of another.

    Args:
        injection: of an adapter with an inventory of skills.
        block: number of a block of the site, each of which has its own weights; default: their mean over all blocks.

    Raises:
        NoView: the adapter has no inventory of skills, or no such block.
    """
    count = group_blocks(injection)
    if block is not None and not 0 <= block < count:
        raise NoView(f"The adapter has {count} {'block' if count == 1 else 'blocks'}, numbered from 0, and no {block}.")
    found = {key: own.mean(1) if block is None else own[:, block] for key, own in _shares(injection).items()}
    return {key: own.float().cpu() for key, own in found.items()}


@torch.no_grad()
def group_blocks(injection: Injection) -> int:
    """Return the number of blocks that each site has weights for, see `group_weights`.

    Raises:
        NoView: the adapter has no inventory of skills.
    """
    return max(own.shape[1] for own in _shares(injection).values())


def group_names(injection: Injection) -> list[str]:
    """Return the names of the groups that an adapter has a part for; a single one if it was trained without groups."""
    return [*next((adapter.groups for adapter in injection.adapters.values() if adapter.groups), (ALL_ROWS,))]


def _shares(injection: Injection) -> dict[str, torch.Tensor]:
    """Return the weights by site key: (groups, blocks, skills)."""
    adapters = injection.adapters.items()
    found = {key: adapter.skill_weights() for key, adapter in adapters if adapter.skill_weights is not None}
    if not found:
        raise NoView(f"{injection.config.type!r} has no inventory of skills from which groups could take.")
    return found


@dataclass(frozen=True)
class GroupEmbeddings:
    """What each group has of its own, as a vector.

    Attributes:
        names: of the groups, or of a part of their names, such as "de" of "de-en".
        vectors: (groups, n).
    """

    names: tuple[str, ...]
    vectors: torch.Tensor

    def cosine(self) -> torch.Tensor:
        """Return the cosine of the angle between any two vectors, (groups, groups), -1 to 1; 0 beside a zero vector."""
        unit = normalize(self.vectors.double(), dim=1)
        return (unit @ unit.T).float()

    def plane(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the vectors in the plane in which they differ most: the first two principal components.

        Returns:
            Coordinates, (groups, 2), with a mean of 0, of which the largest of each axis is positive; and the share of
            the variance along each axis, (2,).
        """
        centred = self.vectors.double() - self.vectors.double().mean(0)
        u, s, _ = torch.linalg.svd(centred, full_matrices=False)
        u, s = (torch.nn.functional.pad(z, (0, max(0, 2 - len(s))))[..., :2] for z in (u, s))
        at = u * s
        at = at * at.gather(0, at.abs().argmax(0, keepdim=True)).sign()
        return at.float(), (s.square() / centred.square().sum().clamp(min=1e-30)).float()


@torch.no_grad()
def group_embeddings(injection: Injection) -> dict[str, GroupEmbeddings]:
    """Return what each group has of its own, by the name of the table: an embedding, or its rows of a router.

    Rows that a group has at several sites are joined to one vector.

    Raises:
        NoView: the adapter has no part for each group, or not for two of them.
    """
    names: dict[str, tuple[str, ...]] = {}
    rows: dict[str, dict[torch.Tensor, None]] = {}
    for key, adapter in injection.adapters.items():
        part = injection.sites[key].part if key in injection.sites else ""
        for name, own in adapter.by_group(injection.config_of(key)).items():
            table = part + name.rpartition(".")[2]
            names[table] = own
            rows.setdefault(table, {})[adapter.get_parameter(name)] = None  # one that sites share counts once
    if not names:
        raise NoView(f"{injection.config.type!r} has no part for each group of rows.")
    found = {
        table: GroupEmbeddings(own, torch.cat([each.float().flatten(1).cpu() for each in rows[table]], 1))
        for table, own in names.items()
        if len(own) > 1
    }
    if not found:
        raise NoView(
            f"{injection.config.type!r} was trained with a single group or none, so there is nothing to compare. "
            "Set data.group, so that rows of several groups have parts of their own."
        )
    return found
