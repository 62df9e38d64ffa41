"""The table of a benchmark of training."""

from __future__ import annotations

import platform
import statistics
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from benchmarks.training.providers import ALTERNATING, FULL_LPC, PROVIDERS, is_exact, is_frozen
from benchmarks.training.workload import Workload
from megatron_lpc.data.costs import pair_tokens
from megatron_lpc.terminal import markdown_table

Rounds = dict[str, list[dict[str, Any]]]
"""Results of each measurement, one per round."""
_FORMATS = {
    "provider": "{}",
    "pairs/s": "{:.2f}",
    "tokens/s": "{:,.0f}",
    "spread": "{:.0%}",
    "peak GB": "{:.2f}",
    "speed / TRL": "{:.2f}",
    "memory / TRL": "{:.2f}",
    "speed / plain": "{:.3f}",
    "speed / LPC": "{:.2f}",
    "speed / amortized": "{:.3f}",
    "note": "{}",
}


def table(work: Workload, results: Rounds) -> list[dict[str, Any]]:
    """One line per provider: medians, and ratios to what it is compared with where that was measured."""
    timed = work.example_indices()[work.global_batch_size :]
    tokens = int(pair_tokens(work.dataset().lengths[timed], share_prompt=False).sum())
    lines: list[dict[str, Any]] = []
    for provider in PROVIDERS:
        if provider not in results:
            continue
        line: dict[str, Any] = {"provider": PROVIDERS[provider]}
        if _measured(results, provider):
            line |= _medians(results[provider], len(timed), tokens)
            line |= _ratios(results, provider)
            if provider.endswith("cached"):
                line["note"] = f"{_fill_seconds(results[provider]):.0f} s to build and fill the cache once"
        else:
            line["note"] = results[provider][-1]["skipped"]
        lines.append(line)
    return lines


def _measured(results: Rounds, name: str) -> bool:
    """Whether there are figures of this measurement."""
    return name in results and not any("skipped" in one for one in results[name])


def _medians(rounds: list[dict[str, Any]], pairs: int, tokens: int) -> dict[str, float]:
    times = [sum(one["seconds"]) for one in rounds]
    seconds = statistics.median(times)
    return {
        "pairs/s": pairs / seconds,
        "tokens/s": tokens / seconds,
        "spread": (max(times) - min(times)) / seconds,
        "peak GB": _peak(rounds),
    }


def _fill_seconds(rounds: list[dict[str, Any]]) -> float:
    """Of the first round; the others find the cache filled."""
    return float(rounds[0]["build_seconds"])


def _peak(rounds: list[dict[str, Any]]) -> float:
    return statistics.median(one["peak_gb"] for one in rounds)


def _ratios(results: Rounds, provider: str) -> dict[str, float]:
    ratios = {}
    rounds = results[provider]
    if _measured(results, "trl"):
        ratios["speed / TRL"] = speedup(rounds, results["trl"])
        ratios["memory / TRL"] = _peak(rounds) / _peak(results["trl"])
    alternating = provider + ALTERNATING
    if _measured(results, alternating):
        plain = [{"seconds": one["plain"]} for one in results[alternating]]
        column = "speed / amortized" if is_exact(provider) else "speed / plain"
        ratios[column] = speedup(results[alternating], plain)
    if is_frozen(provider) and _measured(results, FULL_LPC):
        ratios["speed / LPC"] = speedup(rounds, results[FULL_LPC])
    return ratios


def speedup(rounds: list[dict[str, Any]], baseline: list[dict[str, Any]]) -> float:
    """How many times as fast as the baseline: the median over the steps of all rounds."""
    ratios: list[float] = []
    for one, other in zip(rounds, baseline, strict=True):
        ratios += [slow / fast for fast, slow in zip(one["seconds"], other["seconds"], strict=True)]
    return statistics.median(ratios)


def markdown(lines: list[dict[str, Any]]) -> str:
    """The lines as a Markdown table."""
    rows = [[form.format(line[name]) if name in line else "" for name, form in _FORMATS.items()] for line in lines]
    return markdown_table(list(_FORMATS), rows)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"


def machine(work: Workload) -> str:
    """What it was measured with, in one line."""
    processor = f"{platform.processor() or platform.machine()} CPU"
    on_gpu = work.device == "cuda"
    name = torch.cuda.get_device_name() if on_gpu else processor
    packages = ("torch", "transformers", "trl", "peft", "megatron-core")
    versions = ", ".join(f"{package} {_version(package)}" for package in packages)
    return f"{name}, {torch.get_num_threads()} threads, {versions}, {'bf16' if on_gpu else 'fp32'}"
