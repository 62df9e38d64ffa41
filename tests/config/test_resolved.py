"""The resolved configuration, printed and saved."""

from dataclasses import replace

import pytest
import yaml
from rich.console import Console

from megatron_lpc.config import Config, LossConfig, load_yaml, parse_args, print_config, save_resolved
from megatron_lpc.config.options import all_options, sections


def test_every_option_is_printed_and_the_changed_ones_are_marked():
    console = Console(record=True, width=4000, file=open("/dev/null", "w"))  # noqa: SIM115
    print_config(parse_args(["--train-data", "[red]", "--no-ipo-length-average"]), console)
    text = console.export_text()
    for name in all_options():
        assert f"{name}=" in text or f"{name}*=" in text
    assert "train_data*=['[red]']" in text
    assert "ipo_length_average*=false" in text
    assert "lr=5e-07" in text
    assert text.count("*=") == 2


def test_a_saved_configuration_loads_back(tmp_path):
    flags = (
        "--lr 5e-7 --adam-eps 1e-12 --train-data ü.jsonl [x] --valid-data no=yes --sliding-window 3 --save none "
        "--tokenizer-model 5e-7 --group-column on --latent-mode none --bf16 --profile-ranks 1 2"
    )
    config = parse_args(flags.split())
    path = tmp_path / "new" / "config.yaml"
    save_resolved(config, path)
    assert load_yaml(path) == config
    assert set(yaml.safe_load(path.read_text())) == set(sections())
    save_resolved(replace(config, loss=LossConfig(beta=0.5)), path)
    assert load_yaml(path).loss.beta == 0.5
    assert list(path.parent.iterdir()) == [path]


def test_a_failed_save_leaves_the_older_file(tmp_path, monkeypatch):
    path = tmp_path / "config.yaml"
    save_resolved(Config(), path)
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        save_resolved(Config(loss=LossConfig(beta=0.5)), path)
    assert load_yaml(path) == Config()
