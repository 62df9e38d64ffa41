import pytest

from megatron_lpc.data.pairs import to_pair
from megatron_lpc.data.source import BadRow, Location, Row

LOCATION = Location("f.jsonl", 7)
SYSTEM = {"role": "system", "content": "be kind"}
ASK = {"role": "user", "content": "who?"}
ME, YOU = {"role": "assistant", "content": "me"}, {"role": "assistant", "content": "you"}


def pair_of(group_column=None, **values):
    pair = to_pair(Row(LOCATION, values), group_column)
    return pair.prompt, pair.chosen, pair.rejected


def test_text_columns_are_taken_as_they_are():
    assert pair_of(prompt="p ", chosen=" c", rejected=" r") == ("p ", " c", " r")


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt"),
    [
        ("\n\nHuman: a\n\nAssistant: b", "\n\nHuman: a\n\nAssistant: c", "\n\nHuman: a\n\nAssistant:"),
        # The last common turn, though the transcripts part much later ...
        (
            "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: d",
            "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: de",
            None,
        ),
        # ... or go on differently after a turn of their own.
        (
            "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: d",
            "\n\nHuman: a\n\nAssistant: x",
            "\n\nHuman: a\n\nAssistant:",
        ),
    ],
)
def test_hh_transcripts(chosen, rejected, prompt):
    prompt = prompt or "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:"
    assert pair_of(chosen=chosen, rejected=rejected) == (prompt, chosen[len(prompt) :], rejected[len(prompt) :])


@pytest.mark.parametrize(
    "values",
    [
        {"prompt": [SYSTEM, ASK], "chosen": [ME], "rejected": [YOU]},
        {"prompt": [SYSTEM, ASK], "chosen": [SYSTEM, ASK, ME], "rejected": [SYSTEM, ASK, YOU]},
        {"chosen": [SYSTEM, ASK, ME], "rejected": [SYSTEM, ASK, YOU]},
        {"prompt": "who?", "chosen": [SYSTEM, ASK, ME], "rejected": [SYSTEM, ASK, YOU]},
    ],
)
def test_chats(values):
    assert pair_of(**values) == ([SYSTEM, ASK], [ME], [YOU])


def test_a_text_prompt_is_the_turn_of_the_user():
    assert pair_of(prompt="who?", chosen=[ME], rejected=[YOU]) == ([ASK], [ME], [YOU])


def test_responses_may_begin_alike_after_an_explicit_prompt():
    chosen, rejected = [ME, ASK, ME], [ME, ASK, YOU]
    assert pair_of(prompt=[ASK], chosen=chosen, rejected=rejected) == ([ASK], chosen, rejected)


def test_keys_that_arrow_filled_with_null_are_dropped():
    assert pair_of(prompt=[ASK | {"name": None}], chosen=[ME], rejected=[YOU])[0] == [ASK]


def test_group():
    row = Row(LOCATION, {"prompt": "p", "chosen": "c", "rejected": "r", "who": 3})
    assert to_pair(row, "who").group == "3"
    assert to_pair(row).group is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"prompt": "p", "rejected": "r"}, "column `chosen` is missing (columns: prompt, rejected)"),
        ({}, "column `chosen` is missing (columns: none)"),
        ({"prompt": "p", "chosen": 3, "rejected": "r"}, "`chosen` is a int, not text"),
        ({"prompt": None, "chosen": "c", "rejected": "r"}, "`prompt` is null, not text"),
        (
            {"prompt": "p", "chosen": ["c"], "rejected": "r"},
            "`chosen` holds a message without text `role` and `content`",
        ),
        ({"chosen": [ASK | {"content": None}], "rejected": [ASK]}, "`chosen` holds a message without text"),
        ({"prompt": "p", "chosen": "x", "rejected": "x"}, "chosen and rejected are equal"),
        ({"prompt": "p", "chosen": " \n", "rejected": "r"}, "the chosen response is empty"),
        ({"prompt": "p", "chosen": "c", "rejected": ""}, "the rejected response is empty"),
        ({"prompt": "", "chosen": "c", "rejected": "r"}, "the prompt is empty"),
        ({"prompt": [], "chosen": [ME], "rejected": [YOU]}, "the prompt is empty"),
        ({"chosen": [ASK, ME], "rejected": [ASK]}, "the rejected response is empty"),
        ({"chosen": [ME], "rejected": [YOU]}, "the prompt is empty"),
        (
            {"prompt": [ASK], "chosen": "c", "rejected": "r"},
            "`prompt` is a list of messages but the responses are text",
        ),
        ({"prompt": "p", "chosen": "c", "rejected": [YOU]}, "one of `chosen` and `rejected` is text, the other"),
        (
            {"chosen": "abc", "rejected": "abd"},
            "no `prompt` column, and chosen and rejected do not share a beginning with '\\n\\nAssistant:'",
        ),
        (
            {"prompt": [ASK], "chosen": [SYSTEM, ME], "rejected": [YOU]},
            "the response in `chosen` begins with a turn of `system`",
        ),
        ({"chosen": [ASK, ASK, ME], "rejected": [ASK, YOU]}, "the response in `chosen` begins with a turn of `user`"),
        ({"prompt": "p", "chosen": "c", "rejected": "r", "group_column": "who"}, "column `who` is missing"),
        ({"prompt": "p", "chosen": "c", "rejected": "r", "group_column": "who", "who": None}, "`who` is null"),
    ],
)
def test_unusable_rows(values, message):
    with pytest.raises(BadRow) as caught:
        pair_of(**values)
    assert str(caught.value).startswith(f"f.jsonl:7: {message}")
    assert caught.value.fix
