"""What a patch says of itself, and how it is applied."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from packaging.specifiers import SpecifierSet

MEGATRON_CORE = ("megatron-core", ">=0.16.1,<0.17")
"""The library that most patches concern, and the versions that they were written for."""

_applied: set[str] = set()


class PatchError(RuntimeError):
    """A library lacks what a patch replaces: its version is not one that the patch was written for."""


@dataclass(frozen=True)
class Patch:
    """One change to a library. Calling it applies it, once per process; it cannot be undone."""

    name: str
    library: str
    """Name of the distribution, as `pip` knows it."""
    versions: str
    """Versions that the patch was written for and tested with (PEP 440)."""
    symptom: str
    """What happens without it."""
    change: Callable[[], None]

    def __call__(self) -> None:
        """Apply the patch; later calls do nothing.

        Warns when the installed version is outside of `versions`.

        Raises:
            PatchError: the library no longer has what is replaced.
        """
        if self.name in _applied:
            return
        self._check_version()
        self.change()
        _applied.add(self.name)

    def _check_version(self) -> None:
        try:
            installed = version(self.library)
        except PackageNotFoundError:
            return
        if SpecifierSet(self.versions).contains(installed, prereleases=True):
            return
        warnings.warn(
            f"{self.library} {installed} is installed, but the patch `{self.name}` was written for {self.versions}. "
            f"It is applied nevertheless, against this symptom: {self.symptom} "
            f"Install a version within {self.versions}, or check with tests/platform that the patch still fits.",
            stacklevel=3,
        )


def patch(library: str, versions: str, *, symptom: str) -> Callable[[Callable[[], None]], Patch]:
    """Make a `Patch` of the function that changes the library; the patch takes the function's name."""

    def decorate(change: Callable[[], None]) -> Patch:
        return Patch(change.__name__, library, versions, symptom, change)

    return decorate


def replace(owner: Any, name: str, replacement: Any) -> None:
    """Set an attribute of a module or class that must have it already.

    Raises:
        PatchError: it has no such attribute, so the replacement would never be called.
    """
    if not hasattr(owner, name):
        raise PatchError(
            f"{owner.__name__} has no attribute {name}, which a patch replaces; "
            f"install megatron-core {MEGATRON_CORE[1]} and the torch that setup.py asks for"
        )
    setattr(owner, name, replacement)
