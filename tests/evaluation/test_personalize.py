"""Latents of annotators in files: estimated as `evaluate` does, the same in every layout and in the exported model."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from launch import torchrun

from megatron_lpc.config import ConfigError, parse_args
from megatron_lpc.convert.export_hf import export_hf
from megatron_lpc.convert.hub.modeling_lpc import LPCForCausalLM
from megatron_lpc.convert.hub.saved_latent import read_latent
from megatron_lpc.convert.import_hf import import_hf
from megatron_lpc.evaluation.checkpoint_scorer import CheckpointScorer
from megatron_lpc.evaluation.options import parse_command
from megatron_lpc.evaluation.personal_options import parse_personal_command
from megatron_lpc.personalize import main as personalize
from megatron_lpc.training.setup import start_distributed, stop_distributed

SHAPE = (
    "--num-layers 2 --hidden-size 16 --ffn-hidden-size 32 --num-attention-heads 2 --max-position-embeddings 128 "
    "--max-length 128 --codebook-size 4 --codebook-init-std 1 --init-method-std 0.1"
)
BATCHES = "--micro-batch-size 4 --global-batch-size 8 --device cpu --train-iters 4 --lr 0.01 --no-tensorboard"
RUN = f"{SHAPE} {BATCHES} --group-column annotator".split()
MODES = {"amortized": ["--posterior-context", "0"], "exact": ["--posterior-context", "3"]}
PAIRS = 5


@dataclass(frozen=True)
class Runs:
    """Runs by mode, and rows of one annotator each: labelled pairs, and others."""

    folder: Path

    def __getitem__(self, mode: str) -> str:
        return str(self.folder / mode)

    def labelled(self, annotator: str) -> str:
        return str(self.folder / f"{annotator}.jsonl")

    def others(self, annotator: str) -> str:
        return str(self.folder / f"{annotator}-others.jsonl")


@pytest.fixture(scope="module")
def runs(make_world, tmp_path_factory):
    from megatron_lpc.train import train

    folder = tmp_path_factory.mktemp("personal")
    world = make_world("--num-pairs", "48", "--num-eval-pairs", "48")
    for mode, flags in MODES.items():
        train(parse_args([*world, *RUN, *flags, "--save", str(folder / mode)]))
    found = Runs(folder)
    rows = [json.loads(line) for line in Path(world[1]).read_text(encoding="utf-8").splitlines()]
    for annotator in ("ada", "ben"):
        own = [json.dumps(row) + "\n" for row in rows if row["annotator"] == annotator]
        Path(found.labelled(annotator)).write_text("".join(own[:PAIRS]), encoding="utf-8")
        Path(found.others(annotator)).write_text("".join(own[PAIRS:]), encoding="utf-8")
    return found


@pytest.fixture(scope="module")
def latent(runs):
    """Mode, annotator and flags -> the file that the program writes."""

    def make(mode, annotator, *flags):
        output = runs.folder / f"{annotator}-{mode}{''.join(flags)}.safetensors"
        personalize(["--load", runs[mode], "--pairs", runs.labelled(annotator), "--output", str(output), *flags])
        return output

    return make


def evaluated(runs, mode, annotator, evaluation, *flags):
    """The report on an annotator's other pairs, by the same labelled pairs as support set."""
    data = ["--valid-data", f"others={runs.others(annotator)}", "--support-data", runs.labelled(annotator)]
    return evaluation("--config", f"{runs[mode]}/config.yaml", *data, "--support-pairs", str(PAIRS), *flags)["data"][
        "others"
    ]


@pytest.mark.parametrize("mode", MODES)
def test_weights_and_accuracies_are_those_of_the_evaluation(runs, latent, evaluation, mode):
    files = [latent(mode, "ada", "--posterior", name) for name in ("support", "support_exact")]
    report = evaluated(runs, mode, "ada", evaluation, "--latent", *map(str, files))
    group = report["support"]["groups"]["ada"]
    for file, weights in zip(files, (group["mixture"], group["posterior"]), strict=True):
        saved = read_latent(file)
        assert saved.pairs == PAIRS
        torch.testing.assert_close(saved.weights, torch.tensor(weights, dtype=torch.float64), rtol=0, atol=1e-12)
        assert saved.interval is not None
        assert bool((saved.interval[0] < saved.interval[1]).all())
    uniform = torch.full((4,), 0.25, dtype=torch.float64)
    assert (read_latent(files[1]).weights - uniform).abs().max() > 1e-4, "the labels tell nothing"
    assert report["support"]["query_pairs"] == report["pairs"]
    accuracy = {name: report["metrics"][name]["rewards/accuracies"] for name in report["metrics"]}
    assert accuracy[files[0].stem] == report["support"]["accuracy"]["support"]
    assert accuracy[f"{files[1].stem}, exact"] == report["support"]["accuracy"]["support_exact"]
    assert f"{files[0].stem}, exact" not in accuracy


def test_the_posterior_is_that_of_the_training_by_default(latent):
    assert read_latent(latent("amortized", "ben")).posterior == "support"
    assert read_latent(latent("exact", "ben")).posterior == "support_exact"


def test_the_file_is_the_same_every_time(latent):
    first = latent("exact", "ada").read_bytes()
    assert latent("exact", "ada").read_bytes() == first


@pytest.mark.distributed
def test_pipeline_stages_give_the_same(runs, latent, tmp_path):
    """The codes are on the last stage. What is scored in other layouts, `test_evaluate` compares."""
    expected = read_latent(latent("exact", "ada"))
    output = tmp_path / "ada.safetensors"
    files = ["--load", runs["exact"], "--pairs", runs.labelled("ada"), "--output", str(output)]
    select = ["--pool", runs.others("ben"), "--select", "2", "--selected", str(tmp_path / "selected.jsonl")]
    torchrun(2, "-m", "megatron_lpc.personalize", *files, *select, "--pipeline-model-parallel-size", "2")
    found = read_latent(output)
    assert found.codes == expected.codes
    torch.testing.assert_close(found.weights, expected.weights, rtol=0, atol=1e-5)
    assert len((tmp_path / "selected.jsonl").read_text().splitlines()) == 2


def test_the_exported_model_has_the_log_probs_of_the_engine(runs, latent, tmp_path):
    file = latent("exact", "ada")
    config = parse_command(["--config", f"{runs['exact']}/config.yaml", "--group-column", "none"]).config
    scorer = CheckpointScorer(start_distributed(config))
    data = scorer.open("others", runs.others("ada"))
    weights = read_latent(file).weights
    table = scorer.score("others", data, ("mixture", "prior"), weights.expand(len(data), -1))
    stop_distributed()
    for dtype in (None, torch.bfloat16):
        export_hf(Path(runs["exact"]), tmp_path / str(dtype), dtype=dtype)
        model = LPCForCausalLM.from_pretrained(tmp_path / str(dtype), dtype="auto").eval()
        assert model.load_latent(file) == weights.tolist()
    model = LPCForCausalLM.from_pretrained(tmp_path / "None").eval()
    for index in range(4):
        pair = data[index]
        for side, response in enumerate((pair.chosen, pair.rejected)):
            tokens = torch.tensor([[*pair.prompt, *response]])
            end = torch.tensor([len(pair.prompt) - 1])
            with torch.no_grad():
                logits = model(tokens, latent=model.load_latent(file), prompt_end=end).logits[0]
            logps = logits.log_softmax(-1)[len(pair.prompt) - 1 : -1].gather(1, torch.tensor(response)[:, None])
            mixed, prior = table.logps[index, :, side].tolist()
            assert float(logps.sum()) == pytest.approx(mixed, rel=1e-5)
            assert abs(mixed - prior) > 1e-3, "the latent changes nothing"


def test_a_file_of_another_model_is_refused(runs, latent, capsys):
    file = latent("amortized", "ada")
    flags = ["--config", f"{runs['exact']}/config.yaml", "--latent", str(file)]
    from megatron_lpc.evaluate import main

    with pytest.raises(SystemExit, match="2"):
        main(flags)
    stop_distributed()
    message = capsys.readouterr().err
    assert str(file) in message
    assert "is of another model" in message


def test_selected_rows_are_those_of_the_pool(runs, capsys, tmp_path):
    output = tmp_path / "selected.jsonl"
    pool = runs.others("ben")
    personalize(["--load", runs["exact"], "--pool", pool, "--select", "3", "--selected", str(output)])
    rows = [json.loads(line) for line in Path(pool).read_text(encoding="utf-8").splitlines()]
    printed = capsys.readouterr().out
    gains = []
    for line in output.read_text(encoding="utf-8").splitlines():
        selected = json.loads(line)
        gains.append(selected.pop("gain_nats"))
        assert selected.pop("information_nats") >= gains[-1]
        assert f"{Path(pool).name}:{rows.index(selected) + 1} " in printed.replace("\n", "")
    assert gains == sorted(gains, reverse=True)
    assert gains[0] > 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("", "--pairs: is missing"),
        ("--pairs a.jsonl --select 3", "--select and --pool"),
        ("--pairs a.jsonl --pool b.jsonl --select 11", "--select 11: must be 1 to 10"),
        ("--pairs a.jsonl --selected b.jsonl", "--selected: has no effect"),
        ("--pool b.jsonl --select 3 --output a.safetensors", "--output: needs --pairs"),
        ("--pool b.jsonl --select 3 --posterior support", "--posterior: needs --pairs"),
        ("--pairs a.jsonl --output a.json", "must end in .safetensors"),
        ("--pairs a.jsonl --lr 1", "--lr: has no effect on an evaluation"),
        ("--pairs a.jsonl --latent-mode continuous", "a model with --latent-mode continuous has none"),
    ],
)
def test_refused(runs, flags, message):
    with pytest.raises(ConfigError, match=message):
        parse_personal_command(["--load", runs["amortized"], *flags.split()])


def test_an_imported_model_gives_the_latent_of_its_run(runs, latent, tmp_path):
    export_hf(Path(runs["amortized"]), tmp_path / "hf")
    import_hf(tmp_path / "hf", tmp_path / "imported")
    tokenizer = parse_args(["--config", f"{runs['amortized']}/config.yaml"]).data.tokenizer_model
    flags = ["--load", str(tmp_path / "imported"), "--pairs", runs.labelled("ada"), "--max-length", "128"]
    flags += ["--tokenizer-model", tokenizer, "--micro-batch-size", "4", "--global-batch-size", "8", "--device", "cpu"]
    with pytest.raises(ConfigError, match="--loss-type dpo: compares with a reference, which an import does not name"):
        parse_personal_command(flags)
    output = tmp_path / "ada.safetensors"
    personalize([*flags, "--loss-type", "simpo", "--posterior", "support", "--output", str(output)])
    expected = read_latent(latent("amortized", "ada")).weights
    torch.testing.assert_close(read_latent(output).weights, expected, rtol=0, atol=1e-6)


def test_a_run_without_its_options(tmp_path):
    with pytest.raises(ConfigError, match=r"has neither config\.yaml, as a run, nor model\.yaml, as an import"):
        parse_personal_command(["--load", str(tmp_path), "--pairs", "a.jsonl"])
