"""Train a few steps, save, resume, and write down what came out.

    [torchrun --nproc-per-node N] checkpoint_worker.py FOLDER JOB...

Jobs run one after the other in the same processes. RUN is a name in `RUNS`; checkpoints of a run are in FOLDER/RUN.

    straight:RUN       six steps without a stop, a checkpoint after the third; results in FOLDER/straight-RUN-RANK.pt
    resume:RUN:FROM    load FOLDER/FROM, train up to the sixth step; results in FOLDER/resume-RUN-FROM-RANK.pt
    initial:RUN        a checkpoint of fresh weights
    killed:RUN:PLACE   load, one step and a save, again and again, until the process kills itself at a PLACE in a save
    weights            what `load_weights` and `load` say of checkpoints that do not fit, into FOLDER/messages.json
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from pathlib import Path

import torch
import torch.distributed as dist
from layout_cases import layout_config, pair_batches
from torch.distributed.checkpoint import filesystem

from megatron_lpc.config import Config, ConfigError, LatentConfig, with_options
from megatron_lpc.model import build_model
from megatron_lpc.platform import select_platform
from megatron_lpc.platform.process_groups import destroy_process_groups
from megatron_lpc.training.checkpoint import Checkpoints
from megatron_lpc.training.checkpoint_folder import resolve_checkpoint
from megatron_lpc.training.checkpoint_tensors import load_weights
from megatron_lpc.training.policy import build_policy, make_trainable
from megatron_lpc.training.reference import NoReference
from megatron_lpc.training.setup import RunContext, split_world, start_distributed
from megatron_lpc.training.state import RunState
from megatron_lpc.training.step import TrainStep

STEPS, SAVED = 6, 3
TRAIN_ITERS = 10
"""Steps of the runs' schedules."""

RUNS: dict[str, tuple[str, str, dict[str, object]]] = {
    "single": ("single", "simpo-lpc-tied", {"hidden_dropout": 0.1}),
    "single_async": ("single", "simpo-lpc-tied", {"hidden_dropout": 0.1, "async_save": True}),
    "dp2": ("dp2", "simpo-lpc-tied", {"hidden_dropout": 0.1, "use_distributed_optimizer": True, "async_save": True}),
    "tp2_bf16": ("tp2", "simpo-lpc-untied", {"hidden_dropout": 0.1, "use_distributed_optimizer": True, "bf16": True}),
    # Tied embeddings have a gradient bucket of their own, with padding behind it.
    "pp2_tied": ("pp2", "simpo-lpc-tied", {"use_distributed_optimizer": True}),
    "dp2_overlap": (
        "dp2",
        "simpo-lpc-untied",
        {"use_distributed_optimizer": True, "overlap_grad_reduce": True, "overlap_param_gather": True},
    ),
    "tp2": ("tp2", "simpo-lpc-untied", {}),
    "pp2_interleaved": ("pp2_interleaved", "simpo-lpc-untied", {}),
    "single_plain": ("single", "simpo-lpc-untied", {}),
    "dp2_sharded": ("dp2", "simpo-lpc-untied", {"use_distributed_optimizer": True}),
    "single_tied": ("single", "simpo-lpc-tied", {}),
    "tp2_experts": ("tp2_sp", "simpo-lpc-experts", {}),
    "dp2_experts": ("dp2", "simpo-lpc-experts", {"use_distributed_optimizer": True}),
    "sft": ("single", "sft-none-tied", {}),
    "continuous": ("single", "simpo-continuous-tied", {}),
}
"""name -> layout, case, and options of any section that differ."""


def config_of(name: str, folder: Path, **changes: object) -> Config:
    layout, case, options = RUNS[name]
    config = layout_config(layout, case)
    return with_options(config, **{"lr": 1e-2, "save": str(folder / name)} | options | changes)


def join(config: Config) -> RunContext:
    """Start as a run does; a later job in the same processes only makes other groups of them, for the world cannot be
    made twice."""
    if not dist.is_initialized():
        return start_distributed(config)
    return split_world(config, select_platform("cpu"))


class ShortRun:
    """A training run reduced to what matters for a checkpoint."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.context = join(config)
        self.policy = make_trainable(self.context, build_policy(self.context), TRAIN_ITERS)
        self.checkpoints = Checkpoints(self.context, self.policy)
        self.train_step = TrainStep(self.context, self.policy, NoReference())
        self.state = RunState(train_iters=TRAIN_ITERS)
        self.losses: list[float] = []

    def step(self) -> None:
        groups, consumed = self.context.groups, self.state.consumed_samples
        batches = [
            replace(batch, sample_ids=batch.sample_ids + consumed)
            for batch in pair_batches(self.config)[groups.dp_rank :: groups.dp_size]
        ]
        result = self.train_step(batches, self.state.iteration)
        self.losses.append(float(result.totals["loss"]))
        self.state = self.state.after_step(self.config.training.global_batch_size, result.updated)
        self.checkpoints.poll()

    def result(self) -> dict[str, object]:
        """Losses, and everything that this rank would go on from."""
        chunks, optimizer = self.policy.chunks, self.policy.optimizer
        if self.config.parallel.overlap_param_gather:
            for chunk in chunks:
                chunk.start_param_sync(force_sync=True)
        states = [state for part in optimizer.chained_optimizers for state in part.optimizer.state.values()]
        masters = [p for group in optimizer.param_groups for p in group["params"]]
        return {
            "losses": self.losses,
            "lr": [group["lr"] for group in optimizer.param_groups],
            "parameters": {
                f"{number}.{name}": parameter.detach().clone()
                for number, chunk in enumerate(chunks)
                for name, parameter in chunk.named_parameters()
            },
            "masters": [p.detach().clone() for p in masters],
            "moments": [{key: value.clone() for key, value in state.items()} for state in states],
        }

    def close(self) -> None:
        self.checkpoints.finish()
        destroy_process_groups()


def straight(folder: Path, name: str) -> None:
    run = ShortRun(config_of(name, folder))
    for _ in range(STEPS):
        run.step()
        if run.state.iteration == SAVED:
            run.checkpoints.save(run.state)
    torch.save(run.result(), folder / f"straight-{name}-{dist.get_rank()}.pt")
    run.close()


def resume(folder: Path, name: str, source: str) -> None:
    run = ShortRun(config_of(name, folder, save=None, async_save=False))
    run.state = run.checkpoints.load(folder / source)
    first = run.state.iteration
    while run.state.iteration < STEPS:
        run.step()
    torch.save(run.result() | {"first": first}, folder / f"resume-{name}-{source}-{dist.get_rank()}.pt")
    run.close()


def initial(folder: Path, name: str) -> None:
    run = ShortRun(config_of(name, folder))
    run.checkpoints.save(run.state)
    run.close()


def killed(folder: Path, name: str, place: str) -> None:
    """Trains on from the latest checkpoint in FOLDER/killed.

    The first save is undisturbed where the second is to be killed.
    """
    process = os.getpid()

    def die(*_: object, **__: object) -> None:
        os.kill(process, signal.SIGKILL)
        os._exit(1)

    replace_file = os.replace

    def die_at_pointer(source: Path, target: Path) -> None:
        if Path(target).name == "latest_checkpointed_iteration.txt":
            die()
        replace_file(source, target)

    run = ShortRun(config_of(name, folder, save=str(folder / "killed")))
    run.state = run.checkpoints.load(folder / "killed")
    if place == "between_tensors":
        write, written = filesystem._write_item, []

        @wraps(write)
        def write_some(*args: object, **options: object) -> object:
            written.append(1)
            return die() if len(written) > 20 else write(*args, **options)

        filesystem._write_item = write_some
    else:
        run.step()
        run.checkpoints.save(run.state)
        os.replace = die_at_pointer
    run.step()
    run.checkpoints.save(run.state)


def weights(folder: Path) -> None:
    """Loads of only weights, and every refusal."""
    messages: dict[str, str] = {}
    run = ShortRun(config_of("single_tied", folder, save=None))
    config, context = run.config, run.context

    def fresh(**changes: object) -> list:
        other = config_of("single_tied", folder, **changes)
        return build_model(other, context.platform, context.groups, other.latent)

    def load(chunks: list, path: Path, latent_head: bool = True, config: Config | None = None) -> None:
        load_weights(chunks, path, groups=context.groups, latent_head=latent_head, config=config)

    def named(chunks: list) -> dict[str, torch.Tensor]:
        return {n.removeprefix("module."): p.detach().float() for n, p in chunks[0].named_parameters()}

    def refused(key: str, action: Callable[[], None]) -> None:
        try:
            action()
            messages[key] = "nothing"
        except ConfigError as error:
            messages[key] = str(error)

    source = resolve_checkpoint(folder / "pp2_tied")
    saved = resolve_checkpoint(folder / "sft")
    whole = fresh(seed=9)
    load(whole, source, config=config)
    trained = named(whole)
    assert any(not torch.equal(trained[n], p) for n, p in named(fresh()).items())

    reference = build_model(config, context.platform, context.groups, LatentConfig(latent_mode="none"))
    load(reference, source, latent_head=False)
    assert all(torch.equal(p, trained[n]) for n, p in named(reference).items())
    assert not any("latent_head" in n for n in named(reference))

    half = fresh(bf16=True)
    load(half, source)
    assert all(torch.equal(p, trained[n].bfloat16().float()) for n, p in named(half).items())

    wide = fresh(make_vocab_size_divisible_by=32)
    load(wide, source, config=config_of("single_tied", folder, make_vocab_size_divisible_by=32))
    embedding = named(wide)["embedding.word_embeddings.weight"]
    assert torch.equal(embedding[:101], trained["embedding.word_embeddings.weight"][:101])
    assert embedding.shape[0] == 128
    assert not embedding.isnan().any()

    # The head keeps its fresh weights where the checkpoint has none, or where it is not asked for.
    for name, path, flag in (("none", saved, True), ("unasked", source, False)):
        start = fresh(seed=9)
        before = {n: p.clone() for n, p in named(start).items()}
        load(start, path, latent_head=flag)
        for n, p in named(start).items():
            assert torch.equal(p, before[n]) == ("latent_head" in n or (p.dim() == 1 and bool((p == 1).all()))), (
                f"{name}: {n}"
            )

    refused("codebook", lambda: load(fresh(codebook_size=12), source))
    refused("continuous", lambda: load(fresh(latent_mode="continuous"), source))
    refused("untied", lambda: load(fresh(untie_embeddings_and_output_weights=True), source))
    refused("bias", lambda: load(fresh(), resolve_checkpoint(folder / "tp2")))
    refused("width", lambda: load(fresh(ffn_hidden_size=64), source))
    refused("vocabulary", lambda: load(fresh(vocab_size=104), source))
    other_base = config_of("single_tied", folder, rotary_base=500)
    refused("options", lambda: load(fresh(), source, config=other_base))

    def resumed(path: Path, **changes: object) -> None:
        """Load into the run as one with other options would."""
        other = replace(context, config=with_options(config, **changes))
        Checkpoints(other, run.policy).load(path)

    refused("resume_bf16", lambda: resumed(folder / "pp2_tied", bf16=True))
    refused("resume_latent", lambda: resumed(folder / "continuous"))
    refused("resume_layers", lambda: resumed(folder / "pp2_tied", num_layers=2))
    refused("resume_nothing", lambda: resumed(folder / "empty"))
    description = source / "description.json"
    kept = description.read_text()
    description.unlink()
    refused("resume_weights", lambda: resumed(folder / "pp2_tied"))
    description.write_text(kept[:40])
    refused("resume_damaged", lambda: resumed(folder / "pp2_tied"))
    description.write_text(kept)
    (folder / "messages.json").write_text(json.dumps(messages))
    run.close()


def main() -> None:
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    for job in sys.argv[2:]:
        action, *arguments = job.split(":")
        {"straight": straight, "resume": resume, "initial": initial, "killed": killed, "weights": weights}[action](
            folder, *arguments
        )
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
