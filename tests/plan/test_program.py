"""The program as it is called."""

from __future__ import annotations

import json

import pytest
import yaml

from megatron_lpc.command_line import UserError
from megatron_lpc.plan.__main__ import main
from megatron_lpc.plan.options import parse


@pytest.fixture
def run_file(tmp_path):
    options = {
        "model": {"num_layers": 2, "hidden_size": 128, "ffn_hidden_size": 96, "vocab_size": 640},
        "data": {"train_data": ["missing.jsonl"], "tokenizer_model": "missing", "max_length": 128},
        "training": {"global_batch_size": 16},
    }
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(options), encoding="utf-8")
    return str(path)


def test_table_and_file(run_file, tmp_path, capsys):
    output = tmp_path / "plan.json"
    flags = ["--tensor-model-parallel-size", "2", "--micro-batch-size", "1", "--gpu", "A100"]
    main(["--config", run_file, "--world-size", "4", *flags, "--output", str(output)])
    plan = json.loads(output.read_text(encoding="utf-8"))
    assert plan["parallel"]["data_parallel_size"] == 2
    assert plan["fits"]
    assert plan["limit_bytes"] == 72 << 30
    (stage,) = plan["stages"]
    assert stage["memory"]["peak"] == plan["peak_bytes"] == max(stage["memory"]["phases"].values())
    printed = capsys.readouterr().out
    assert "4 ranks: TP 2 x PP 1 x DP 2" in printed
    assert f"{plan['model_parameters']:,} parameters" in printed


def test_what_does_not_fit_ends_with_1(run_file, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--config", run_file, "--world-size", "1", "--hidden-size", "16384", "--num-layers", "200"])
    assert ended.value.code == 1
    assert "does not fit" in capsys.readouterr().out


def test_a_cpu_has_no_limit(run_file, capsys):
    main(["--config", run_file, "--world-size", "1", "--device", "cpu"])
    assert "fits" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--world-size", "3"], "global-batch-size 16"),
        (["--world-size", "0"], "--world-size 0: must be at least 1"),
        (["--world-size", "1", "--memory-share", "1.5"], "--memory-share 1.5: must be in"),
        (["--world-size", "1", "--vocab-size", "none"], "--vocab-size: is unset"),
        (["--world-size", "1", "--nonsense"], "unknown flag '--nonsense'"),
        (["--world-size", "3", "--tensor-model-parallel-size", "3"], "must divide --num-attention-heads"),
        ([], "--world-size"),
    ],
)
def test_errors(run_file, flags, message):
    with pytest.raises(UserError, match=message):
        parse(["--config", run_file, *flags])
