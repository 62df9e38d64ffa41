"""A checkpoint has a checksum of each of its files, and one that is not as it was written is not loaded."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from frozen_runs import UNFROZEN, config_of

from megatron_lpc.config import ConfigError, with_options
from megatron_lpc.training.checkpoint_integrity import checksums, read_manifest
from megatron_lpc.training.checkpoint_verification import damage, open_checkpoint
from megatron_lpc.training.setup import RunContext

MANIFEST = "integrity.json"


@pytest.fixture(scope="module")
def saved(context: RunContext, tiny_run, tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """Checkpoints of one run after its first step, by whether they were saved asynchronously."""
    from megatron_lpc.training.build import assemble_run

    folders = {}
    for is_async in (False, True):
        folder = tmp_path_factory.mktemp("saved")
        options = with_options(config_of(tiny_run, *UNFROZEN), save=str(folder), async_save=is_async, train_iters=1)
        run = assemble_run(replace(context, config=options))
        run.save_checkpoint(replace(run.start, iteration=1))
        run.checkpoints.finish()
        folders[is_async] = folder / "iter_0000001"
    return folders


@pytest.fixture
def checkpoint(saved: dict[bool, Path], tmp_path: Path) -> Path:
    """A copy to be damaged."""
    return Path(shutil.copytree(saved[False], tmp_path / "iter_0000001"))


def within_tensor(folder: Path) -> tuple[Path, int]:
    """The file of tensors, and a place in it that is not zero, as the moments are before the first step."""
    (file,) = folder.glob("*.distcp")
    content = file.read_bytes()
    return file, next(place for place in range(0, len(content), 4096) if content[place : place + 4096].count(0) < 1024)


def overwrite(file: Path, place: int, new: bytes) -> None:
    content = bytearray(file.read_bytes())
    assert content[place : place + len(new)] != new
    content[place : place + len(new)] = new
    file.write_bytes(content)


@pytest.mark.parametrize("is_async", [False, True])
def test_every_file_has_its_checksum(saved: dict[bool, Path], is_async: bool, context: RunContext) -> None:
    folder = saved[is_async]
    manifest = json.loads((folder / MANIFEST).read_text())
    others = [file for file in folder.iterdir() if file.name != MANIFEST]
    assert {"__0_0.distcp", ".metadata", "common.pt", "metadata.json", "description.json"} < {f.name for f in others}
    assert manifest == {"algorithm": "xxh3_128", "files": checksums(others)}
    assert damage(folder, context) == []


def flip_bit(folder: Path) -> str:
    file, place = within_tensor(folder)
    overwrite(file, place, bytes([file.read_bytes()[place] ^ 64]))
    return f"{file.name} is damaged (its checksum differs)"


def zero_page(folder: Path) -> str:
    file, place = within_tensor(folder)
    overwrite(file, place, bytes(4096))
    return f"{file.name} is damaged (its checksum differs)"


def edit_description(folder: Path) -> str:
    content = json.loads((folder / "description.json").read_text())
    content["run"]["iteration"] = 9
    (folder / "description.json").write_text(json.dumps(content))
    return "description.json is damaged (its checksum differs)"


def flip_generator(folder: Path) -> str:
    file = folder / "random_state_00000.safetensors"
    overwrite(file, 3000, bytes([file.read_bytes()[3000] ^ 1]))
    return f"{file.name} is damaged (its checksum differs)"


def delete_generator(folder: Path) -> str:
    (folder / "random_state_00000.safetensors").unlink()
    return "random_state_00000.safetensors is missing"


def cut_manifest(folder: Path) -> str:
    file = folder / MANIFEST
    file.write_bytes(file.read_bytes()[:-20])
    return f"{MANIFEST}: is damaged, for it is no list of checksums"


def lead_elsewhere(folder: Path) -> str:
    file = folder / MANIFEST
    content = json.loads(file.read_text())
    content["files"]["../../secret"] = "0" * 32
    file.write_text(json.dumps(content))
    return MANIFEST


def other_algorithm(folder: Path) -> str:
    file = folder / MANIFEST
    file.write_text(file.read_text().replace("xxh3_128", "md5"))
    return f"{MANIFEST}: checksums of the kind 'md5' are not known"


WAYS = [
    flip_bit,
    zero_page,
    edit_description,
    flip_generator,
    delete_generator,
    cut_manifest,
    lead_elsewhere,
    other_algorithm,
]


@pytest.mark.parametrize("harm", WAYS)
def test_damage_is_refused_in_one_line(checkpoint: Path, context: RunContext, harm: Callable[[Path], str]) -> None:
    problem = harm(checkpoint)
    with pytest.raises(ConfigError) as error:
        open_checkpoint(checkpoint, context)
    assert problem in str(error.value)
    assert str(checkpoint) in str(error.value)
    assert "\n" not in str(error.value)


def test_without_verification_nothing_is_compared(checkpoint: Path, context: RunContext) -> None:
    flip_bit(checkpoint)
    assert damage(checkpoint, replace(context, config=with_options(context.config, verify_integrity=False))) == []
    assert damage(checkpoint, context) != []


def test_a_checkpoint_without_checksums_is_loaded_with_one_line(
    checkpoint: Path, context: RunContext, capsys: pytest.CaptureFixture[str]
) -> None:
    (checkpoint / MANIFEST).unlink()
    assert damage(checkpoint, context) == []
    assert capsys.readouterr().err == (
        f"warning: {checkpoint}: is not verified, for it holds no {MANIFEST} with checksums of its files\n"
    )


def test_checksums_of_megatron_core_are_compared_too(checkpoint: Path, context: RunContext) -> None:
    files = [file for file in checkpoint.iterdir() if file.name != MANIFEST]
    digests = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    (checkpoint / MANIFEST).write_text(json.dumps({"algorithm": "sha256", "files": digests}))
    manifest = read_manifest(checkpoint)
    assert manifest is not None
    assert manifest.algorithm == "sha256"
    assert damage(checkpoint, context) == []
    flip_bit(checkpoint)
    assert damage(checkpoint, context) == [f"{checkpoint}: __0_0.distcp is damaged (its checksum differs)"]
