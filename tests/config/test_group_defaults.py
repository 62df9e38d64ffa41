"""Where the data tells groups, codes are learned from episodes by exact inference."""

import pytest

from megatron_lpc.config import Config, LatentConfig, load_yaml, parse_args, validate_episodes
from megatron_lpc.config.options import ConfigError
from megatron_lpc.config.resolved import save_resolved


@pytest.mark.parametrize(
    ("flags", "inference", "context"),
    [
        ("", "amortized", 0),
        ("--group-column a", "exact", 7),
        ("--group-column a --posterior-context 3", "exact", 3),
        ("--group-column a --posterior-context 0", "amortized", 0),
        ("--group-column a --latent-inference amortized", "amortized", 7),
        ("--group-column a --latent-inference exact --posterior-context 0", "exact", 0),
        ("--group-column a --streaming", "amortized", 0),
        ("--group-column a --latent-mode none", "amortized", 0),
        ("--group-column a --latent-mode continuous", "amortized", 0),
        ("--group-column a --latent-mode gaussian", "amortized", 7),
        ("--group-column a --latent-mode gaussian --posterior-context 0", "amortized", 0),
        ("--group-column a --latent-mode embedding", "amortized", 0),
        ("--group-column none", "amortized", 0),
    ],
)
def test_defaults_follow_the_group_column(flags: str, inference: str, context: int) -> None:
    latent = parse_args(flags.split()).latent
    assert (latent.latent_inference, latent.posterior_context) == (inference, context)


def test_a_saved_configuration_is_read_as_it_is(tmp_path) -> None:
    config = Config(data=parse_args(["--group-column", "a"]).data, latent=LatentConfig())
    save_resolved(config, tmp_path / "config.yaml")
    assert load_yaml(tmp_path / "config.yaml") == config


def test_a_micro_batch_that_holds_no_episode_names_both_ways_out() -> None:
    with pytest.raises(ConfigError) as error:
        validate_episodes(parse_args(["--group-column", "a", "--micro-batch-size", "2"]), 1)
    assert "multiple of 8" in str(error.value)
    assert "the default with --group-column" in str(error.value)
    assert "--posterior-context 0" in str(error.value)
