"""Curves of runs."""

import json
from pathlib import Path

import pytest
from matplotlib import pyplot as plt
from program import load_program

plot = load_program("tools/plot_metrics.py")


def _write(folder: Path, records: list[dict]) -> Path:
    folder.mkdir()
    path = folder / "metrics.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.fixture
def figures(monkeypatch):
    """Figures stay open for a look at them."""
    monkeypatch.setattr(plt, "close", lambda _: None)
    yield lambda: plt.figure(plt.get_fignums()[-1])
    monkeypatch.undo()
    plt.close("all")


def test_runs_and_evaluations_are_drawn_with_their_labels(tmp_path, figures):
    _write(
        tmp_path / "plain",
        [
            {"iteration": 1, "loss": 1.0, "lr": 1.0},
            {"iteration": 2, "loss": None, "lr": 1.0},
            {"iteration": 3, "loss": 0.5},
        ],
    )
    lpc = _write(
        tmp_path / "lpc",
        [{"iteration": 1, "loss": 0.9, "lpc/kl": 0.1}, {"iteration": 1, "evaluation": "held_out/prior", "loss": 0.8}],
    )
    output = tmp_path / "new" / "curves.png"
    plot.main([f"baseline={tmp_path / 'plain'}", str(lpc), "--output", str(output)])
    assert output.read_bytes().startswith(b"\x89PNG")
    assert list(output.parent.iterdir()) == [output]
    figure = figures()
    assert [axes.get_title() for axes in figure.axes] == ["loss", "KL(q || p), nats per pair"]
    drawn = {
        line.get_label(): list(map(float, line.get_ydata()))
        for line in figure.axes[0].lines
        if not line.get_label().startswith("_")
    }
    assert list(drawn) == ["baseline", "lpc", "lpc: held_out/prior"]
    assert drawn["lpc"] == [0.9]
    assert drawn["lpc: held_out/prior"] == [0.8]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(drawn)


def test_smoothing_keeps_a_line_and_passes_over_nan():
    line = [float(value) for value in range(200)]
    assert plot._smooth(line) == pytest.approx(line)
    line[100] = float("nan")
    assert abs(plot._smooth(line)[100] - 100) < 1e-9


def test_a_later_line_of_the_same_step_counts(tmp_path):
    path = _write(tmp_path / "run", [{"iteration": 1, "loss": 1.0}, {"iteration": 1, "loss": 2.0}])
    assert plot._collect({"run": path}) == {("run", None, "loss"): [(1, 2.0)]}


def test_what_cannot_be_drawn_is_told(tmp_path, capsys):
    def error_of(*arguments: str) -> str:
        with pytest.raises(SystemExit) as stop:
            plot.main(list(arguments))
        assert stop.value.code == 2
        return capsys.readouterr().err

    assert "absent.jsonl" in error_of(str(tmp_path / "absent.jsonl"))
    empty = _write(tmp_path / "empty", [{"iteration": 1, "lr": 1.0}])
    assert "nothing to draw" in error_of(str(empty), "--output", str(tmp_path / "x.png"))
    broken = tmp_path / "broken.jsonl"
    broken.write_text("x\n")
    assert "broken.jsonl:1: not a line of metrics" in error_of(str(broken))
    assert "two runs are called 'empty'" in error_of(str(empty), str(empty.parent))
    assert not (tmp_path / "x.png").exists()
