"""What a run is built from, as far as it needs no processes."""

from __future__ import annotations

import dataclasses

import pytest

from megatron_lpc.config import Config, ConfigError, ModelConfig, ParallelConfig
from megatron_lpc.data.input_errors import input_errors
from megatron_lpc.data.tokenizer import Tokenizer
from megatron_lpc.training.build import Run
from megatron_lpc.training.inputs import open_tokenizer, resolve
from megatron_lpc.training.setup import RunContext
from megatron_lpc.training.state import RunState


@pytest.fixture(scope="module")
def tokenizer(tiny_run) -> Tokenizer:
    config = Config()
    data = dataclasses.replace(config.data, tokenizer_model=str(tiny_run.folder / "words.model"))
    return open_tokenizer(dataclasses.replace(config, data=data))


def test_vocabulary_size_is_taken_from_the_tokenizer_into_another_configuration(tokenizer: Tokenizer) -> None:
    config = Config()
    assert resolve(config, tokenizer).model.vocab_size == tokenizer.vocab_size
    assert config.model.vocab_size is None, "what was given is never written"


def test_a_vocabulary_size_that_is_set_stays(tokenizer: Tokenizer) -> None:
    config = Config(model=ModelConfig(vocab_size=tokenizer.vocab_size + 5))
    assert resolve(config, tokenizer) == config


def test_a_vocabulary_that_does_not_fit_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(ConfigError, match="--vocab-size"):
        resolve(Config(model=ModelConfig(vocab_size=tokenizer.vocab_size - 1)), tokenizer)
    odd = Config(
        model=ModelConfig(vocab_size=tokenizer.vocab_size + 1, make_vocab_size_divisible_by=1),
        parallel=ParallelConfig(tensor_model_parallel_size=2),
    )
    with pytest.raises(ConfigError, match="--tensor-model-parallel-size 2"):
        resolve(odd, tokenizer)


@pytest.mark.parametrize("built", [Run, RunContext, RunState])
def test_what_is_built_is_not_written_to(built: type) -> None:
    assert built.__dataclass_params__.frozen


@pytest.mark.parametrize(("updated", "bad_steps"), [(True, 0), (False, 3)])
def test_state_after_a_step(updated: bool, bad_steps: int) -> None:
    before = RunState(iteration=4, consumed_samples=32, bad_steps=2, train_iters=9, data="a", positions=[{"at": 1}])
    expected = RunState(iteration=5, consumed_samples=40, bad_steps=bad_steps, train_iters=9, data="a")
    assert before.after_step(8, updated) == expected


@pytest.mark.parametrize("error", [ValueError, KeyError, FileNotFoundError])
def test_mistakes_in_data_are_the_users(error: type[Exception]) -> None:
    with pytest.raises(ConfigError, match="where it is"), input_errors():
        raise error("where it is")
