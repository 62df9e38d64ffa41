"""How a patch is applied, and what it says where it no longer fits."""

from __future__ import annotations

import warnings
from types import ModuleType

import pytest

from megatron_lpc.platform.patches.patch import Patch, PatchError, patch, replace


def counting_patch(name: str, library: str = "torch", versions: str = ">=1") -> tuple[Patch, list[str]]:
    applied: list[str] = []
    return Patch(name, library, versions, "It fails.", lambda: applied.append(name)), applied


def test_a_patch_is_applied_once() -> None:
    once, applied = counting_patch("applied_once")
    once()
    once()
    assert applied == ["applied_once"]


def test_another_version_is_named_in_a_warning() -> None:
    outdated, applied = counting_patch("outdated", versions=">=0.1,<0.2")
    with pytest.warns(
        UserWarning, match=r"torch .* is installed, but the patch `outdated` was written for >=0\.1,<0\.2"
    ):
        outdated()
    assert applied == ["outdated"]


def test_a_build_of_a_supported_version_gives_no_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    fitting, applied = counting_patch("fitting", versions=">=2.11,<3")
    monkeypatch.setattr("megatron_lpc.platform.patches.patch.version", lambda library: "2.12.0a0+nv26.01")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fitting()
    assert applied == ["fitting"]


def test_a_library_that_is_absent_is_not_asked_for_its_version() -> None:
    absent, applied = counting_patch("absent", library="no-such-distribution")
    absent()
    assert applied == ["absent"]


def test_what_a_patch_replaces_must_exist() -> None:
    library = ModuleType("library")
    library.there = 1
    replace(library, "there", 2)
    assert library.there == 2
    with pytest.raises(PatchError, match="library has no attribute gone"):
        replace(library, "gone", 2)


def test_a_patch_is_named_after_its_function() -> None:
    @patch("torch", ">=1", symptom="It fails.")
    def cure() -> None: ...

    assert (cure.name, cure.library, cure.versions) == ("cure", "torch", ">=1")
