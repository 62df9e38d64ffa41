"""Which groups have a vector: those of the data at first, and then those of the checkpoint."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest

from megatron_lpc.config import Config, ConfigError, with_options
from megatron_lpc.training.checkpoint_folder import write_description
from megatron_lpc.training.known_groups import with_known_groups, with_saved_groups
from megatron_lpc.training.setup import RunContext

OPTIONS = with_options(Config(), latent_mode="embedding", group_column="annotator")
DATA = SimpleNamespace(group_numbers=lambda: ([0, 1, 2], ["cleo", "ada", "ben"]))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """With vectors of two groups."""
    saved = with_options(OPTIONS, known_groups=["ben", "dan"])
    write_description(tmp_path, {"options": asdict(saved)})
    (tmp_path / "metadata.json").touch()
    return tmp_path


def known(resumed: Path | None = None, **options: object) -> tuple[list[str], list[str]]:
    context = RunContext(config=with_options(OPTIONS, **options), platform=None, groups=None)
    context, notes = with_known_groups(context, DATA, resumed)
    return context.config.latent.known_groups, notes


def test_all_groups_of_the_data_in_the_order_of_their_names() -> None:
    assert known() == (["ada", "ben", "cleo"], [])


def test_an_option_names_them_and_the_others_are_told() -> None:
    assert known(known_groups=["cleo"]) == (["cleo"], ["Groups without a vector of their own: ada, ben."])


def test_a_checkpoint_has_them(checkpoint: Path) -> None:
    expected = (["ben", "dan"], ["Groups without a vector of their own: ada, cleo."])
    assert known(checkpoint) == known(pretrained_checkpoint=str(checkpoint)) == expected
    assert known(checkpoint, known_groups=["ben", "dan"]) == expected
    with pytest.raises(ConfigError, match=r"--known-groups: .* has vectors of other groups"):
        known(checkpoint, known_groups=["dan", "ben"])


def test_a_checkpoint_without_vectors_has_none(checkpoint: Path) -> None:
    write_description(checkpoint, {"options": asdict(Config())})
    assert known(pretrained_checkpoint=str(checkpoint)) == (["ada", "ben", "cleo"], [])


def test_an_evaluation_takes_those_of_its_checkpoint(checkpoint: Path) -> None:
    loaded = with_options(OPTIONS, load=str(checkpoint))
    assert with_saved_groups(loaded).latent.known_groups == ["ben", "dan"]
    assert with_saved_groups(with_options(loaded, latent_mode="lpc")).latent.known_groups == []


def test_other_modes_read_no_groups() -> None:
    assert known(latent_mode="lpc") == ([], [])
