"""From command line and YAML to a `Config`."""

from pathlib import Path

import pytest

from megatron_lpc.config import (
    Config,
    ConfigError,
    DataConfig,
    LatentConfig,
    LoggingConfig,
    LossConfig,
    TrainingConfig,
    load_yaml,
    parse_args,
)
from megatron_lpc.config.options import all_options


@pytest.fixture
def write(tmp_path: Path):
    def write(text: str) -> str:
        path = tmp_path / "run.yaml"
        path.write_text(text)
        return str(path)

    return write


def test_no_arguments_give_the_defaults():
    assert parse_args([]) == Config()


def test_flag_beats_file_beats_default(write):
    path = write("training:\n  micro_batch_size: 8\n  lr: 1.0e-3\n")
    config = parse_args(["--config", path, "--micro-batch-size", "2"])
    assert config == Config(training=TrainingConfig(micro_batch_size=2, lr=1e-3))


def test_a_flag_can_set_what_the_file_changed_back_to_the_default(write):
    path = write("training: {bf16: true, train_iters: 5}\nlatent: {latent_mode: none}\ndata: {train_data: [a]}")
    assert parse_args(["--config", path]).training == TrainingConfig(bf16=True, train_iters=5)
    flags = "--no-bf16 --train-iters none --latent-mode lpc --train-data"
    assert parse_args(["--config", path, *flags.split()]) == Config(training=TrainingConfig(bf16=False))


def test_kinds_of_values_as_flags():
    flags = (
        "--train-data a.jsonl b.jsonl --valid-data one=c=1.jsonl two=d.jsonl --max-prompt-length=7 "
        "--chat-template none --lr 5e-7 --bf16 --beta 1 --robust --latent-mode none --profile-ranks 0 3"
    )
    config = parse_args(flags.split())
    data = DataConfig(
        train_data=["a.jsonl", "b.jsonl"],
        valid_data={"one": "c=1.jsonl", "two": "d.jsonl"},
        max_prompt_length=7,
    )
    assert config == Config(
        data=data,
        training=TrainingConfig(lr=5e-7, bf16=True),
        loss=LossConfig(beta=1.0, robust=True),
        latent=LatentConfig(latent_mode="none"),
        logging=LoggingConfig(profile_ranks=[0, 3]),
    )
    assert type(config.loss.beta) is float


@pytest.mark.parametrize(
    ("written", "value"), [("5e-7", 5e-7), ("1", 1.0), ("5.0e-7", 5e-7), ("'5e-7'", 5e-7), ("1.", 1.0), (".5", 0.5)]
)
def test_numbers_in_yaml(write, written, value):
    lr = load_yaml(write(f"training: {{lr: {written}}}")).training.lr
    assert lr == value
    assert type(lr) is float


@pytest.mark.parametrize("none", ["null", "~", "none", ""])
def test_none_in_yaml(write, none):
    path = write(f"training:\n  train_iters: {none}\nlatent:\n  latent_mode: none\n")
    assert load_yaml(path) == Config(latent=LatentConfig(latent_mode="none"))


@pytest.mark.parametrize("text", ["", "# nothing\n", "model:\n", "model: {}\n"])
def test_empty_files_and_sections(write, text):
    assert load_yaml(write(text)) == Config()


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("trainning:\n  lr: 1.0\n", 1, "unknown section 'trainning'; did you mean 'training'?"),
        ("lr: 1.0\n", 1, "unknown section 'lr'; it belongs under 'training:'"),
        (
            "training:\n  seed: 1\n  micro_batchsize: 1\n",
            3,
            "unknown key 'micro_batchsize' in section 'training'; did you mean 'micro_batch_size'?",
        ),
        ("model:\n  lr: 1.0\n", 2, "unknown key 'lr' in section 'model'; it belongs under 'training:'"),
        ("model:\n  micro_batchsize: 1\n", 2, "did you mean 'micro_batch_size'?"),
        ("model:\n  zzzzzzzzzz: 1\n", 2, "unknown key 'zzzzzzzzzz' in section 'model'"),
        ("training:\n  seed: '1'\n", 2, "key 'training.seed': expected an integer, got '1' (str)"),
        ("training:\n  seed: 1.0\n", 2, "expected an integer, got 1.0 (float)"),
        ("training:\n  seed: true\n", 2, "expected an integer, got True (bool)"),
        ("training:\n  seed:\n", 2, "expected an integer, got nothing"),
        ("training:\n  seed: none\n", 2, "expected an integer, got 'none' (str)"),
        ("training:\n  train_iters: x\n", 2, "expected an integer or none, got 'x' (str)"),
        ("training:\n  bf16: 1\n", 2, "key 'training.bf16': expected true or false or none, got 1 (int)"),
        ("training:\n  lr: fast\n", 2, "key 'training.lr': expected a number, got 'fast' (str)"),
        ("training:\n  lr: true\n", 2, "expected a number, got True (bool)"),
        ("training:\n  lr: .nan\n", 2, "expected a number, got nan (float)"),
        ("training:\n  lr: 1e999\n", 2, "expected a number, got inf (float)"),
        (
            "loss:\n  loss_type: dpoo\n",
            2,
            "expected one of dpo, ipo, simpo, sft, got 'dpoo' (str); did you mean 'dpo'?",
        ),
        ("loss:\n  loss_type: [dpo]\n", 2, "expected one of dpo, ipo, simpo, sft, got ['dpo'] (list)"),
        ("data:\n  tokenizer_model: 3\n", 2, "expected a string, got 3 (int)"),
        ("data:\n  train_data: a\n", 2, "expected a list of strings, got 'a' (str)"),
        ("data:\n  train_data: [a, 1]\n", 2, "expected a list of strings"),
        ("logging:\n  profile_ranks: [0, '1']\n", 2, "expected a list of integers, got [0, '1'] (list)"),
        ("logging:\n  profile_ranks: 0\n", 2, "expected a list of integers, got 0 (int)"),
        ("data:\n  valid_data: [a]\n", 2, "expected NAME: FILE pairs of strings"),
        ("data:\n  valid_data: {a: 1}\n", 2, "expected NAME: FILE pairs of strings"),
        ("data:\n  valid_data: !!python/object:os.system {}\n", 2, "could not determine a constructor"),
        ("training:\n  seed: 1\n  lr: 1.0\n  seed: 2\n", 4, "duplicate key 'seed' in section 'training'"),
        ("training:\n  seed: 1\nmodel:\ntraining:\n  lr: 1.0\n", 4, "duplicate key 'training' in the file"),
        ("- a\n", 1, "the file must hold 'key: value' lines"),
        ("model:\n- a\n", 2, "section 'model' must hold 'key: value' lines"),
    ],
)
def test_wrong_files_are_refused_with_file_and_line(write, text, line, message):
    path = write(text)
    with pytest.raises(ConfigError) as error:
        load_yaml(path)
    assert str(error.value).startswith(f"{path}:{line}: ")
    assert message in str(error.value)


def test_files_that_cannot_be_read(tmp_path, write):
    with pytest.raises(ConfigError, match=r"absent\.yaml: cannot be read"):
        load_yaml(tmp_path / "absent.yaml")
    with pytest.raises(ConfigError, match=r"run\.yaml:2: not YAML"):
        load_yaml(write("a: [1\n"))
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(ConfigError, match=r"binary\.yaml: cannot be read"):
        load_yaml(tmp_path / "binary.yaml")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--micro-batchsize", "4"], "unknown flag '--micro-batchsize'; did you mean '--micro-batch-size'?"),
        (["--micro-batch", "4"], "unknown flag '--micro-batch'"),
        (["--no-bf17"], "unknown flag '--no-bf17'; did you mean '--no-bf16'?"),
        (["--confg=x"], "unknown flag '--confg'; did you mean '--config'?"),
        (["--micro-batch-size", "four"], "--micro-batch-size: expected an integer, got 'four' (str)"),
        (["--micro-batch-size", "4.0"], "--micro-batch-size: expected an integer, got '4.0' (str)"),
        (["--micro-batch-size", "none"], "--micro-batch-size: expected an integer, got 'none' (str)"),
        (["--micro-batch-size"], "argument --micro-batch-size: expected 1 argument"),
        (["--lr", "inf"], "--lr: expected a number"),
        (["--latent-lr", "x"], "--latent-lr: expected a number"),
        (["--posterior-input", "concatt"], "did you mean 'concat'?"),
        (["--profile-ranks", "0", "one"], "--profile-ranks: expected an integer, got 'one' (str)"),
        (["--valid-data", "a.jsonl"], "--valid-data: expected NAME=FILE, got 'a.jsonl'"),
        (["--valid-data", "a=b", "a=c"], "--valid-data: duplicate name 'a'"),
        (["--bf16", "true"], "unexpected 'true': every option is a flag, and a switch takes no value"),
        (["--logps-algorithm", "frozen"], "--logps-algorithm: expected one of auto, recompute, pairwise, got 'frozen'"),
        (["--config", "a", "--config", "b"], "--config: one file, got 2"),
    ],
)
def test_wrong_flags_are_refused(argv, message):
    with pytest.raises(ConfigError) as error:
        parse_args(argv)
    assert message in str(error.value)


def test_help_shows_every_option_with_its_sentence(capsys):
    with pytest.raises(SystemExit) as exit_:
        parse_args(["--help"])
    assert exit_.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    for each in all_options().values():
        assert each.flag in shown
        assert " ".join(each.help.split()).replace("- ", "-")[:30] in shown.replace("- ", "-")


@pytest.mark.parametrize(
    "value",
    [
        "https://me:secret@host/data.jsonl",
        "hf_abcdefghijklmnopqrstuvwxyz",
        "the-key-of-wandb",
        "a\0b",
        "\udc80",
        "9" * 30,
    ],
)
@pytest.mark.parametrize("flag", ["--train-data", "--wandb-project", "--seed"])
def test_what_no_option_may_hold(flag, value, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "the-key-of-wandb")
    if flag != "--seed" and value.startswith("9"):
        return
    with pytest.raises(ConfigError, match=flag) as caught:
        parse_args([flag, value])
    assert "secret@" not in str(caught.value)
    assert "abcdefghijklm" not in str(caught.value)


def test_a_section_or_a_key_with_a_tag_is_refused(write):
    with pytest.raises(ConfigError, match="must hold 'key: value' lines"):
        load_yaml(write("data: !!python/name:os.system\n  train_data: [a]\n"))
    with pytest.raises(ConfigError, match="has a key that is no name"):
        load_yaml(write("data:\n  ? [a]\n  : 1\n"))
