"""Reference log-probs on disk: a folder with one file per data set.

Each file is bound to the data, the tokenizer and the weights that made it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from megatron.core.dist_checkpointing.mapping import ShardedTensor
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from megatron_lpc.config import ConfigError
from megatron_lpc.files import whole_file
from megatron_lpc.model import unwrapped
from megatron_lpc.model.initialize import sharded_tensors
from megatron_lpc.outside.messages import reason

_AGAIN = "write it again with `python -m megatron_lpc.precompute_reference` and the options of this run"


def cache_file(folder: str | Path, data: str) -> Path:
    """Where the log-probs of the data set with this fingerprint are."""
    return Path(folder) / f"{data[:20]}.safetensors"


def save_reference_cache(folder: str | Path, logps: Tensor, data: str, weights: str) -> Path:
    """Write log-probs; the file appears when it is complete, and replaces one of the same data.

    Args:
        logps: [P, 2] log-probs of chosen and rejected of every pair, by example index; stored as fp32.
        data: `PairDataset.fingerprint`, which covers pairs, tokenizer and truncation.
        weights: `weights_fingerprint` of the reference.
    """
    path = cache_file(folder, data)
    with whole_file(path) as temporary:
        tensors = {"reference_logps": logps.float().contiguous()}
        save_file(tensors, temporary, metadata={"data": data, "weights": weights})
    return path


def load_reference_cache(folder: str | Path, name: str, data: str, weights: str) -> Tensor:
    """[P, 2] fp32 log-probs of chosen and rejected, by example index.

    Args:
        name: name of the data set, for messages.
        data: `PairDataset.fingerprint`.
        weights: `weights_fingerprint` of the reference.

    Raises:
        ConfigError: the folder has no file for these data under this tokenizer and these lengths, or it is damaged, or
            was made with other weights.
    """
    path = cache_file(folder, data)
    if not path.is_file():
        others = len(list(Path(folder).glob("*.safetensors")))
        raise ConfigError(
            f"--reference-cache {folder}: has no log-probs of data set `{name}` ({path.name}) with this tokenizer, "
            "these lengths and, where the chat template writes a date, the date in the data cache "
            f"(--chat-template-date); files of other data: {others}; {_AGAIN}"
        )
    try:
        with safe_open(path, framework="pt") as file:
            made_with = file.metadata() or {}
            logps = file.get_tensor("reference_logps")
    except (OSError, SafetensorError) as error:
        raise ConfigError(
            f"--reference-cache {folder}: {path.name} cannot be read ({reason(error)}); {_AGAIN}"
        ) from error
    if made_with != {"data": data, "weights": weights}:
        raise ConfigError(
            f"--reference-cache {folder}: the log-probs of data set `{name}` ({path.name}) are of another reference "
            f"(weights {made_with.get('weights')}, now {weights}); {_AGAIN}"
        )
    if logps.dim() != 2 or logps.size(1) != 2 or logps.dtype != torch.float32 or not bool(logps.isfinite().all()):
        raise ConfigError(f"--reference-cache {folder}: {path.name} holds no log-probs of pairs; {_AGAIN}")
    return logps


@torch.no_grad()
def weights_fingerprint(chunks: Sequence[nn.Module]) -> str:
    """A name for the backbone's weights that does not depend on the parallel layout.

    The bits of each parameter are summed as integers, once plain and once weighted by the index along the parameter's
    first dimension. Such sums are exact, so shards may be added in any order. This guards against mix-ups, not against
    malice.

    Collectives: one all-gather of objects (the sums of every rank) over the world.
    """
    sums: dict[str, list[int]] = {}
    for tensor in _backbone_shards(chunks):
        stacked = tensor.prepend_axis_num
        place = "/".join([tensor.key, *map(str, tensor.global_offset[:stacked])])
        plain, weighted = _bit_sums(tensor.data, tensor.local_shape[0], tensor.global_offset[stacked])
        _add_to(sums, place, plain, weighted)
    of_ranks: list[dict[str, list[int]]] = [{} for _ in range(dist.get_world_size())]
    dist.all_gather_object(of_ranks, sums)
    whole: dict[str, list[int]] = {}
    for of_rank in of_ranks:
        for place, (plain, weighted) in of_rank.items():
            _add_to(whole, place, plain, weighted)
    return hashlib.sha256(repr(sorted(whole.items())).encode()).hexdigest()


def _backbone_shards(chunks: Sequence[nn.Module]) -> Iterator[ShardedTensor]:
    """This rank's parts of the weights, replicas and the latent head left out."""
    for chunk in chunks:
        for tensor in sharded_tensors(unwrapped(chunk).sharded_state_dict()):
            is_head = tensor.key.startswith("latent_head.")
            if isinstance(tensor.data, Tensor) and not is_head and not _is_replica(tensor.replica_id):
                yield tensor


def _is_replica(replica_id: int | tuple[int, ...]) -> bool:
    """Whether another rank holds the first copy."""
    return replica_id != 0 if isinstance(replica_id, int) else any(replica_id)


def _bit_sums(tensor: Tensor, rows: int, first_row: int) -> tuple[int, int]:
    """Sum of the bits of a shard, plain and weighted by the number of the row in the whole matrix, counted from 1."""
    bits = tensor.detach().cpu()
    as_integers = bits.view(torch.int16 if bits.element_size() == 2 else torch.int32).long()
    row_sums = as_integers.reshape(rows, -1).sum(1)
    weights = first_row + torch.arange(len(row_sums)) + 1
    return int(row_sums.sum()), int((row_sums * weights).sum())


def _add_to(sums: dict[str, list[int]], place: str, plain: int, weighted: int) -> None:
    total = sums.setdefault(place, [0, 0])
    total[0] += plain
    total[1] += weighted
