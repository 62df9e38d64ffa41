"""Hidden states are computed once: an interrupted run goes on, another model is refused, and nothing runs twice."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from frozen_runs import FROZEN, config_of, train_run

from megatron_lpc.config import Config, ConfigError
from megatron_lpc.data import hidden_store
from megatron_lpc.data.dataset import PairDataset
from megatron_lpc.data.distinct_responses import DistinctResponses
from megatron_lpc.data.hidden_store import HiddenOrigin, HiddenStore
from megatron_lpc.model import PreferenceModel
from megatron_lpc.training.build import assemble_run
from megatron_lpc.training.setup import RunContext, resolve_device_defaults

ORIGIN = HiddenOrigin(data="d", weights="w", model="m")


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hidden_store, "BLOCK_PAIRS", 8)


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The example indices of each micro-batch whose hidden states are computed from now on."""
    seen: list[list[int]] = []
    whole = PreferenceModel.pair_hidden
    monkeypatch.setattr(
        PreferenceModel,
        "pair_hidden",
        lambda model, batch: seen.append(batch.example_index.tolist()) or whole(model, batch),
    )
    return seen


def _config(tiny_run, folder: Path, *flags: str) -> Config:
    return config_of(tiny_run, *FROZEN, "--cache-hidden-states", str(folder), *flags)


def _assemble(context: RunContext, config: Config) -> None:
    assemble_run(replace(context, config=resolve_device_defaults(config, context.platform)))


def _distinct_responses(data: PairDataset) -> set[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Prompt and response as token ids."""
    pairs = [data[index] for index in range(len(data))]
    return {(tuple(pair.prompt), tuple(side)) for pair in pairs for side in (pair.chosen, pair.rejected)}


def test_a_complete_cache_never_runs_the_backbone(
    tiny_run, context: RunContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first = train_run(context, _config(tiny_run, tmp_path))
    said = capsys.readouterr().err
    data = first.run.train_data
    responses = _distinct_responses(data)
    assert len(responses) < 2 * len(data), "annotators label the same responses"
    assert f"for {len(responses)} different responses (" in said
    assert "MB each), to be written once into" in said
    rows = sum(len(response) + 1 for _, response in responses)
    written = sum(path.stat().st_size for path in (tmp_path / data.fingerprint[:20]).iterdir())
    assert rows * 32 * 4 < written < rows * 32 * 4 + 6 * 600, "the hidden states in fp32, and six headers"

    def backbone(*_: object) -> None:
        raise AssertionError("the backbone runs")

    monkeypatch.setattr(PreferenceModel, "hidden_states", backbone)
    again = train_run(context, _config(tiny_run, tmp_path))
    assert again.losses == first.losses
    assert again.evaluations == first.evaluations
    assert "Hidden states of" not in capsys.readouterr().err


def test_an_interrupted_run_goes_on(
    tiny_run, context: RunContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, computed: list[list[int]]
) -> None:
    write, blocks = HiddenStore.write_block, []

    def interrupted(store: HiddenStore, block: int, rows: object) -> None:
        if len(blocks) == 2:
            raise KeyboardInterrupt
        blocks.append(block)
        write(store, block, rows)

    with monkeypatch.context() as patched:
        patched.setattr(HiddenStore, "write_block", interrupted)
        with pytest.raises(KeyboardInterrupt):
            _assemble(context, _config(tiny_run, tmp_path))
    computed.clear()
    resumed = train_run(context, _config(tiny_run, tmp_path))
    store = HiddenStore(tmp_path, ORIGIN, DistinctResponses.of(resumed.run.train_data), hidden_size=32)
    left = [pair for block in range(2, store.num_blocks) for pair in store.pairs_of(block)]
    of_train = [example for batch in computed[: -(-len(left) // 4)] for example in batch]
    assert left
    assert set(of_train) == set(left), "not again what was there"
    assert resumed.losses == train_run(context, _config(tiny_run, tmp_path / "whole")).losses


def test_other_weights_are_refused(tiny_run, context: RunContext, tmp_path: Path) -> None:
    _assemble(context, _config(tiny_run, tmp_path))
    with pytest.raises(ConfigError, match=r"--cache-hidden-states: .*hidden states are of something else \(weights"):
        _assemble(context, _config(tiny_run, tmp_path, "--seed", "6"))
    with pytest.raises(ConfigError, match=r"these hidden states are of something else \(.*model"):
        _assemble(context, _config(tiny_run, tmp_path, "--rotary-base", "500"))


def test_files_of_a_rotary_base_that_was_an_integer(
    tiny_run, context: RunContext, tmp_path: Path, computed: list[list[int]]
) -> None:
    config = _config(tiny_run, tmp_path, "--rotary-base", "500")
    _assemble(context, replace(config, model=replace(config.model, rotary_base=500)))
    computed.clear()
    _assemble(context, config)
    assert computed == []


def test_a_disk_that_is_too_small(
    tiny_run, context: RunContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(ConfigError, match=r"GB are to be written, and 0\.0 GB are free; name a folder on another"):
        _assemble(context, _config(tiny_run, tmp_path))


@pytest.mark.parametrize("flags", [("--pack-to", "256", "--share-prompt")])
def test_packed_sequences(tiny_run, context: RunContext, tmp_path: Path, flags: tuple[str, ...]) -> None:
    """Last bits depend on the sequence that a pair shares."""
    unpacked = ("--pad-to-multiple-of", "default", "--micro-batch-size", "default")
    plain = train_run(context, config_of(tiny_run, *FROZEN, *flags, *unpacked))
    cached = train_run(context, _config(tiny_run, tmp_path, *flags, *unpacked))
    assert cached.losses == pytest.approx(plain.losses, abs=1e-6)
