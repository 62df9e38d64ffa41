"""What the documents name exists: files, folders, links, options and commands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from megatron_lpc.config.options import all_options

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "kernels/README.md", "benchmarks/README.md")]
DOCUMENTS += sorted((ROOT / "docs").glob("*.md")) + sorted((ROOT / "examples").rglob("*.md"))

_PATH = re.compile(r"\b(?:megatron_lpc|kernels|tools|benchmarks|examples|tests|docs)/[\w./-]*\w/?")
_URL = re.compile(r"https?://[^\s)]+")
_MADE = "benchmarks/results/"
"""What a documented command writes."""
_LINK = re.compile(r"\]\(([^)#:\s]+)(?:#[\w-]*)?\)")
_FLAG = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]+")


def _document(path: Path) -> str:
    return path.read_text(encoding="utf-8")


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_paths_exist(path: Path) -> None:
    named = [name for name in _PATH.findall(_URL.sub("", _document(path))) if not name.startswith(_MADE)]
    missing = [name for name in named if not (ROOT / name).exists()]
    assert not missing


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    missing = [name for name in _LINK.findall(_document(path)) if not (path.parent / name).exists()]
    assert not missing


def test_flags_of_training_commands_exist() -> None:
    """In every command that starts the training program, in any document."""
    flags = {option.flag for option in all_options().values()} | {"--config", "--help"}
    launcher = {"--nproc-per-node", "--standalone", "--nnodes", "--node-rank", "--master-addr", "--master-port"}
    commands = [
        (path, line)
        for path in DOCUMENTS
        for line in _document(path).splitlines()
        if "megatron_lpc.train" in line and line.startswith("    ")
    ]
    assert commands
    for path, line in commands:
        unknown = set(_FLAG.findall(line)) - flags - launcher
        assert not unknown, f"{path}: {line}"
