"""Score a whole data set, pair by pair, under several latents."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import pad

from megatron_lpc.config import LatentConfig
from megatron_lpc.data.batch import PairBatch
from megatron_lpc.evaluation.marginal import with_exact_posterior
from megatron_lpc.evaluation.pair_fields import PairFields
from megatron_lpc.evaluation.pair_table import PairTable
from megatron_lpc.losses import LatentState
from megatron_lpc.model import LatentQuery, LatentSource, PairScores
from megatron_lpc.training.collectives import from_last_stage
from megatron_lpc.training.phases import doing
from megatron_lpc.training.pipeline import score_pass
from megatron_lpc.training.reference import Reference, ZeroLatentReference, split_reference
from megatron_lpc.training.setup import RunContext

EvaluationStep = list[tuple[PairBatch, int]]
"""A rank's micro-batches of one step, each with the number of leading pairs that count."""

NO_NOISE = LatentState(tau=1.0, prior_mix=0.0, kl_weight=0.0)
"""The latents of an evaluation are mixtures by probability; the settings of the relaxed sample have no effect."""

WITHOUT_HEAD = LatentConfig(latent_mode="none")
"""Options of a model without a head."""


def evaluation_sources(latent: LatentConfig) -> tuple[LatentSource, ...]:
    """The latents under which a model of this mode is evaluated while it trains."""
    sources: dict[str, tuple[LatentSource, ...]] = {
        "lpc": ("prior", "codes") if latent.latent_inference == "exact" else ("prior", "posterior"),
        "continuous": ("prior",),
        "embedding": ("prior", "group"),
        "gaussian": ("prior", "posterior"),
        "none": ("none",),
    }
    return sources[latent.latent_mode]


def report_sources(latent: LatentConfig) -> tuple[LatentSource, ...]:
    """The latents under which a checkpoint is evaluated: those of training, and every code by itself."""
    sources = evaluation_sources(latent)
    return sources if latent.latent_mode != "lpc" or "codes" in sources else (*sources, "codes")


@doing("evaluation")
def score_pairs(
    context: RunContext,
    chunks: Sequence[nn.Module],
    steps: Iterable[EvaluationStep],
    reference: Reference,
    sources: tuple[LatentSource, ...],
    *,
    latent: LatentConfig = WITHOUT_HEAD,
    num_mixtures: int = 1,
) -> PairTable:
    """Score every pair once; the table is whole on every rank.

    Collectives: those of the pipeline; per step two all-gathers over the data parallel group on the last stage; at the
    end two broadcasts over the pipeline group.

    Args:
        context: where the model is, and its process groups.
        chunks: this rank's model chunks.
        steps: those of `PairLoader.evaluation`; at least one.
        reference: gives each pair its reference log-probs.
        sources: the latents, axis L of `PairTable.logps`; `codes`, where it is among them, comes last and is no part
            of that axis.
        latent: options of the head, from which all pipeline stages know what only the last one sees.
        num_mixtures: latents that the source `mixture` stands for.

    Raises:
        ValueError: the model's logits are not those of such a head.
    """
    fields = _pair_fields(sources, latent, num_mixtures)
    device, groups = context.platform.device, context.groups
    is_policy = isinstance(reference, ZeroLatentReference)
    query = LatentQuery(sources=(*sources, "none") if is_policy else sources, state=NO_NOISE)
    parts: list[Tensor] = []
    for step in steps:
        batches = reference.attach([batch.to(device) for batch, _ in step])
        scores = score_pass(chunks, batches, query)
        if not scores:
            continue
        scored = list(zip(batches, scores, strict=True))
        if is_policy:
            scored = [split_reference(batch, score) for batch, score in scored]
        counted = zip(scored, step, strict=True)
        local = [fields.pack(_pair_values(batch, score, fields))[:valid] for (batch, score), (_, valid) in counted]
        parts += gather_pairs(torch.cat(local), groups.dp)
    whole = from_last_stage(torch.cat(parts) if groups.is_last_stage else None, groups, device)
    values = fields.unpack(whole.cpu())
    values["example_index"] = values["example_index"].long()
    table = PairTable(**values)
    table = table.select(table.example_index.argsort())
    if latent.latent_inference == "exact" and "codes" in sources:
        return with_exact_posterior(latent, context.config.loss, table)
    return table


def _pair_fields(sources: Sequence[LatentSource], latent: LatentConfig, num_mixtures: int) -> PairFields:
    """What is gathered of each pair: the fields of `PairTable`."""
    numbers = {"codes": 0, "mixture": num_mixtures}
    num_codes = latent.codebook_size if latent.latent_mode == "lpc" else 0
    return PairFields(
        {
            "example_index": (),
            "reference_logps": (2,),
            "response_length": (2,),
            "logps": (sum(numbers.get(source, 1) for source in sources), 2),
            "code_logps": (num_codes if "codes" in sources else 0, 2),
            "posterior_logits": (num_codes if latent.latent_inference == "amortized" else 0,),
            "prior_logits": (num_codes,),
            "latent_mean": (latent.latent_size if latent.latent_mode == "gaussian" else 0,),
        }
    )


def _pair_values(batch: PairBatch, scores: PairScores, fields: PairFields) -> dict[str, Tensor]:
    """The fields of the B pairs of a micro-batch, each [B, ...].

    Without a reference its log-probs are NaN, without codes the logits are [B, 0].
    """
    pairs = batch.num_pairs
    reference_logps = batch.reference_logps
    if reference_logps is None:
        reference_logps = scores.logps.new_full((2 * pairs,), torch.nan)
    posterior_logits = prior_logits = mean = None
    if scores.latent is not None:
        posterior_logits, prior_logits = scores.latent.posterior_logits, scores.latent.prior_logits
        mean = scores.latent.mean
    no_logits = scores.logps.new_empty(pairs, 0)
    logps = scores.logps.view(-1, 2, pairs).permute(2, 0, 1)
    num_latents = fields.shapes["logps"][0]
    return {
        "example_index": batch.example_index.to(scores.logps.device),
        "reference_logps": reference_logps.view(2, pairs).T,
        "response_length": batch.response_length.view(2, pairs).T,
        "logps": logps[:, :num_latents],
        "code_logps": logps[:, num_latents:],
        "posterior_logits": no_logits if posterior_logits is None else posterior_logits,
        "prior_logits": no_logits if prior_logits is None else prior_logits,
        "latent_mean": no_logits if mean is None else mean,
    }


def gather_pairs(local: Tensor, group: dist.ProcessGroup) -> list[Tensor]:
    """The matrices [P_r, F] of all ranks of a group, by rank; packing gives each rank another number of pairs.

    Collectives: two all-gathers (numbers of pairs, then pairs) over `group`; none when it has one rank.
    """
    if group.size() == 1:
        return [local]
    counts = [torch.zeros(1, dtype=torch.int64, device=local.device) for _ in range(group.size())]
    dist.all_gather(counts, torch.tensor([len(local)], device=local.device), group=group)
    lengths = [int(count) for count in counts]
    longest = max(lengths)
    parts = [local.new_empty(longest, local.size(1)) for _ in lengths]
    dist.all_gather(parts, pad(local, (0, 0, 0, longest - len(local))), group=group)
    return [part[:length] for part, length in zip(parts, lengths, strict=True)]
