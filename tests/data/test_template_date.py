"""Chat templates that write today's date."""

import datetime
import json
import shutil

import pytest
import torch

from megatron_lpc.config import ConfigError
from megatron_lpc.config.schema import DataConfig
from megatron_lpc.data.cache import build_dataset
from megatron_lpc.data.template_date import DATE_FILE, keep_template_date
from megatron_lpc.data.tokenizer import load_tokenizer
from megatron_lpc.training.reference_cache import load_reference_cache, save_reference_cache

TEMPLATE = (
    "{% if strftime_now is defined %}{{ strftime_now('%d %b %Y, %H:%M') }}{% endif %}"
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
MESSAGES = [{"role": "user", "content": "who?"}]


@pytest.fixture(params=["hf", "sp"])
def options(request, tmp_path, hf_folder, sentencepiece_file, write_jsonl):
    """Makes the options of a data set of chats, with a template that writes the date."""
    template = tmp_path / "date.jinja"
    template.write_text(TEMPLATE)
    row = {"prompt": MESSAGES, "chosen": [{"role": "assistant", "content": "me"}]}
    row["rejected"] = [{"role": "assistant", "content": "you"}]
    defaults = {
        "tokenizer_model": hf_folder if request.param == "hf" else sentencepiece_file,
        "chat_template": str(template),
        "data_cache_path": str(tmp_path / "cache"),
        "train_data": [write_jsonl(tmp_path / "chats.jsonl", [row])],
    }
    return lambda **changes: DataConfig(**(defaults | changes))


@pytest.fixture
def today(monkeypatch):
    """Sets today's date."""

    def to(text):
        class Date(datetime.date):
            @classmethod
            def today(cls):
                return datetime.date.fromisoformat(text)

        monkeypatch.setattr("megatron_lpc.data.chat_template.datetime.date", Date)

    return to


def build(config):
    tokenizer = load_tokenizer(config)
    dataset = build_dataset(config, tokenizer, config.train_data, "train")
    return dataset, tokenizer.decode(list(dataset[0].prompt))


def test_a_cache_keeps_its_date_and_another_date_is_other_data(options, today, tmp_path):
    today("2026-01-31")
    first, text = build(options())
    assert text.startswith("31 Jan 2026, 00:00[user]who?")
    assert json.loads((first.folder / "summary.json").read_text())["chat_template_date"] == "2026-01-31"
    save_reference_cache(tmp_path, torch.zeros(1, 2), first.fingerprint, "weights")
    today("2026-02-01")
    again, text = build(options())
    assert text.startswith("31 Jan 2026")
    assert again.fingerprint == first.fingerprint
    shutil.rmtree(first.folder)
    rebuilt, text = build(options())
    assert text.startswith("01 Feb 2026")
    with pytest.raises(ConfigError, match="--chat-template-date"):
        load_reference_cache(tmp_path, "train", rebuilt.fingerprint, "weights")
    given, text = build(options(chat_template_date="2026-01-31"))
    assert text.startswith("31 Jan 2026")
    assert given.folder != rebuilt.folder


def test_a_build_that_goes_on_the_next_day_keeps_the_first_date(options, tmp_path):
    for date in ("2026-01-31", "2026-02-01"):
        tokenizer = load_tokenizer(options(chat_template_date=date))
        assert keep_template_date(tmp_path, tokenizer) == "2026-01-31"
        assert tokenizer.render_chat(MESSAGES).startswith("31 Jan 2026")
    assert (tmp_path / DATE_FILE).read_text() == "2026-01-31"


def test_a_date_must_fit(options, template_file):
    with pytest.raises(ValueError, match=r"--chat-template-date tomorrow: give a date as 2026-01-31"):
        load_tokenizer(options(chat_template_date="tomorrow"))
    with pytest.raises(ValueError, match=r"--chat-template-date 2026-01-31: has no effect"):
        load_tokenizer(options(chat_template_date="2026-01-31", chat_template=template_file))
    with pytest.raises(ValueError, match=r"--streaming: the chat template writes today's date"):
        load_tokenizer(options(streaming=True))
    assert load_tokenizer(options(chat_template=template_file)).template_date is None
