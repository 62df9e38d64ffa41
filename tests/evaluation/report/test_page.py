"""The page: whole, alone, escaped, and of the numbers that its JSON has."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import pytest
from planted_world import CODE_OF

from megatron_lpc.evaluation.report.page import figure, visible, write_report

HOSTILE = "<script>alert(1)</script>"
STRANGE = "_$\\frac{x}$&\"'><img/src=x/onerror=alert(2)>"
_VOID = {"meta", "link", "br", "img", "use", "path", "rect", "input", "hr"}
_OUTER = ("src", "srcset", "href", "xlink:href", "action", "data", "poster", "background")


class _Page(HTMLParser):
    """Elements, links and numbers of a page; an element that is not closed is an error."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.links, self.handlers, self.ids = [], set(), [], [], []
        self.tables, self.facts, self.text = {}, [], []
        self._table = self._value = None
        self.feed(text)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        self.elements.add(tag)
        for name, value in attributes:
            if name in _OUTER:
                self.links.append(value)
            if name.startswith("on"):
                self.handlers.append(name)
            if name == "id":
                self.ids.append(value)
        attributes = dict(attributes)
        if tag == "table":
            self._table = self.tables[attributes["id"]] = []
        elif tag == "tr" and self._table is not None:
            self._table.append([])
        elif tag == "data":
            self._value = json.loads(attributes["value"])
            if self._table is not None:
                self._table[-1].append(self._value)
            elif "dl" in self.open:
                self.facts.append(self._value)
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in _VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag in _VOID:
            return
        assert self.open.pop() == tag, f"{tag} closes another element"
        if tag == "table":
            self._table = None
        if tag == "data":
            self._value = None

    def handle_data(self, data):
        self.text.append(data)
        if self._value is not None:
            shown = float(data)
            assert shown == pytest.approx(self._value, abs=0.51 * 10 ** -len(data.partition(".")[2])), data


@pytest.fixture
def made(planted, findings_of, tmp_path):
    """Page, its text and the JSON of a world with these changes."""

    def make(**changes):
        write_report(findings_of(planted(**changes)), tmp_path / "out")
        text = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
        assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["report.html", "report.json"]
        return _Page(text), text, json.loads((tmp_path / "out" / "report.json").read_text())

    return make


def test_the_page_needs_nothing_else(made):
    page, text, _ = made()
    assert set(page.links) - {"data:,"} == {link for link in page.links if link.startswith("#")}
    assert not re.search(r"url\((?!#)|@import|https?://|<script|<iframe|<object", text)
    assert len(page.ids) == len(set(page.ids))
    assert {f"code-{code}" for code in CODE_OF.values()} <= set(page.ids)
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)
    assert text.count("<svg ") == 6  # Three maps, calibration, accuracies by group and by source.


def test_numbers_are_those_of_the_json(made):
    page, _, values = made()
    metrics = ["kl", "information", "entropy_q", "entropy_p", "perplexity", "active_codes"]
    assert page.facts == [120, *(values["metrics"][f"lpc/{name}"] for name in metrics)]
    for each in values["associations"]:
        rows = [[code, *counts] for code, counts in zip(each["codes"], each["counts"], strict=True)]
        assert page.tables[f"{each['kind']}-counts"] == [[], *rows]

    def shares(found):
        return [100 * share[name] for share in found.values() for name in ("value", "low", "high")]

    of_latents = [
        [100 * share[name] for name in ("value", "low", "high")] for share in values["switching"]["latents"].values()
    ]
    assert page.tables["latents"] == [[], *of_latents]
    assert page.tables["fixed"] == [
        [],
        *(
            [each["code"], *shares({"": each["accuracy"]}), *(100 * share for share in each["groups"].values())]
            for each in values["switching"]["fixed"]
        ),
    ]
    assert page.tables["reliability"] == [
        [],
        *([each["pairs"], each["error"], each["brier"]] for each in values["calibration"]),
    ]
    assert page.tables["accuracies"] == [[], *([row["pairs"], *shares(row["latents"])] for row in values["accuracy"])]


def test_hostile_text_stays_text(made):
    names = {"ada": HOSTILE, "garden": STRANGE}
    page, text, values = made(names=names, remark=f"</svg></style>{HOSTILE} {{{{7*7}}}}")
    assert "script" not in page.elements
    assert "img" not in page.elements
    assert page.handlers == []
    shown = "".join(page.text)
    assert f"Group {HOSTILE}." in shown
    assert f"Source {STRANGE}." in shown
    assert "{{7*7}}" in shown
    assert HOSTILE in values["switching"]["fixed"][0]["groups"]
    assert HOSTILE not in text
    assert STRANGE not in text


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [({}, "The codes are in use"), ({"is_collapsed": True}, "The codes are ignored")],
)
def test_the_verdict_is_in_plain_words(made, changes, sentence):
    page, text, values = made(**changes)
    assert sentence in "".join(page.text)
    assert f'class="state {values["verdict"]["state"]}"' in text


def test_curves_where_there_was_a_training_and_a_sentence_where_not(made, tmp_path):
    page, _, values = made()
    assert values["curves"] is None
    assert "No training curves" in "".join(page.text)
    line = {"lpc/kl": 0.5, "lpc/entropy_q": 1.0, "lpc/entropy_p": 1.3, "lpc/perplexity": 3.0, "lpc/active_codes": 2.0}
    records = [{"iteration": step, "lpc/information": None if step == 2 else 0.4, **line} for step in (1, 2, 3)]
    records.append({"iteration": 3, "evaluation": "held_out/prior", "lpc/information": 0.0, **line, "lpc/kl": 0.0})
    (tmp_path / "run" / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    page, text, values = made()
    assert "No training curves" not in text
    assert text.count("<svg ") == 6 + 5
    assert values["curves"]["training"]["lpc/information"] == [[1, 0.4], [3, 0.4]]
    assert "At its end on held_out: collapsed" in " ".join("".join(page.text).split())


def test_the_same_findings_are_the_same_page(made):
    assert made()[1:] == made()[1:]


def test_figures_and_entries():
    assert figure(0.12345, ".2f") == '<data value="0.12345">0.12</data>'
    assert figure(7) == '<data value="7">7</data>'
    assert [visible(text) for text in (" the", "a\n", "", "\x00")] == ["␣the", "a↵", "(empty)", "\x00"]
