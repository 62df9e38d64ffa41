"""The report of planted annotators names them; that of a shuffled or collapsed world names nobody."""

from __future__ import annotations

from dataclasses import asdict

import pytest
from planted_world import CODE_OF, LIKED, PROMPTS, SUPPORT


def _shares(findings):
    return {name: share.value for name, share in findings.switching.latents.items()}


def _best_z(findings, group):
    """The highest z of a phrase that the annotator of a code likes, 0 where none is listed."""
    (portrait,) = [each for each in findings.portraits if each.code == CODE_OF[group]]
    return max((mark.z for mark in portrait.marks.preferred if mark.phrase in LIKED[group].split()), default=0.0)


def test_planted_annotators_are_named(planted, findings_of):
    findings = findings_of(planted())
    assert findings.verdict.state == "active"
    assert sorted(each.code for each in findings.portraits) == sorted(CODE_OF.values())
    group, source = findings.associations
    assert (group.kind, source.kind) == ("group", "source")
    assert group.information.bits == pytest.approx(1.0)
    assert group.p_value == pytest.approx(1 / 1000)
    assert group.by_chance < 0.05
    assert source.information.bits < 0.01
    assert source.p_value > 0.2
    for portrait in findings.portraits:
        (name,) = portrait.groups
        assert portrait.code == CODE_OF[name]
        assert portrait.pairs == PROMPTS
        liked, disliked = (set(LIKED[who].split()) for who in (name, *(CODE_OF.keys() - {name})))
        assert liked <= {mark.phrase for mark in portrait.marks.preferred}
        assert disliked <= {mark.phrase for mark in portrait.marks.avoided}
        assert {entry.text for entry in portrait.raised[:2]} == liked
        assert len({example.prompt for example in portrait.examples}) == 3
        for example in portrait.examples:
            assert example.group == name
            assert example.chosen.split()[1] in liked
            assert example.margin > 1 > example.margin_elsewhere


def test_switching_names_the_code_of_each_annotator(planted, findings_of):
    findings = findings_of(planted())
    found = _shares(findings)
    assert found["support"] > 0.95
    assert found["support_exact"] > 0.95
    assert found["swapped"] < 0.05
    assert found["shuffled"] == pytest.approx(0.5, abs=0.15)
    for fixed in findings.switching.fixed:
        for group, accuracy in fixed.groups.items():
            assert (accuracy > 0.95) == (CODE_OF[group] == fixed.code)
            assert accuracy > 0.95 or accuracy < 0.05
    assert findings.switching.support_pairs == SUPPORT
    assert findings.switching.pairs == 2 * (PROMPTS - SUPPORT)
    assert findings.calibration[1].latent == "support"
    assert findings.calibration[1].brier < findings.calibration[0].brier


def test_shuffled_groups_are_not_found(planted, findings_of):
    findings = findings_of(planted(shuffles_groups=True))
    group = findings.associations[0]
    assert group.information.bits < 0.05
    assert group.p_value > 0.05
    found = _shares(findings)
    assert abs(found["support_exact"] - found["swapped"]) < 0.25
    assert findings.verdict.state == "active"


def test_shuffled_codes_have_no_phrases(planted, findings_of):
    real, shuffled = findings_of(planted()), findings_of(planted(shuffles_codes=True))
    for group in CODE_OF:
        assert _best_z(real, group) > 5
        assert _best_z(shuffled, group) < _best_z(real, group) - 2


def test_a_collapsed_codebook_is_called_so(planted, findings_of):
    findings = findings_of(planted(is_collapsed=True))
    assert findings.verdict.state == "collapsed"
    assert len(findings.portraits) == 1
    assert findings.portraits[0].marks.prompts == []
    assert findings.associations[0].information.bits == 0
    assert findings.associations[0].p_value == 1


def test_without_groups_there_is_no_support(planted, findings_of):
    findings = findings_of(planted(has_groups=False))
    assert set(findings.switching.latents) == {"prior", "marginal"}
    assert findings.switching.support_pairs is None
    assert findings.switching.pairs == 2 * PROMPTS
    assert [each.kind for each in findings.associations] == ["source"]
    assert [row.kind for row in findings.accuracy] == ["all", "source", "source"]
    assert [each.latent for each in findings.calibration] == ["prior"]


def test_the_same_pairs_give_the_same_report(planted, findings_of):
    assert asdict(findings_of(planted())) == asdict(findings_of(planted()))
