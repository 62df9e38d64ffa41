"""Tensors out of a checkpoint, and the comparison of what it holds with what is wanted.

Every difference is an error that names it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.mapping import ShardedObject
from megatron.core.dist_checkpointing.serialization import get_default_load_sharded_strategy
from megatron.core.dist_checkpointing.strategies.fully_parallel import FullyParallelLoadStrategyWrapper
from torch import nn
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from megatron_lpc.command_line import first_few, flag_of
from megatron_lpc.config import Config, ConfigError, ModelConfig, Role, canonical, options_with_role, shown
from megatron_lpc.model import unwrapped
from megatron_lpc.model.initialize import sharded_tensors
from megatron_lpc.platform.process_groups import ProcessGroups
from megatron_lpc.training.checkpoint_folder import read_description
from megatron_lpc.training.tensor_index import read_tensor_index

_HEAD = "latent_head."


def load_weights(
    chunks: list[nn.Module], path: Path, *, groups: ProcessGroups, latent_head: bool, config: Config | None = None
) -> None:
    """Load only weights, written in any parallel layout and precision.

    Collectives: as `read_tensors`.

    Args:
        chunks: this rank's model chunks, bare or wrapped.
        path: folder of one checkpoint, as `resolve_checkpoint` gives it.
        latent_head: load the LPC head too, where the checkpoint has one; otherwise the model's head, if any, keeps its
            weights.
        config: options to compare with those that the checkpoint was saved with; the vocabulary is always compared.

    Raises:
        ConfigError: options of the model differ; a tensor is missing, left over or of another shape. A head may be
            absent as a whole.
    """
    vocab_size = unwrapped(chunks[0]).real_vocab_size
    wanted = {"vocab_size": vocab_size} if config is None else _backbone_options(asdict(config))
    _compare(path, wanted, _backbone_options(read_description(path).get("options", {})))
    weights = sharded_weights(chunks)
    with_head = latent_head and any(key.startswith(_HEAD) for key in _stored_shapes(path))
    if not with_head:
        weights = {name: leaf for name, leaf in weights.items() if not leaf.key.startswith(_HEAD)}
    ignored = ("optimizer.",) if with_head else ("optimizer.", _HEAD)
    loaded = read_tensors(path, {"model": weights}, groups=groups, vocab_size=vocab_size, ignored=ignored)
    copy_weights(chunks, loaded["model"])


def load_all_weights(chunks: list[nn.Module], path: Path, *, groups: ProcessGroups, config: Config) -> None:
    """Load the weights of a whole policy, its LPC head included, from a checkpoint with the same model options.

    Collectives: as `read_tensors`.

    Args:
        chunks: this rank's model chunks, bare or wrapped.
        path: folder of one checkpoint, as `resolve_checkpoint` gives it.
        config: options of the model; its vocabulary size must be set.

    Raises:
        ConfigError: options of the model differ; a tensor is missing, left over or of another shape.
    """
    vocab_size = config.model.vocab_size
    assert vocab_size is not None
    compare_options(path, read_description(path).get("options", {}), config)
    wanted = {"model": sharded_weights(chunks)}
    loaded = read_tensors(path, wanted, groups=groups, vocab_size=vocab_size, ignored=("optimizer.",))
    copy_weights(chunks, loaded["model"])


def compare_options(folder: Path, saved: dict[str, Any], config: Config) -> None:
    """Refuse to resume from a checkpoint that was `saved` with other options of model, head or precision.

    Raises:
        ConfigError: naming the flags.
    """
    _compare(folder, _resume_options(asdict(config)), _resume_options(saved))


def _resume_options(options: dict[str, Any]) -> dict[str, Any]:
    """Options that a resumed run must share with the one that saved the checkpoint."""
    head = _chosen(options, options_with_role(Role.HEAD))
    return _backbone_options(options) | head | _chosen(options, ["bf16"])


def sharded_weights(chunks: Sequence[nn.Module]) -> dict[str, Any]:
    """Chunk number and name of every weight -> sharded tensor whose data is the model's own parameter."""
    weights = {}
    for number, chunk in enumerate(chunks):
        for name, leaf in unwrapped(chunk).sharded_state_dict().items():
            # Objects are the FP8 recipes of TransformerEngine's layers. Those that are offered keep nothing from step
            # to step, so the options say all.
            if not isinstance(leaf, ShardedObject):
                weights[f"{number}.{name}"] = leaf
    return weights


@torch.no_grad()
def copy_weights(chunks: Sequence[nn.Module], loaded: dict[str, torch.Tensor]) -> None:
    """Take over loaded weights, named as `sharded_weights` names them."""
    for number, chunk in enumerate(chunks):
        prefix = f"{number}."
        own = {name.removeprefix(prefix): tensor for name, tensor in loaded.items() if name.startswith(prefix)}
        unwrapped(chunk).load_state_dict(own, strict=False)


def read_tensors(
    folder: Path, wanted: dict[str, Any], *, groups: ProcessGroups, vocab_size: int, ignored: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Read what a dictionary of sharded tensors asks for; tensors come back in their places.

    Collectives: an all-gather of names and shapes over the world. Each tensor is read by one of the data (and context)
    parallel ranks that need it, and broadcast to the others over that group.

    Args:
        vocab_size: vocabulary size of the model, without padding.
        ignored: prefixes of names that the checkpoint may hold although no rank asks for them.

    Raises:
        ConfigError: on all ranks alike; a tensor is missing, left over, or of another shape.
    """
    _check_shapes(folder, _asked_shapes(wanted), vocab_size, ignored)
    strategy = FullyParallelLoadStrategyWrapper(get_default_load_sharded_strategy(str(folder)), groups.dp_cp)
    return dist_checkpointing.load(wanted, str(folder), strategy)


def _asked_shapes(wanted: dict[str, Any]) -> dict[str, tuple[tuple[int, ...], bool]]:
    """Name of every tensor that some rank asks for -> its global shape, and whether that may differ by padding.

    Collectives: an all-gather of objects over the world.
    """
    local = {
        tensor.key: (tuple(tensor.global_shape), tensor.allow_shape_mismatch) for tensor in sharded_tensors(wanted)
    }
    of_ranks: list[dict[str, Any]] = [{} for _ in range(dist.get_world_size())]
    dist.all_gather_object(of_ranks, local)
    return {key: value for of_rank in of_ranks for key, value in of_rank.items()}


def _check_shapes(
    folder: Path, asked: dict[str, tuple[tuple[int, ...], bool]], vocab_size: int, ignored: tuple[str, ...]
) -> None:
    stored = _stored_shapes(folder)
    missing = sorted(asked.keys() - stored.keys())
    if missing:
        raise ConfigError(f"{folder}: lacks {first_few(missing, 'tensors')}; was it saved from another kind of model?")
    left_over = sorted(key for key in stored.keys() - asked.keys() if not key.startswith(ignored))
    if left_over:
        raise ConfigError(
            f"{folder}: holds {first_few(left_over, 'tensors')}, for which this model has no place; "
            "was it saved from another kind of model?"
        )
    for key, (shape, is_padded) in sorted(asked.items()):
        differs = shape != stored[key]
        if differs and not (is_padded and _differs_in_padding(stored[key], shape, vocab_size)):
            raise ConfigError(f"{folder}: {key} has shape {list(stored[key])}, this model needs {list(shape)}")


def _differs_in_padding(stored: tuple[int, ...], wanted: tuple[int, ...], vocab_size: int) -> bool:
    """Embeddings may be padded by another rule, or not at all; megatron-core reads the token ids that are stored."""
    return stored[1:] == wanted[1:] and stored[0] >= vocab_size


def _stored_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Name of every tensor in a checkpoint -> its shape."""
    index = read_tensor_index(folder).state_dict_metadata
    return {key: tuple(entry.size) for key, entry in index.items() if isinstance(entry, TensorStorageMetadata)}


def _backbone_options(options: dict[str, Any]) -> dict[str, Any]:
    """Options of the backbone that its weights depend on, in one form."""
    chosen = _chosen(options, options_with_role(Role.BACKBONE))
    if not chosen:
        return {}
    model = asdict(canonical(ModelConfig(**chosen)))
    return {name: model[name] for name in chosen}


def _chosen(options: dict[str, Any], names: list[str]) -> dict[str, Any]:
    """The options of these names that a saved configuration (section -> option -> value) has."""
    return {name: value for section in options.values() for name, value in section.items() if name in names}


def _compare(folder: Path, wanted: dict[str, Any], found: dict[str, Any]) -> None:
    """Compare the options that both know."""
    differing = [name for name in wanted if name in found and wanted[name] != found[name]]
    if not differing:
        return
    changes = [f"{flag_of(name)} {shown(found[name])}, now {shown(wanted[name])}" for name in differing]
    raise ConfigError(f"{folder}: was saved with other options: {'; '.join(changes)}")
