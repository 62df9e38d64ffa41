"""Imports run one way, so that a reader of one package needs to know only those below it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Layers of megatron_lpc, the lowest first. A module imports only from lower layers.
LAYERS = (
    ("outside",),
    ("command_line", "files"),
    ("terminal", "folder_lock", "launch"),
    ("config", "platform"),
    ("data", "losses"),
    ("model",),
    ("training",),
    ("convert",),
    ("evaluation",),
    ("evaluate", "personalize", "plan", "precompute_reference", "preprocess_data", "train"),
    ("study",),
    ("generation",),
    ("generate",),
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
NAMES = sorted(path.stem for path in (ROOT / "megatron_lpc").iterdir() if path.is_dir() or path.suffix == ".py")


def _imported(file: Path) -> Iterator[str]:
    """Full names of the modules that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def _files(name: str) -> list[Path]:
    package = ROOT / "megatron_lpc" / name
    return sorted(package.rglob("*.py")) or [package.with_suffix(".py")]


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith("__")])
def test_a_package_imports_only_from_layers_below_it(name):
    assert name in LEVEL, f"megatron_lpc/{name} has no layer; give it one in this file"
    for file in _files(name):
        for module in _imported(file):
            package, _, rest = module.partition(".")
            other = rest.partition(".")[0]
            if package == "megatron_lpc" and other not in ("", name):
                assert LEVEL[other] < LEVEL[name], f"{file.relative_to(ROOT)} imports {module}, which is not below it"


def test_the_kernels_import_nothing_of_the_engine():
    for file in (ROOT / "kernels").rglob("*.py"):
        packages = {module.partition(".")[0] for module in _imported(file)}
        assert not packages & {"megatron", "megatron_lpc"}, file.relative_to(ROOT)
