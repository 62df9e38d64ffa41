import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_lpc.config.schema import DataConfig
from megatron_lpc.data import encode as encode_module
from megatron_lpc.data.encode import encode_pair
from megatron_lpc.data.pairs import Pair
from megatron_lpc.data.source import BadRow, Location
from megatron_lpc.data.tokenizer import load_tokenizer

LOCATION = Location("f.jsonl", 3)
BOS, EOS = 1, 2


class Letters:
    """Every letter is a token; "_" has none."""

    name, vocab_size, bos_id, eos_id, pad_id, fingerprint = "letters", 200, BOS, EOS, 0, "letters"
    prefix, eos_token, special_tokens, template_date = [BOS], "$", ("$",), None

    def encode(self, text, *, add_bos=False):
        return [BOS] * add_bos + [EOS if letter == "$" else ord(letter) for letter in text if letter != "_"]

    def decode(self, ids, *, show_special=False):
        return "".join("$" if token == EOS else chr(token) for token in ids)

    def render_chat(self, messages, arguments=None, *, add_generation_prompt=False):
        if any(message["role"] == "tool" for message in messages):
            raise ValueError("the template refuses")
        if not messages[0]["content"] and not add_generation_prompt:
            return ">" + messages[-1]["content"]
        return "".join(f"{m['role'][0]}:{m['content']}$" for m in messages) + "a:" * add_generation_prompt


def encode(prompt, chosen, rejected, group=None, **options):
    return encode_pair(Pair(LOCATION, prompt, chosen, rejected, group), Letters(), DataConfig(**options))


def ids(text):
    return Letters().encode(text)


def test_text_gets_bos_and_eos_and_the_group_is_kept():
    pair = encode("ab", "cd", "e", group="ann")
    assert (pair.prompt, pair.chosen, pair.rejected, pair.group) == ([BOS, *ids("ab")], ids("cd$"), ids("e$"), "ann")


def test_the_prompt_makes_room_for_the_longer_response_whichever_it_is():
    pair = encode("pqrs", "x", "abcd", max_length=8, truncation_mode="keep_end")
    assert (pair.prompt, pair.chosen, pair.rejected) == ([BOS, *ids("rs")], ids("x$"), ids("abcd$"))


def test_no_second_eos():
    assert encode("ab", "cd$", "e").chosen == ids("cd$")


def test_a_chat_gets_what_its_template_writes_and_nothing_else():
    pair = encode(
        [{"role": "user", "content": "hi"}],
        [{"role": "assistant", "content": "x"}],
        [{"role": "assistant", "content": "y"}],
    )
    assert (pair.prompt, pair.chosen, pair.rejected) == (ids("u:hi$a:"), ids("x$"), ids("y$"))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"max_length": 10}, ("^pqrs", "abcd$", "x$")),
        ({"max_length": 8, "truncation_mode": "keep_start"}, ("^pqrs", "abc", "x$")),
        ({"max_length": 8, "truncation_mode": "keep_end"}, ("^rs", "abcd$", "x$")),
        ({"max_length": 10, "max_prompt_length": 2, "truncation_mode": "keep_start"}, ("^p", "abcd$", "x$")),
        ({"max_length": 10, "max_prompt_length": 2, "truncation_mode": "keep_end"}, ("^s", "abcd$", "x$")),
        ({"max_length": 10, "max_prompt_length": 1, "truncation_mode": "keep_end"}, ("s", "abcd$", "x$")),
        ({"max_length": 6, "max_prompt_length": 2, "truncation_mode": "keep_end"}, ("^s", "abcd", "x$")),
        ({"max_length": 4, "truncation_mode": "keep_end"}, ("^s", "ab", "x$")),
        ({"max_length": 2, "truncation_mode": "keep_end"}, ("s", "a", "x")),
    ],
)
def test_truncation(options, expected):
    pair = encode("pqrs", "abcd", "x", **options)
    assert (pair.prompt, pair.chosen, pair.rejected) == tuple(
        [BOS] * text.startswith("^") + ids(text.lstrip("^")) for text in expected
    )


text = st.text("abcdef", min_size=1, max_size=12)


@given(text, text, text, st.integers(2, 20), st.none() | st.integers(1, 8), st.sampled_from(["keep_start", "keep_end"]))
def test_whatever_is_encoded_fits_and_is_part_of_the_whole(
    prompt, chosen, rejected, max_length, max_prompt_length, mode
):
    try:
        pair = encode(
            prompt, chosen, rejected, max_length=max_length, max_prompt_length=max_prompt_length, truncation_mode=mode
        )
    except BadRow:
        return
    whole = [BOS, *ids(prompt)]
    kept = len(pair.prompt)
    head = [BOS] if mode == "keep_end" and kept > 1 else []
    assert pair.prompt == (whole[:kept] if mode == "keep_start" else head + whole[len(whole) - kept + len(head) :])
    assert pair.prompt
    assert pair.chosen
    assert pair.rejected
    assert pair.chosen == ids(chosen + "$")[: len(pair.chosen)]
    assert pair.rejected == ids(rejected + "$")[: len(pair.rejected)]
    longest = kept + max(len(pair.chosen), len(pair.rejected))
    assert longest <= max_length
    is_cut = (len(pair.chosen), len(pair.rejected)) != (len(chosen) + 1, len(rejected) + 1)
    assert longest == max_length or not is_cut


def user(content):
    return [{"role": "user", "content": content}]


def assistant(content, role="assistant"):
    return [{"role": role, "content": content}]


@pytest.mark.parametrize(
    ("texts", "options", "message"),
    [
        (
            ("pqrs", "abcd", "x"),
            {"max_length": 5, "truncation_mode": "keep_start"},
            "only the prompt is left after truncation: it fills the 5",
        ),
        (("p", "abcd", "abce"), {"max_length": 4}, "chosen and rejected are equal as tokens after truncation"),
        (("p", "ab_", "ab"), {}, "chosen and rejected are equal as tokens"),
        (("_", "a", "b"), {}, "the prompt has no tokens"),
        (("p", "_", "b"), {}, "the chosen response has no tokens"),
        (("p", "a", "$"), {}, "the rejected response has no tokens"),
        ((user("hi"), assistant("x"), assistant("y", "tool")), {}, "the template refuses"),
        ((user(""), assistant("x"), assistant("y")), {}, "the prompt has no tokens"),
    ],
)
def test_unusable_pairs(texts, options, message):
    with pytest.raises(BadRow) as caught:
        encode(*texts, **options)
    assert str(caught.value).startswith(f"f.jsonl:3: {message}")


def test_the_opening_of_a_chat_stays_when_its_end_is_kept(caplog, monkeypatch):
    monkeypatch.setattr(encode_module, "_topics_said", set())
    system = {"role": "system", "content": "be"}
    prompt = [system, *user("abcd"), *assistant("efgh"), *user("ijkl")]

    def kept(max_length):
        pair = encode(prompt, assistant("x"), assistant("yz"), max_length=max_length)
        assert (pair.chosen, pair.rejected) == (ids("x$"), ids("yz$"))
        return Letters().decode(pair.prompt)

    assert kept(40) == "s:be$u:abcd$a:efgh$u:ijkl$a:"
    assert kept(20) == "s:be$u:" + "$u:ijkl$a:"
    assert kept(11) == "s:be$u:" + ":"
    assert not caplog.records
    assert kept(10) == "ijkl$a:", "an opening that leaves no room goes as well"
    kept(9)
    (record,) = caplog.records
    assert "(the system's turn, the tools) is cut, for it takes 7 tokens" in record.getMessage()
    assert "leave the prompt 7." in record.getMessage()


def test_where_prompt_and_whole_differ_the_responses_begin(caplog, monkeypatch):
    """As TRL does it: what the prompt alone ends in, and a whole does not, is left out."""

    class Merging(Letters):
        def encode(self, text, *, add_bos=False):
            return super().encode(text.replace("s4", "*"), add_bos=add_bos)

    monkeypatch.setattr(encode_module, "_topics_said", set())
    encode_pair(Pair(LOCATION, "pqrs", "45", "67"), Merging(), DataConfig())
    pair = encode_pair(Pair(LOCATION, "pqrs", "45", "67"), Merging(), DataConfig())
    assert (pair.prompt, pair.chosen, pair.rejected) == ([BOS, *ids("pqr")], ids("*5$"), ids("s67$"))
    (record,) = caplog.records
    assert record.getMessage().startswith("f.jsonl:3: the end of the prompt, 's', is left out")


def test_a_template_that_writes_no_end_is_said_once(caplog, monkeypatch):
    class Endless(Letters):
        name, special_tokens = "endless", ("!",)

    monkeypatch.setattr(encode_module, "_topics_said", set())
    for _ in range(2):
        encode_pair(Pair(LOCATION, user("hi"), assistant("x"), assistant("y")), Endless(), DataConfig())
    (record,) = caplog.records
    assert record.getMessage().startswith(
        "the chat template of endless ends a response ('u:hi$a:x$') without a special"
    )


def test_sequences_are_those_of_trl(hf_folder):
    trl = pytest.importorskip("trl.trainer.dpo_trainer")
    tokenizer = load_tokenizer(DataConfig(tokenizer_model=hf_folder))
    long = {"prompt_ids": [5, 6, 7], "chosen_ids": [8, 9, 10, 11, 1], "rejected_ids": [12, 1]}
    collator = trl.DataCollatorForPreference(pad_token_id=0, max_length=6, truncation_mode="keep_start")
    theirs = collator([long])
    text = [tokenizer.decode(long[name]) for name in ("prompt_ids", "chosen_ids", "rejected_ids")]
    assert tokenizer.encode(text[0]) == [5, 6, 7]  # the premise: these ids and this text are one
    config = DataConfig(max_length=7, truncation_mode="keep_start")
    pair = encode_pair(Pair(LOCATION, *text), tokenizer, config)
    # Ours begin with <s>.
    sequences = [[*pair.prompt[1:], *response] for response in (pair.chosen, pair.rejected)]
    assert [sequence + [0] * (6 - len(sequence)) for sequence in sequences] == theirs["input_ids"].tolist()
