"""The data of a host that does not see the folder in which rank 0 has tokenized them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megatron_lpc.config import Config, ConfigError, parse_args
from megatron_lpc.data.dataset import PairDataset
from megatron_lpc.training import inputs
from megatron_lpc.training.inputs import open_dataset, open_tokenizer


def opened(config: Config, monkeypatch: pytest.MonkeyPatch, of_first: list[str]) -> PairDataset:
    monkeypatch.setattr(inputs, "from_first_rank", lambda _: json.dumps(of_first))
    monkeypatch.setattr(inputs, "on_every_rank", lambda work: work())
    return open_dataset(config, open_tokenizer(config), config.data.train_data, "train")


def test_a_host_tokenizes_for_itself(tiny_run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = parse_args(["--config", tiny_run.config, "--data-cache-path", str(tmp_path / "own")])
    elsewhere = "/disk/of/another/host/2649c5"
    with pytest.raises(ConfigError, match=r"data set `train`: is another one on .* than on the host of rank 0 \("):
        opened(config, monkeypatch, [elsewhere, "another fingerprint"])
    (folder,) = (path for path in (tmp_path / "own").iterdir() if path.is_dir())
    fingerprint = PairDataset(folder).fingerprint
    dataset = opened(config, monkeypatch, [elsewhere, fingerprint])
    assert dataset.folder == folder

    seen = parse_args(["--config", tiny_run.config, "--data-cache-path", str(tmp_path / "unused")])
    assert opened(seen, monkeypatch, [str(folder), fingerprint]).folder == folder
    assert not (tmp_path / "unused").exists()
