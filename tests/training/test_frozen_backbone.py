"""A frozen backbone: the numbers are those of an unfrozen one whose learning rate is 0, and it costs only the head."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from frozen_runs import CLOCK, FROZEN, SAME_PRODUCTS, UNFROZEN, Trained, config_of, train_run

from megatron_lpc.config import ConfigError, with_options
from megatron_lpc.evaluation.checkpoint_scorer import CheckpointScorer
from megatron_lpc.evaluation.pair_table import table_metrics
from megatron_lpc.model import unwrapped
from megatron_lpc.training.build import assemble_run
from megatron_lpc.training.optimizer_state import stateful_parts
from megatron_lpc.training.setup import RunContext, resolve_device_defaults
from megatron_lpc.training.step import TrainStep
from megatron_lpc.training.tensor_index import read_tensor_index

EPISODES = (
    *("--posterior-context", "1", "--group-column", "annotator"),
    *("--latent-inference", "amortized", "--swap-guidance-weight", "0.1"),
)


@pytest.mark.parametrize(
    "flags",
    [
        (),
        ("--loss-type", "simpo"),
        ("--loss-type", "ipo", "--relaxation", "straight_through"),
        ("--latent-mode", "continuous"),
        ("--share-prompt",),
        EPISODES,
    ],
)
def test_equals_an_unfrozen_backbone_that_does_not_learn(
    tiny_run, context: RunContext, tmp_path: Path, flags: tuple[str, ...]
) -> None:
    one = train_run(context, config_of(tiny_run, *UNFROZEN, *SAME_PRODUCTS, *flags))
    other = train_run(context, config_of(tiny_run, *FROZEN, *SAME_PRODUCTS, *flags))
    cached = ("--cache-hidden-states", str(tmp_path))
    _assert_equal(one, other)
    from_cache = train_run(context, config_of(tiny_run, *FROZEN, *cached, *SAME_PRODUCTS, *flags))
    if "--share-prompt" in flags:
        # A response of several pairs is kept as the first has it, where another response may stand before it.
        assert from_cache.losses == pytest.approx(one.losses, abs=1e-6)
    else:
        _assert_equal(one, from_cache)


def _assert_equal(one: Trained, other: Trained) -> None:
    assert one.losses == other.losses, "to the bit"
    assert one.losses[0] != one.losses[-1]
    for name, weight in one.head.items():
        assert torch.equal(weight, other.head[name]), name
    assert one.evaluations == other.evaluations
    for unfrozen, frozen in zip(one.metrics, other.metrics, strict=True):
        assert {name for name in unfrozen if unfrozen[name] != frozen[name]} <= CLOCK | {"grad_norm", "lr"}
        assert 0 < frozen["grad_norm"] < unfrozen["grad_norm"], "of the head only"


@pytest.mark.parametrize("flags", [(), ("--latent-inference", "exact")])
def test_default_algorithm_agrees(tiny_run, context: RunContext, flags: tuple[str, ...]) -> None:
    """Within rounding: products have other shapes where the reference is one of several latents."""
    one = train_run(context, config_of(tiny_run, *UNFROZEN, *flags))
    other = train_run(context, config_of(tiny_run, *FROZEN, *flags))
    assert one.losses == pytest.approx(other.losses, abs=1e-6)
    for name, weight in one.head.items():
        # Of steps of 1e-2: Adam gives gradients near zero, rounding and all, the size of large ones.
        torch.testing.assert_close(weight, other.head[name], rtol=0, atol=1e-4)


@pytest.mark.parametrize("flags", [(), ("--use-distributed-optimizer",), ("--bf16",)])
def test_nothing_is_kept_for_the_backbone(tiny_run, context: RunContext, flags: tuple[str, ...]) -> None:
    run = train_run(context, config_of(tiny_run, *FROZEN, *flags)).run
    (chunk,) = run.policy.chunks
    model = unwrapped(chunk)
    of_head = sum(weight.numel() for weight in model.latent_head.parameters())
    (buffer,) = chunk.buffers
    assert {id(weight) for weight in buffer.params} == {id(weight) for weight in model.latent_head.parameters()}
    assert buffer.grad_data.numel() < of_head + 64 * len(buffer.params) + 128, "padding beside them, no more"
    state = [part.optimizer.state for part in stateful_parts(run.policy.optimizer)]
    sizes = [kinds["exp_avg"].numel() for parameters in state for kinds in parameters.values()]
    assert sum(sizes) == of_head
    for name, weight in model.named_parameters():
        assert weight.requires_grad == name.startswith("latent_head."), name
        assert weight.grad is None or name.startswith("latent_head."), name
        assert name.startswith("latent_head.") or not hasattr(weight, "main_grad"), name
    assert not hasattr(run.reference, "chunks"), "no second model"


def test_no_graph_reaches_the_backbone(tiny_run, context: RunContext, monkeypatch: pytest.MonkeyPatch) -> None:
    from megatron_lpc.model import preference_model

    seen = []
    gather = preference_model.hidden_of_pairs
    monkeypatch.setattr(
        preference_model, "hidden_of_pairs", lambda hidden, *args: seen.append(hidden) or gather(hidden, *args)
    )
    train_run(context, config_of(tiny_run, *FROZEN))
    assert seen
    assert not any(hidden.requires_grad for hidden in seen)


def test_resumes_exactly_and_only_as_it_was(tiny_run, context: RunContext, tmp_path: Path) -> None:
    flags = (*FROZEN, "--save", str(tmp_path))
    whole = train_run(context, config_of(tiny_run, *flags))
    half = assemble_run(replace(context, config=resolve_device_defaults(config_of(tiny_run, *flags), context.platform)))
    step, state = TrainStep(half.context, half.policy, half.reference), half.start
    for number, batches in zip(range(2), half.batches(), strict=False):
        state = state.after_step(8, step(batches, number).updated)
    half.save_checkpoint(state)
    resumed = config_of(tiny_run, *flags, "--load", str(tmp_path))
    run = assemble_run(replace(context, config=resolve_device_defaults(resumed, context.platform)))
    assert run.start.iteration == 2
    last = TrainStep(run.context, run.policy, run.reference)(next(run.batches()), 2)
    assert last.metrics["loss"] == whole.losses[-1]
    for name, weight in unwrapped(run.policy.chunks[0]).latent_head.named_parameters():
        assert torch.equal(weight, whole.head[name]), name
    unfrozen = config_of(tiny_run, *UNFROZEN, "--save", str(tmp_path), "--load", "auto")
    with pytest.raises(ConfigError, match="--no-freeze-backbone: the checkpoint's run does not train its backbone"):
        assemble_run(replace(context, config=resolve_device_defaults(unfrozen, context.platform)))


def test_a_checkpoint_is_whole_and_is_evaluated_with_the_same_reference(
    tiny_run, context: RunContext, tmp_path: Path
) -> None:
    config = config_of(tiny_run, *FROZEN, "--save", str(tmp_path))
    trained = train_run(context, config)
    trained.run.save_checkpoint(replace(trained.run.start, iteration=3))
    stored = read_tensor_index(tmp_path / "iter_0000003").state_dict_metadata
    assert any(name.startswith("decoder.layers") for name in stored)
    of_optimizer = [name for name in stored if name.startswith("optimizer.")]
    assert of_optimizer
    assert all(".latent_head." in name for name in of_optimizer)
    own = resolve_device_defaults(with_options(config, load=str(tmp_path)), context.platform)
    scorer = CheckpointScorer(replace(context, config=own))
    for name, source in config.data.valid_data.items():
        table = scorer.score(name, scorer.open(name, source), ("prior", "posterior"))
        for number, latent in enumerate(("prior", "posterior")):
            metrics = table_metrics(config.loss, table, number)
            assert metrics == {key: trained.evaluations[f"{name}/{latent}"][key] for key in metrics}
