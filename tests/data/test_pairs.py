import json

import pytest

from megatron_lpc.config.schema import DataConfig
from megatron_lpc.data.pairs import to_pair
from megatron_lpc.data.source import BadRow, Location, Row

LOCATION = Location("f.jsonl", 7)
SYSTEM = {"role": "system", "content": "be kind"}
ASK = {"role": "user", "content": "who?"}
ME, YOU = {"role": "assistant", "content": "me"}, {"role": "assistant", "content": "you"}


def pair_of(group_column=None, **values):
    pair = to_pair(Row(LOCATION, values), DataConfig(group_column=group_column))
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


@pytest.mark.parametrize(
    ("prompt", "rests"),
    [
        ("\n\nHuman: Hi\n\nAssistant:", (" Hello.", " Go.")),
        ("2+2=", ("4", "5")),
        ("Write a poem", ("\nRoses", "\nViolets")),
    ],
)
def test_texts_that_repeat_their_prompt(prompt, rests):
    chosen, rejected = rests
    assert pair_of(prompt=prompt, chosen=prompt + chosen, rejected=prompt + rejected) == (prompt, *rests)
    assert pair_of(prompt=prompt, chosen=prompt + chosen, rejected=rejected) == (prompt, prompt + chosen, rejected)


def test_an_echo_of_words_is_a_response():
    echo = ("Hello", "Hello, friend", "Hello there")
    assert pair_of(prompt=echo[0], chosen=echo[1], rejected=echo[2]) == echo


def test_other_columns_of_chats():
    tools, rest = [{"name": "f", "default": None}], {"chosen": [ME], "rejected": [YOU]}

    def arguments(**values):
        return to_pair(Row(LOCATION, {"prompt": [ASK], **rest, **values}), DataConfig()).template_arguments

    assert arguments(tools=tools) == {"tools": [{"name": "f"}]}
    assert arguments(tools=json.dumps(tools)) == {"tools": tools}, "a null in text is meant"
    assert arguments(tools=[]) == arguments(tools=None, chat_template_kwargs={"a": None}) == {}
    assert arguments(tools=tools, chat_template_kwargs={"enable_thinking": False}) == {
        "tools": [{"name": "f"}],
        "enable_thinking": False,
    }
    assert pair_of(prompt=[ASK], system="be kind", **rest)[0] == [SYSTEM, ASK]
    assert pair_of(prompt=[SYSTEM, ASK], system="be kind", **rest)[0] == [SYSTEM, ASK]
    assert pair_of(prompt="who?", system="be kind", **rest)[0] == [SYSTEM, ASK]
    assert pair_of(prompt=[ASK], system="", **rest)[0] == [ASK]


def test_columns_can_be_left_out_on_purpose():
    row = Row(LOCATION, {"prompt": "p", "chosen": "c", "rejected": "r", "system": "be kind", "images": ["x"]})
    with pytest.raises(BadRow, match=r"--ignored-columns images"):
        to_pair(row, DataConfig())
    with pytest.raises(BadRow, match=r"--ignored-columns system"):
        to_pair(row, DataConfig(ignored_columns=["images"]))
    assert to_pair(row, DataConfig(ignored_columns=["images", "system"])).prompt == "p"


def test_a_call_is_a_response():
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}]}
    by_arrow = call | {"content": None, "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1, "b": None}}}]}
    assert pair_of(prompt=[ASK], chosen=[by_arrow], rejected=[YOU | {"tool_calls": []}]) == ([ASK], [call], [YOU])


def test_parts_of_a_content_are_joined():
    parts = [{"type": "text", "text": "w", "image": None}, {"type": "text", "text": "ho?"}]
    assert pair_of(prompt=[ASK | {"content": parts}], chosen=[ME], rejected=[YOU])[0] == [ASK]


def test_a_null_is_a_missing_key():
    assert pair_of(prompt=None, chosen=[ASK, ME], rejected=[ASK, YOU], tools=None)[0] == [ASK]


def test_keys_that_arrow_filled_with_null_are_dropped():
    assert pair_of(prompt=[ASK | {"name": None}], chosen=[ME], rejected=[YOU])[0] == [ASK]


def test_group():
    row = Row(LOCATION, {"prompt": "p", "chosen": "c", "rejected": "r", "who": 3})
    assert to_pair(row, DataConfig(group_column="who")).group == "3"
    assert to_pair(row, DataConfig()).group is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"prompt": "p", "rejected": "r"}, "column `chosen` is missing (columns: prompt, rejected)"),
        ({}, "column `chosen` is missing (columns: none)"),
        ({"prompt": "p", "chosen": 3, "rejected": "r"}, "`chosen` is a int, not text"),
        ({"prompt": "p", "chosen": None, "rejected": "r"}, "`chosen` is null (columns: prompt, chosen, rejected)"),
        ({"prompt": {}, "chosen": "c", "rejected": "r"}, "`prompt` is a dict, not text"),
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
        ({"prompt": "", "chosen": [ME], "rejected": [YOU], "system": "be kind"}, "the prompt is empty"),
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
        (
            {"prompt": "p", "chosen": " smile \ud83d", "rejected": "r"},
            "`chosen` holds half of a surrogate pair, \\ud83d",
        ),
        ({"prompt": "p", "chosen": "c", "rejected": "r\0"}, "`rejected` holds a NUL character, at character 2"),
        ({"prompt": [ASK | {"n\ud83d": 1}], "chosen": [ME], "rejected": [YOU]}, "`prompt` holds half of a surrogate"),
        (
            {"prompt": "p", "chosen": "c", "\ud83d": "r"},
            "column `rejected` is missing (columns: prompt, chosen, \\ud83d)",
        ),
        ({"prompt": [ASK], "chosen": [ME], "rejected": [YOU], "tools": "[{"}, "`tools` is no valid JSON"),
        ({"prompt": [ASK], "chosen": [ME], "rejected": [YOU], "tools": ["f"]}, "`tools` is not a list of objects"),
        (
            {"prompt": [ASK], "chosen": [ME], "rejected": [YOU], "tools": "[" * 99_999},
            "`tools` is no valid JSON (values are nested",
        ),
        ({"prompt": [ASK], "chosen": [ME], "rejected": [YOU], "system": 3}, "`system` is a int, not text"),
        (
            {"prompt": [SYSTEM, ASK], "chosen": [ME], "rejected": [YOU], "system": "x"},
            "column `system` and the system's turn in the prompt differ",
        ),
        (
            {"prompt": [ASK], "chosen": [ME], "rejected": [YOU], "chat_template_kwargs": {"tokenize": True}},
            "`chat_template_kwargs` sets tokenize",
        ),
        (
            {"prompt": [ASK], "chosen": [ME], "rejected": [YOU], "chat_template_kwargs": [1]},
            "`chat_template_kwargs` is not an object",
        ),
        ({"prompt": "p", "chosen": "c", "rejected": "r", "tools": [{}]}, "column `tools` is for a chat template"),
        ({"prompt": [ASK], "chosen": [ME], "rejected": [YOU], "functions": [1]}, "column `functions`, which may"),
        ({"prompt": "p", "chosen": "c", "rejected": "r", "group_column": "who"}, "column `who` is missing"),
        ({"prompt": "p", "chosen": "c", "rejected": "r", "group_column": "who", "who": None}, "`who` is null"),
    ],
)
def test_unusable_rows(values, message):
    with pytest.raises(BadRow) as caught:
        pair_of(**values)
    assert str(caught.value).startswith(f"f.jsonl:7: {message}")
    assert caught.value.fix
