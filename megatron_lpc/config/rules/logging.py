"""Rules of what a run leaves beside its checkpoints."""

from __future__ import annotations

from collections.abc import Iterator

from megatron_lpc.config.schema import Config


def profiling(config: Config, world_size: int) -> Iterator[str]:
    """Which steps and ranks are profiled."""
    logging = config.logging
    if not logging.profile:
        return
    if config.checkpoint.save is None:
        yield "--profile: writes its traces under --save, which is unset; set it"
    if logging.profile_step_end <= logging.profile_step_start:
        yield (
            f"--profile-step-end {logging.profile_step_end}: must be above "
            f"--profile-step-start {logging.profile_step_start}"
        )
    if not logging.profile_ranks:
        yield "--profile-ranks: is empty; name at least one rank, or drop --profile"
    for rank in logging.profile_ranks:
        if rank >= world_size:
            yield f"--profile-ranks {rank}: the run has {world_size} processes, with ranks from 0"


def generations(config: Config) -> Iterator[str]:
    """Responses at evaluations: each is of the checkpoint of its step, exported."""
    logging, checkpoint, mode = config.logging, config.checkpoint, config.latent.latent_mode
    if not logging.eval_generations:
        return
    flag = f"--eval-generations {logging.eval_generations}"
    if checkpoint.save is None:
        yield f"{flag}: generates from checkpoints in --save, which is unset; set it"
    elif logging.eval_interval and (not checkpoint.save_interval or logging.eval_interval % checkpoint.save_interval):
        yield (
            f"{flag}: generates from the checkpoint of the step that is evaluated, and --save-interval "
            f"{checkpoint.save_interval} saves none at some steps of --eval-interval {logging.eval_interval}; make it "
            f"{logging.eval_interval}, or a divisor of that"
        )
    if mode in ("embedding", "gaussian"):
        yield f"{flag}: the head of --latent-mode {mode} cannot be exported; drop the flag"
    if logging.eval_generation_tokens >= config.model.max_position_embeddings:
        yield (
            f"--eval-generation-tokens {logging.eval_generation_tokens}: leaves no room for a prompt within "
            f"--max-position-embeddings {config.model.max_position_embeddings}; lower it"
        )
