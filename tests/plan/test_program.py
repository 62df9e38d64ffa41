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


def test_what_does_not_fit_names_the_smallest_change(run_file, tmp_path, capsys):
    output = tmp_path / "plan.json"
    flags = ["--hidden-size", "4096", "--num-layers", "4", "--ffn-hidden-size", "98304", "--micro-batch-size", "4"]
    with pytest.raises(SystemExit) as ended:
        main(["--config", run_file, "--world-size", "4", *flags, "--output", str(output)])
    assert ended.value.code == 1
    printed = capsys.readouterr().out
    change = json.loads(output.read_text(encoding="utf-8"))["smallest_change"]
    assert "does not fit" in printed
    assert f"smallest change: {change['flags']}" in printed


def test_search(run_file, tmp_path, capsys):
    output = tmp_path / "layouts.json"
    main(["--config", run_file, "--world-size", "2", "--search", "--gpu", "B200", "--output", str(output)])
    layouts = json.loads(output.read_text(encoding="utf-8"))["layouts"]
    sizes = [(layout["parallel"]["tensor_model_parallel_size"], layout["gpu"]) for layout in layouts]
    assert sorted(sizes) == [(1, "B200"), (1, "B200"), (2, "B200")]
    rates = [layout["speed"]["pairs_per_second"] for layout in layouts]
    assert f"{rates[0]:.2f}" in capsys.readouterr().out
