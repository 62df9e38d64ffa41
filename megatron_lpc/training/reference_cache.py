"""Reference log-probs on disk: a folder with a file for each data set, bound to the data, the tokenizer and the weights that made it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from megatron_lpc.config import ConfigError
from megatron_lpc.model import unwrapped
from megatron_lpc.model.initialize import sharded_tensors

_AGAIN = "write it anew with `python -m megatron_lpc.precompute_reference` and the options of this run"


def cache_file(folder: str | Path, data: str) -> Path:
    """Where the log-probs of the data set with this fingerprint are."""
    return Path(folder) / f"{data[:20]}.safetensors"


def save_reference_cache(folder: str | Path, logps: Tensor, data: str, weights: str) -> Path:
    """Write [rows, 2] fp32 log-probs of chosen and rejected; the file appears when it is complete, and replaces one of the same data.

    Args:
        data: `PairDataset.fingerprint`, which covers rows, tokenizer and truncation.
        weights: `weights_fingerprint` of the reference.
    """
    path = cache_file(folder, data)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".tmp")
    save_file({"reference_logps": logps.float().contiguous()}, partial, metadata={"data": data, "weights": weights})
    partial.replace(path)
    return path


def load_reference_cache(folder: str | Path, name: str, data: str, weights: str) -> Tensor:
    """[rows, 2] fp32 log-probs.

    Args:
        name: name of the data set, for messages.

    Raises:
        ConfigError: the folder has no file for these data under this tokenizer and these lengths, or it is damaged, or was made with
            other weights.
    """
    path = cache_file(folder, data)
    if not path.is_file():
        others = len(list(Path(folder).glob("*.safetensors")))
        raise ConfigError(
            f"--reference-cache {folder}: has no log-probs of data set `{name}` ({path.name}) with this tokenizer and these lengths; "
            f"files of other data: {others}; {_AGAIN}"
        )
    try:
        with safe_open(path, framework="pt") as file:
            made_with = file.metadata() or {}
            logps = file.get_tensor("reference_logps")
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"--reference-cache {folder}: {path.name} cannot be read ({error}); {_AGAIN}") from error
    if made_with != {"data": data, "weights": weights}:
        raise ConfigError(
            f"--reference-cache {folder}: the log-probs of data set `{name}` ({path.name}) are of another reference "
            f"(weights {made_with.get('weights')}, now {weights}); {_AGAIN}"
        )
    return logps


@torch.no_grad()
def weights_fingerprint(chunks: list[nn.Module]) -> str:
    """A name for the backbone's weights that does not depend on the parallel layout.

    Each parameter's bits are summed as integers, plain and weighted by their row in the whole matrix; such sums are exact, so shards may
    be added in any order. Guards against mix-ups, not against malice.

    Collectives: one all-gather of the sums of every rank over the world.
    """
    sums: dict[str, list[int]] = {}
    for chunk in chunks:
        for tensor in sharded_tensors(unwrapped(chunk).sharded_state_dict()):
            if (
                tensor.key.startswith("latent_head.")
                or not isinstance(tensor.data, Tensor)
                or any(_replica(tensor.replica_id))
            ):
                continue
            data = tensor.data.detach().cpu()
            bits = (
                data.view(torch.int16 if data.element_size() == 2 else torch.int32)
                .long()
                .reshape(tensor.local_shape[0], -1)
                .sum(1)
            )
            place = "/".join([tensor.key, *map(str, tensor.global_offset[: tensor.prepend_axis_num])])
            row = tensor.global_offset[tensor.prepend_axis_num] + torch.arange(len(bits)) + 1
            total = sums.setdefault(place, [0, 0])
            total[0] += int(bits.sum())
            total[1] += int((bits * row).sum())
    everyone: list[dict[str, list[int]]] = [{} for _ in range(dist.get_world_size())]
    dist.all_gather_object(everyone, sums)
    whole: dict[str, list[int]] = {}
    for part in everyone:
        for name, (plain, weighted) in part.items():
            before = whole.get(name, [0, 0])
            whole[name] = [before[0] + plain, before[1] + weighted]
    return hashlib.sha256(repr(sorted(whole.items())).encode()).hexdigest()


def _replica(replica_id: int | tuple[int, ...]) -> tuple[int, ...]:
    return (replica_id,) if isinstance(replica_id, int) else tuple(replica_id)
