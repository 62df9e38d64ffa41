"""The command line of a report: where its options come from, and what it refuses."""

from __future__ import annotations

import pytest
import yaml

from megatron_lpc.config import ConfigError
from megatron_lpc.evaluation.report.options import parse_report_command
from megatron_lpc.evaluation.run_folder import metrics_file, options_file

LPC = {"latent": {"codebook_size": 8}, "data": {"tokenizer_model": "t", "valid_data": {"held_out": "v.jsonl"}}}


@pytest.fixture
def folder(tmp_path):
    """Writes the options of a run, or of an import, and gives the flags of a report on it."""

    def make(options, name="config.yaml"):
        (tmp_path / "run" / "iter_0000003").mkdir(parents=True, exist_ok=True)
        (tmp_path / "run" / name).write_text(yaml.safe_dump(options))
        return ["--load", str(tmp_path / "run"), "--output", str(tmp_path / "out")]

    return make


def test_options_lie_beside_the_checkpoint(folder, tmp_path):
    flags = folder(LPC)
    config, _, options = parse_report_command(flags)
    assert config.latent.codebook_size == 8
    assert config.checkpoint.load == str(tmp_path / "run")
    assert config.data.valid_data == {"held_out": "v.jsonl"}
    assert (options.output, options.source_column, options.map, options.examples) == (tmp_path / "out", None, None, 3)
    run = tmp_path / "run"
    assert options_file(run / "iter_0000003") == run / "config.yaml"
    assert metrics_file(run) is None
    (run / "metrics.jsonl").touch()
    assert metrics_file(run) == metrics_file(run / "iter_0000003") == run / "metrics.jsonl"
    with pytest.raises(ConfigError, match=r"has neither config\.yaml, as a run, nor model\.yaml"):
        options_file(tmp_path / "elsewhere")


def test_data_is_named_by_its_file_or_by_hand(folder):
    flags = [*folder(LPC), "--data", "some/test.jsonl.gz", "new=other.jsonl", "a=b/c=d.jsonl", "--group-column", "who"]
    config, support, _ = parse_report_command([*flags, "--support-pairs", "3"])
    assert config.data.valid_data == {"test": "some/test.jsonl.gz", "new": "other.jsonl", "a": "b/c=d.jsonl"}
    assert support.pairs == 3


def test_an_import_must_name_its_reference(folder):
    flags = folder(LPC, "model.yaml")
    with pytest.raises(ConfigError, match="--loss-type dpo: compares with a reference, which an import does not name"):
        parse_report_command(flags)
    for enough in (["--reference-load", "base"], ["--freeze-backbone"], ["--loss-type", "simpo"]):
        parse_report_command([*flags, *enough])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--valid-data", "a=b"], "--valid-data: has no effect on a report; name its pairs with --data"),
        (["--lr", "1"], "--lr: has no effect on an evaluation"),
        (["--data", "x/a.jsonl", "y/a.jsonl"], "--data: two data sets are called 'a'"),
        (["--data"], "--data: expected at least one argument"),
        (["--map", "graph"], "--map: invalid choice: 'graph'"),
        (["--examples", "-1"], "--examples -1: must not be negative"),
        (["--support-pairs", "2"], "--support-pairs: support needs groups"),
        (["--latent-mode", "none"], "--latent-mode none: has no codes to report"),
        (["--nonsense"], "unknown flag"),
    ],
)
def test_refused(folder, flags, message):
    with pytest.raises(ConfigError, match=message):
        parse_report_command([*folder(LPC), *flags])


def test_something_to_look_at_and_somewhere_to_write(folder, tmp_path):
    with pytest.raises(ConfigError, match="--data: is unset, and the run has no validation set"):
        parse_report_command(folder({"latent": {"codebook_size": 8}}))
    (tmp_path / "out").touch()
    with pytest.raises(ConfigError, match="out: is not a folder"):
        parse_report_command(folder(LPC))
