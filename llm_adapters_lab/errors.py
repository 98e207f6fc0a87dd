"""Every error the lab raises on purpose.

Each message says what is wrong, what was given and what to do. The command line prints it and exits with code 2;
a panel shows it as it stands.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class LabError(Exception):
    """What all deliberate errors of the lab have in common."""


class BadSpec(LabError, ValueError):
    """A spec names an unknown key, adapter, task or value, or a value out of its range."""


class UnknownAnatomy(LabError):
    """The model is not a decoder whose layers and projections can be told apart."""


class RoutedExperts(UnknownAnatomy):
    """The model routes tokens to experts; the named modules cannot be adapted."""


class EmptyPlacement(LabError, ValueError):
    """A placement matches no site of the model."""


class CannotInject(LabError):
    """The model is in a state in which an adapter would be silently ignored or wrong."""


class CannotMerge(LabError):
    """The adapter has no merged weight, or the base cannot hold one."""


class StateMismatch(LabError, ValueError):
    """Saved adapter tensors do not fit the adapter they are loaded into."""


class WrongBase(LabError, ValueError):
    """A saved adapter was trained on another base model."""


class CannotExport(LabError):
    """The other format has no place for what the adapter does."""


class CannotPush(LabError):
    """The hub cannot be written to."""


class CannotImport(LabError):
    """A saved adapter of another library has a feature that has no counterpart here."""


class NoView(LabError):
    """A view has no meaning for this method, or for what was recorded of it."""


class CannotRecord(LabError):
    """What was asked of a recorder does not exist in this model, or was not recorded."""


class ModelUnavailable(LabError):
    """A base model could not be found or fetched."""


class DataUnavailable(LabError):
    """A data file is missing."""


class BadRow(LabError, ValueError):
    """A data row lacks a field or holds a value that the task does not know."""


class NotEnoughMemory(LabError):
    """A run needs more memory than the machine has; nothing was loaded."""


class TrainingFailed(LabError):
    """Training could not go on, for instance because the loss stopped being finite."""


class ProcessLost(LabError):
    """One of the processes that do a run together has ended, and the others cannot go on without it."""


class CannotWrite(LabError, OSError):
    """The folder of a run cannot be written to."""


class NodesDiffer(LabError):
    """Machines that are to work together have other versions, or other weights under one name."""


class Unreachable(LabError):
    """Another machine, or the storage that all share, does not answer."""


def choices(given: str, known: Iterable[str]) -> str:
    """Return a sentence that offers the nearest known names, or all of them.

    Args:
        given: the name that was not found.
        known: the names that exist.
    """
    known = sorted(known)
    near = get_close_matches(given, known, n=3, cutoff=0.5)
    if near:
        return f"Did you mean {' or '.join(repr(n) for n in near)}?"
    return f"Choose one of: {', '.join(known)}."
