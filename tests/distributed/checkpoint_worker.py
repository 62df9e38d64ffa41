"""Train a few steps, save, resume, and write down what came out.

    [torchrun --nproc-per-node N] checkpoint_worker.py FOLDER JOB...

Jobs run one after the other in the same processes. RUN is a name in `RUNS`; checkpoints of a run are in FOLDER/RUN.

    straight:RUN       six steps without a stop, a checkpoint after the third; results in FOLDER/straight-RUN-RANK.pt
    resume:RUN:FROM    load FOLDER/FROM, train up to the sixth step; results in FOLDER/resume-RUN-FROM-RANK.pt
    initial:RUN        a checkpoint of fresh weights
    killed:RUN:PLACE   load, one step and a save, again and again, until the process kills itself at a PLACE within a save
    weights            what `load_weights` and `load` say of checkpoints that do not fit; messages in FOLDER/messages.json
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from functools import wraps
from pathlib import Path

import torch
import torch.distributed as dist
from layout_cases import layout_config, pair_batches
from megatron.core import parallel_state
from megatron.core.dist_checkpointing.strategies import filesystem_async

from megatron_lpc.config import CheckpointConfig, Config, ConfigError, LatentConfig
from megatron_lpc.losses import LatentSchedule
from megatron_lpc.model import build_model, wrap_data_parallel
from megatron_lpc.platform import Platform, select_platform
from megatron_lpc.training import checkpoint_folder
from megatron_lpc.training.checkpoint import Checkpoints, RunState
from megatron_lpc.training.checkpoint_folder import resolve_checkpoint
from megatron_lpc.training.checkpoint_tensors import load_weights
from megatron_lpc.training.collectives import MetricReducer
from megatron_lpc.training.objective import TrainingObjective, training_query
from megatron_lpc.training.optimizer import build_optimizer, build_scheduler, optimizer_step
from megatron_lpc.training.pipeline import on_last_stage, train_pass
from megatron_lpc.training.setup import seed_everything, start_distributed

STEPS, SAVED = 6, 3

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
    config = deepcopy(layout_config(layout, case))  # The table's cells share their sections.
    config.training.lr = 1e-2
    config.checkpoint = CheckpointConfig(save=str(folder / name))
    for key, value in (options | changes).items():
        section = next(s for s in vars(config).values() if hasattr(s, key))
        setattr(section, key, value)
    return config


def join(config: Config) -> Platform:
    """Start as a run does; a later job in the same processes only splits them anew, for a process group cannot be made twice."""
    if not dist.is_initialized():
        return start_distributed(config)
    parallel_state.initialize_model_parallel(
        config.parallel.tensor_model_parallel_size,
        config.parallel.pipeline_model_parallel_size,
        config.parallel.num_virtual_stages_per_pipeline_rank,
    )
    seed_everything(config.training.seed)
    return select_platform("cpu")


class Run:
    """A training run cut down to what matters for a checkpoint."""

    def __init__(self, name: str, folder: Path, **changes: object) -> None:
        self.config = config_of(name, folder, **changes)
        self.platform = join(self.config)
        self.policy = build_model(self.config, self.platform, self.config.latent)
        self.chunks = wrap_data_parallel(self.config, self.policy)
        self.optimizer = build_optimizer(self.config, self.chunks)
        self.scheduler = build_scheduler(self.config, self.optimizer, 10)
        self.checkpoints = Checkpoints(self.config, self.platform, self.chunks, self.optimizer, self.scheduler)
        self.state = RunState(train_iters=10)
        self.losses: list[float] = []

    def step(self) -> None:
        latent = LatentSchedule(self.config.latent, 10).at(self.state.iteration)
        group = parallel_state.get_data_parallel_group()
        shift = self.state.consumed_samples
        batches = [
            replace(b, sample_ids=b.sample_ids + shift) for b in pair_batches(self.config)[group.rank() :: group.size()]
        ]
        for chunk in self.chunks:
            chunk.zero_grad_buffer()
        self.optimizer.zero_grad()
        parts = train_pass(
            self.chunks, batches, training_query(self.config, latent), TrainingObjective(self.config, latent)
        )
        sums = {key: sum(part[key] for part in parts) for key in parts[0]} if on_last_stage() else None
        self.losses.append(float(MetricReducer(self.platform.device)(sums)["loss"]))
        optimizer_step(self.optimizer, True)
        self.scheduler.step(1)
        self.state = replace(self.state, iteration=self.state.iteration + 1, consumed_samples=shift + 8)
        self.checkpoints.poll()

    def result(self) -> dict[str, object]:
        """Losses, and everything that this rank would go on from."""
        if self.config.parallel.overlap_param_gather:
            for chunk in self.chunks:
                chunk.start_param_sync(force_sync=True)
        states = [state for part in self.optimizer.chained_optimizers for state in part.optimizer.state.values()]
        masters = [p for group in self.optimizer.param_groups for p in group["params"]]
        return {
            "losses": self.losses,
            "lr": [group["lr"] for group in self.optimizer.param_groups],
            "parameters": {
                f"{i}.{n}": p.detach().clone() for i, c in enumerate(self.chunks) for n, p in c.named_parameters()
            },
            "masters": [p.detach().clone() for p in masters],
            "moments": [{key: value.clone() for key, value in state.items()} for state in states],
        }

    def close(self) -> None:
        self.checkpoints.finish()
        parallel_state.destroy_model_parallel()


def straight(folder: Path, name: str) -> None:
    run = Run(name, folder)
    for _ in range(STEPS):
        run.step()
        if run.state.iteration == SAVED:
            run.checkpoints.save(run.state)
    torch.save(run.result(), folder / f"straight-{name}-{dist.get_rank()}.pt")
    run.close()


def resume(folder: Path, name: str, source: str) -> None:
    run = Run(name, folder, save=None, async_save=False)
    run.state = run.checkpoints.load(folder / source)
    first = run.state.iteration
    while run.state.iteration < STEPS:
        run.step()
    torch.save(run.result() | {"first": first}, folder / f"resume-{name}-{source}-{dist.get_rank()}.pt")
    run.close()


def initial(folder: Path, name: str) -> None:
    run = Run(name, folder)
    run.checkpoints.save(run.state)
    run.close()


def killed(folder: Path, name: str, place: str) -> None:
    """Trains on from the newest checkpoint in FOLDER/killed; the first save is undisturbed where the second is to be killed."""
    process = os.getpid()

    def die(*_: object, **__: object) -> None:
        os.kill(process, signal.SIGKILL)
        os._exit(1)

    run = Run(name, folder, save=str(folder / "killed"))
    run.state = run.checkpoints.load(folder / "killed")
    if place == "between_tensors":
        write, written = filesystem_async._write_item, []

        @wraps(write)
        def write_some(*args: object, **options: object) -> object:
            written.append(1)
            return die() if len(written) > 20 else write(*args, **options)

        filesystem_async._write_item = write_some
    else:
        run.step()
        run.checkpoints.save(run.state)
        checkpoint_folder.os.replace = die
    run.step()
    run.checkpoints.save(run.state)


def weights(folder: Path) -> None:
    """Loads of weights alone, and every refusal."""
    messages: dict[str, str] = {}
    run = Run("single_tied", folder, save=None)
    config, platform = run.config, run.platform

    def fresh(**changes: object) -> list:
        other = config_of("single_tied", folder, **changes)
        return build_model(other, platform, other.latent)

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
    load_weights(whole, source, latent_head=True, config=config)
    trained = named(whole)
    assert any(not torch.equal(trained[n], p) for n, p in named(fresh()).items())

    reference = build_model(config, platform, LatentConfig(latent_mode="none"))
    load_weights(reference, source, latent_head=False)
    assert all(torch.equal(p, trained[n]) for n, p in named(reference).items())
    assert not any("latent_head" in n for n in named(reference))

    half = fresh(bf16=True)
    load_weights(half, source, latent_head=True)
    assert all(torch.equal(p, trained[n].bfloat16().float()) for n, p in named(half).items())

    wide = fresh(make_vocab_size_divisible_by=32)
    load_weights(
        wide, source, latent_head=True, config=config_of("single_tied", folder, make_vocab_size_divisible_by=32)
    )
    rows = named(wide)["embedding.word_embeddings.weight"]
    assert torch.equal(rows[:101], trained["embedding.word_embeddings.weight"][:101])
    assert rows.shape[0] == 128
    assert not rows.isnan().any()

    # The head keeps its fresh weights where the checkpoint has none, or where it is not asked for.
    for name, path, flag in (("none", saved, True), ("unasked", source, False)):
        start = fresh(seed=9)
        before = {n: p.clone() for n, p in named(start).items()}
        load_weights(start, path, latent_head=flag)
        for n, p in named(start).items():
            assert torch.equal(p, before[n]) == ("latent_head" in n or (p.dim() == 1 and bool((p == 1).all()))), (
                f"{name}: {n}"
            )

    refused("codebook", lambda: load_weights(fresh(codebook_size=12), source, latent_head=True))
    refused("continuous", lambda: load_weights(fresh(latent_mode="continuous"), source, latent_head=True))
    refused("untied", lambda: load_weights(fresh(untie_embeddings_and_output_weights=True), source, latent_head=True))
    refused("bias", lambda: load_weights(fresh(), resolve_checkpoint(folder / "tp2"), latent_head=True))
    refused("width", lambda: load_weights(fresh(ffn_hidden_size=64), source, latent_head=True))
    refused("vocabulary", lambda: load_weights(fresh(vocab_size=104), source, latent_head=True))
    refused(
        "options",
        lambda: load_weights(
            fresh(), source, latent_head=True, config=config_of("single_tied", folder, rotary_base=500)
        ),
    )

    def resumed(path: Path, **changes: object) -> None:
        for key, value in changes.items():
            setattr(next(s for s in vars(config).values() if hasattr(s, key)), key, value)
        run.checkpoints.load(path)

    refused("resume_bf16", lambda: resumed(folder / "pp2_tied", bf16=True))
    config.training.bf16 = False
    refused("resume_latent", lambda: resumed(folder / "continuous"))
    refused("resume_layers", lambda: resumed(folder / "pp2_tied", num_layers=2))
    config.model.num_layers = 4
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
