"""The schema: what every option has, and the lists that are derived from it."""

from dataclasses import FrozenInstanceError, dataclass, field, fields

import pytest

from megatron_lpc.config import (
    Config,
    ModelConfig,
    Role,
    TrainingConfig,
    hf_settings,
    options_of_conversion,
    options_of_evaluation,
    options_with_role,
    training_only_options,
    with_options,
)
from megatron_lpc.config.metadata import option
from megatron_lpc.config.options import all_options, sections
from megatron_lpc.convert.hub.configuration_lpc import LPCConfig


def test_every_field_of_the_schema_is_an_option():
    names = [f.name for section in sections().values() for f in fields(section)]
    assert list(all_options()) == names


def test_a_configuration_is_never_written_to():
    config = Config()
    with pytest.raises(FrozenInstanceError):
        config.training.lr = 1.0
    with pytest.raises(FrozenInstanceError):
        config.training = TrainingConfig()
    assert with_options(config, lr=1.0).training == TrainingConfig(lr=1.0)
    assert config == Config()


def test_every_option_has_a_role():
    assert all(isinstance(each.role, Role) for each in all_options().values())
    assert sorted(options_with_role(*Role)) == sorted(all_options())


def test_roles_of_weights_name_what_a_checkpoint_must_agree_on():
    backbone = options_with_role(Role.BACKBONE)
    assert {all_options()[name].section for name in backbone} == {"model"}
    not_of_the_weights = {
        "max_position_embeddings",
        "make_vocab_size_divisible_by",
        "init_method_std",
        "attention_dropout",
        "hidden_dropout",
        "transformer_impl",
        "flex_attention_backend",
    }
    assert {f.name for f in fields(ModelConfig)} - set(backbone) == not_of_the_weights
    assert options_with_role(Role.HEAD) == [
        "latent_mode",
        "known_groups",
        "latent_inference",
        "codebook_size",
        "latent_size",
        "latent_mlp_hidden_size",
        "posterior_input",
        "posterior_context",
    ]


def test_conversion_carries_the_backbone_and_its_longest_sequence():
    assert set(options_of_conversion()) == {*options_with_role(Role.BACKBONE), "max_position_embeddings"}
    assert set(hf_settings()) <= set(options_of_conversion())


def test_evaluation_reads_all_options_of_weights_and_none_of_the_optimizer():
    read = options_of_evaluation()
    assert {*options_with_role(Role.BACKBONE, Role.HEAD)} <= set(read)
    assert {"valid_data", "loss_type", "load", "bf16", "seed"} <= set(read)
    assert "profile" in training_only_options("logging")
    assert not {"train_data", "lr", "save", "reference_cache", "attention_dropout", "kl_weight"} & set(read)
    assert not {"logps_algorithm", "streaming", "shuffle_buffer_size"} & set(read)


def test_an_exported_model_has_the_defaults_of_the_head():
    """The code that goes to the Hub stands by itself, and so repeats them, but for those of modes that stay here."""
    stay = {"known_groups", "latent_size"}
    defaults = {name: all_options()[name].default for name in options_with_role(Role.HEAD) if name not in stay}
    assert LPCConfig().latent == defaults


@dataclass(kw_only=True)
class _First:
    lr: float = option(1.0, range="[0, inf)", role=Role.RUN)
    """Rate."""


@dataclass(kw_only=True)
class _Second:
    seed: int = option(0, range="[0, inf)", role=Role.RUN)
    """Seed."""
    lr: float = option(1.0, range="[0, inf)", role=Role.RUN)
    """Rate."""


@dataclass(kw_only=True)
class _Silent:
    seed: int = option(0, range="[0, inf)", role=Role.RUN)


@dataclass(kw_only=True)
class _Bare:
    seed: int = 0
    """Seed."""


@dataclass(kw_only=True)
class _Endless:
    seed: int = option(0, role=Role.RUN)
    """Seed."""


@dataclass(kw_only=True)
class _SharedName:
    first: _First = field(default_factory=_First)
    second: _Second = field(default_factory=_Second)


@dataclass(kw_only=True)
class _NoSentence:
    silent: _Silent = field(default_factory=_Silent)


@dataclass(kw_only=True)
class _NoRole:
    bare: _Bare = field(default_factory=_Bare)


@dataclass(kw_only=True)
class _NoRange:
    endless: _Endless = field(default_factory=_Endless)


@dataclass(kw_only=True)
class _NoSection:
    seed: int = 0


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        (_SharedName, "option 'lr' is in two sections: 'first' and 'second'"),
        (_NoSentence, "option 'seed' of section 'silent' has no sentence under it"),
        (_NoRole, "option 'seed' of section 'bare' has no role"),
        (_NoRange, "option 'seed' of section 'endless' must have a range"),
        (_NoSection, "section 'seed' of _NoSection is not a dataclass"),
    ],
)
def test_a_schema_that_would_be_ambiguous_is_refused(schema, message):
    with pytest.raises(TypeError, match=message):
        all_options(schema)
