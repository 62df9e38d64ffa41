"""Rows of published forms, as their projects describe them."""

import json
from pathlib import Path
from typing import get_args

import pytest

from megatron_lpc.config.data_formats import DataFormat
from megatron_lpc.config.schema import DataConfig
from megatron_lpc.data.data_formats import FORMS
from megatron_lpc.data.pairs import to_pair
from megatron_lpc.data.source import BadRow, Location, Row, read_rows

CASES = Path(__file__).parent / "cases"


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def pair_of(values, data_format="trl", **options):
    pair = to_pair(Row(Location("f.jsonl", 7), values), DataConfig(data_format=data_format, **options))
    return pair.prompt, pair.chosen, pair.rejected


CALL = {"name": "get_weather", "arguments": {"city": "Paris"}}
HS2 = {"response_1": "one", "response_2": "two", "split": "train"}
HS3 = {"context": [user("a"), assistant("b"), user("c")], "response1": "one", "response2": "two", "domain": "code"}
NECTAR = {"turns": 1, "answers": [{"answer": "bad", "model": "m", "rank": 7.0}, {"answer": "good", "rank": 1.0}]}
NEMO = [{"rank": 1, "completion": [assistant("bad")]}, {"rank": 0, "completion": [assistant("good")]}]
UF = [{"response": "bad", "overall_score": 2.5, "model": "m"}, {"response": "good", "overall_score": 8.0}]
ROWS = [
    ("alpaca", {"instruction": "Say hi", "input": "", "chosen": "Hello.", "rejected": "Go."}, [user("Say hi")]),
    ("alpaca", {"instruction": "Add", "input": "1 2", "chosen": "Hello.", "rejected": "Go."}, [user("Add\n1 2")]),
    (
        "alpaca",
        {"instruction": "c", "history": [["a", "b"]], "system": "kind", "chosen": "Hello.", "rejected": "Go."},
        [{"role": "system", "content": "kind"}, user("a"), assistant("b"), user("c")],
    ),
    (
        "sharegpt",
        {
            "conversations": [{"from": "human", "value": "Hi"}],
            "chosen": {"from": "gpt", "value": "Hello."},
            "rejected": {"from": "gpt", "value": "Go."},
            "system": "",
        },
        [user("Hi")],
    ),
    (
        "sharegpt",
        {
            "conversations": [
                {"from": "system", "value": "kind"},
                {"from": "human", "value": "Weather?"},
                {"from": "function_call", "value": json.dumps(CALL)},
                {"from": "observation", "value": "22C"},
            ],
            "chosen": {"from": "gpt", "value": "Hello."},
            "rejected": {"from": "gpt", "value": "Go."},
        },
        [
            {"role": "system", "content": "kind"},
            user("Weather?"),
            {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": CALL}]},
            {"role": "tool", "content": "22C"},
        ],
    ),
    ("swift", {"messages": [user("Hi"), assistant("Hello.")], "rejected_response": "Go."}, [user("Hi")]),
    ("swift", {"query": "Hi", "response": "Hello.", "rejected_response": "Go.", "history": None}, [user("Hi")]),
    (
        "swift",
        {
            "messages": [user("a"), assistant("b"), user("c"), assistant("Hello.")],
            "rejected_messages": [user("a"), assistant("b"), user("c"), assistant("Go.")],
        },
        [user("a"), assistant("b"), user("c")],
    ),
    ("helpsteer2", HS2 | {"prompt": "c#", "preference_strength": 2}, [user("c#")]),
    (
        "helpsteer2",
        HS2 | {"prompt": "a\n<extra_id_1>Assistant\nb\n\n<extra_id_1>User\nc\n", "preference_strength": -1},
        [user("a"), assistant("b\n"), user("c\n")],
    ),
    ("helpsteer3", HS3 | {"overall_preference": 3}, HS3["context"]),
    ("helpsteer3", HS3 | {"overall_preference": -1}, HS3["context"]),
    ("nectar", NECTAR | {"prompt": "\n\nHuman: Hi \n\nAssistant: "}, [user("Hi")]),
    (
        "nectar",
        NECTAR | {"prompt": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: "},
        [user("a"), assistant("b"), user("c")],
    ),
    ("nemo", {"context": [user("Hi")], "completions": NEMO}, [user("Hi")]),
    ("nemo_binary", {"prompt": "Hi", "chosen": "good", "rejected": "bad"}, [user("Hi")]),
    ("ultrafeedback", {"instruction": "Hi", "completions": UF, "source": "flan"}, [user("Hi")]),
    (
        "ultrafeedback_binarized",
        {
            "prompt": "Hi",
            "chosen": [user("Hi"), assistant("good")],
            "rejected": [user("Hi"), assistant("bad")],
            "messages": [user("Hi"), assistant("good")],
            "score_chosen": 8.5,
            "score_rejected": 6,
        },
        [user("Hi")],
    ),
    (
        "openrlhf",
        {"chosen": [user("Hi"), assistant("good")], "rejected": [user("Hi"), assistant("bad")]},
        [user("Hi")],
    ),
]
RESPONSES = {"Hello.": "Go.", "good": "bad", "one": "two", "two": "one"}


@pytest.mark.parametrize(("data_format", "values", "prompt"), ROWS)
def test_published_forms(data_format, values, prompt):
    ours, chosen, rejected = pair_of(values, data_format)
    assert ours == prompt
    preference = values.get("preference_strength", values.get("overall_preference"))
    best = chosen[0]["content"]
    if preference is not None:
        assert best == ("one" if preference < 0 else "two")
    assert (chosen, rejected) == ([assistant(best)], [assistant(RESPONSES[best])])


def test_every_name_has_a_form():
    assert set(get_args(DataFormat)) == set(FORMS) == {*(name for name, _, _ in ROWS), "trl"}


@pytest.mark.parametrize(("data_format", "values", "prompt"), [row for row in ROWS if FORMS[row[0]].signs != ()])
def test_a_row_of_another_form_names_the_option_that_reads_it(data_format, values, prompt):
    if data_format == "ultrafeedback_binarized":
        assert pair_of(values)[0] == prompt  # The columns are ours too; the form only compares the scores.
        return
    with pytest.raises(BadRow, match=r"is missing \(columns: .*\)\. Set --data-format " + data_format):
        pair_of(values)


def test_unknown_columns_are_listed_with_the_options_that_name_them():
    row = {"question": "Hi", "good": "yes", "bad": "no", "who": "be kind"}
    with pytest.raises(
        BadRow, match=r"f.jsonl:7: column `chosen` is missing \(columns: question, good, bad, who\). Name the columns "
        r"with --prompt-column, --chosen-column and --rejected-column, or a published form with --data-format"
    ):  # fmt: skip
        pair_of(row)
    named = {"prompt_column": "question", "chosen_column": "good", "rejected_column": "bad"}
    assert pair_of(row, **named) == ("Hi", "yes", "no")
    chat = pair_of(row, "nemo_binary", system_column="who", **named)
    assert chat == ([{"role": "system", "content": "be kind"}, user("Hi")], [assistant("yes")], [assistant("no")])
    with pytest.raises(BadRow, match=r"column `sys`, of --system-column, is missing \(columns: question"):
        pair_of(row, system_column="sys", **named)
    with pytest.raises(BadRow, match=r"`instruction` is missing \(columns: prompt, .*Set --data-format trl"):
        pair_of({"prompt": "a", "chosen": "b", "rejected": "c"}, "alpaca")
    flipped = {"prompt": "a", "chosen": "b", "rejected": "c"}
    assert pair_of(flipped, chosen_column="rejected", rejected_column="chosen") == ("a", "c", "b")
    assert pair_of({"q": "Hi", "chosen": "good", "rejected": "bad"}, "alpaca", prompt_column="q")[0] == [user("Hi")]


@pytest.mark.parametrize(
    ("data_format", "values", "reason"),
    [
        ("helpsteer2", HS2 | {"prompt": "a", "preference_strength": 0}, "the preference is 0: no response is better"),
        ("helpsteer3", HS3 | {"overall_preference": "2"}, "`overall_preference` is '2', not a number"),
        ("helpsteer3", HS3 | {"overall_preference": float("nan")}, "`overall_preference` is nan, not a number"),
        ("helpsteer3", HS3, "column `overall_preference` is missing"),
        ("helpsteer3", HS3 | {"overall_preference": None}, "`overall_preference` is null"),
        ("nectar", {"prompt": "Hi", "answers": []}, "`prompt` is no transcript"),
        ("nectar", {"prompt": "\n\nHuman: a\n\nAssistant: b", "answers": []}, "`prompt` is no transcript"),
        ("nemo", {"context": "a", "completions": NEMO[:1]}, "none of the 1 responses is below another"),
        ("ultrafeedback", {"instruction": "a", "completions": [UF[0]] * 3}, "none of the 3 responses is below"),
        ("ultrafeedback", {"instruction": "a", "completions": [{"response": "b"}]}, "`overall_score` is None, not a"),
        (
            "ultrafeedback",
            {"instruction": "a", "completions": "b"},
            "does not have the form .*ultrafeedback .Attribute",
        ),
        (
            "ultrafeedback_binarized",
            {"prompt": "a", "chosen": "b", "rejected": "c", "score_chosen": 5.0, "score_rejected": 5.0},
            "the score of the chosen response, 5.0, is not above that of the rejected, 5.0",
        ),
        ("swift", {"messages": [user("a")], "rejected_response": "b"}, "the messages do not end with the assistant's"),
        ("swift", {"messages": [user("a"), assistant("b")]}, "neither `rejected_response` nor `rejected_messages`"),
        ("swift", {"chosen": "b"}, "neither `messages` nor `query`"),
        (
            "swift",
            {"query": "a", "response": "b", "rejected_response": "c", "history": [user("d")]},
            r"`history` is no list of \[question, response\]",
        ),
        ("sharegpt", {"conversations": [{"a": 1}], "chosen": {}, "rejected": {}}, "does not have the form .*KeyError"),
    ],
)
def test_rows_that_are_no_pair_are_bad(data_format, values, reason):
    with pytest.raises(BadRow, match=reason):
        pair_of(values, data_format)


def test_which_response_is_rejected_is_drawn_by_the_prompt():
    completions = [{"response": str(score), "overall_score": score} for score in (3, 1, 4, 1.5)]
    drawn = [pair_of({"instruction": f"ask {i}", "completions": completions}, "ultrafeedback") for i in range(300)]
    assert {chosen[0]["content"] for _, chosen, _ in drawn} == {"4"}
    counts = [sum(rejected[0]["content"] == text for _, _, rejected in drawn) for text in ("3", "1", "1.5")]
    assert sum(counts) == 300
    assert min(counts) > 70
    assert drawn[5] == pair_of({"instruction": "ask 5", "completions": completions}, "ultrafeedback")


@pytest.mark.parametrize("name", ["alpaca", "swift"])
def test_rows_of_other_programs(name):
    (row,) = read_rows(str(CASES / f"{name}.jsonl"))
    with pytest.raises(BadRow, match=f"Set --data-format {name}"):
        to_pair(row, DataConfig())
    assert to_pair(row, DataConfig(data_format=name)).chosen == [assistant("Hello.")]
