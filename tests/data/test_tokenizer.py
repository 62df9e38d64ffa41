import io
import json
import re
import shutil
from pathlib import Path

import pytest
import sentencepiece

from megatron_lpc.config.schema import DataConfig
from megatron_lpc.data.tokenizer import load_tokenizer

MESSAGES = [{"role": "user", "content": "who are you?"}]


@pytest.fixture(params=["hf", "sp"])
def model(request, hf_folder, sentencepiece_file):
    return hf_folder if request.param == "hf" else sentencepiece_file


def load(model, **options):
    return load_tokenizer(DataConfig(tokenizer_model=model, **options))


def test_text_comes_back(model):
    tokenizer = load(model)
    for text in ("the cat", " two  spaces\n\nAssistant: é 猫 ", "<unk> [INST]"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
        assert tokenizer.decode(tokenizer.encode(text, add_bos=True)) == text


def test_special_tokens(model):
    tokenizer = load(model)
    ids = tokenizer.encode("the cat", add_bos=True)
    assert ids == [tokenizer.bos_id, *tokenizer.encode("the cat")]
    assert tokenizer.eos_id not in ids
    assert tokenizer.encode("a</s>")[-1] == tokenizer.eos_id
    assert len({tokenizer.bos_id, tokenizer.eos_id}) == 2
    assert all(
        0 <= token < tokenizer.vocab_size for token in (*ids, tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id)
    )


def test_bos_does_not_stand_twice(model):
    tokenizer = load(model)
    assert tokenizer.encode("<s>the cat", add_bos=True) == tokenizer.encode("<s>the cat")
    assert tokenizer.encode("<s>the cat", add_bos=True).count(tokenizer.bos_id) == 1


def test_special_tokens_can_be_shown(model):
    tokenizer = load(model)
    ids = tokenizer.encode("the cat</s>", add_bos=True)
    assert tokenizer.decode(ids) == "the cat"
    assert tokenizer.decode(ids, show_special=True) == "<s>the cat</s>"


def test_control_tokens_of_sentencepiece(tmp_path):
    """As transformers reads them, and with one space where sentencepiece would write two."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["Hi there", "Hello [INST] you"] * 9),
        model_writer=model,
        vocab_size=300,
        control_symbols=["[INST]", "[/INST]"],
        user_defined_symbols=["<turn>", "▁▁▁"],
        byte_fallback=True,
        remove_extra_whitespaces=False,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (tmp_path / "tiny.model").write_bytes(model.getvalue())
    tokenizer = load(str(tmp_path / "tiny.model"))
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    opens, closes = (processor.piece_to_id(piece) for piece in ("[INST]", "[/INST]"))
    hi, hello = processor.encode("Hi"), processor.encode("Hello")
    assert tokenizer.encode("[INST] Hi[/INST]Hello</s>") == [opens, *hi, closes, *hello, 2]
    assert tokenizer.encode(" Hi") == processor.encode(" Hi")
    assert tokenizer.special_tokens == ("</s>", "<s>", "<turn>", "[/INST]", "[INST]")
    ids = tokenizer.encode("[INST] Hi [/INST] Hello</s>", add_bos=True)
    assert tokenizer.decode(ids, show_special=True) == "<s>[INST] Hi [/INST] Hello</s>"


def test_chat_template_file(model, tmp_path):
    path = tmp_path / "t.jinja"
    path.write_text(
        "{% for m in messages %}<{{ m.content }}>{{ eos_token }}{% endfor %}{% if add_generation_prompt %}:{% endif %}"
    )
    tokenizer = load(model, chat_template=str(path))
    assert tokenizer.render_chat(MESSAGES) == "<who are you?></s>"
    assert tokenizer.render_chat(MESSAGES, add_generation_prompt=True) == "<who are you?></s>:"
    assert tokenizer.fingerprint != load(model).fingerprint
    assert tokenizer.fingerprint == load(model, chat_template=str(path)).fingerprint


def test_chat_template_errors(model, template_file, tmp_path):
    tokenizer = load(model, chat_template=template_file)
    with pytest.raises(ValueError, match=r"the chat template refuses the messages \(no tools\)"):
        tokenizer.render_chat([{"role": "tool", "content": "x"}])
    with pytest.raises(FileNotFoundError, match=r"--chat-template missing.jinja: no such file"):
        load(model, chat_template="missing.jinja")
    path = tmp_path / "chat.jinja"
    path.write_bytes(b"\xe9")
    with pytest.raises(ValueError, match=r"--chat-template .*chat.jinja: .*not a text in UTF-8"):
        load(model, chat_template=str(path))
    path.write_text("{{ strftime_now('%Y') }}{% for")
    with pytest.raises(ValueError, match="the chat template refuses the messages"):
        load(model, chat_template=str(path)).render_chat(MESSAGES)


def edit(source, folder, name, change):
    for file in Path(source).iterdir():
        (folder / file.name).write_text(file.read_text())
    values = json.loads((folder / name).read_text())
    change(values)
    (folder / name).write_text(json.dumps(values))
    return str(folder)


def test_no_chat_template(sentencepiece_file, hf_folder, tmp_path):
    with pytest.raises(LookupError, match=r"tiny.model has no chat template: give one with --chat-template"):
        load(sentencepiece_file).render_chat(MESSAGES)
    folder = edit(hf_folder, tmp_path, "tokenizer_config.json", dict)
    (tmp_path / "chat_template.jinja").unlink()
    with pytest.raises(LookupError, match="has no chat template"):
        load(folder).render_chat(MESSAGES)


def test_code_beside_a_tokenizer_is_not_asked_for(hf_folder, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("builtins.input", lambda question="": asked.append(question) or "n")
    settings = {"model_type": "lpc", "auto_map": {"AutoConfig": "configuration_lpc.LPCConfig"}}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    (tmp_path / "configuration_lpc.py").write_text("1 / 0")
    folder = edit(hf_folder, tmp_path, "tokenizer_config.json", dict)
    assert load(folder).fingerprint == load(hf_folder).fingerprint
    assert not asked


def test_fingerprint_follows_the_vocabulary(hf_folder, tmp_path):
    def swap(values):
        vocabulary = values["model"]["vocab"]
        vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]

    same, other = tmp_path / "same", tmp_path / "other"
    same.mkdir()
    other.mkdir()
    assert load(edit(hf_folder, same, "tokenizer.json", dict)).fingerprint == load(hf_folder).fingerprint
    assert load(edit(hf_folder, other, "tokenizer.json", swap)).fingerprint != load(hf_folder).fingerprint


def test_load_errors(tmp_path, hf_folder, train_tokenizer):
    with pytest.raises(ValueError, match="--tokenizer-model is not set"):
        load("")
    with pytest.raises(ValueError, match=r"--tokenizer-model missing.model: no such file"):
        load("missing.model")
    (tmp_path / "bad.model").write_bytes(b"hello")
    with pytest.raises(ValueError, match=r"bad.model: not a sentencepiece model"):
        load(str(tmp_path / "bad.model"))
    with pytest.raises(ValueError, match=r"--tokenizer-model .*: cannot be loaded"):
        load(str(tmp_path))


def test_an_end_of_text_token_is_needed(tmp_path, hf_folder):
    folder = edit(hf_folder, tmp_path, "tokenizer_config.json", lambda values: values.pop("eos_token"))
    with pytest.raises(ValueError, match=r"no end-of-text token. Set `eos_token`"):
        load(folder)
    model = io.BytesIO()
    trainer = sentencepiece.SentencePieceTrainer
    trainer.train(sentence_iterator=iter(["a b c"] * 9), model_writer=model, vocab_size=7, eos_id=-1, minloglevel=2)
    (tmp_path / "no_eos.model").write_bytes(model.getvalue())
    with pytest.raises(ValueError, match=r"no end-of-text token. Train it"):
        load(str(tmp_path / "no_eos.model"))


@pytest.fixture
def with_code(hf_folder, tmp_path):
    """A folder of a tokenizer that comes with code, which leaves a file where it runs."""
    folder = shutil.copytree(hf_folder, tmp_path / "with code")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config.pop("tokenizer_class", None)
    config["auto_map"] = {"AutoTokenizer": [None, "tokenization_mine.Mine"]}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "tokenization_mine.py").write_text(
        f"from transformers import PreTrainedTokenizerFast\nopen({str(tmp_path / 'ran')!r}, 'w').close()\n\n\n"
        "class Mine(PreTrainedTokenizerFast):\n    pass\n"
    )
    return folder


def test_code_of_a_tokenizer_does_not_run_unasked(with_code, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a batch job would wait"))
    with pytest.raises(ValueError, match=r"tokenization_mine.*--trust-remote-code") as caught:
        load(str(with_code))
    assert str(with_code / "tokenizer_config.json") in str(caught.value)
    assert not (with_code.parent / "ran").exists()


def test_code_of_a_tokenizer_runs_when_it_is_trusted(with_code, monkeypatch, tmp_path):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    tokenizer = load(str(with_code), trust_remote_code=True)
    assert tokenizer.decode(tokenizer.encode("the cat")) == "the cat"
    assert (with_code.parent / "ran").exists()


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("content", ["", "[1]", "[" * 5000, '{"added_tokens": 3}', '{"model": null}', "\x00"])
def test_broken_files_of_a_tokenizer(hf_folder, tmp_path, name, content):
    folder = shutil.copytree(hf_folder, tmp_path / "broken")
    (folder / name).write_text(content)
    with pytest.raises(ValueError, match=re.escape(str(folder))) as caught:
        load(str(folder))
    assert len(str(caught.value)) < 1000


def test_a_template_without_end_is_stopped(model, tmp_path, monkeypatch):
    monkeypatch.setattr("megatron_lpc.data.chat_template._RENDER_SECONDS", 0.3)
    file = tmp_path / "endless.jinja"
    file.write_text("{% for a in range(90000) %}{% for b in range(90000) %}{% endfor %}{% endfor %}")
    with pytest.raises(ValueError, match=r"refuses the messages .it takes too long"):
        load(model, chat_template=str(file)).render_chat(MESSAGES)
