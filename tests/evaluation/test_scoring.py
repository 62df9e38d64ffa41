"""From the scores of micro-batches to the table of a data set; in the made-up scores each number names its place."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from megatron_lpc.config import LatentConfig
from megatron_lpc.data.batch import PairBatch
from megatron_lpc.evaluation import scoring
from megatron_lpc.model import LatentOutput, PairScores
from megatron_lpc.training.reference import NoReference

CHOSEN, REJECTED = 0.25, 0.5
NUM_CODES = 3


class _SingleRank:
    """A process group of one rank."""

    def size(self):
        return 1


class _MadeUpReference:
    """Reference log-probs -example_index - CHOSEN or REJECTED."""

    def attach(self, batches):
        return [replace(batch, reference_logps=-_by_response(batch.example_index)) for batch in batches]


def _by_response(values):
    """[B] -> [2B], chosen first."""
    return torch.cat([values + CHOSEN, values + REJECTED]).float()


def _batch(*examples):
    index = torch.tensor(examples)
    nothing = torch.zeros(0, dtype=torch.int64)
    return PairBatch(
        tokens=torch.zeros(1, 1, dtype=torch.int64),
        prompt_end=torch.zeros_like(index),
        response_end=torch.zeros(2 * len(index), dtype=torch.int64),
        loss_index=nothing,
        targets=nothing,
        segment_ids=nothing,
        response_length=torch.cat([10 + index, 20 + index]),
        sample_ids=index,
        example_index=index,
    )


def _scores(batch, num_latents, has_codes):
    """Log-probs 100 l + example_index + CHOSEN or REJECTED; logits 1000 (posterior) or 2000 (prior) + index + k / 8."""
    index, codes = batch.example_index, torch.arange(NUM_CODES) / 8
    latent = None
    if has_codes:
        latent = LatentOutput(
            z=torch.zeros(num_latents, len(index), 1),
            posterior_logits=1000 + index[:, None] + codes,
            prior_logits=2000 + index[:, None] + codes,
        )
    return PairScores(logps=torch.stack([100 * i + _by_response(index) for i in range(num_latents)]), latent=latent)


@pytest.fixture
def score(monkeypatch):
    """Score five examples in two steps of two micro-batches, the last one filled up with pairs that do not count."""
    context = SimpleNamespace(
        platform=SimpleNamespace(device=torch.device("cpu")),
        groups=SimpleNamespace(dp=_SingleRank(), pp=_SingleRank(), is_last_stage=True),
    )
    steps = [[(_batch(4, 1), 2), (_batch(0), 1)], [(_batch(3, 2), 2), (_batch(0, 1), 0)]]

    def run(reference, sources, *, has_codes, latent):
        def score_pass(chunks, batches, query):
            assert query.sources == sources
            num_latents = sum(NUM_CODES if source == "codes" else 1 for source in sources)
            return [_scores(batch, num_latents, has_codes) for batch in batches]

        monkeypatch.setattr(scoring, "score_pass", score_pass)
        return scoring.score_pairs(context, [], steps, reference, sources, latent=latent)

    return run


def test_every_number_is_found_under_its_name(score):
    sources = ("prior", "posterior", "none", "codes")
    table = score(_MadeUpReference(), sources, has_codes=True, latent=LatentConfig(codebook_size=NUM_CODES))
    index = torch.arange(5)
    responses = torch.tensor([CHOSEN, REJECTED], dtype=torch.float64)
    latents = 100 * torch.arange(3)
    codes = torch.arange(NUM_CODES) / 8
    assert len(table) == 5
    assert table.num_codes == NUM_CODES
    assert table.example_index.tolist() == index.tolist()
    code_latents = 100 * torch.arange(3, 3 + NUM_CODES)
    assert torch.equal(table.code_logps, code_latents[None, :, None] + index[:, None, None] + responses)
    assert torch.equal(table.logps, latents[None, :, None] + index[:, None, None] + responses)
    assert torch.equal(table.reference_logps, -(index[:, None] + responses))
    assert torch.equal(table.response_length, index[:, None] + torch.tensor([10.0, 20.0]).double())
    assert torch.equal(table.posterior_logits, (1000 + index[:, None] + codes).double())
    assert torch.equal(table.prior_logits, (2000 + index[:, None] + codes).double())


def test_without_codes_and_reference(score):
    table = score(NoReference(), ("none",), has_codes=False, latent=scoring.WITHOUT_HEAD)
    assert table.code_logps.shape == (5, 0, 2)
    assert table.logps.shape == (5, 1, 2)
    assert table.logps[:, 0, 0].tolist() == [example + CHOSEN for example in range(5)]
    assert table.reference_logps.shape == (5, 2)
    assert table.reference_logps.isnan().all()
    assert table.posterior_logits.shape == table.prior_logits.shape == (5, 0)
    assert table.num_codes == 0


@pytest.mark.parametrize(
    ("has_codes", "latent"),
    [
        (True, scoring.WITHOUT_HEAD),
        (False, LatentConfig(codebook_size=NUM_CODES)),
        (True, LatentConfig(codebook_size=NUM_CODES + 1)),
        (True, LatentConfig(codebook_size=NUM_CODES, latent_inference="exact")),
    ],
)
def test_another_head_is_refused(score, has_codes, latent):
    with pytest.raises(ValueError, match="posterior_logits must be"):
        score(NoReference(), ("prior",), has_codes=has_codes, latent=latent)


def test_ranks_with_different_numbers_of_pairs_gather_twice(monkeypatch):
    local, other = torch.arange(6.0).view(3, 2), torch.full((1, 2), 7.0)
    padding = torch.full((2, 2), -1.0)
    sent = []

    def all_gather(parts, tensor, group):
        sent.append(tensor)
        second = torch.tensor([len(other)]) if len(sent) == 1 else torch.cat([other, padding])
        parts[0].copy_(tensor)
        parts[1].copy_(second)

    monkeypatch.setattr("torch.distributed.all_gather", all_gather)
    parts = scoring.gather_pairs(local, SimpleNamespace(size=lambda: 2))
    assert len(sent) == 2
    assert [part.tolist() for part in parts] == [local.tolist(), other.tolist()]
