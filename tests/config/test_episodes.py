"""Rules of a training whose posterior reads other pairs of a group."""

import pytest

from megatron_lpc.config import ConfigError, validate, validate_episodes


@pytest.mark.parametrize(
    ("flags", "dp_size", "found"),
    [
        ("--posterior-context 1", 1, ["--group-column"]),
        ("--posterior-context 3 --group-column a --micro-batch-size 6", 1, ["--micro-batch-size 6: ", "multiple of 4"]),
        ("--posterior-context 1 --group-column a --streaming --train-iters 3", 1, ["drop --streaming"]),
        (
            "--posterior-context 1 --group-column a --pack-to 99 --global-batch-size 9",
            1,
            ["--global-batch-size 9", "multiple of 2"],
        ),
        (
            "--posterior-context 2 --group-column a --pack-to 99 --global-batch-size 12",
            3,
            ["--global-batch-size 12", "multiple of 9"],
        ),
        (
            "--posterior-context 1 --group-column a --pack-to 99 --global-batch-size 6 "
            "--pipeline-model-parallel-size 2 --num-virtual-stages-per-pipeline-rank 2",
            1,
            ["--global-batch-size 6", "multiple of 4"],
        ),
    ],
)
def test_what_cannot_make_episodes_is_refused(config_of, flags, dp_size, found):
    with pytest.raises(ConfigError) as error:
        validate_episodes(config_of(flags), dp_size)
    (line,) = str(error.value).splitlines()
    assert "--posterior-context" in line
    assert all(text in line for text in found)


@pytest.mark.parametrize(
    "flags",
    [
        "--posterior-context 3 --group-column a --micro-batch-size 8 --global-batch-size 24",
        "--posterior-context 2 --group-column a --pack-to 999 --global-batch-size 18",
        "--micro-batch-size 3 --global-batch-size 9",
    ],
)
def test_what_fits_together_passes(config_of, flags):
    validate(config_of(flags), 3)
    validate_episodes(config_of(flags), 3)


def test_an_evaluation_needs_no_episodes(config_of):
    """Its pairs go one by one, whatever the model was trained with."""
    validate(config_of("--posterior-context 2 --micro-batch-size 4"), 1)
