"""Train two versions on the same seeds and data; compare losses, gradient norms and all other metrics step by step.

    # This checkout, uncommitted changes included, against a commit: equal to the bit?
    python tools/compare_losses.py main . --output losses.md

    # Two commits, some parallel layouts and objectives only
    python tools/compare_losses.py v0.1 HEAD --layouts tp1 pp2 --objectives lpc simpo

    # Two configurations, trained by this checkout, may differ by 1 % in every step
    python tools/compare_losses.py dpo.yaml dpo-recompute.yaml --tolerance 0.01

A and B are git revisions, folders that hold a checkout, or configuration files (.yaml). A revision is checked out into
a temporary git worktree. Each run is a few steps of a tiny model on the CPU, on preference pairs and a tokenizer that
this checkout generates once; a configuration file keeps its own model, latent, loss and optimizer options.

Metrics are compared where both sides have them, evaluations included; times are left out. The default demands equality
to the bit; `--tolerance` allows a relative difference (values below 0.001 count as 0.001).

Exit code: 0 equal, 1 different, 2 could not run.
"""

from __future__ import annotations

import argparse
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from megatron_lpc.command_line import ArgumentParser, UserError, reports_errors
from megatron_lpc.files import write_text
from megatron_lpc.terminal import markdown_table, progress
from megatron_lpc.training.metrics_file import METRICS_FILE, read_metrics

ROOT = Path(__file__).resolve().parents[1]
TIMES = {"tokens_per_sec", "mfu", "step_seconds"}
"""Metrics that differ from run to run."""
SMALLEST_SCALE = 1e-3
"""Differences are relative to the larger value, or to this where both are smaller."""

# Only options that have long had their names: other revisions have to understand them.
MODEL = {
    "num_layers": 2,
    "hidden_size": 32,
    "ffn_hidden_size": 48,
    "num_attention_heads": 4,
    "num_query_groups": 2,
    "max_position_embeddings": 64,
    "make_vocab_size_divisible_by": 8,
    "init_method_std": 0.1,
}
TRAINING = {"micro_batch_size": 2, "global_batch_size": 8, "lr": 1e-3}
OBJECTIVES: dict[str, dict[str, dict[str, Any]]] = {
    "lpc": {"loss": {"loss_type": "dpo"}, "latent": {"codebook_size": 6}},
    "dpo": {"loss": {"loss_type": "dpo"}, "latent": {"latent_mode": "none"}},
    "ipo": {"loss": {"loss_type": "ipo"}, "latent": {"latent_mode": "none"}},
    "simpo": {"loss": {"loss_type": "simpo"}, "latent": {"latent_mode": "none"}},
}


@dataclass(frozen=True)
class Layout:
    """How a run is spread over processes, and how its batches are laid out."""

    parallel: dict[str, Any]
    data: dict[str, Any]
    processes: int


LAYOUTS = {
    "tp1": Layout({}, {}, processes=1),
    "tp2_sp": Layout({"tensor_model_parallel_size": 2, "sequence_parallel": True}, {}, processes=2),
    "pp2": Layout({"pipeline_model_parallel_size": 2}, {}, processes=2),
    "packed_shared": Layout({}, {"pack_to": 128, "share_prompt": True}, processes=1),
}


@dataclass(frozen=True)
class Side:
    """One of the two versions: a checkout that trains, and its options where they come from a file."""

    tree: Path
    config: Path | None = None

    def options(self, objective: str) -> dict[str, Any]:
        """Options by section, before layout and data are set."""
        if self.config is None:
            return {"model": MODEL, "training": TRAINING, **OBJECTIVES[objective]}
        options = yaml.safe_load(self.config.read_text(encoding="utf-8"))
        if not isinstance(options, dict):
            raise UserError(f"{self.config}: not a configuration, which has sections such as `model:`")
        return options


@dataclass(frozen=True)
class Comparison:
    """How far the metrics of two runs differ."""

    steps: int
    largest: float
    """Largest relative difference."""
    largest_metric: str
    """Where it is: metric and step; empty when nothing differs."""
    first_step: int | None
    """The first step with a difference beyond the tolerance; None when the runs are equal."""
    unshared: tuple[str, ...]
    """Metrics that only one side has; they are not compared."""


def compare_metrics(a: list[dict[str, Any]], b: list[dict[str, Any]], tolerance: float = 0.0) -> Comparison:
    """Compare the lines of two metrics files (see `read_metrics`).

    Raises:
        UserError: a run has no line, or the runs have lines of different steps or evaluations.
    """
    keys = [[(line["iteration"], line.get("evaluation")) for line in lines] for lines in (a, b)]
    if not a or keys[0] != keys[1]:
        raise UserError(f"the runs logged different steps or evaluations: {keys[0]} and {keys[1]}")
    largest, largest_metric, first_step = 0.0, "", None
    unshared: set[str] = set()
    for line_a, line_b in zip(a, b, strict=True):
        names_a, names_b = _metric_names(line_a), _metric_names(line_b)
        unshared |= names_a ^ names_b
        for name in sorted(names_a & names_b):
            difference = relative_difference(line_a[name], line_b[name])
            if difference > largest:
                largest, largest_metric = difference, f"{name}, step {line_a['iteration']}"
            if difference > tolerance and first_step is None:
                first_step = line_a["iteration"]
    steps = sum("evaluation" not in line for line in a)
    return Comparison(steps, largest, largest_metric, first_step, tuple(sorted(unshared)))


def relative_difference(a: float, b: float) -> float:
    """|a - b| relative to the larger of the two. NaN equals NaN; it is infinitely far from a number."""
    if a == b or (math.isnan(a) and math.isnan(b)):
        return 0.0
    if math.isnan(a) or math.isnan(b):
        return math.inf
    return abs(a - b) / max(abs(a), abs(b), SMALLEST_SCALE)


def _metric_names(line: dict[str, Any]) -> set[str]:
    return line.keys() - TIMES - {"iteration", "evaluation"}


@contextmanager
def checkout(revision: str) -> Iterator[Path]:
    """A temporary git worktree of this repository at a revision."""
    commit = _git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}", named=revision)
    with tempfile.TemporaryDirectory(prefix="compare-losses-") as folder:
        tree = Path(folder) / commit[:12]
        _git("worktree", "add", "--detach", str(tree), commit, named=revision)
        try:
            yield tree
        finally:
            _git("worktree", "remove", "--force", str(tree), named=revision)


def _git(*arguments: str, named: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = done.stderr.strip() or "no such revision, folder or .yaml file"
        raise UserError(f"{named}: git {arguments[0]} failed: {reason}")
    return done.stdout.strip()


@contextmanager
def opened_side(argument: str) -> Iterator[Side]:
    """What an argument of the command line means: a configuration file, a folder, or a revision."""
    path = Path(argument)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise UserError(f"{path}: no such configuration file")
        yield Side(ROOT, path.resolve())
    elif path.is_dir():
        if not (path / "megatron_lpc").is_dir():
            raise UserError(f"{path}: not a checkout, which has a folder megatron_lpc")
        yield Side(path.resolve())
    else:
        with checkout(argument) as tree:
            yield Side(tree)


def make_data(folder: Path) -> None:
    """Preference pairs and a tokenizer, by the programs of this checkout: train.jsonl, test.jsonl, tokenizer.model."""
    tools = ROOT / "tools"
    sizes = ("--num-pairs", "48", "--num-eval-pairs", "24")
    _python(tools / "make_preferences.py", "--output", folder, *sizes)
    tokenizer = ("--output", folder / "tokenizer", "--vocab-size", "320")
    _python(tools / "train_tokenizer.py", "--input", folder / "train.jsonl", *tokenizer)


def run_options(
    options: dict[str, Any], layout: Layout, data: Path, save: Path, steps: int, seed: int
) -> dict[str, Any]:
    """The options of one run: those given, with the layout, the generated data and the number of steps set."""
    training = dict(options.get("training", {})) | {"train_iters": steps, "seed": seed}
    training.pop("num_train_epochs", None)
    if "pack_to" in layout.data:
        # A packed sequence is a micro-batch by itself.
        training.pop("micro_batch_size", None)
    # Of the files only the objective's options stay: paths, streaming and the like belong to other data.
    run_data = {
        "train_data": [str(data / "train.jsonl")],
        "valid_data": {"test": str(data / "test.jsonl")},
        "tokenizer_model": str(data / "tokenizer.model"),
        "max_length": 64,
        "data_cache_path": str(save / "cache"),
        **layout.data,
    }
    return options | {
        "training": training,
        "data": run_data,
        "parallel": {"device": "cpu", **layout.parallel},
        "checkpoint": {"save": str(save)},
        "logging": {"tensorboard": False, "peak_tflops": 0.1},
    }


def train(tree: Path, options: dict[str, Any], processes: int) -> list[dict[str, Any]]:
    """Train with the code of a checkout; the lines of its metrics file."""
    save = Path(options["checkpoint"]["save"])
    save.mkdir(parents=True)
    config = save / "options.yaml"
    config.write_text(yaml.safe_dump(options), encoding="utf-8")
    launcher = ("-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}")
    _python(*launcher, "-m", "megatron_lpc.train", "--config", config, tree=tree, folder=save)
    return read_metrics(save / METRICS_FILE)


def _python(*arguments: str | Path, tree: Path = ROOT, folder: Path | None = None) -> None:
    """Run Python with the packages of a checkout; in `folder`, for `-m` looks into the current folder first."""
    environment = os.environ | {
        "PYTHONPATH": f"{tree}{os.pathsep}{tree / 'kernels'}",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
    }
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        output = (done.stdout + done.stderr)[-4000:]
        raise UserError(f"{' '.join(command)}\nended with {done.returncode}, with PYTHONPATH of {tree}:\n{output}")


def compare(a: Side, b: Side, arguments: argparse.Namespace) -> dict[str, Comparison]:
    """Train both sides in every layout, under every objective; the comparisons by name of the run."""
    objectives = arguments.objectives if a.config is None else ["config"]
    runs = [(layout, objective) for layout in arguments.layouts for objective in objectives]
    found = {}
    with tempfile.TemporaryDirectory(prefix="compare-losses-") as folder:
        data = Path(folder) / "data"
        make_data(data)
        for layout_name, objective in progress(runs, "Comparing"):
            layout = LAYOUTS[layout_name]
            metrics = []
            for name, side in (("a", a), ("b", b)):
                save = Path(folder) / name / layout_name / objective
                options = run_options(side.options(objective), layout, data, save, arguments.steps, arguments.seed)
                metrics.append(train(side.tree, options, layout.processes))
            found[f"{layout_name}, {objective}"] = compare_metrics(*metrics, arguments.tolerance)
    return found


def report(found: dict[str, Comparison]) -> str:
    """A Markdown table, and a line for metrics that could not be compared."""
    headings = ("run", "steps", "largest difference", "where", "first differing step")
    rows = [
        (
            name,
            one.steps,
            f"{one.largest:.3g}",
            one.largest_metric,
            "none" if one.first_step is None else one.first_step,
        )
        for name, one in found.items()
    ]
    text = markdown_table(headings, rows)
    unshared = sorted({metric for one in found.values() for metric in one.unshared})
    if unshared:
        text += f"\nNot compared, because only one side has them: {', '.join(unshared)}.\n"
    return text


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("a", metavar="A", help="git revision, folder of a checkout, or configuration file (.yaml)")
    parser.add_argument("b", metavar="B", help="what to compare it with, of the same kind")
    parser.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=list(LAYOUTS), help="default: all")
    parser.add_argument("--objectives", nargs="+", choices=OBJECTIVES, default=list(OBJECTIVES), help="default: all")
    parser.add_argument("--steps", type=int, default=4, help="optimizer steps of each run (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=5, help="of weights, data order and noise (default: %(default)s)")
    parser.add_argument(
        "--tolerance", type=float, default=0.0, help="largest relative difference (default: 0, to the bit)"
    )
    parser.add_argument("--output", type=Path, help="Markdown file to write the table to as well")
    arguments = parser.parse_args(argv)
    if arguments.steps < 1:
        parser.error(f"--steps must be at least 1, got {arguments.steps}")
    if not arguments.tolerance >= 0:
        parser.error(f"--tolerance must be at least 0, got {arguments.tolerance}")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    with reports_errors(), ExitStack() as stack:
        arguments = parse(argv)
        a = stack.enter_context(opened_side(arguments.a))
        b = stack.enter_context(opened_side(arguments.b))
        if (a.config is None) != (b.config is None):
            raise UserError("A and B must both be configuration files, or both be revisions or folders")
        found = compare(a, b, arguments)
        text = report(found)
        print(text, end="")
        if arguments.output:
            write_text(arguments.output, text)
        return int(any(one.first_step is not None for one in found.values()))


if __name__ == "__main__":
    raise SystemExit(main())
