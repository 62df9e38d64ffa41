"""Log-odds ratios against the formulas of the paper, phrase by phrase; phrases of texts."""

import math
from collections import Counter

import numpy as np
import pytest

from megatron_lpc.evaluation.report.log_odds import PRIOR_SIZE, LogOdds, least_z
from megatron_lpc.evaluation.report.phrases import LEAST_TEXTS, SHOWN, PhraseCounts, phrases_of

FIRST, SECOND = [30, 5, 0, 65], [10, 5, 2, 83]


def test_ratio_and_variance_are_those_of_the_paper():
    in_all = np.array(FIRST) + np.array(SECOND)
    found = LogOdds.of(np.array(FIRST, float), np.array(SECOND, float), in_all.astype(float))
    for place, (first, second) in enumerate(zip(FIRST, SECOND, strict=True)):
        prior = PRIOR_SIZE * in_all[place] / in_all.sum()
        ratio = math.log((first + prior) / (sum(FIRST) + PRIOR_SIZE - first - prior))
        ratio -= math.log((second + prior) / (sum(SECOND) + PRIOR_SIZE - second - prior))
        variance = 1 / (first + prior) + 1 / (second + prior)
        assert found.ratio[place] == pytest.approx(ratio)
        assert found.z[place] == pytest.approx(ratio / math.sqrt(variance))
    assert found.z[0] > 0 > found.z[3]


def test_a_difference_of_ratios_has_both_variances():
    counts = np.array([8.0, 4.0])
    one, other = LogOdds.of(counts, counts[::-1], counts + 1), LogOdds.of(counts[::-1], counts, counts + 1)
    difference = one - other
    assert difference.ratio == pytest.approx(one.ratio - other.ratio)
    assert difference.variance == pytest.approx(one.variance + other.variance)


def test_the_more_phrases_the_higher_the_bar():
    assert least_z(1) == pytest.approx(1.96, abs=0.01)
    assert least_z(1000) == pytest.approx(4.06, abs=0.01)
    assert least_z(0) == math.inf


def test_phrases_are_single_and_double_words():
    assert phrases_of("Don't STOP, stop now") == {"don't", "stop", "now", "don't stop", "stop stop", "stop now"}
    assert phrases_of("你好 ok") == {"你", "好", "ok", "你 好", "好 ok"}
    assert phrases_of("…!") == set()


def _counted(of_first: str, of_second: str, both: str = "same") -> PhraseCounts:
    counts = PhraseCounts()
    for number in range(40):
        counts.add(0, f"north {number}", f"{of_first} {both}", "other thing")
        counts.add(1, f"south {number}", f"{of_second} {both}", "other thing")
    return counts


def test_marks_are_of_the_code_and_not_of_all_codes():
    marks = _counted("yes please", "no thanks").marks([0, 1])
    assert [mark.phrase for mark in marks[0].prompts] == ["north"]
    assert [mark.phrase for mark in marks[1].prompts] == ["south"]
    of_first = {mark.phrase for mark in marks[0].preferred}
    assert {"yes", "please"} & of_first
    assert not {"no", "thanks", "same", "other"} & of_first
    # All codes avoid the other thing, so nothing of it marks one of them.
    assert "other" not in {mark.phrase for mark in marks[0].avoided}
    assert max(mark.texts for mark in marks[0].preferred) == 40


def test_a_code_alone_is_compared_with_nothing():
    counts = PhraseCounts()
    for number in range(40):
        counts.add(0, f"north {number}", "yes please", "no thanks")
    marks = counts.marks([0])[0]
    assert marks.prompts == []
    assert {mark.phrase for mark in marks.preferred} <= {"yes", "please", "yes please"}
    assert marks.preferred
    assert {mark.phrase for mark in marks.avoided} <= {"no", "thanks", "no thanks"}


def test_rare_phrases_and_texts_without_any_are_left_out():
    counts = PhraseCounts({0: Counter(rare=LEAST_TEXTS - 1)}, {0: Counter(rare=LEAST_TEXTS - 1)}, {0: Counter()})
    marks = counts.marks([0, 1])[0]
    assert (marks.prompts, marks.preferred, marks.avoided) == ([], [], [])


def test_a_list_holds_so_many_phrases():
    one, other = (" ".join(f"{name}{number}" for number in range(2 * SHOWN)) for name in ("a", "b"))
    counts = PhraseCounts()
    for _ in range(40):
        counts.add(0, "x", one, other)
        counts.add(1, "x", other, one)
    marks = counts.marks([0, 1])[0]
    assert len(marks.preferred) == len(marks.avoided) == SHOWN
    assert {mark.phrase[0] for mark in marks.preferred} == {"a"}
