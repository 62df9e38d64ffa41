"""Rules of a training whose posterior reads other pairs of a group; an evaluation of its model needs none of them."""

from __future__ import annotations

from collections.abc import Iterator

from megatron_lpc.config.group_defaults import EPISODE_CONTEXT
from megatron_lpc.config.schema import Config


def episodes(config: Config, dp_size: int) -> Iterator[str]:
    """Episodes of `posterior_context` + 1 pairs of one group, over the micro-batches of `dp_size` ranks."""
    context, data = config.latent.posterior_context, config.data
    size = context + 1
    if not context:
        return
    flag = f"--posterior-context {context}"
    default = ", the default with --group-column" if context == EPISODE_CONTEXT else ""
    if data.group_column is None:
        yield f"{flag}: an episode is {size} pairs of one group; name their column with --group-column"
    if data.streaming:
        yield (
            f"{flag}: the pairs of a group cannot be found in a stream, which is read once and in blocks; "
            "drop --streaming"
        )
    micro_batch, global_batch = config.training.micro_batch_size, config.training.global_batch_size
    if data.pack_to is None:
        if micro_batch % size:
            yield (
                f"--micro-batch-size {micro_batch}: must be a multiple of {size}, the pairs of an episode "
                f"({flag}{default}), which share a micro-batch; --posterior-context 0 does without episodes"
            )
        return
    is_interleaved = config.parallel.num_virtual_stages_per_pipeline_rank is not None
    micro_batches = dp_size * (config.parallel.pipeline_model_parallel_size if is_interleaved else 1)
    if global_batch % (size * micro_batches):
        yield (
            f"--global-batch-size {global_batch}: with --pack-to and {flag} it must be a multiple of "
            f"{size * micro_batches}, {size} pairs of an episode in each of {micro_batches} sequences; "
            "--posterior-context 0 does without episodes"
        )
