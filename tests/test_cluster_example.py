"""What examples/cluster starts: configurations that can work on their nodes, and jobs that their schedulers know."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from megatron_lpc.config import data_parallel_size, parse_args, validate

FOLDER = Path(__file__).parents[1] / "examples" / "cluster"
README = (FOLDER / "README.md").read_text()
_LINE = r"^\| \S+ \| `(\S+)` \| (\d+) \| TP (\d+)(?: x PP (\d+))?(?: x DP (\d+))? \|$"
MODELS = re.findall(_LINE, README, re.MULTILINE)


def test_each_model_has_a_line() -> None:
    configurations = {path.name for path in FOLDER.glob("*.yaml")} - {"trainjob.yaml", "skypilot.yaml"}
    assert {name for name, *_ in MODELS} == configurations
    assert len(configurations) == 5


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model[0])
def test_a_configuration_fits_its_nodes(model: tuple[str, ...]) -> None:
    name, nodes, tensor, pipeline, data = model
    config = parse_args(["--config", str(FOLDER / name)])
    world_size = 8 * int(nodes)
    validate(config, world_size, "cuda")
    parallel = config.parallel
    assert parallel.tensor_model_parallel_size == int(tensor)
    assert parallel.pipeline_model_parallel_size == int(pipeline or 1)
    assert data_parallel_size(config, world_size) == int(data or 1)
    assert config.checkpoint.load == "auto"


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    return [_without_none(item) for item in value] if isinstance(value, list) else value


def test_the_train_job_is_one() -> None:
    from kubeflow_trainer_api.models import TrainerV1alpha1TrainJob

    job = yaml.safe_load((FOLDER / "trainjob.yaml").read_text())
    # The models leave out what they do not know.
    assert _without_none(TrainerV1alpha1TrainJob.from_dict(job).to_dict()) == job
    trainer = job["spec"]["trainer"]
    wrong = job | {"spec": job["spec"] | {"trainer": trainer | {"numNodes": "eight"}}}
    with pytest.raises(ValueError, match="numNodes"):
        TrainerV1alpha1TrainJob.from_dict(wrong)
    unknown = job | {"spec": job["spec"] | {"trainer": trainer | {"nodes": 8}}}
    assert _without_none(TrainerV1alpha1TrainJob.from_dict(unknown).to_dict()) == job


def test_the_jobs_start_what_there_is() -> None:
    job = yaml.safe_load((FOLDER / "trainjob.yaml").read_text())["spec"]
    assert parse_flags(job["trainer"]["args"])["load"] == "auto"
    environment = {variable["name"]: variable["value"] for variable in job["trainer"]["env"]}
    pod = job["runtimePatches"][0]["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"][0]["template"]["spec"]
    grace = pod["template"]["spec"]["terminationGracePeriodSeconds"]
    assert grace > int(environment["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"])
    sky = yaml.safe_load((FOLDER / "skypilot.yaml").read_text())
    assert "examples/cluster/torchrun.sh" in sky["run"]
    assert set(sky) <= {"name", "num_nodes", "workdir", "resources", "file_mounts", "envs", "setup", "run"}


def parse_flags(arguments: list[str]) -> dict[str, str]:
    return {flag.removeprefix("--"): value for flag, value in zip(arguments[::2], arguments[1::2], strict=True)}
