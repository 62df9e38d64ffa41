"""What a run shows and leaves behind."""

import json
import math
import sys
from dataclasses import asdict
from io import StringIO
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from megatron_lpc.config import CheckpointConfig, Config, ConfigError, LoggingConfig
from megatron_lpc.training.generated import Generated
from megatron_lpc.training.histogram import histogram_of_codes
from megatron_lpc.training.metrics_file import MetricsFile, read_metrics
from megatron_lpc.training.watch import Watch


def _config(save=None, **logging) -> Config:
    return Config(
        checkpoint=CheckpointConfig(save=str(save) if save else None),
        logging=LoggingConfig(**{"tensorboard": False} | logging),
    )


def _console(terminal: bool = False) -> Console:
    return Console(file=StringIO(), force_terminal=terminal, width=160, color_system=None, force_interactive=terminal)


def _run(config, total, start=0, stop=None, console=None):
    with Watch(config, total, start, console or _console()) as watch:
        for iteration in range(start + 1, (stop or total) + 1):
            watch.step(iteration, {"loss": 1 / iteration})


def test_plain_lines_where_there_is_no_terminal():
    console = _console()
    metrics = {
        "loss": 0.69314,
        "rewards/margins": 0.25,
        "rewards/accuracies": 0.5,
        "lpc/kl": 0.125,
        "tokens_per_sec": 12345.6,
        "lr": 1e-3,
    }
    with Watch(_config(), 3, 0, console) as watch:
        watch.step(1, metrics)
        watch.evaluation(1, "held_out/prior", {"loss": 0.5, "rewards/accuracies": 1.0})
        watch.message("saved [bold]x[/bold] " + "y" * 300)
    lines = console.file.getvalue().splitlines()
    assert lines[0].startswith("step 1/3  loss 0.6931  margin 0.2500  accuracy 50.0%  KL 0.1250  12,346 tokens/s  0:0")
    assert lines[0].endswith(" left")
    assert lines[1] == "evaluation of held_out/prior at step 1:  loss 0.5000  accuracy 100.0%"
    assert lines[2] == "saved [bold]x[/bold] " + "y" * 300


def test_live_bar_on_a_terminal():
    console = _console(terminal=True)
    with Watch(_config(log_interval=10), 4, 2, console) as watch:
        watch.step(3, {"loss": 0.25})
        watch.message("half way")
        watch.step(4, {"loss": 0.125})
    text = console.file.getvalue()
    assert "step 4/4" in text
    assert "loss 0.1250" in text
    assert "half way" in text
    assert "\x1b[?25l" in text  # The cursor was hidden: the bar is live.
    assert text.rstrip().endswith("\x1b[?25h")  # And is there again.


def test_time_left_counts_only_the_steps_of_this_process(monkeypatch):
    clock = iter([100.0, 102.0, 104.0])
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    console = _console()
    _run(_config(), 10, start=6, stop=8, console=console)
    assert [line.split("  ")[-1] for line in console.file.getvalue().splitlines()] == ["0:00:06 left", "0:00:04 left"]


def test_log_interval_keeps_each_nth_step_and_the_last(tmp_path):
    console = _console()
    _run(_config(tmp_path, log_interval=3), 8, console=console)
    assert [record["iteration"] for record in read_metrics(tmp_path / "metrics.jsonl")] == [3, 6, 8]
    assert [line.split()[1] for line in console.file.getvalue().splitlines()] == ["3/8", "6/8", "8/8"]


def test_nothing_is_written_without_save(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _run(_config(tensorboard=True), 2)
    assert list(tmp_path.iterdir()) == []


def test_a_resumed_run_never_has_a_step_twice(tmp_path):
    path = tmp_path / "metrics.jsonl"
    _run(_config(tmp_path), 10, stop=5)
    with path.open("a") as file:
        file.write('{"iteration": 6, "loss": 0.1')  # Killed while it wrote.
    _run(_config(tmp_path), 10, start=3)
    records = read_metrics(path)
    assert [record["iteration"] for record in records] == list(range(1, 11))
    assert [record["loss"] for record in records] == [1 / i for i in range(1, 11)]
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_new_run_starts_an_empty_file(tmp_path):
    with Watch(_config(tmp_path), 2, 0, _console()) as watch:
        watch.evaluation(0, "held_out", {"loss": 3.0})
        watch.step(1, {"loss": 2.0})
    _run(_config(tmp_path), 1)
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"iteration": 1, "loss": 1.0}]


def test_resuming_keeps_evaluations_and_numbers_that_are_not_finite(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with Watch(_config(tmp_path), 4, 0, _console()) as watch:
        watch.step(1, {"loss": math.nan, "grad_norm": math.inf})
        watch.evaluation(1, "held_out/prior", {"loss": 0.5})
        watch.evaluation(2, "held_out/prior", {"loss": 0.25})
    lines = path.read_text().splitlines()
    assert lines[0] == '{"iteration": 1, "loss": null, "grad_norm": null}'
    assert json.loads(lines[1]) == {"iteration": 1, "evaluation": "held_out/prior", "loss": 0.5}
    with Watch(_config(tmp_path), 4, 1, _console()):
        assert path.read_text().splitlines() == lines[:2]
    with Watch(_config(tmp_path), 1, 1, _console()) as watch:  # All steps are done: only the evaluation is repeated.
        watch.evaluation(1, "held_out/prior", {"loss": 0.5})
        assert path.read_text().splitlines() == lines[:2]
    assert math.isnan(read_metrics(path)[0]["loss"])


def test_a_line_is_readable_as_soon_as_it_is_written(tmp_path):
    with Watch(_config(tmp_path), 2, 0, _console()) as watch:
        watch.step(1, {"loss": 1.0})
        assert len(read_metrics(tmp_path / "metrics.jsonl")) == 1


@pytest.mark.parametrize("line", ["not json", "[1]", '{"loss": 1.0}', '{"iteration": null}'])
def test_a_file_of_something_else_is_refused_and_left_alone(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"iteration": 1}}\n{line}\n{{"iteration": 3}}\n')
    before = path.read_text()
    with pytest.raises(ValueError, match=r"metrics\.jsonl:2: not a line of metrics"):
        Watch(_config(tmp_path), 4, 2, _console())
    assert path.read_text() == before


def test_a_failed_rewrite_loses_nothing(tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"iteration": 1}\n{"iteration": 2}\n')
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        MetricsFile(path, 1)
    assert len(read_metrics(path)) == 2


def test_tensorboard_and_what_a_resumed_run_makes_of_it(tmp_path):
    config = _config(tmp_path, tensorboard=True)
    _run(config, 6, stop=4)
    with Watch(config, 6, 2, _console()) as watch:
        watch.step(3, {"loss": 7.0})
        watch.evaluation(3, "held_out/prior", {"loss": 8.0})
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 1.0), (2, 0.5), (3, 7.0)]
    assert [event.value for event in events.Scalars("eval/held_out/prior/loss")] == [8.0]


HISTOGRAM = histogram_of_codes(torch.tensor([2.0, 0.0, 0.5]))
GENERATED = [
    Generated(prompt="why # |x|", latent=latent, response=response, num_tokens=3, is_cut=is_cut)
    for latent, response, is_cut in (("prior", "a\n# b", False), ("code:2", "", True))
]


def test_tensorboard_has_histograms_and_texts(tmp_path):
    with Watch(_config(tmp_path, tensorboard=True), 2, 0, _console()) as watch:
        for iteration in (1, 2):
            watch.step(iteration, {"loss": 1.0})
            watch.histograms(iteration, {"held_out/lpc/usage/prior": HISTOGRAM})
        watch.generations(2, "held_out", GENERATED)
    events = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"histograms": 0, "tensors": 0})
    events.Reload()
    found = events.Histograms("eval/held_out/lpc/usage/prior")
    assert [event.step for event in found] == [1, 2]
    value = found[0].histogram_value
    assert (value.num, value.min, value.max) == (2.5, -0.5, 2.5)
    assert (value.sum, value.sum_squares) == (0.5 * 2, 0.5 * 2**2)
    assert list(zip(value.bucket_limit, value.bucket, strict=True)) == [(-0.5, 0), (0.5, 2), (1.5, 0), (2.5, 0.5)]
    (text,) = events.Tensors("eval/held_out/generations/1/text_summary")
    assert text.step == 2
    assert text.tensor_proto.string_val[0].decode().split("\n\n") == [
        "**prompt**",
        "    why # |x|",
        "**prior** (3 tokens)",
        "    a\n    # b",
        "**code:2** (3 tokens, cut)",
        "    ",
    ]


class _FakeRun:
    def __init__(self) -> None:
        self.lines: list = []
        self.closed = False

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        self.closed = True

    def log(self, metrics, step) -> None:
        self.lines.append((step, metrics))


def test_weights_and_biases(tmp_path, monkeypatch):
    run, asked = _FakeRun(), {}
    module = SimpleNamespace(
        init=lambda **options: asked.update(options) or run,
        Histogram=lambda np_histogram: [part.tolist() for part in np_histogram],
        Table=lambda columns, data: [dict(zip(columns, row, strict=True)) for row in data],
    )
    monkeypatch.setitem(sys.modules, "wandb", module)
    with Watch(_config(tmp_path, wandb_project="p"), 2, 0, _console()) as watch:
        watch.step(1, {"loss": 1.0})
        watch.evaluation(1, "held_out", {"loss": 2.0})
        watch.histograms(1, {"held_out/lpc/first_choice": HISTOGRAM})
        watch.generations(1, "held_out", GENERATED)
    assert run.lines == [
        (1, {"loss": 1.0}),
        (1, {"eval/held_out/loss": 2.0}),
        (1, {"eval/held_out/lpc/first_choice": [[2.0, 0.0, 0.5], [-0.5, 0.5, 1.5, 2.5]]}),
        (1, {"eval/held_out/generations": [{"iteration": 1} | asdict(each) for each in GENERATED]}),
    ]
    assert run.closed
    assert (asked["project"], asked["group"], asked["config"]["training"]["seed"]) == ("p", tmp_path.name, 1234)


def test_weights_and_biases_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match="--wandb-project p: the package `wandb` is not installed"):
        Watch(_config(wandb_project="p"), 1, 0, _console())


def test_everything_is_closed_when_training_fails(tmp_path, monkeypatch):
    run = _FakeRun()
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=lambda **_: run))
    console = _console(terminal=True)
    with (
        pytest.raises(RuntimeError, match="broken"),
        Watch(_config(tmp_path, wandb_project="p"), 1, 0, console) as watch,
    ):
        raise RuntimeError("broken")
    assert run.closed
    assert watch._metrics_file._file.closed
    assert console.file.getvalue().rstrip().endswith("\x1b[?25h")
