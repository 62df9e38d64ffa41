"""The parts of a run on a GPU, each a command that ends within its limit."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

LIMIT = 530
"""Seconds of a part: under the nine minutes that a call may take where machines are lent by the call."""
_ALL_MODELS = ("llama-3-70b", "qwen-3-8b", "gemma-2-9b")
_ON_CPU = (
    *("--device", "cpu", "--dtype", "fp32", "--model", "8x64", "--tokens", "16", "--response", "4"),
    *("--rounds", "1", "--threads", "1", "--providers", "pytorch", "pairwise"),
)
_GPU_TESTS = ("-m", "pytest", "tests/kernels/test_triton.py", "-m", "gpu", "-p", "no:cacheprovider", "-rs")
_OURS = ("recompute", "pairwise", "frozen")
_FORWARD = ("--direction", "scoring", "--providers", "pytorch", "recompute", "liger_tp", "trl")


@dataclass(frozen=True, kw_only=True)
class Part:
    """One command. `{results}` in a word is the folder of the results, `{pairs}` the file of preference pairs."""

    name: str
    about: str
    command: tuple[str, ...]
    """What follows the Python."""
    stand_in: tuple[str, ...]
    """The same on a CPU in seconds, for `--dry-run`."""
    limit: int = LIMIT
    """Seconds."""

    def arguments(self, results: Path, pairs: Path | None, dry_run: bool) -> list[str]:
        """The command with its folders and files."""
        words = self.stand_in if dry_run else self.command
        values = {"{results}": str(results), "{pairs}": str(pairs)}
        for name, value in values.items():
            words = tuple(word.replace(name, value) for word in words)
        return list(words)


def _tests(operation: str) -> Part:
    return Part(
        name=f"tests-{operation}",
        about=f"the tests of {operation} on the GPU",
        command=(*_GPU_TESTS, "-k", operation),
        stand_in=(*_GPU_TESTS, "-k", operation, "--collect-only", "--quiet"),
    )


def _pair_logps(name: str, about: str, *flags: str) -> Part:
    """A benchmark of `pair_logps`, into NAME.csv, NAME.md and NAME.png."""
    program = ("-m", "benchmarks.kernels", "pair_logps", "--output", "{results}/" + name)
    return Part(
        name=name,
        about=about,
        command=(*program, "--device", "cuda", "--dtype", "bf16", *flags),
        stand_in=(*program, *_ON_CPU),
    )


def _train(name: str, about: str, *flags: str) -> Part:
    program = ("-m", "benchmarks.training", "--data", "{pairs}", "--output", "{results}/" + name)
    return Part(
        name=name,
        about=about,
        command=(*program, "--device", "cuda", "--pack-to", "8192", *flags),
        stand_in=("-m", "benchmarks.training", "--help"),
    )


PARTS: tuple[Part, ...] = (
    Part(
        name="environment",
        about="versions, the GPU and its driver",
        command=("-m", "torch.utils.collect_env"),
        stand_in=("-c", "import torch, triton; print(torch.__version__, triton.__version__)"),
    ),
    _tests("gumbel_mix"),
    _tests("pair_logps"),
    Part(
        name="inspect",
        about="what the compiler makes of every kernel",
        command=("kernels/inspect_kernels.py", "--markdown"),
        stand_in=("kernels/inspect_kernels.py", "--help"),
    ),
    _pair_logps("training", "llama-3-8b, N 8192, one latent and two", "--latents", "1", "2"),
    _pair_logps("scoring", "the same without gradient", "--direction", "scoring", "--latents", "1", "2"),
    _pair_logps("shards-scoring", "one rank's shard of TP 2, 4 and 8, forward", "--tp", "2", "4", "8", *_FORWARD),
    _pair_logps("shards-training", "the same with gradients", "--tp", "2", "4", "8", "--rounds", "10"),
    *(_pair_logps(f"model-{model}", model, "--model", model, "--rounds", "10") for model in _ALL_MODELS),
    _pair_logps("tokens", "N 1024 to 32768", "--tokens", "1024", "4096", "32768", "--rounds", "5"),
    _pair_logps("masked", "half of the tokens without loss", "--masked", "0.5", "--rounds", "10"),
    _pair_logps(
        "chunks-1024",
        "chunks of 1024 tokens",
        "--chunk-size",
        "1024",
        "--providers",
        "pytorch",
        *_OURS,
        "--latents",
        "1",
    ),
    _pair_logps("odd-vocabulary", "a vocabulary of 128255", "--model", "4096x128255", "--providers", "pytorch", *_OURS),
    Part(
        name="gumbel-mix",
        about="gumbel_mix beside PyTorch's chain",
        command=(
            *("-m", "benchmarks.kernels", "gumbel_mix", "--output", "{results}/gumbel-mix", "--device", "cuda"),
            *("--dtype", "bf16", "--pairs", "16", "256", "--codes", "64", "1024", "--hidden-size", "4096", "8192"),
        ),
        stand_in=(
            *("-m", "benchmarks.kernels", "gumbel_mix", "--output", "{results}/gumbel-mix", "--device", "cpu"),
            *("--dtype", "fp32", "--pairs", "2", "--codes", "4", "--hidden-size", "8", "--rounds", "1"),
            *("--providers", "pytorch"),
        ),
    ),
)
"""Those of the kernels, in the order of a run."""
TRAINING_PARTS: tuple[Part, ...] = (
    _train("train-llama-3.2-1b", "training beside TRL", "--shape", "llama-3.2-1b"),
    # The optimizer's state of all 32 layers takes more than one GPU.
    _train("train-llama-3-8b", "eight of its 32 layers", "--shape", "llama-3-8b", "--num-layers", "8"),
    _train(
        "train-llama-3.2-1b-liger",
        "with Liger-Kernel's layers",
        *("--shape", "llama-3.2-1b", "--liger", "--providers", "trl", "shared-packed-lpc"),
    ),
)
"""Those that need preference pairs, and the whole project installed."""


def all_parts() -> dict[str, Part]:
    """Every part by name."""
    return {part.name: part for part in (*PARTS, *TRAINING_PARTS)}
