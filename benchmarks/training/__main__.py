"""Training speed and memory of this project and of TRL's DPOTrainer, side by side: one model, the same pairs in the same order.

    python -m benchmarks.training --data hh-harmless.jsonl.gz --output benchmarks/results/train-cpu
    python -m benchmarks.training --data hh-harmless.jsonl.gz --device cuda --shape llama-3.2-1b --pack-to 8192 --output ...

Every measurement is a process of its own. Rounds go through all of them in turn, so that a machine that grows slower slows all alike; the
table has medians over the rounds. Ratios are medians over the steps of all rounds, as the same step has the same pairs everywhere; that of
LPC to the same layout of rows without it is measured by itself, both in one process that trains now a step of the one, now of the other,
for it is smaller than what two processes differ by. All train in the same precision with as many threads, global batches, micro-batches
and an online reference; weights are random. A step lasts from the end of the one before to its own, data included; the first only warms
up. Memory is the peak beyond what the process held before it built its models: resident on a CPU, allocated on a GPU. Tokens count what
the algorithm reads, prompt and response of both sides, whatever was computed: so tokens/s compare.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from benchmarks.resident_memory import resident
from megatron_lpc.config import (
    Config,
    DataConfig,
    LatentConfig,
    LossConfig,
    ModelConfig,
    ParallelConfig,
    TrainingConfig,
)
from megatron_lpc.data.cache import build_dataset
from megatron_lpc.data.costs import pair_tokens
from megatron_lpc.data.dataset import PairDataset
from megatron_lpc.data.sampler import TrainingOrder
from megatron_lpc.data.tokenizer import load_tokenizer
from megatron_lpc.training.inputs import open_inputs
from megatron_lpc.training.loaders import pair_loader
from megatron_lpc.training.policy import build_policy, make_trainable
from megatron_lpc.training.reference import build_references
from megatron_lpc.training.setup import RunContext, start_distributed, stop_distributed
from megatron_lpc.training.step import TrainStep

SHAPES = {
    "small": {
        "num_layers": 4,
        "hidden_size": 256,
        "ffn_hidden_size": 688,
        "num_attention_heads": 8,
        "num_query_groups": 4,
    },
    "llama-3.2-1b": {
        "num_layers": 16,
        "hidden_size": 2048,
        "ffn_hidden_size": 8192,
        "num_attention_heads": 32,
        "num_query_groups": 8,
        "vocab_size": 128256,
    },
    "llama-3-8b": {
        "num_layers": 32,
        "hidden_size": 4096,
        "ffn_hidden_size": 14336,
        "num_attention_heads": 32,
        "num_query_groups": 8,
        "vocab_size": 128256,
        "untie_embeddings_and_output_weights": True,
    },
}
PROVIDERS = {
    "trl": "TRL DPOTrainer",
    "trl-padding-free": "TRL DPOTrainer, padding-free",
    "separate": "padded rows",
    "separate-lpc": "padded rows, LPC",
    "packed": "packed",
    "shared-packed": "shared prompt, packed",
    "shared-packed-lpc": "shared prompt, packed, LPC",
}
_TURNS = "/plain"
"""After the name of a provider with LPC: the measurement of its ratio to the one without."""
SEED = 1234
ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Workload:
    """What every provider trains on."""

    data: str
    tokenizer: str
    cache: str
    device: str
    shape: str
    steps: int
    global_batch_size: int
    micro_batch_size: int
    pack_to: int
    max_length: int
    liger: bool
    num_layers: int | None = None
    """In the place of the shape's."""

    @property
    def model(self) -> dict[str, Any]:
        """Fields of a `ModelConfig`."""
        return SHAPES[self.shape] | ({} if self.num_layers is None else {"num_layers": self.num_layers})

    def config(self, provider: str) -> Config:
        packed, shared = "packed" in provider, "shared" in provider
        training = TrainingConfig(
            global_batch_size=self.global_batch_size, train_iters=self.steps + 1, bf16=self.device == "cuda", seed=SEED
        )
        if not packed:
            training = replace(training, micro_batch_size=self.micro_batch_size)
        return Config(
            model=ModelConfig(max_position_embeddings=self.max_length, **self.model),
            latent=LatentConfig() if provider.endswith("lpc") else LatentConfig(latent_mode="none"),
            loss=LossConfig(loss_type="dpo"),
            data=DataConfig(
                train_data=[self.data],
                tokenizer_model=self.tokenizer,
                max_length=self.max_length,
                bad_rows="skip",
                data_cache_path=self.cache,
                share_prompt=shared,
                pack_to=self.pack_to if packed else None,
            ),
            parallel=ParallelConfig(device=self.device),
            training=replace(training, bf16=self.device == "cuda"),
        )

    def dataset(self) -> PairDataset:
        config = self.config("separate").data
        return build_dataset(config, load_tokenizer(config), config.train_data, "train")

    def rows(self) -> list[int]:
        """Rows of the data set in the order of training, the first step's to warm up."""
        order = TrainingOrder(len(self.dataset()), SEED)
        return [order.example_index(sample) for sample in range((self.steps + 1) * self.global_batch_size)]


class Skipped(Exception):
    """A provider that does not run here, and why."""


class Meter:
    """Seconds of the steps after the first, and the peak of memory from now on."""

    def __init__(self, device: str) -> None:
        self._on_gpu = device == "cuda"
        if self._on_gpu:
            torch.cuda.reset_peak_memory_stats()
        self._held = torch.cuda.memory_allocated() if self._on_gpu else resident("VmRSS")
        self._ends: list[float] = []

    def step_ended(self) -> None:
        if self._on_gpu:
            torch.cuda.synchronize()
        self._ends.append(time.perf_counter())

    def result(self) -> dict[str, Any]:
        peak = torch.cuda.max_memory_allocated() if self._on_gpu else resident("VmHWM")
        return {"seconds": [end - start for start, end in pairwise(self._ends)], "peak_gb": (peak - self._held) / 1e9}


class Ours:
    """Steps of this project, through the parts of its training program."""

    def __init__(self, context: RunContext, data: PairDataset) -> None:
        context, tokenizer = open_inputs(context)
        config = context.config
        assert config.training.train_iters is not None
        chunks = build_policy(context)
        (reference,) = build_references(context, chunks, [("train", data)])
        policy = make_trainable(context, chunks, config.training.train_iters)
        self._step = TrainStep(context, policy, reference)
        self._stream = pair_loader(context, tokenizer, data).training(config.training.seed)

    def __call__(self, iteration: int) -> None:
        self._step(next(self._stream), iteration)


def measure_ours(work: Workload, provider: str) -> dict[str, Any]:
    context = start_distributed(work.config(provider))
    data = work.dataset()
    meter = Meter(work.device)
    ours = Ours(context, data)
    for iteration in range(work.steps + 1):
        ours(iteration)
        meter.step_ended()
    stop_distributed()
    return meter.result()


def measure_turns(work: Workload, provider: str) -> dict[str, Any]:
    """Seconds of the steps of an LPC provider, and of those of the same without LPC that it takes turns with."""
    configs = [work.config(name) for name in (provider, provider.removesuffix("-lpc"))]
    context, data = start_distributed(configs[0]), work.dataset()
    both = [Ours(replace(context, config=config), data) for config in configs]
    seconds: list[list[float]] = [[], []]
    for iteration in range(work.steps + 1):
        for turn in (0, 1) if iteration % 2 else (1, 0):
            began = time.perf_counter()
            both[turn](iteration)
            seconds[turn].append(time.perf_counter() - began)
    stop_distributed()
    return {"seconds": seconds[0][1:], "plain": seconds[1][1:]}


def measure_trl(work: Workload, provider: str) -> dict[str, Any]:
    """TRL on a transformers Llama of the same shape, given the same token ids."""
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from torch.utils.data import SequentialSampler
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, TrainerCallback
    from trl import DPOConfig, DPOTrainer

    class GivenTokens(DPOTrainer):
        def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
            return dataset

        def _get_train_sampler(self, *_: Any, **__: Any) -> Any:
            return SequentialSampler(self.train_dataset)

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            meter.step_ended()

    model, on_gpu = work.config("separate").model, work.device == "cuda"
    size = model.vocab_size or load_tokenizer(work.config("separate").data).vocab_size
    padded = -(-size // model.make_vocab_size_divisible_by) * model.make_vocab_size_divisible_by
    shape = LlamaConfig(
        vocab_size=padded,
        hidden_size=model.hidden_size,
        intermediate_size=model.ffn_hidden_size,
        num_hidden_layers=model.num_layers,
        num_attention_heads=model.num_attention_heads,
        num_key_value_heads=model.num_query_groups,
        max_position_embeddings=model.max_position_embeddings,
        tie_word_embeddings=not model.untie_embeddings_and_output_weights,
        pad_token_id=0,
    )
    data = work.dataset()
    pairs = [data[row] for row in work.rows()]
    columns = {
        name: [list(map(int, getattr(pair, name))) for pair in pairs] for name in ("prompt", "chosen", "rejected")
    }
    words = Tokenizer(models.WordLevel({"<pad>": 0, "</s>": 1, "<unk>": 2}, unk_token="<unk>"))
    meter = Meter(work.device)
    with tempfile.TemporaryDirectory() as folder:
        options = DPOConfig(
            output_dir=folder,
            per_device_train_batch_size=work.micro_batch_size,
            gradient_accumulation_steps=work.global_batch_size // work.micro_batch_size,
            max_steps=work.steps + 1,
            max_length=work.max_length,
            learning_rate=5e-7,
            adam_beta2=0.95,
            bf16=on_gpu,
            use_cpu=not on_gpu,
            gradient_checkpointing=False,
            padding_free=provider == "trl-padding-free",
            use_liger_kernel=work.liger,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            seed=SEED,
        )
        models_ = [LlamaForCausalLM(shape).to(torch.float32) for _ in range(2)]
        trainer = GivenTokens(
            model=models_[0],
            ref_model=models_[1],
            args=options,
            train_dataset=Dataset.from_dict({f"{name}_ids": ids for name, ids in columns.items()}),
            processing_class=PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="</s>"),
            callbacks=[Clock()],
        )
        if provider == "trl-padding-free" and not trainer.padding_free:
            raise Skipped(f"TRL {version('trl')} has switched padding_free off")
        trainer.train()
    return meter.result()


def measure(work: Workload, provider: str) -> dict[str, Any]:
    try:
        if provider.endswith(_TURNS):
            return measure_turns(work, provider.removesuffix(_TURNS))
        return measure_trl(work, provider) if provider.startswith("trl") else measure_ours(work, provider)
    except Skipped as reason:
        return {"skipped": str(reason)}
    except torch.OutOfMemoryError:
        return {"skipped": "does not fit into the GPU's memory"}


Rounds = dict[str, list[dict[str, Any]]]
"""Results of each provider, one a round."""


def run_rounds(work: Workload, providers: list[str], rounds: int, file: Path) -> Rounds:
    """Measure each provider once a round, in a process of its own; `file` has what is known after each."""
    from rich.console import Console
    from rich.progress import track

    results: Rounds = {provider: [] for provider in providers}
    turns = [provider for _ in range(rounds) for provider in providers]
    for provider in track(turns, description="Measuring", console=Console(stderr=True)):
        if results[provider] and "skipped" in results[provider][-1]:
            continue
        with tempfile.TemporaryDirectory() as folder:
            answer = Path(folder) / "answer.json"
            command = [
                sys.executable,
                "-m",
                "benchmarks.training",
                "--measure",
                provider,
                "--workload",
                json.dumps(asdict(work)),
                "--answer",
                str(answer),
            ]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(f"{provider} failed:\n{done.stderr[-4000:]}")
            results[provider].append(json.loads(answer.read_text()))
        write(file, json.dumps(results, indent=1) + "\n")
    return results


def write(file: Path, text: str) -> None:
    """The file appears whole or not at all."""
    partial = file.with_name(f".{file.name}.tmp")
    partial.write_text(text, encoding="utf-8")
    partial.replace(file)


def speedup(rounds: list[dict[str, Any]], baseline: list[dict[str, Any]]) -> float:
    """How many times as fast as the baseline: the median over the steps of all rounds."""
    both = zip(rounds, baseline, strict=True)
    return statistics.median(
        slow / fast for one, other in both for fast, slow in zip(one["seconds"], other["seconds"], strict=True)
    )


def table(work: Workload, results: Rounds) -> list[dict[str, Any]]:
    """A row a provider: medians, and ratios to what it is compared with where that was measured."""
    rows = work.rows()[work.global_batch_size :]
    tokens = int(pair_tokens(work.dataset().lengths[rows], share_prompt=False).sum())
    measured = {provider: rounds for provider, rounds in results.items() if not any("skipped" in one for one in rounds)}
    lines: list[dict[str, Any]] = []
    for provider in [name for name in PROVIDERS if name in results]:
        rounds = results[provider]
        line: dict[str, Any] = {"provider": PROVIDERS[provider]}
        lines.append(line)
        if provider not in measured:
            line["note"] = rounds[-1]["skipped"]
            continue
        times = [sum(one["seconds"]) for one in rounds]
        seconds = statistics.median(times)
        line |= {
            "pairs/s": len(rows) / seconds,
            "tokens/s": tokens / seconds,
            "spread": (max(times) - min(times)) / seconds,
        }
        line["peak GB"] = statistics.median(one["peak_gb"] for one in rounds)
        if trl := measured.get("trl"):
            line["speed / TRL"] = speedup(rounds, trl)
            line["memory / TRL"] = line["peak GB"] / statistics.median(one["peak_gb"] for one in trl)
        if turns := measured.get(provider + _TURNS):
            line["speed / plain"] = speedup(turns, [{"seconds": one["plain"]} for one in turns])
    return lines


_COLUMNS = {
    "provider": "{}",
    "pairs/s": "{:.2f}",
    "tokens/s": "{:,.0f}",
    "spread": "{:.0%}",
    "peak GB": "{:.2f}",
    "speed / TRL": "{:.2f}",
    "memory / TRL": "{:.2f}",
    "speed / plain": "{:.3f}",
    "note": "{}",
}


def markdown(lines: list[dict[str, Any]]) -> str:
    shown = [[form.format(line[name]) if name in line else "" for name, form in _COLUMNS.items()] for line in lines]
    rules = ["---" if name in ("provider", "note") else "---:" for name in _COLUMNS]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (list(_COLUMNS), rules, *shown)) + "\n"


def machine(work: Workload) -> str:
    """One line for under the table: what it was measured with."""
    name = (
        torch.cuda.get_device_name() if work.device == "cuda" else f"{platform.processor() or platform.machine()} CPU"
    )
    packages = ", ".join(
        f"{package} {version(package)}" for package in ("torch", "transformers", "trl", "megatron-core")
    )
    return f"{name}, {torch.get_num_threads()} threads, {packages}, {'bf16' if work.device == 'cuda' else 'fp32'}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="preference pairs, as --train-data")
    parser.add_argument("--output", type=Path, help="folder for results.json and table.md")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--shape", choices=SHAPES, default="small", help="of the model")
    parser.add_argument("--num-layers", type=int, help="layers of the model, where those of the shape do not fit")
    parser.add_argument(
        "--vocab-size", type=int, default=8192, help="words of the tokenizer that is trained on the data"
    )
    parser.add_argument("--steps", type=int, default=4, help="steps that are timed")
    parser.add_argument("--global-batch-size", type=int, default=32, help="pairs a step")
    parser.add_argument(
        "--micro-batch-size", type=int, default=4, help="pairs of a forward pass, where rows are not packed"
    )
    parser.add_argument("--pack-to", type=int, default=2048, help="tokens of a packed row")
    parser.add_argument("--max-length", type=int, default=1024, help="tokens of a prompt and response")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--providers", nargs="+", choices=PROVIDERS, default=list(PROVIDERS))
    parser.add_argument(
        "--liger", action="store_true", help="TRL's use_liger_kernel (GPU): TRL 1.16 takes Liger's layers alone"
    )
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--workload", help=argparse.SUPPRESS)
    parser.add_argument("--answer", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        result = measure(Workload(**json.loads(options.workload)), options.measure)
        options.answer.write_text(json.dumps(result))
        return
    if not options.data or not options.output:
        parser.error("--data and --output are needed")
    if options.liger and options.device != "cuda":
        parser.error("--liger needs --device cuda: Liger's kernels run on GPUs only")
    if options.num_layers is not None and options.num_layers < 1:
        parser.error(f"--num-layers must be at least 1, got {options.num_layers}")

    from rich.console import Console
    from rich.markdown import Markdown

    options.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = Path(folder) / "tokenizer"
        train = ROOT / "tools" / "train_tokenizer.py"
        subprocess.run(
            [
                sys.executable,
                str(train),
                "--input",
                options.data,
                "--output",
                str(tokenizer),
                "--vocab-size",
                str(options.vocab_size),
            ],
            check=True,
        )
        work = Workload(
            data=str(Path(options.data).resolve()),
            tokenizer=f"{tokenizer}.model",
            cache=str(Path(folder) / "cache"),
            device=options.device,
            shape=options.shape,
            steps=options.steps,
            global_batch_size=options.global_batch_size,
            micro_batch_size=options.micro_batch_size,
            pack_to=options.pack_to,
            max_length=options.max_length,
            liger=options.liger,
            num_layers=options.num_layers,
        )
        work.dataset()
        chosen = options.providers
        turns = [name + _TURNS for name in chosen if name.endswith("-lpc") and name.removesuffix("-lpc") in chosen]
        results = run_rounds(work, [*chosen, *turns], options.rounds, options.output / "results.json")
        lines = table(work, results)
    named = (
        "device",
        "shape",
        "vocab_size",
        "steps",
        "global_batch_size",
        "micro_batch_size",
        "pack_to",
        "max_length",
        "rounds",
    )
    flags = [f"--{name.replace('_', '-')} {getattr(options, name)}" for name in named]
    if options.num_layers is not None:
        flags.append(f"--num-layers {options.num_layers}")
    if chosen != list(PROVIDERS):
        flags.append(f"--providers {' '.join(chosen)}")
    command = " ".join(
        [f"python -m benchmarks.training --data {Path(options.data).name}", *flags, *["--liger"] * options.liger]
    )
    text = f"{markdown(lines)}\n{machine(work)}. Medians of {options.rounds} rounds; spread is (slowest - fastest) / median.\n\n`{command}`\n"
    write(options.output / "table.md", text)
    Console().print(Markdown(text))


if __name__ == "__main__":
    main()
