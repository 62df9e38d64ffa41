"""The program on a tiny run: its responses are those of transformers' `generate`, in every form of input and output."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from megatron_lpc.config import DataConfig
from megatron_lpc.convert.export_hf import export_hf
from megatron_lpc.convert.hub.modeling_lpc import LPCForCausalLM
from megatron_lpc.convert.hub.saved_latent import SavedLatent, codes_fingerprint, write_latent
from megatron_lpc.data.tokenizer import load_tokenizer
from megatron_lpc.generate import main
from megatron_lpc.generation.options import GenerationError, parse_generate_command
from megatron_lpc.train import main as train

CODES = 6
TEXTS = ["compare: red or blue", "which is larger, 4 or 5 or 6", "why"]
NEW_TOKENS = 7
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
)


@pytest.fixture(scope="module")
def runs(tiny_run, tmp_path_factory):
    """A folder of runs with their exports, and a file of prompts."""
    folder = tmp_path_factory.mktemp("generate")
    (folder / "template.jinja").write_text(TEMPLATE, encoding="utf-8")
    for name, flags in (
        ("lpc", ["--chat-template", str(folder / "template.jinja")]),
        ("none", ["--latent-mode", "none"]),
    ):
        head = ["--codebook-init-std", "1", "--latent-lr", "0.02"] if name == "lpc" else []
        train(["--config", tiny_run.config, "--train-iters", "4", "--save", str(folder / name), *head, *flags])
        export_hf(folder / name, folder / f"{name}-hf")
    rows = [{"prompt": text} for text in [*TEXTS, TEXTS[0]]]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def saved(runs):
    """A saved latent of the run."""
    head = LPCForCausalLM.from_pretrained(runs / "lpc-hf").latent_head
    weights = torch.arange(CODES, dtype=torch.float64).softmax(0)
    path = runs / "ann.safetensors"
    codes = codes_fingerprint(head.codebook, head.code_unit)
    latent = SavedLatent(weights=weights, interval=None, pairs=3, posterior="support", codes=codes)
    write_latent(path, latent)
    write_latent(runs / "other.safetensors", replace(latent, codes="0" * 64))
    return path


def generated(output: Path, *flags: object) -> dict[tuple[str, str], str]:
    """Run the program: (prompt, latent) -> response."""
    main([*map(str, flags), "--max-new-tokens", str(NEW_TOKENS), "--output", str(output)])
    lines = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    return {(line["prompt"], line["latent"]): line["response"] for line in lines}


def by_transformers(runs: Path, text: str, latent: object) -> str:
    """By the code and the weights in the export, one prompt at a time."""
    model = AutoModelForCausalLM.from_pretrained(runs / "lpc-hf", trust_remote_code=True).eval()
    tokenizer = load_tokenizer(DataConfig(tokenizer_model=str(runs / "lpc-hf" / "words.model")))
    tokens = torch.tensor([tokenizer.encode(text, add_bos=True)])
    output = model.generate(tokens, max_new_tokens=NEW_TOKENS, do_sample=False, latent=latent)
    return tokenizer.decode(output[0, tokens.size(1) :].tolist())


def test_responses_are_those_of_transformers(runs, saved, tmp_path, capsys):
    wanted = {"prior": "mean", "none": "none", **{f"code:{code}": code for code in range(CODES)}}
    flags = [flag for name in [*wanted, str(saved)] for flag in ("--latent", name)]
    found = generated(
        tmp_path / "out.jsonl", "--load", runs / "lpc", "--prompts", runs / "prompts.jsonl", "--batch-size", 2, *flags
    )
    wanted["ann"] = torch.arange(CODES, dtype=torch.float64).softmax(0).tolist()
    assert set(found) == {(text, name) for text in TEXTS for name in wanted}
    for (text, name), response in found.items():
        assert response == by_transformers(runs, text, wanted[name]), (text, name)
    different = {tuple(found[text, name] for text in TEXTS) for name in wanted}
    assert len(different) > 3, "latents change nothing"
    printed = capsys.readouterr()
    assert "1 of the prompts repeat others" in printed.err
    assert "Responses to 3 prompts" in printed.out
    for heading in ("ann: ", "code:5: ", "against prior", "type-token ratio"):
        assert heading in printed.out


def test_an_export_answers_as_its_run_without_running_its_code(runs, tmp_path):
    poisoned = tmp_path / "hf"
    poisoned.mkdir()
    for file in (runs / "lpc-hf").iterdir():
        (poisoned / file.name).symlink_to(file)
    (poisoned / "modeling_lpc.py").unlink()
    (poisoned / "modeling_lpc.py").write_text("raise SystemExit('the code of the folder has run')", encoding="utf-8")
    flags = ["--prompts", runs / "prompts.jsonl", "--num-prompts", 2, "--latent", "prior", "--latent", "code:3"]
    from_run = generated(tmp_path / "1.jsonl", "--load", runs / "lpc", *flags)
    assert len(from_run) == 4
    assert generated(tmp_path / "2.jsonl", "--model", poisoned, *flags) == from_run


def test_the_temporary_export_is_private_and_removed(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    modes = []

    def spy(load, output, **options):
        modes.append(output.parent.stat().st_mode & 0o777)
        return export_hf(load, output, **options)

    monkeypatch.setattr("megatron_lpc.generation.open_export.export_hf", spy)
    main(["--load", str(runs / "lpc"), "--prompt", "why", "--max-new-tokens", "1"])
    with pytest.raises(SystemExit):
        main(["--load", str(runs / "lpc"), "--prompt", "why", "--latent", "code:9"])
    assert modes == [0o700, 0o700]
    assert not list(tmp_path.iterdir())


def test_one_latent_is_streamed(runs, tmp_path, capsys):
    found = generated(tmp_path / "out.jsonl", "--model", runs / "lpc-hf", "--prompt", TEXTS[1], "--latent", "code:2")
    assert capsys.readouterr().out == found[TEXTS[1], "code:2"] + "\n"
    assert found[TEXTS[1], "code:2"] == by_transformers(runs, TEXTS[1], 2)


def test_chats_are_written_by_the_template_of_the_training(runs, tmp_path):
    rows = [{"prompt": [{"role": "user", "content": TEXTS[1]}], "system": "be brief"}, {"prompt": TEXTS[2]}]
    file = tmp_path / "chats.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    output = tmp_path / "out.jsonl"
    main(
        [
            "--load",
            str(runs / "lpc"),
            "--prompts",
            str(file),
            "--chat",
            "--max-new-tokens",
            "5",
            "--output",
            str(output),
        ]
    )
    lines = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    for line, text in zip(lines, (f"<system>be brief<user>{TEXTS[1]}<a>", f"<user>{TEXTS[2]}<a>"), strict=True):
        tokenizer = load_tokenizer(DataConfig(tokenizer_model=str(runs / "lpc-hf" / "words.model")))
        model = LPCForCausalLM.from_pretrained(runs / "lpc-hf").eval()
        tokens = torch.tensor([tokenizer.encode(text)])
        output = model.generate(tokens, max_new_tokens=5, do_sample=False)
        assert line["response"] == tokenizer.decode(output[0, tokens.size(1) :].tolist())
        assert line["prompt"][-1]["role"] == "user"


def test_sampling_follows_the_seed(runs, tmp_path):
    flags = ["--model", runs / "lpc-hf", "--prompts", runs / "prompts.jsonl", "--temperature", 2.0, "--top-p", 0.9]
    flags += ["--latent", "prior_sample", "--latent", "code:1"]
    first, again, other = (
        generated(tmp_path / f"{number}.jsonl", *flags, "--seed", seed) for number, seed in enumerate((1, 1, 2))
    )
    assert first == again
    assert first != other
    alone = generated(tmp_path / "3.jsonl", *flags[:-4], "--latent", "code:1", "--seed", 1)
    assert alone == {key: first[key] for key in alone}, "every latent starts from the seed"


def test_codes_are_those_in_use(runs, saved, tmp_path):
    flags = ["--model", runs / "lpc-hf", "--prompts", runs / "prompts.jsonl", "--latent", "codes"]
    found = generated(tmp_path / "1.jsonl", *flags, "--latent", saved)
    assert {name for _, name in found} == {"code:4", "code:5", "ann"}  # 1/6 is less than exp(-1)/sum.
    found = generated(tmp_path / "2.jsonl", *flags, "--max-codes", 1)
    model = LPCForCausalLM.from_pretrained(runs / "lpc-hf").eval()
    tokenizer = load_tokenizer(DataConfig(tokenizer_model=str(runs / "lpc-hf" / "words.model")))
    with torch.no_grad():
        priors = [model(torch.tensor([tokenizer.encode(text, add_bos=True)])).code_weights[0] for text in TEXTS]
    assert {name for _, name in found} == {f"code:{int(torch.stack(priors).mean(0).argmax())}"}


def test_a_model_without_a_head(runs, tmp_path):
    found = generated(tmp_path / "1.jsonl", "--load", runs / "none", "--prompts", runs / "prompts.jsonl")
    assert {name for _, name in found} == {"none"}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--load lpc --prompt a --latent code:6", "--latent code:6: the codes are 0 to 5"),
        ("--load lpc --prompt a --latent best", "--latent best: must be prior"),
        ("--load lpc --prompt a --latent missing.safetensors", "missing.safetensors: cannot be read"),
        ("--load lpc --prompt a --latent other.safetensors", "other.safetensors: is of another model"),
        ("--load none --prompt a --latent prior", "this model has no codes; its latents are none"),
        ("--load lpc --prompt a --max-new-tokens 64", "more than the 64 positions"),
        ("--load none --prompt a --chat", "has no chat template"),
        ("--load missing --prompt a", "missing: no such folder"),
        ("--model lpc --prompt a", "--model lpc: has no config.json"),
        ("--load lpc --prompts missing.jsonl", "missing.jsonl: no such data files"),
    ],
)
def test_refused(runs, saved, monkeypatch, capsys, flags, message):
    monkeypatch.chdir(runs)
    with pytest.raises(SystemExit, match="2"):
        main(["--max-new-tokens", "8", *flags.split()])
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--prompt b", "--load RUN or --model EXPORT"),
        ("--load a --model b --prompt c", "--load RUN or --model EXPORT"),
        ("--load a", "--prompt TEXT or --prompts FILE"),
        ("--load a --prompt b --num-prompts 3", "--num-prompts: has no effect"),
        ("--load a --prompt b --max-codes 3", "--max-codes: has no effect"),
        ("--load a --prompt b --latent none --latent none", "--latent none: is given twice"),
        ("--load a --prompt b --temperature -1", "--temperature -1: must be at least 0"),
        ("--load a --prompt b --temperature nan", "--temperature nan: must be at least 0"),
        ("--load a --prompt b --top-p 0.5", "--top-p: has no effect"),
        ("--load a --prompt b --temperature 1 --top-p 0", "--top-p 0: must be above 0"),
        ("--load a --prompt b --seed 3", "--seed: has no effect"),
        ("--load a --prompt b --max-new-tokens 0", "--max-new-tokens 0: must be at least 1"),
        ("--load a --prompt b --lengt 3", "unrecognized arguments"),
    ],
)
def test_options(flags, message):
    with pytest.raises(GenerationError, match=message):
        parse_generate_command(flags.split())
