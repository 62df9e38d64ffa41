"""What an evaluation says of each pair is what transformers computes on the exported model, for every method.

The model starts from Hugging Face weights, so that they are the reference.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from megatron_lpc.config import parse_args
from megatron_lpc.convert.export_hf import export_hf
from megatron_lpc.convert.hub.modeling_lpc import LPCForCausalLM
from megatron_lpc.convert.import_hf import import_hf
from megatron_lpc.convert.megatron_folder import MegatronFolder
from megatron_lpc.data.encode import EncodedPair
from megatron_lpc.evaluation import evaluate as evaluation_module
from megatron_lpc.evaluation.options import SupportOptions
from megatron_lpc.evaluation.support import GroupLatents, draw_support

SIZES = {"num_hidden_layers": 2, "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
SHAPE = "--num-layers 2 --hidden-size 16 --ffn-hidden-size 32 --num-attention-heads 2 --vocab-size 400"
RUN = f"{SHAPE} --max-position-embeddings 128 --max-length 128 --norm-epsilon 1e-6"
TRAINING = "--train-iters 12 --lr 0.01 --beta 0.5"
METHODS = {
    "plain": "--latent-mode none",
    "continuous": "--latent-mode continuous",
    "codes of single pairs": "--posterior-context 0 --codebook-size 4",
    "codes of episodes": "--codebook-size 4",
    "vectors": "--latent-mode embedding",
    "gaussian": "--latent-mode gaussian --posterior-context 7",
}
BETA = 0.5
SUPPORT_PAIRS = 2


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face model of the tokenizer's size."""
    folder = tmp_path_factory.mktemp("start") / "hf"
    torch.manual_seed(0)
    config = LlamaConfig(
        **SIZES, vocab_size=400, max_position_embeddings=128, tie_word_embeddings=True, initializer_range=0.3
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    import_hf(folder, folder.parent / "base")
    return folder.parent


@pytest.fixture(scope="module")
def world(make_world: Any) -> list[str]:
    return make_world("--num-pairs", "96", "--num-eval-pairs", "32")


@pytest.mark.parametrize("method", METHODS)
def test_pair_by_pair(method: str, start: Path, world: list[str], tmp_path: Path) -> None:
    from megatron_lpc.train import train

    run = tmp_path / "run"
    places = ["--pretrained-checkpoint", str(start / "base"), "--save", str(run), "--device", "cpu"]
    batches = ["--micro-batch-size", "8", "--global-batch-size", "16", "--group-column", "annotator"]
    flags = f"{RUN} {TRAINING} {METHODS[method]}".split()
    train(parse_args([*world, *flags, *places, *batches, "--no-tensorboard"]))
    has_codes = method.startswith("codes")
    has_head = has_codes or method == "continuous"
    export_hf(run, tmp_path / "hf", form="whole" if has_head else "backbone")
    pairs, correct, latents = _evaluated(run)

    model: Any = LPCForCausalLM if has_head else AutoModelForCausalLM
    check = _Transformers(model.from_pretrained(tmp_path / "hf"), AutoModelForCausalLM.from_pretrained(start / "hf"))
    if has_codes:
        _check_codes(check, pairs, correct, latents)
        return
    zs = {} if latents is None else _vectors(MegatronFolder(run), latents.mixtures)
    prior = _generic(MegatronFolder(run), method)
    assert len(set(correct["prior"].tolist())) == 2, "all right or all wrong would show nothing"
    for index, pair in enumerate(pairs):
        assert _agrees(correct["prior"][index], check.margin(pair, z=prior)), index
        if latents is not None:
            assert _agrees(correct["support"][index], check.margin(pair, z=zs[str(pair.group)])), index


class _Transformers:
    """Margins of pairs: no more than forward passes of transformers."""

    def __init__(self, policy: Any, reference: Any) -> None:
        self._policy = policy.eval()
        self._reference = reference.eval()

    @torch.no_grad()
    def margin(self, pair: EncodedPair, z: Tensor | None = None) -> float:
        """beta ((l_w - r_w) - (l_l - r_l)), of a policy with a head under its mean latent, of one without under `z`."""
        return float(self._margins(pair, lambda tokens, first: self._logits(tokens, first, z)))

    @torch.no_grad()
    def code_margins(self, pair: EncodedPair, num_codes: int) -> Tensor:
        """[K] the same under each code."""

        def logits(tokens: Tensor, first: int) -> Tensor:
            one_hot, ends = torch.eye(num_codes), torch.full((num_codes,), first)
            return self._policy(tokens.expand(num_codes, -1), latent=one_hot, prompt_end=ends).logits

        return self._margins(pair, logits)

    def _logits(self, tokens: Tensor, first: int, z: Tensor | None) -> Tensor:
        if isinstance(self._policy, LPCForCausalLM):
            return self._policy(tokens, prompt_end=torch.tensor([first])).logits
        hidden = self._policy.model(tokens).last_hidden_state
        return self._policy.lm_head(hidden if z is None else hidden + z)

    def _margins(self, pair: EncodedPair, policy_logits: Callable[[Tensor, int], Tensor]) -> Tensor:
        """[1], or [K] where the policy gives logits of K latents."""
        ratios = []
        first = len(pair.prompt) - 1
        for response in (pair.chosen, pair.rejected):
            tokens = torch.tensor([[*pair.prompt, *response]])
            reference = _response_logps(self._reference(tokens).logits, tokens, first)
            ratios.append(_response_logps(policy_logits(tokens, first), tokens, first) - reference)
        return BETA * (ratios[0] - ratios[1])

    @torch.no_grad()
    def log_prior(self, pair: EncodedPair) -> Tensor:
        """[K]."""
        output = self._policy(torch.tensor([pair.prompt]), latent="mean")
        return output.code_weights[0].double().log()


def _response_logps(logits: Tensor, tokens: Tensor, first: int) -> Tensor:
    """[L] summed log-probs of the response under each of L latents."""
    log_probs = logits[:, first:-1].double().log_softmax(-1)
    targets = tokens[:, first + 1 :, None].expand(len(logits), -1, -1)
    return log_probs.gather(2, targets).sum((1, 2))


def _check_codes(
    check: _Transformers, pairs: list[EncodedPair], correct: Mapping[str, Tensor], latents: GroupLatents | None
) -> None:
    """Under the prior, the marginal over codes, and the exact posterior of support sets that are drawn again."""
    assert latents is not None
    num_codes = len(next(iter(latents.mixtures.values())))
    margins = torch.stack([check.code_margins(pair, num_codes) for pair in pairs])
    log_prior = torch.stack([check.log_prior(pair) for pair in pairs])
    groups = [str(pair.group) for pair in pairs]
    support = draw_support(groups, SUPPORT_PAIRS, seed=0)
    likelihoods = {group: torch.nn.functional.logsigmoid(margins[indices]).sum(0) for group, indices in support.items()}
    of_groups = torch.stack([likelihoods[group] for group in groups])
    for name, log_weights in {"marginal": log_prior, "support_exact": log_prior + of_groups}.items():
        share = (log_weights.softmax(-1) * margins.sigmoid()).sum(-1)
        for index in range(len(pairs)):
            assert _agrees(correct[name][index], float(share[index] - 0.5)), (name, index)
    for index, pair in enumerate(pairs):
        assert _agrees(correct["prior"][index], check.margin(pair)), index


def _agrees(correct: Tensor, margin: float) -> bool:
    """A tie that rounding decides agrees with either."""
    return abs(margin) < 1e-5 or bool(correct) == (margin > 0)


def _evaluated(run: Path) -> tuple[list[EncodedPair], dict[str, Tensor], GroupLatents | None]:
    """Pairs of the disagreeing test set, which of them each latent orders as labelled, and the latents of groups."""
    kept: dict[str, Any] = {}
    report_support, evaluate_data = evaluation_module.report_support, evaluation_module._evaluate_data

    def keep_correct(correct: Mapping[str, Tensor], **arguments: Any) -> Any:
        kept.update(correct=dict(correct), latents=arguments["latents"])
        return report_support(correct, **arguments)

    def keep_data(scorer: Any, name: str, source: str, *rest: Any) -> Any:
        kept["data"] = data = scorer.open(name, source)
        if not evaluation_module.has_groups(scorer.config):
            table = scorer.score(name, data, evaluation_module.report_sources(scorer.config.latent))
            kept.update(correct={"prior": evaluation_module.is_correct(scorer.config.loss, table, 0)}, latents=None)
        return evaluate_data(scorer, name, source, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation_module, "report_support", keep_correct)
        patch.setattr(evaluation_module, "_evaluate_data", keep_data)
        config = parse_args(["--config", str(run / "config.yaml"), "--load", str(run)])
        evaluation_module.evaluate(config, SupportOptions(pairs=SUPPORT_PAIRS, seed=0))
    data = kept["data"]
    return [data[index] for index in range(len(data))], kept["correct"], kept["latents"]


def _tensor(folder: MegatronFolder, name: str) -> Tensor:
    shape = folder.tensors[name].shape
    return folder.read(name, [0] * len(shape), shape)


def _generic(folder: MegatronFolder, method: str) -> Tensor | None:
    """[H] z of a group that is not known."""
    if method == "vectors":
        return _tensor(folder, "latent_head.code_unit") * _tensor(folder, "latent_head.vectors")[0]
    if method == "gaussian":
        return _tensor(folder, "latent_head.code_unit") * _tensor(folder, "latent_head.decoder.bias")
    return None


def _vectors(folder: MegatronFolder, mixtures: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """[H] z of each group: its vector, or its Gaussian latent decoded."""
    decoder = "latent_head.decoder.weight"
    unit = _tensor(folder, "latent_head.code_unit")
    if decoder not in folder.tensors:
        return {group: unit * vector.float() for group, vector in mixtures.items()}
    weight, bias = _tensor(folder, decoder), _tensor(folder, "latent_head.decoder.bias")
    return {group: unit * (weight @ latent.float() + bias) for group, latent in mixtures.items()}
