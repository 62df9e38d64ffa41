"""Comparing runs: what counts as equal, what is refused, and that a changed loss is found."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from program import load_program

from megatron_lpc.command_line import UserError
from megatron_lpc.config import parse_args

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    return load_program("tools/compare_losses.py")


def lines(*losses: float, **others: Any) -> list[dict[str, Any]]:
    return [{"iteration": step, "loss": loss, **others} for step, loss in enumerate(losses, start=1)]


def test_equal_to_the_bit_without_the_times(tool: ModuleType) -> None:
    found = tool.compare_metrics(lines(0.7, 0.6, mfu=0.1), lines(0.7, 0.6, mfu=0.2))
    assert found == tool.Comparison(steps=2, largest=0.0, largest_metric="", first_step=None, unshared=())


def test_the_last_bit_counts(tool: ModuleType) -> None:
    found = tool.compare_metrics(lines(0.7, 0.6), lines(0.7, math.nextafter(0.6, 1.0)))
    assert found.first_step == 2
    assert found.largest_metric == "loss, step 2"
    assert 0 < found.largest < 1e-15


@pytest.mark.parametrize(("tolerance", "first_step"), [(0.0, 1), (0.02, 2), (0.2, None)])
def test_tolerance_is_relative(tool: ModuleType, tolerance: float, first_step: int | None) -> None:
    found = tool.compare_metrics(lines(100.0, 1.0), lines(101.0, 1.1), tolerance)
    assert found.first_step == first_step
    assert found.largest == pytest.approx(0.1 / 1.1)


def test_evaluations_are_compared_and_are_no_steps(tool: ModuleType) -> None:
    trained = lines(0.7)
    evaluated = [*trained, {"iteration": 1, "evaluation": "test/prior", "loss": 0.7}]
    other = [*trained, {"iteration": 1, "evaluation": "test/prior", "loss": 0.8}]
    found = tool.compare_metrics(evaluated, other)
    assert found.steps == 1
    assert found.first_step == 1


def test_nan_equals_nan_only(tool: ModuleType) -> None:
    assert tool.compare_metrics(lines(math.nan), lines(math.nan)).first_step is None
    assert tool.compare_metrics(lines(math.nan), lines(0.7), tolerance=1.0).largest == math.inf


def test_metrics_of_one_side_are_named(tool: ModuleType) -> None:
    found = tool.compare_metrics(lines(0.7, grad_norm=1.0), lines(0.7))
    assert found.first_step is None
    assert found.unshared == ("grad_norm",)
    assert "only one side has them: grad_norm" in tool.report({"tp1, dpo": found})


def test_runs_of_other_length_are_refused(tool: ModuleType) -> None:
    with pytest.raises(UserError, match="different steps"):
        tool.compare_metrics(lines(0.7), lines(0.7, 0.6))
    with pytest.raises(UserError, match="different steps"):
        tool.compare_metrics([], [])


def test_every_run_has_valid_options(tool: ModuleType, tmp_path: Path) -> None:
    for layout in tool.LAYOUTS.values():
        for objective in tool.OBJECTIVES:
            options = tool.Side(ROOT).options(objective)
            file = tmp_path / "options.yaml"
            file.write_text(yaml.safe_dump(tool.run_options(options, layout, tmp_path, tmp_path / "run", 4, 5)))
            parse_args(["--config", str(file)])


def test_a_configuration_keeps_its_options_but_not_its_length(tool: ModuleType, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump({"loss": {"beta": 0.3}, "training": {"num_train_epochs": 2, "lr": 0.1}}))
    with tool.opened_side(str(file)) as side:
        options = tool.run_options(side.options("config"), tool.LAYOUTS["tp1"], tmp_path, tmp_path / "run", 4, 5)
    assert options["loss"] == {"beta": 0.3}
    assert options["training"] == {"lr": 0.1, "train_iters": 4, "seed": 5}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no-such-revision", "HEAD"], "no-such-revision: git rev-parse failed: no such revision"),
        (["missing.yaml", "HEAD"], "missing.yaml: no such configuration file"),
        (["examples", "examples"], "examples: not a checkout"),
        (["examples/recovery/lpc.yaml", "."], "A and B must both be configuration files"),
        ([".", ".", "--steps", "0"], "--steps must be at least 1"),
        ([".", ".", "--tolerance", "nan"], "--tolerance must be at least 0"),
    ],
)
def test_what_cannot_run(
    tool: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as stop:
        tool.main(arguments)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.distributed
def test_a_changed_loss_is_found(tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """HEAD against a copy of this checkout whose loss is a little larger."""
    changed = tmp_path / "changed"
    for package in ("megatron_lpc", "kernels"):
        shutil.copytree(ROOT / package, changed / package)
    losses = changed / "megatron_lpc" / "losses" / "preference.py"
    text = losses.read_text(encoding="utf-8")
    assert text.count("config.simpo_gamma") == 1
    losses.write_text(text.replace("config.simpo_gamma", "config.simpo_gamma * 1.0000001"), encoding="utf-8")
    flags = ["--layouts", "tp1", "--objectives", "simpo", "--steps", "1"]
    table = tmp_path / "table.md"
    assert tool.main(["HEAD", str(changed), *flags, "--output", str(table)]) == 1
    assert capsys.readouterr().out == table.read_text(encoding="utf-8")
    row = table.read_text(encoding="utf-8").splitlines()[2]
    assert row.startswith("| tp1, simpo | 1 |")
    assert row.endswith("| 1 |")
    assert tool.main([str(changed), str(changed), *flags]) == 0
