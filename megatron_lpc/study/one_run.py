"""Train and evaluate, and leave reports, metrics, and no checkpoint unless it shall be kept.

    python -m megatron_lpc.study.one_run --save RUN [--keep-checkpoint] [--processes N] [--support-pairs N ...] \
        [--evaluate=FLAGS]

Started by `megatron_lpc.study`. Other flags are those of `megatron_lpc.train`; `--support-...`, and those in FLAGS, are
those of `megatron_lpc.evaluate`. Training and evaluations run in this process, or each under torchrun where there are
several `--processes`. With several numbers of support pairs each has a report of its own, RUN/report-N.json.
With 0 pairs, the latent of a group is that of its prompts alone, on the query pairs of the least other number. A
training that has ended before is not done again. With MEGATRON_LPC_STUDY in the environment, the run ends with its
standard input.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from argparse import RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any

from megatron_lpc import evaluate
from megatron_lpc.command_line import ArgumentParser, UserError, reports_errors
from megatron_lpc.config import parse_args
from megatron_lpc.files import write_json
from megatron_lpc.study.run_files import ENDS_WITH_INPUT, TRAINED, report_files
from megatron_lpc.train import train


def main(argv: Sequence[str] | None = None) -> None:
    """Command line. Exits with 2 when options or data cannot work, with 1 when the training diverged."""
    if ENDS_WITH_INPUT in os.environ:
        Thread(target=_end_with_input, daemon=True).start()
    with reports_errors():
        known, rest = _parser().parse_known_args(argv)
        support, flags = _split_support(rest)
        config = parse_args(flags)
        if config.checkpoint.save is None:
            raise UserError("--save: is unset; name the folder of the run")
        save = Path(config.checkpoint.save)
        if not (save / TRAINED).exists():
            if known.processes > 1:
                _under_torchrun("train", flags, known.processes)
            elif not train(config):
                raise UserError("the training ended before its last step, so there is nothing to report")
            (save / TRAINED).touch()
        run = evaluate.main if known.processes == 1 else partial(_under_torchrun, "evaluate", processes=known.processes)
        evaluate_all(save, known.support_pairs, [*known.evaluate, *support], run)
    if not known.keep_checkpoint:
        _remove_checkpoint(save)


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="python -m megatron_lpc.study.one_run",
        description=__doc__,
        formatter_class=RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--keep-checkpoint", action="store_true", help="do not remove it after the evaluations")
    parser.add_argument("--processes", type=int, default=1, metavar="N", help="of the run, under torchrun (1)")
    parser.add_argument("--evaluate", type=shlex.split, default=[], metavar="FLAGS", help="more flags of evaluations")
    parser.add_argument("--support-pairs", type=int, nargs="+", metavar="N", help="numbers of support pairs")
    return parser


def _split_support(flags: Sequence[str]) -> tuple[list[str], list[str]]:
    """The flags `--support-NAME VALUE`, and all others."""
    support: list[str] = []
    others: list[str] = []
    for flag in flags:
        follows = bool(support) and support[-1].startswith("--")
        (support if follows or flag.startswith("--support-") else others).append(flag)
    return support, others


def _under_torchrun(program: str, flags: Sequence[str], processes: int) -> None:
    """Run one of our programs on several processes of this host.

    Raises:
        UserError: it failed; it has said why.
    """
    launch = ["-m", "megatron_lpc.launch", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, *launch, "-m", f"megatron_lpc.{program}", *flags]
    done = subprocess.run(command, check=False, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise UserError(f"megatron_lpc.{program} ended with {done.returncode} on {processes} processes")


def evaluate_all(
    save: Path, pairs: Sequence[int] | None, flags: Sequence[str], run: Callable[[Sequence[str]], None]
) -> None:
    """Write the reports of a run.

    Args:
        save: folder of the run.
        pairs: numbers of support pairs; None where there is no support.
        flags: other flags of `megatron_lpc.evaluate`.
        run: runs it with some flags.
    """
    command = ["--config", str(save / "config.yaml"), *flags]
    files = report_files(pairs)
    if pairs is None:
        run([*command, "--output", str(save / files[None])])
        return
    for number in sorted(pairs, reverse=True):
        if number:
            run([*command, "--support-pairs", str(number), "--output", str(save / files[number])])
    if 0 not in pairs:
        return
    least = min((number for number in pairs if number), default=None)
    whole = save / (files[least] if least else files[0])
    if least is None:
        run([*command, "--output", str(whole)])
    write_json(save / files[0], without_support(json.loads(whole.read_text(encoding="utf-8"))))


def without_support(report: dict[str, Any]) -> dict[str, Any]:
    """The report of 0 support pairs, from that of any number: what is known of a group is its prompts."""
    report = deepcopy(report)
    report["support"]["pairs"] = 0
    for of_data in report["data"].values():
        accuracy = of_data["support"]["accuracy"]
        accuracy["support"] = accuracy["prior"]
        if "support_exact" in accuracy:
            accuracy["support_exact"] = accuracy["marginal"]
        accuracy.pop("swapped", None)
        of_data["support"]["groups"] = {}
    return report


def _remove_checkpoint(save: Path) -> None:
    (save / TRAINED).unlink()
    for checkpoint in save.glob("iter_*"):
        shutil.rmtree(checkpoint)
    (save / "latest_checkpointed_iteration.txt").unlink()


def _end_with_input() -> None:
    """The study holds the other end of standard input, so it is at its end when the study was killed."""
    # Not `sys.stdin`, whose lock a thread that waits would keep while the interpreter ends.
    while os.read(0, 1):
        pass
    os.killpg(0, signal.SIGKILL)  # With what it has started; the study gave it a session of its own.


if __name__ == "__main__":
    main()
