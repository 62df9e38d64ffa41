"""What can be known before an hour is spent: devices, bandwidth, clocks, folders, versions, data (`--preflight`)."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch.distributed as dist
from rich.table import Column, Table

from megatron_lpc.command_line import UserError, is_first_rank
from megatron_lpc.config import Config
from megatron_lpc.terminal import wide_console
from megatron_lpc.training.inputs import open_tokenizer
from megatron_lpc.training.preflight_checks import (
    Check,
    agreed,
    all_reduce,
    clocks,
    devices,
    first_rows,
    shared_folder,
    versions,
)
from megatron_lpc.training.setup import RunContext, start_distributed, stop_distributed


class PreflightFailed(UserError):
    """A run would have failed later."""

    exit_code = 1


def preflight(config: Config) -> None:
    """Check all that a run with these options will need, and print one table on rank 0.

    Collectives: the rendezvous of all ranks, those of the groups, and those of the checks.

    Raises:
        ConfigError: the options cannot work with this many processes.
        PreflightFailed: on all ranks, after the table; a check failed.
    """
    context = start_distributed(config)
    checks = list(_checks(context))
    stop_distributed()
    if is_first_rank():
        table = Table("preflight", Column("found", overflow="fold"), "")
        for check in checks:
            table.add_row(check.name, check.result, "ok" if check.is_sound else "FAILED")
        wide_console().print(table)
    failed = [check.name for check in checks if not check.is_sound]
    if failed:
        raise PreflightFailed(f"the preflight failed: {', '.join(failed)}")


def _checks(context: RunContext) -> Iterator[Check]:
    config, platform, groups = context.config, context.platform, context.groups
    yield devices(platform)
    yield agreed("versions", versions)
    assert dist.group.WORLD is not None
    for name, group in (("all ranks", dist.group.WORLD), ("tensor parallel", groups.tp), ("data parallel", groups.dp)):
        yield all_reduce(platform, name, group)
    yield clocks()
    for name, folder in _shared_folders(config).items():
        yield shared_folder(name, folder, may_be_of_host=name == "data_cache_path")
    yield agreed("tokenizer_model", lambda: _tokenizer(config))
    for name, sources in _sources(config).items():
        # Where rows are not streamed, rank 0 reads them for all.
        reads = config.data.streaming or is_first_rank()
        yield agreed(name, partial(first_rows, sources) if reads else lambda: None)


def _shared_folders(config: Config) -> dict[str, str]:
    """Option -> folder that all hosts share; of the cache of data each may have its own."""
    folders = {
        "save": config.checkpoint.save,
        "data_cache_path": config.data.data_cache_path,
        "cache_hidden_states": config.training.cache_hidden_states,
        "reference_cache": config.loss.reference_cache,
    }
    return {name: folder for name, folder in folders.items() if folder is not None}


def _tokenizer(config: Config) -> str:
    return f"{config.data.tokenizer_model}: {open_tokenizer(config).vocab_size:,} token ids"


def _sources(config: Config) -> dict[str, list[str]]:
    """Option -> files or Hub names."""
    valid = {f"valid_data {name}": [source] for name, source in config.data.valid_data.items()}
    return {"train_data": list(config.data.train_data)} | valid
