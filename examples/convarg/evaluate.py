"""How well models predict the votes of single workers on debates that no one trained on.

    python -m examples.convarg.evaluate --data runs/convarg/fold-* --seeds 1 2 3 --baseline plain \
        --scores plain=plain-{seed}/scores.json lpc=lpc-{seed}/scores.json --output report.json

Prints a table: for each model the accuracy on the votes of test.jsonl given m = 0, 8 and 50 other votes of the worker,
which are drawn from train.jsonl, beside two rules: `longer` (the longer argument is chosen) and `others` (the majority
of the other workers on the same pair, which knows votes on the test debates). The votes of all folders of `--data`, one
per fold, are taken together. All rows are of the same votes: those of workers with enough votes in train.jsonl for the
largest m. Figures are means over seeds, intervals are over workers, and `seeds` has the interval of the accuracy over
seeds. Gains are against the baseline at m = 0, and against the model's own m = 0: what its m votes of a worker give.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from examples.convarg.figures import Array, calibration_error, hits, log_loss, mean_over_workers, per_worker
from examples.convarg.predictions import (
    SUPPORT_SIZES,
    Scores,
    Vote,
    draw_support,
    longer_wins,
    majority_of_others,
    read_votes,
)
from megatron_lpc.command_line import ArgumentParser, UserError, first_few, reports_errors
from megatron_lpc.files import write_json
from megatron_lpc.study.intervals import mean_interval
from megatron_lpc.terminal import markdown_table


@dataclass(frozen=True, kw_only=True)
class Row:
    """One method with one number of votes of the worker."""

    method: str
    support: int
    probabilities: Array
    """[S, P] of each vote, in the models of S seeds."""
    is_rule: bool = False
    """A rule predicts and gives no probability."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """The votes that are predicted, and those that are given."""

    test: list[Vote]
    """Of `workers`, those of one worker together."""
    everyone: list[Vote]
    """All votes of test.jsonl."""
    support: dict[str, list[Vote]]
    """Worker -> other votes, in the order in which they are given."""

    @property
    def workers(self) -> list[str]:
        """[P] who gave each vote of `test`."""
        return [vote.worker for vote in self.test]


def open_study(data: Path, sizes: Sequence[int], seed: int) -> Study:
    """The votes of a folder of `prepare.py`.

    Raises:
        UserError: no worker has enough votes.
    """
    everyone = read_votes(data / "test.jsonl")
    support = draw_support(read_votes(data / "train.jsonl"), seed)
    test = sorted(
        (vote for vote in everyone if len(support.get(vote.worker, [])) >= max(sizes)), key=lambda v: v.worker
    )
    if not test:
        raise UserError(f"--support {max(sizes)}: no worker of test.jsonl has as many votes in train.jsonl; lower it")
    return Study(test=test, everyone=everyone, support=support)


def rules(study: Study) -> list[Row]:
    """`longer` and `others`."""
    whole = dict(zip(map(id, study.everyone), majority_of_others(study.everyone), strict=True))
    others = np.array([whole[id(vote)] for vote in study.test])
    return [
        Row(method="longer", support=0, probabilities=longer_wins(study.test)[None], is_rule=True),
        Row(method="others", support=0, probabilities=others[None], is_rule=True),
    ]


def rows_of(study: Study, method: str, scores: Scores, sizes: Sequence[int]) -> list[Row]:
    """A model without a latent of the worker has m = 0 alone."""
    rows = []
    for size in sizes:
        if size == 0:
            probabilities = scores.without_worker(study.test)
        elif scores.takes_support:
            parts = [
                scores.with_support(
                    [vote for vote in study.test if vote.worker == worker], study.support[worker][:size]
                )
                for worker in sorted(set(study.workers))
            ]
            probabilities = np.concatenate(parts)
        else:
            continue
        rows.append(Row(method=method, support=size, probabilities=probabilities[None]))
    return rows


def joined(parts: Sequence[Sequence[Row]], axis: int) -> list[Row]:
    """The same rows of several seeds (axis 0), or of other votes (axis 1)."""
    return [
        replace(rows[0], probabilities=np.concatenate([row.probabilities for row in rows], axis))
        for rows in zip(*parts, strict=True)
    ]


def pooled(studies: Mapping[Path, Study], method: str, file: str, sizes: Sequence[int]) -> list[Row]:
    """The rows of a model for the votes of all folds, each scored in `file` of its folder."""
    return joined([rows_of(study, method, Scores(folder / file), sizes) for folder, study in studies.items()], axis=1)


def figures(row: Row, baseline: Row, without: Row, workers: list[str]) -> dict[str, Any]:
    """All figures of a row, for the report.

    Args:
        without: the same model at m = 0.
        workers: [P] who gave the votes.
    """
    correct = hits(row.probabilities).mean(0)
    found: dict[str, Any] = {
        "method": row.method,
        "support": row.support,
        "accuracy": asdict(mean_over_workers(correct, workers)),
        "gain": asdict(mean_over_workers(correct - hits(baseline.probabilities).mean(0), workers)),
        "personal_gain": asdict(mean_over_workers(correct - hits(without.probabilities).mean(0), workers)),
        "per_worker": per_worker(correct, workers),
        "per_seed": hits(row.probabilities).mean(1).tolist(),
    }
    found["mean_of_workers"] = float(np.mean(list(found["per_worker"].values())))
    if not row.is_rule:
        gained = np.log(row.probabilities).mean(0) - np.log(baseline.probabilities).mean(0)
        found |= {
            "calibration_error": float(np.mean([calibration_error(of_seed) for of_seed in row.probabilities])),
            "log_loss": log_loss(row.probabilities),
            "log_loss_gain": asdict(mean_over_workers(gained, workers)),
        }
    return found


def compared(rows: Sequence[Row], baseline: str, workers: list[str]) -> list[dict[str, Any]]:
    """The figures of all rows, those of a method from the fewest votes to the most."""
    first = {row.method: row for row in reversed(rows)}
    return [figures(row, first[baseline], first[row.method], workers) for row in rows]


def table(found: Sequence[dict[str, Any]]) -> str:
    """In Markdown."""
    headings = ["method", "m", "accuracy (95%)", "mean of workers", "gain (95%)", "over its m = 0 (95%)"]
    headings += ["calibration error", "log loss", "gain in log loss (95%)", "seeds"]
    lines = []
    for row in found:
        accuracy, gain = row["accuracy"], row["gain"]
        cells = [
            row["method"],
            str(row["support"]),
            f"{accuracy['value']:.1%} ({100 * accuracy['low']:.1f} to {100 * accuracy['high']:.1f})",
            f"{row['mean_of_workers']:.1%}",
            _gain(gain, 100, 2),
            _gain(row["personal_gain"], 100, 2) if row["support"] else "",
            f"{row['calibration_error']:.3f}" if "calibration_error" in row else "",
            f"{row['log_loss']:.3f}" if "log_loss" in row else "",
            _gain(row["log_loss_gain"], 1, 4) if "log_loss_gain" in row else "",
            _over_seeds(row["per_seed"]),
        ]
        lines.append(cells)
    return markdown_table(headings, lines)


def _gain(figure: dict[str, float], scale: float, digits: int) -> str:
    value, low, high = (f"{scale * figure[key]:+.{digits}f}" for key in ("value", "low", "high"))
    return f"{value} ({low} to {high})"


def _over_seeds(accuracies: Sequence[float]) -> str:
    estimate = mean_interval([100 * accuracy for accuracy in accuracies])
    return "" if estimate.half_width is None else f"{estimate.mean:.1f} ± {estimate.half_width:.1f}"


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; exits with 2 and one message when a file or an option cannot work."""
    with reports_errors():
        parser = ArgumentParser(description=(__doc__ or "").splitlines()[0])
        parser.add_argument("--data", type=Path, nargs="+", required=True, help="folders of prepare.py, one per fold")
        parser.add_argument(
            "--scores",
            nargs="+",
            required=True,
            metavar="NAME=FILE",
            help="models, scored by score.py: files in the folder of each fold; {seed} in a name stands for each seed",
        )
        parser.add_argument("--seeds", nargs="+", default=["1"], help="that {seed} stands for (1)")
        parser.add_argument("--baseline", required=True, metavar="NAME", help="model that gains are measured against")
        parser.add_argument("--support", type=int, nargs="+", default=[0, *SUPPORT_SIZES], metavar="M", help="(0 8 50)")
        parser.add_argument("--seed", type=int, default=0, help="of the draw of other votes (0)")
        parser.add_argument("--output", type=Path, help="report to write, per worker too (JSON)")
        options = parser.parse_args(argv)
        files = dict(entry.partition("=")[::2] for entry in options.scores)
        if options.baseline not in files:
            raise UserError(
                f"--baseline {options.baseline}: is none of --scores; name {first_few(list(files), 'models')}"
            )
        studies = {folder: open_study(folder, options.support, options.seed) for folder in options.data}
        rows = joined([rules(study) for study in studies.values()], axis=1)
        for name, file in files.items():
            seeds = options.seeds if "{seed}" in file else options.seeds[:1]
            of_seeds = [pooled(studies, name, file.replace("{seed}", seed), options.support) for seed in seeds]
            rows += joined(of_seeds, axis=0)
        workers = [worker for study in studies.values() for worker in study.workers]
        found = compared(rows, options.baseline, workers)
        print(f"{len(workers):,} votes of {len(set(workers)):,} workers, gains over {options.baseline}\n")
        print(table(found), end="")
        if options.output is not None:
            write_json(options.output, {"votes": len(workers), "baseline": options.baseline, "rows": found})


if __name__ == "__main__":
    main()
