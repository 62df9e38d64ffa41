"""Rules of a training that gives groups vectors of their own."""

import pytest

from megatron_lpc.config import ConfigError, validate, validate_episodes

MODE = "--latent-mode embedding"


@pytest.mark.parametrize(
    ("flags", "found"),
    [
        (MODE, "--latent-mode embedding: learns a vector per group; name their column with --group-column"),
        (f"{MODE} --group-column a --streaming --train-iters 3", "name those that get a vector with --known-groups"),
        (f"{MODE} --group-column a --known-groups x y x", "--known-groups: names x twice"),
    ],
)
def test_what_gives_no_vectors_is_refused(config_of, flags, found):
    with pytest.raises(ConfigError) as error:
        validate_episodes(config_of(flags), 1)
    (line,) = str(error.value).splitlines()
    assert found in line


@pytest.mark.parametrize(
    "flags", ["", "--known-groups x y", "--streaming --train-iters 3 --known-groups x", "--group-dropout 0"]
)
def test_what_fits_together_passes(config_of, flags):
    config = config_of(f"{MODE} --group-column a {flags}")
    validate(config, 1)
    validate_episodes(config, 1)


def test_an_evaluation_needs_no_groups(config_of):
    validate(config_of(MODE), 1)
