"""Flags over a file: what they leave without effect is ignored with one warning, and any option can be unset."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from megatron_lpc.config import ConfigError, load_yaml, parse_args, save_resolved, validate
from megatron_lpc.config.kinds import choices, split_optional
from megatron_lpc.config.options import Option, all_options

DATA = "data: {train_data: [a.jsonl], tokenizer_model: tokenizer}\n"
LPC = "latent: {codebook_size: 8, kl_weight: 0.02, gumbel_tau: 2.0}\n"


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], str]:
    def write(text: str) -> str:
        path = tmp_path / "run.yaml"
        path.write_text(text if text.startswith("data:") else DATA + text)
        return str(path)

    return write


def test_one_file_serves_a_run_and_its_baseline(write, capsys, tmp_path):
    path = write(LPC + "training: {latent_lr: 1.0e-3, lr: 1.0e-4}\n")
    config = parse_args(["--config", path, "--latent-mode", "none"])
    plain = tmp_path / "plain.yaml"
    plain.write_text(DATA + "latent: {latent_mode: none}\ntraining: {lr: 1.0e-4}\n")
    assert config == load_yaml(plain)
    validate(config, 1)
    assert capsys.readouterr().err.splitlines() == [
        f"warning: {path}: the flags leave these options without effect; they are ignored:",
        "  codebook_size = 8: has no effect with --latent-mode none",
        "  gumbel_tau = 2.0: has no effect with --latent-mode none",
        "  kl_weight = 0.02: has no effect with --latent-mode none",
        "  latent_lr = 0.001: has no effect with --latent-mode none",
    ]


def test_what_is_saved_is_what_counts(write, tmp_path):
    config = parse_args(["--config", write(LPC), "--latent-mode", "none"])
    save_resolved(config, tmp_path / "resolved.yaml")
    assert load_yaml(tmp_path / "resolved.yaml") == config
    assert config.latent.kl_weight == 0.05


@pytest.mark.parametrize(
    ("text", "flags", "ignored"),
    [
        ("training: {num_train_epochs: 3}\n", "--train-iters 5", ["num_train_epochs"]),
        ("training: {min_lr: 1.0e-8}\n", "--lr-decay-style constant", ["min_lr"]),
        ("model: {use_rope_scaling: true, rope_scaling_factor: 4}\n", "--no-use-rope-scaling", ["rope_scaling_factor"]),
        ("loss: {label_smoothing: 0.1, robust: true}\n", "--loss-type ipo", ["label_smoothing", "robust"]),
        ("loss: {label_smoothing: 0.1, robust: true}\n", "--label-smoothing 0", ["robust"]),
        ("loss: {reference: precomputed, reference_cache: c}\n", "--reference online", ["reference_cache"]),
        ("checkpoint: {save: out, save_interval: 5, keep_last: 1}\n", "--save none", ["save_interval", "keep_last"]),
        ("checkpoint: {save: out}\n", "--save none", []),
        (
            "loss: {reference: precomputed, reference_cache: c}\n",
            "--loss-type simpo",
            ["reference", "reference_cache"],
        ),
    ],
)
def test_options_that_a_flag_leaves_without_effect_go_back_to_their_default(write, capsys, text, flags, ignored):
    config = parse_args(["--config", write(text), *flags.split()])
    warned = [line.split(" = ")[0].strip() for line in capsys.readouterr().err.splitlines()[1:]]
    assert warned == ignored
    for name in ignored:
        assert all_options()[name].value(config) == all_options()[name].default
    validate(config, 1)


@pytest.mark.parametrize(
    ("text", "flags", "message"),
    [
        # Typed as a flag.
        (LPC, "--latent-mode none --kl-weight 1", "--kl-weight = 1.0: has no effect with --latent-mode none"),
        ("training: {train_iters: 5}\n", "--num-train-epochs 2", "--num-train-epochs = 2.0: has no effect"),
        # Without effect in the file by itself.
        ("training: {train_iters: 5, num_train_epochs: 3}\n", "--lr 1", "--num-train-epochs = 3.0: has no effect"),
        ("training: {train_iters: 5, num_train_epochs: 3}\n", "--train-iters 6", "--num-train-epochs = 3.0"),
        ("latent: {latent_mode: none, kl_weight: 1}\n", "--latent-mode continuous", "--kl-weight = 1.0: has no effect"),
        # A contradiction is no option without effect.
        (LPC, "--loss-type sft", "--latent-mode lpc: --loss-type sft has no pair to compare"),
        (
            "data: {train_data: [a], tokenizer_model: t, streaming: true}\ntraining: {train_iters: 5}\n",
            "--train-iters none",
            "--streaming: the length of a stream is not known",
        ),
    ],
)
def test_flags_without_effect_and_contradictions_are_still_refused(write, text, flags, message):
    with pytest.raises(ConfigError, match=message):
        validate(parse_args(["--config", write(text), *flags.split()]), 1)


def test_the_warning_is_printed_by_rank_0_only(write, capsys, monkeypatch):
    for rank, lines in (("0", 4), ("1", 0)):
        monkeypatch.setenv("RANK", rank)
        parse_args(["--config", write(LPC), "--latent-mode", "none"])
        assert len(capsys.readouterr().err.splitlines()) == lines


def test_nothing_is_warned_of_without_a_file_or_without_idle_options(write, capsys):
    parse_args(["--latent-mode", "none"])
    parse_args(["--config", write(LPC), "--beta", "1"])
    assert capsys.readouterr().err == ""


def _other_value(option: Option) -> str:
    """A value other than the default, as YAML."""
    inner, _ = split_optional(option.kind)
    others = [choice for choice in choices(option.kind) if choice != option.default]
    if others:
        return others[0]
    written = {int: "3", float: "0.7", str: "x", list[str]: "[x]", list[int]: "[3]", dict[str, str]: "{x: y}"}
    return "4" if option.default == 3 else written[inner]


TAKE_A_VALUE = [name for name, option in all_options().items() if split_optional(option.kind)[0] is not bool]


@pytest.mark.parametrize("name", TAKE_A_VALUE)
def test_the_value_default_unsets_every_option_that_takes_a_value(tmp_path, name):
    option = all_options()[name]
    path = tmp_path / "run.yaml"
    path.write_text(f"{option.section}: {{{name}: {_other_value(option)}}}\n")
    assert option.value(load_yaml(path)) != option.default
    assert option.value(parse_args(["--config", str(path), option.flag, "default"])) == option.default
    assert "default" not in choices(option.kind)


def test_lists_and_names_are_empty_without_values(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("data: {train_data: [a], valid_data: {b: c}}\nlogging: {profile_ranks: [1]}\n")
    config = parse_args(["--config", str(path), "--valid-data", "--train-data", "--profile-ranks"])
    assert (config.data.train_data, config.data.valid_data, config.logging.profile_ranks) == ([], {}, [])


def test_the_default_of_a_list_is_not_shared():
    one, other = (parse_args(["--train-data", "default"]) for _ in range(2))
    assert one.data.train_data is not other.data.train_data
