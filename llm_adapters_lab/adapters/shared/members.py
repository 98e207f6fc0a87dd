"""Members: adapters, trained before or along with it, that another adapter runs at its sites."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from pydantic import Field, SerializationInfo, SerializeAsAny, field_serializer, field_validator, model_validator
from torch import nn

from llm_adapters_lab.core import weights
from llm_adapters_lab.core.adapter import Adapter, Place, World
from llm_adapters_lab.core.adapter_config import AdapterConfig, ModelAdapterConfig
from llm_adapters_lab.core.anatomy import Anatomy
from llm_adapters_lab.core.injection import Injection
from llm_adapters_lab.core.registry import adapter_config, get_adapter
from llm_adapters_lab.core.saved_adapters import digest, read_saved, saved_config, saved_folder
from llm_adapters_lab.core.saving import check_base_of
from llm_adapters_lab.core.sites import Site
from llm_adapters_lab.errors import BadSpec, CannotInject


class MembersConfig(ModelAdapterConfig):
    """Fields of every adapter with members."""

    of: tuple[str | SerializeAsAny[AdapterConfig], ...] = Field(
        min_length=1, description="the members: runs or folders of saved adapters, or fields of new ones"
    )
    freeze: bool = Field(default=True, description="saved members stay as they are; otherwise they are trained too")
    digests: dict[str, str] = Field(default_factory=dict, description="of saved members, by name; filled in when built")

    @field_validator("of", mode="before")
    @classmethod
    def _parse(cls, value: Any) -> Any:
        if not isinstance(value, list | tuple):
            raise BadSpec("adapter.of must be a list of runs, folders or adapters, such as [runs/a, runs/b].")
        known = (str, AdapterConfig)
        parts = [p if isinstance(p, known) else adapter_config(p, f"adapter.of[{i}].") for i, p in enumerate(value)]
        return tuple(
            p if isinstance(p, str) else p.model_copy(update={"at": p.at or get_adapter(p.type).at}) for p in parts
        )

    @field_serializer("of")
    def _plain(self, of: tuple[str | AdapterConfig, ...], info: SerializationInfo) -> list[Any]:
        options: dict[str, Any] = {"mode": info.mode, "exclude_defaults": info.exclude_defaults}
        return [p if isinstance(p, str) else {"type": p.type} | p.model_dump(**options) for p in of]

    @model_validator(mode="after")
    def _members(self) -> MembersConfig:
        if named := [name for name in ("sparse", "split", "quantize") if getattr(self, name)]:
            raise BadSpec(f"adapter.{named[0]} is for the matrices of one method, not for members. Remove it.")
        for own in (own for own in self.of if not isinstance(own, str)):
            if own.type == self.type:
                raise BadSpec(f"adapter.of: a {self.type} cannot be a member of a {self.type}. Use its members.")
            if own.start and own.start not in self.digests:
                raise BadSpec("adapter.of: a new member has no start. Name the saved adapter itself: of: [RUN, …].")
        return self

    def keeps(self, member: str | AdapterConfig) -> bool:
        """Return whether a member stays as it is."""
        return self.freeze and (isinstance(member, str) or member.start in self.digests)

    @property
    def saved(self) -> tuple[str, ...]:
        """The names of saved adapters: the start, and the members."""
        return super().saved + tuple(p for p in self.of if isinstance(p, str))


def configs(config: MembersConfig) -> list[AdapterConfig]:
    """Return the configs of the members; those of saved ones are read."""
    return [p if isinstance(p, AdapterConfig) else saved_config(saved_folder(p))[0] for p in config.of]


class Members(Adapter):
    """An adapter that runs members at each of its sites.

    Attributes:
        anywhere: whether members may sit at different places; one that is not at a site leaves it as it is.
    """

    anywhere: ClassVar[bool] = False

    def __init__(self, config: Any, site: Site, base: nn.Module, members: Sequence[Adapter]) -> None:
        """Keep the members, in order."""
        super().__init__(config, site, base)
        self.members = nn.ModuleList(members)

    @classmethod
    def sites(cls, anatomy: Anatomy, model: nn.Module, at: str) -> tuple[Site, ...]:
        """Return no sites: they are those of the members."""
        return ()

    @classmethod
    def sites_of(cls, config: MembersConfig, anatomy: Anatomy, model: nn.Module) -> tuple[Site, ...]:
        """Return the sites of the members.

        Raises:
            CannotInject: they sit at different places, or a member does more than change single outputs.
        """
        found: dict[str, Site] = {}
        for own in configs(config):
            of = get_adapter(own.type).cls
            modified = own.sparse or own.split or own.quantize or own.parts != (own,)
            if of.scope == "model" or of.trains_base or of.needs_context or of.looks_back or of.for_tokens or modified:
                raise CannotInject(
                    f"{own.type!r} cannot be a member: it is masked, split, quantised, of several parts, or does more "
                    "than change single outputs. Name adapters such as low-rank ones and bottlenecks."
                )
            sites = {site.key: site for site in of.sites_of(own, anatomy, model)}
            if found and not cls.anywhere and found.keys() != sites.keys():
                raise CannotInject(f"The members sit at different places, such as {own.at!r}: place all at the same.")
            found |= {key: site for key, site in sites.items() if key not in found}
        first: dict[str, str] = {}
        for key, site in found.items() if cls.anywhere else ():
            if (other := first.setdefault(site.path, key)) != key:
                raise CannotInject(f"The members sit at one module in two ways, {other} and {key}. Choose one of them.")
        return tuple(found.values())

    @classmethod
    def completed(cls, config: MembersConfig) -> MembersConfig:
        """Return the config with the configs and digests of saved members, whose names are their `start`."""
        pairs = zip(config.of, configs(config), strict=True)
        of = tuple(own.model_copy(update={"start": p}) if isinstance(p, str) else own for p, own in pairs)
        found = {p: digest(saved_folder(p)) for p in config.of if isinstance(p, str)}
        return config.model_copy(update={"of": of, "digests": config.digests | found})

    @classmethod
    def build(cls, config: MembersConfig, places: Mapping[str, Place], world: World) -> dict[str, Adapter]:
        """Return an adapter for each site, with its members loaded.

        Raises:
            WrongBase: a member was trained on another base.
            StateMismatch: its tensors do not fit.
        """
        plain = {key.removeprefix(place.site.part): place for key, place in places.items()}
        members: list[dict[str, Adapter]] = []
        for member, own in zip(config.of, configs(config), strict=True):
            of = get_adapter(own.type).cls
            keys = {site.key for site in of.sites_of(own, world.anatomy, world.model)}
            there = {key: place for key, place in plain.items() if key in keys}
            injection = Injection(world.model, world.anatomy, own, "member")
            injection.adapters = of.build(own, there, world)
            injection.sites = {key: place.site for key, place in there.items()}
            _load(injection, config, world)
            for adapter in injection.adapters.values() if config.keeps(member) else ():
                adapter.requires_grad_(False)
            members.append(injection.adapters)
        found: dict[str, Adapter] = {}
        for key, place in places.items():
            with torch.device(weights.device(place.host)):
                here = [own.get(key.removeprefix(place.site.part), _Absent()) for own in members]
                found[key] = cls(config, place.site, place.host, here)
        return found

    @classmethod
    def parameter_count(cls, config: MembersConfig, sites: Sequence[Site], world: World) -> int:
        """Return the numbers of the sites, and of the members if they are trained."""
        count = super().parameter_count(config, sites, world)
        for member, own in zip(config.of, configs(config), strict=True):
            of = get_adapter(own.type).cls
            keys = {site.key for site in of.sites_of(own, world.anatomy, world.model)}
            there = [site for site in sites if site.key.removeprefix(site.part) in keys]
            count += 0 if config.keeps(member) else of.parameter_count(own, there, world)
        return count

    def changes(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Return z_i = a_i(x, y) - y of all N members, (..., N, d_out)."""
        return torch.stack([member(x, y) - y for member in self.members], -2)


class _Absent(Adapter):
    """Stands for a member at a site where it is not."""

    def __init__(self) -> None:
        nn.Module.__init__(self)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Return y."""
        return y


def _load(injection: Injection, config: MembersConfig, world: World) -> None:
    """Load the tensors of a saved member; one that has changed or gone since the adapter was saved is in its file."""
    name, first = injection.config.start, next(world.model.parameters())
    if not isinstance(name, str) or not name or type(first) not in (torch.Tensor, nn.Parameter):
        return
    try:
        folder = saved_folder(name)
    except BadSpec:
        return
    if digest(folder) == config.digests.get(name):
        saved = read_saved(folder)
        check_base_of(saved, world.model, world.tokenizer)
        injection.load_saved(saved.tensors)
