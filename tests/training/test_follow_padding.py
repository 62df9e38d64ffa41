"""The padded query groups of a run are those of its checkpoint, where the model is the same without them."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import pytest

from megatron_lpc.config import (
    CheckpointConfig,
    Config,
    DataConfig,
    LatentConfig,
    LossConfig,
    ModelConfig,
    ParallelConfig,
    TrainingConfig,
    with_padded_query_groups,
)
from megatron_lpc.training.checkpoint_folder import write_description
from megatron_lpc.training.follow_padding import follow_padding

PLAIN = ModelConfig(hidden_size=36, num_attention_heads=9, num_query_groups=3, kv_channels=4)
PADDED = replace(PLAIN, num_attention_heads=12, num_query_groups=4, padded_query_groups=1)
MORE = replace(PLAIN, num_attention_heads=18, num_query_groups=6, padded_query_groups=3)


def checkpoint(folder: Path, model: ModelConfig) -> str:
    folder.mkdir()
    (folder / "metadata.json").write_text("{}")
    write_description(folder, {"options": {"model": asdict(model)}})
    return str(folder)


def config(model: ModelConfig, **options: str | None) -> Config:
    return Config(
        model=model,
        latent=LatentConfig(),
        loss=LossConfig(),
        data=DataConfig(train_data=["none"], tokenizer_model="none"),
        parallel=ParallelConfig(),
        training=TrainingConfig(),
        checkpoint=CheckpointConfig(**options),
    )


@pytest.mark.parametrize("stated", [PLAIN, replace(PLAIN, kv_channels=None), PADDED, MORE])
@pytest.mark.parametrize("stored", [PLAIN, PADDED, MORE])
def test_of_the_same_model(
    tmp_path: Path, stated: ModelConfig, stored: ModelConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    base = checkpoint(tmp_path / "base", stored)
    followed = follow_padding(config(stated, pretrained_checkpoint=base)).model
    differs = stated.padded_query_groups != stored.padded_query_groups
    assert followed == (stored if differs else stated)
    number = (
        f"--padded-query-groups {stored.padded_query_groups}, so the run has {stored.num_attention_heads} attention"
    )
    assert (number in capsys.readouterr().err) == differs


def test_every_head_is_a_group(tmp_path: Path) -> None:
    stated = ModelConfig(hidden_size=36, num_attention_heads=9)
    base = checkpoint(tmp_path / "base", with_padded_query_groups(stated, 1))
    model = follow_padding(config(stated, pretrained_checkpoint=base)).model
    assert (model.num_attention_heads, model.num_query_groups, model.kv_channels) == (10, 10, 4)


@pytest.mark.parametrize("stored", [PADDED, replace(PADDED, num_attention_heads=8)])
def test_another_model_stays_as_it_is_stated(tmp_path: Path, stored: ModelConfig) -> None:
    base = checkpoint(tmp_path / "base", stored)
    stated = replace(PLAIN, num_attention_heads=6, num_query_groups=2)
    assert follow_padding(config(stated, pretrained_checkpoint=base)).model == stated


def test_the_resumed_run_goes_before_its_start(tmp_path: Path) -> None:
    base, run = checkpoint(tmp_path / "base", PADDED), checkpoint(tmp_path / "run", MORE)
    for options in ({"load": run}, {"load": "auto", "save": run}):
        assert follow_padding(config(PLAIN, pretrained_checkpoint=base, **options)).model == MORE
    for options in ({"load": "auto", "save": str(tmp_path / "new")}, {"save": run}):
        assert follow_padding(config(PLAIN, pretrained_checkpoint=base, **options)).model == PADDED
    assert follow_padding(config(PLAIN, save=run)).model == PLAIN


def test_a_newest_checkpoint_that_is_damaged_does_not_stop_a_run_that_walks_back(tmp_path: Path) -> None:
    for name in ("iter_0000002", "iter_0000004"):
        checkpoint(tmp_path / name, MORE)
    (tmp_path / "iter_0000004" / "description.json").write_text("{")
    (tmp_path / "latest_checkpointed_iteration.txt").write_bytes(b"\xff")
    assert follow_padding(config(PLAIN, load="auto", save=str(tmp_path))).model == MORE
