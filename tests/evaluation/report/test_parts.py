"""Associations, intervals, calibration, labels, curves and maps, each against what is known beforehand."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from megatron_lpc.command_line import UserError
from megatron_lpc.config import ConfigError
from megatron_lpc.evaluation.report import prompt_map as maps
from megatron_lpc.evaluation.report.association import MOST_COLUMNS, PERMUTATIONS, association
from megatron_lpc.evaluation.report.calibration import reliability
from megatron_lpc.evaluation.report.curves import MOST_POINTS, read_curves
from megatron_lpc.evaluation.report.intervals import shares
from megatron_lpc.evaluation.report.labels import pairs_by_label
from megatron_lpc.evaluation.report.prompt_map import check_installed, principal_components, prompt_map


def test_association_of_equal_and_of_independent_labels():
    codes = torch.tensor([3, 5] * 50)
    same = association("group", codes, ["a", "b"] * 50, [5, 3])
    assert same.information.bits == pytest.approx(1)
    assert same.p_value == 1 / (PERMUTATIONS + 1)
    assert (same.codes, same.labels, same.counts) == ([5, 3], ["a", "b"], [[0, 50], [50, 0]])
    # What chance gives on average is Miller's correction.
    assert same.by_chance == pytest.approx(same.information.bias, rel=0.2)
    independent = association("group", codes, ["a", "a", "b", "b"] * 25, [3, 5])
    assert independent.information.bits == pytest.approx(0)
    assert independent.p_value == 1


def test_labels_of_few_pairs_have_no_column():
    labels = [f"{number:02}" for number in range(MOST_COLUMNS + 2)] * 2 + ["01"]
    found = association("source", torch.arange(len(labels)) % 2, labels, [0, 1])
    assert found.labels[0] == "01"
    assert len(found.labels) == MOST_COLUMNS
    assert found.left_out == 2


def test_intervals_of_prompts_and_not_of_pairs():
    correct = torch.tensor([True, False] * 100)
    everything = torch.ones(200, dtype=torch.bool)
    alone = shares({"x": correct}, torch.arange(200), everything)["x"]
    assert alone.value == 0.5
    # 1.96 sqrt(0.25 / 200) = 0.069 to either side.
    assert alone.high - alone.low == pytest.approx(0.139, rel=0.15)
    # Two annotators who always disagree about a prompt: whichever prompts are drawn, one half is right.
    together = shares({"x": correct}, torch.arange(200) // 2, everything)["x"]
    assert (together.low, together.value, together.high) == (0.5, 0.5, 0.5)


def test_intervals_are_over_the_selected_pairs():
    correct = torch.tensor([1.0, 1.0, 0.0, 0.25])
    found = shares({"x": correct, "y": 1 - correct}, torch.arange(4), torch.tensor([True, True, False, False]))
    assert (found["x"].value, found["x"].low, found["y"].high) == (1.0, 1.0, 0.0)


def test_calibration_of_true_and_of_exaggerated_margins():
    generator = torch.Generator().manual_seed(1)
    true = 2 * torch.randn(20_000, generator=generator, dtype=torch.float64)
    is_as_labelled = torch.rand(20_000, generator=generator) < true.sigmoid()
    margins = torch.where(is_as_labelled, true, -true)
    assert reliability("x", margins).error < 0.02
    exaggerated = reliability("x", 10 * margins)
    assert exaggerated.error > 0.15
    assert sum(each.pairs for each in exaggerated.bins) == 20_000
    constant = reliability("x", torch.zeros(10))
    assert (constant.brier, constant.bins[0].confidence, constant.bins[0].accuracy) == (0.25, 0.5, 0.0)


def test_pairs_by_label_keeps_the_most_frequent():
    labels = ["c", "a", "b", "a", "b", "d"]
    counted = torch.tensor([True, True, True, True, False, False])
    found = pairs_by_label(labels, counted, 2)
    assert list(found) == ["a", "b"]
    assert found["a"].tolist() == [False, True, False, True, False, False]
    assert found["b"].tolist() == [False, False, True, False, False, False]
    assert "d" not in pairs_by_label(labels, counted, 9)


def _record(step, **values):
    metrics = ("kl", "information", "entropy_q", "entropy_p", "perplexity", "active_codes")
    return {"iteration": step} | {f"lpc/{name}": 1.0 for name in metrics} | values


def test_curves_are_thinned_to_means_and_keep_their_ends(tmp_path):
    path = tmp_path / "metrics.jsonl"
    steps = 5 * MOST_POINTS
    records = [_record(step, **{"lpc/kl": float(step)}) for step in range(1, steps + 1)]
    records += [_record(steps, evaluation="a/prior", **{"lpc/kl": 0.0, "lpc/information": 0.0})]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    curves = read_curves(path, 8)
    assert curves.steps == steps
    curve = curves.training["lpc/kl"]
    assert len(curve) == MOST_POINTS
    assert curve[0] == (3, 3)
    assert curve[-1] == (steps - 2, steps - 2)
    assert curves.evaluations["a"]["lpc/kl"] == [(steps, 0)]
    assert curves.verdicts["a"].state == "collapsed"


def test_a_run_without_codes_has_no_curves_and_a_broken_file_is_told(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"iteration": 1, "loss": 0.5}\n')
    assert read_curves(path, 8) is None
    path.write_text("x\n")
    with pytest.raises(ConfigError, match=r"metrics\.jsonl:1"):
        read_curves(path, 8)


def test_principal_components_are_those_of_the_singular_value_decomposition():
    states = torch.randn(12, 5, generator=torch.Generator().manual_seed(2)).double() * torch.tensor([5, 4, 3, 2, 1])
    found = principal_components(states, 2).numpy()
    u, s, _ = np.linalg.svd(states.numpy() - states.numpy().mean(0), full_matrices=False)
    assert np.abs(found) == pytest.approx(np.abs(u[:, :2] * s[:2]))
    assert all(column[np.abs(column).argmax()] > 0 for column in found.T)
    assert principal_components(states[:1], 2).tolist() == [[0, 0]]


def test_pairs_of_a_prompt_stand_around_its_place(planted):
    scored = planted()
    found = prompt_map(scored, "pca")
    assert found.method == "pca"
    assert found.prompts == len(found.points) // 2
    one, other = found.points[:2]
    assert math.hypot(one.x - other.x, one.y - other.y) == pytest.approx(0.016, abs=0.001)
    assert (one.code, one.group, one.source) == (2, "ada", "garden")
    assert max(point.x for point in found.points) <= 1.01


def test_neighbors_by_t_sne_where_scikit_learn_is(planted, monkeypatch):
    pytest.importorskip("sklearn")
    scored = planted()
    states = torch.zeros(60, 8).double()
    states[1::2] = 50.0  # Rivers are far from gardens.
    states += torch.randn(60, 8, generator=torch.Generator().manual_seed(1))
    object.__setattr__(scored, "prompt_states", states.repeat_interleave(2, dim=0))
    found = prompt_map(scored, None)
    assert found.method == "tsne"
    gardens, rivers = (
        torch.tensor([(point.x, point.y) for point in found.points if point.source == name])
        for name in ("garden", "river")
    )
    between = torch.cdist(gardens, rivers).min()
    within = torch.cdist(gardens, gardens).fill_diagonal_(9).min(1).values.median()
    assert between > 3 * within
    monkeypatch.setattr(maps.importlib.util, "find_spec", lambda name: None)
    assert prompt_map(scored, None).method == "pca"


def test_a_missing_package_is_told(monkeypatch):
    monkeypatch.setattr(maps.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"--map umap: the package `umap-learn` is not installed"):
        check_installed("umap")
    check_installed("pca")
    check_installed(None)
