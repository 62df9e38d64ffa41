"""Every configuration that we ship loads and passes the rules, for the processes that its launch script starts."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from megatron_lpc.config import all_options, load_yaml, parse_args, validate
from megatron_lpc.config.yaml_file import read_yaml

EXAMPLES = Path(__file__).parents[2] / "examples"
WORLDS = {
    "cluster": (8, "cuda"),
    "cluster/llama3-70b.yaml": (64, "cuda"),
    "cluster/mixtral-8x7b.yaml": (16, "cuda"),
    "paper": (8, "cuda"),
    "hh": (4, "cpu"),
    "convarg": (1, "cpu"),
    "recovery": (1, "cpu"),
    "smollm2": (2, "cpu"),
}


# Files of studies are checked row by row in tests/study, with what they start from; files of schedulers
# in tests/test_cluster_example.py.
OTHERS = ("cluster/trainjob.yaml", "cluster/skypilot.yaml", "published/frozen.yaml")
CONFIGS = [
    path
    for path in sorted(EXAMPLES.rglob("*.yaml"))
    if str(path.relative_to(EXAMPLES)) not in OTHERS and "seeds" not in yaml.safe_load(path.read_text())
]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(EXAMPLES)))
def test_example_is_valid(path: Path) -> None:
    name = str(path.relative_to(EXAMPLES))
    world, device = WORLDS.get(name) or WORLDS[path.parent.name]
    validate(load_yaml(path), world, device)


PAPER = sorted((EXAMPLES / "paper").glob("*.yaml"))


@pytest.mark.parametrize("loss_type", ["dpo", "ipo", "simpo"])
@pytest.mark.parametrize("path", PAPER, ids=lambda path: path.stem)
def test_the_paper_of_each_model_and_objective_is_valid(
    path: Path, loss_type: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The commands that run.sh would run: each training, with codes and plain."""
    command = ["bash", str(EXAMPLES / "paper" / "run.sh"), path.stem, loss_type, "org/model", "--seed", "7"]
    environment = {"DRY_RUN": "1", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    lines = [shlex.split(line) for line in done.stdout.splitlines()]
    ours = ("megatron_lpc.", "tools/", "examples/paper/")
    lines = [[part for part in line if part != "megatron_lpc.launch"] for line in lines]
    programs = [next(part for part in line if part.startswith(ours)) for line in lines]
    assert programs == [
        "tools/setup_venv.sh",
        "examples/paper/split.py",
        "tools/convert_hf.py",
        *(["megatron_lpc.precompute_reference"] if loss_type != "simpo" else []),
        *(["megatron_lpc.train", "megatron_lpc.evaluate"] * 2),
    ]
    flags = [line[line.index("megatron_lpc.train") + 1 :] for line in lines if "megatron_lpc.train" in line]
    with_codes, plain = map(parse_args, flags)
    for config in (with_codes, plain):
        validate(config, 8, "cuda")
        assert config.loss.loss_type == loss_type
        assert config.training.seed == 7
    assert (with_codes.latent.codebook_size, with_codes.latent.posterior_input) == (64, "concat")
    assert (with_codes.latent.prior_mix_initial, with_codes.latent.prior_mix_final) == (0, 1)
    assert with_codes.loss.ipo_length_average == (loss_type != "ipo")
    assert plain.latent.latent_mode == "none"


@pytest.mark.parametrize("path", PAPER, ids=lambda path: path.stem)
def test_the_paper_does_not_depend_on_the_defaults_of_the_latent(path: Path) -> None:
    """Options that are off unless they are set, or have no effect, may be left out."""
    config = parse_args(["--config", str(path)])
    latent = {name: option for name, option in all_options().items() if option.section == "latent"}
    unsaid = latent.keys() - read_yaml(path).keys()
    counting = [latent[name] for name in unsaid if not any(rule.applies(config) for rule in latent[name].idle)]
    assert all(option.default in (None, "amortized") for option in counting)
