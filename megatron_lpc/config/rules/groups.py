"""Rules of a training that gives groups vectors of their own; an evaluation of its model needs no groups."""

from __future__ import annotations

from collections.abc import Iterator

from megatron_lpc.config.schema import Config


def group_vectors(config: Config) -> Iterator[str]:
    """The groups of `latent_mode: embedding`, and how they are known."""
    latent, data = config.latent, config.data
    if latent.latent_mode != "embedding":
        return
    if data.group_column is None:
        yield "--latent-mode embedding: learns a vector per group; name their column with --group-column"
    if data.streaming and not latent.known_groups:
        yield (
            "--streaming: the groups of a stream are not known before it is read; name those that get a vector with "
            "--known-groups"
        )
    repeated = sorted({name for name in latent.known_groups if latent.known_groups.count(name) > 1})
    if repeated:
        yield f"--known-groups: names {repeated[0]} twice; name each group once"
