"""A group's latent, and the pairs on which it may be evaluated."""

import pytest
import torch

from megatron_lpc.evaluation.support import MOST_SWAPS, GroupLatents, draw_support, query_pairs, support_mixtures

GROUPS = ["a", "b"] * 10 + ["c"] * 3


def test_support_is_of_its_group_and_without_repetition():
    support = draw_support(GROUPS, 4, seed=1)
    assert set(support) == {"a", "b"}  # c has three pairs
    for group, indices in support.items():
        assert len(set(indices)) == 4
        assert indices == sorted(indices)
        assert {GROUPS[index] for index in indices} == {group}


def test_a_group_with_just_enough_pairs_gives_all():
    assert draw_support(GROUPS, 3, seed=1)["c"] == [20, 21, 22]


def test_the_seed_decides_the_draw_and_other_groups_do_not():
    assert draw_support(GROUPS, 4, seed=1) == draw_support(GROUPS, 4, seed=1)
    assert draw_support(GROUPS, 4, seed=1) != draw_support(GROUPS, 4, seed=2)
    with_another_group = ["a", "x"] * 10
    assert draw_support(with_another_group, 4, seed=1)["a"] == draw_support(GROUPS, 4, seed=1)["a"]


def test_mixture_is_the_mean_of_probabilities_not_of_logits():
    logits = torch.tensor([[0.0, 0.0], [40.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    mixture = support_mixtures(logits, {"a": [0, 1]})
    assert mixture["a"].tolist() == pytest.approx([0.75, 0.25])


def test_a_model_of_episodes_has_the_product_of_its_supports_experts():
    logits = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 5.0], [0.5, 0.0]], dtype=torch.float64)
    probabilities = logits.softmax(-1)[[0, 1, 3]].prod(0)
    mixture = support_mixtures(logits, {"a": [0, 1, 3]}, product=True)
    torch.testing.assert_close(mixture["a"], probabilities / probabilities.sum())


def test_query_pairs_share_no_prompt_with_their_own_groups_support():
    groups = ["a", "a", "a", "b", "b", "c"]
    prompts = ["p", "p", "q", "p", "r", "q"]
    is_query = query_pairs(groups, prompts, {"a": {"p"}, "b": {"r"}})
    # Both pairs of a with prompt p are excluded, that of b with prompt p is not, and c has no support set.
    assert is_query.tolist() == [False, False, True, True, False, False]


def latents_of(names):
    return GroupLatents(mixtures={}, log_likelihoods={name: torch.zeros(2) for name in names}, prompts={})


def test_each_pair_meets_all_other_groups():
    swaps = list(latents_of("bca").swaps(["a", "c", "a", "z"]))
    assert swaps == [["b", "a", "b", "z"], ["c", "b", "c", "z"]]
    assert list(latents_of("a").swaps(["a", "a"])) == []


def test_of_many_groups_a_pair_meets_some():
    names = [f"{number:03}" for number in range(100)]
    swaps = list(latents_of(names).swaps(["099"]))
    assert swaps == [[f"{number:03}"] for number in range(MOST_SWAPS)]
