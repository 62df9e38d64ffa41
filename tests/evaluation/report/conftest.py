"""Scored pairs of planted annotators, and what a report finds in them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from planted_world import World, scored_pairs

from megatron_lpc.evaluation.report.findings import Findings, find
from megatron_lpc.evaluation.report.options import ReportOptions
from megatron_lpc.evaluation.report.scored_pairs import ScoredPairs


@pytest.fixture
def planted(tmp_path: Path) -> Callable[..., ScoredPairs]:
    """Given fields of `World`: its scored pairs, of a checkpoint in `tmp_path / "run"`."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "metadata.json").write_text("{}")
    return lambda **changes: scored_pairs(World(**changes), folder)


@pytest.fixture
def findings_of() -> Callable[[ScoredPairs], Findings]:
    """All findings, with the map by PCA, which takes no time."""
    return lambda scored: find(scored, ReportOptions(output=Path("unused"), map="pca"), None)
