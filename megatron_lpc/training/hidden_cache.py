"""The hidden states of a frozen backbone, computed once for all pairs of a run and kept on disk."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from torch import Tensor, nn

from megatron_lpc.command_line import is_first_rank
from megatron_lpc.config import Config, ConfigError, Role, canonical, options_with_role
from megatron_lpc.data.batch import PairBatch
from megatron_lpc.data.dataset import PairDataset
from megatron_lpc.data.distinct_responses import DistinctResponses
from megatron_lpc.data.hidden_store import HiddenOrigin, HiddenStore, rows_of_pairs
from megatron_lpc.data.input_errors import input_errors
from megatron_lpc.data.micro_batches import IndexedPair, MicroBatchPlanner
from megatron_lpc.data.tokenizer import Tokenizer
from megatron_lpc.model import unwrapped
from megatron_lpc.terminal import transfer_bar
from megatron_lpc.training.first_rank import from_first_rank, wait_for_all_ranks
from megatron_lpc.training.loaders import micro_batch_planner
from megatron_lpc.training.offload import OffloadedWeights
from megatron_lpc.training.reference_cache import weights_fingerprint
from megatron_lpc.training.setup import RunContext


def hidden_stores(
    context: RunContext,
    tokenizer: Tokenizer,
    chunks: Sequence[nn.Module],
    datasets: Sequence[tuple[str, PairDataset | None]],
) -> list[HiddenStore | None]:
    """The hidden states of each data set; what `cache_hidden_states` lacks of them is computed first.

    Data parallel ranks share that work by blocks of pairs, so ranks must see one folder.

    Collectives: those of `weights_fingerprint`; while blocks are computed, those of the layers over the tensor parallel
    group.

    Args:
        chunks: the policy, with its weights; one chunk.
        datasets: all that will be scored, each with its name; None for a stream, whose hidden states are not kept.

    Returns:
        None for each data set where `cache_hidden_states` is unset.

    Raises:
        ConfigError: on all ranks alike; files are of other weights or damaged, the disk is too small, or a pair does
            not fit `pack_to`.
    """
    config = context.config
    folder = config.training.cache_hidden_states
    if folder is None:
        return [None] * len(datasets)
    (chunk,) = chunks
    planner = micro_batch_planner(context, tokenizer)
    weights, model = weights_fingerprint(chunks), _model_fingerprint(config)
    stores: list[HiddenStore | None] = []
    for name, data in datasets:
        assert data is not None
        origin = HiddenOrigin(data=data.fingerprint, weights=weights, model=model)
        store = HiddenStore(folder, origin, DistinctResponses.of(data), config.model.hidden_size)
        with input_errors():
            planner.check_fit(data.lengths)
        _Fill(context, unwrapped(chunk), planner, name, data, store).run()
        stores.append(store)
    return stores


def offload_cached_backbone(context: RunContext, chunks: Sequence[nn.Module]) -> None:
    """Take the weights of the layers off a GPU, where the hidden states of all data sets are cached.

    They are needed again only for checkpoints, which read them where they are.
    """
    if context.platform.is_cuda and context.config.training.cache_hidden_states is not None:
        (chunk,) = chunks
        OffloadedWeights(unwrapped(chunk).parameters_of_layers(), context.platform.device)


def _model_fingerprint(config: Config) -> str:
    """Names what the weights alone do not tell of the function that they compute."""
    model, training = asdict(canonical(config.model)), config.training
    backbone = {name: model[name] for name in options_with_role(Role.BACKBONE) if name in model}
    for name in ("rotary_base", "rope_local_base_freq"):
        # Files of the time when bases were integers stay valid.
        if backbone[name] is not None and backbone[name] == int(backbone[name]):
            backbone[name] = int(backbone[name])
    parts = [backbone, training.bf16, training.fp8_format, training.fp8_format and training.fp8_recipe]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


class _Fill:
    """The blocks of one data set that are not on disk yet."""

    def __init__(
        self,
        context: RunContext,
        model: nn.Module,
        planner: MicroBatchPlanner,
        name: str,
        data: PairDataset,
        store: HiddenStore,
    ) -> None:
        self._context = context
        self._model = model
        self._planner = planner
        self._name = name
        self._data = data
        self._store = store
        dtype = torch.bfloat16 if context.config.training.bf16 else torch.float32
        self._row_bytes = context.config.model.hidden_size * dtype.itemsize

    def run(self) -> None:
        """Compute and write what is missing."""
        groups = self._context.groups
        missing = json.loads(from_first_rank(self._announce))
        if not missing:
            return
        own = missing[groups.dp_rank :: groups.dp_size]
        title = f"Hidden states of {self._name}"
        with transfer_bar(title, self._store.num_rows(own) * self._row_bytes) as advance:
            for block in own:
                rows = self._compute(block)
                if groups.tp.rank() == 0:
                    self._store.write_block(block, rows)
                advance(self._store.num_rows([block]) * self._row_bytes)
        wait_for_all_ranks()

    def _announce(self) -> str:
        """The missing blocks as JSON; says how much they are."""
        store, folder = self._store, self._store.folder
        try:
            missing = store.missing_blocks()
        except ValueError as error:
            raise ConfigError(f"--cache-hidden-states: {error}") from error
        if missing:
            responses = store.num_responses(missing)
            nbytes = store.num_rows(missing) * self._row_bytes
            Console(stderr=True, quiet=not is_first_rank()).print(
                f"Hidden states of {self._name}: {nbytes / 1e9:,.2f} GB for {responses:,} different responses "
                f"({nbytes / responses / 1e6:.3f} MB each), to be written once into {folder}",
                soft_wrap=True,
                markup=False,
            )
            _check_space(folder, nbytes)
        return json.dumps(missing)

    def _compute(self, block: int) -> list[tuple[Tensor, Tensor]]:
        """Rows of both responses of each pair of a block, on the host.

        Collectives: those of the layers, and the gather of sequence shards, over the tensor parallel group.
        """
        wanted = self._store.pairs_of(block)
        multiple = self._planner.pairs_multiple
        # Filled up to whole micro-batches; what is computed twice is the same.
        examples = np.resize(wanted, -(-len(wanted) // multiple) * multiple)
        plan = self._planner.plan(self._data.lengths[examples].astype(np.int64))
        rows: dict[int, tuple[Tensor, Tensor]] = {}
        for positions in plan:
            numbers = [int(examples[position]) for position in positions]
            pairs = [IndexedPair(self._data[number], number, number) for number in numbers]
            (batch,) = self._planner.collate([pairs])
            rows |= zip(numbers, self._rows(batch), strict=True)
        return [rows[number] for number in wanted]

    @torch.no_grad()
    def _rows(self, batch: PairBatch) -> list[tuple[Tensor, Tensor]]:
        self._model.eval()
        on_device = batch.to(self._context.platform.device)
        hidden = self._model.pair_hidden(on_device).map_tensors(Tensor.cpu)  # type: ignore[operator]
        self._model.train()
        return rows_of_pairs(hidden, batch.response_length.tolist())


def _check_space(folder: Path, nbytes: int) -> None:
    """Raises ConfigError where the disk has less than that free."""
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < nbytes:
        raise ConfigError(
            f"--cache-hidden-states {folder.parent}: {nbytes / 1e9:,.1f} GB are to be written, and "
            f"{free / 1e9:,.1f} GB are free; name a folder on another disk, or train without it"
        )
