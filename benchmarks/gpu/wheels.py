"""The packages that the parts need beside torch and Triton: fetched into a folder, and installed from it.

So a machine without a network can run the parts, in a Python that has torch and Triton only.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import venv
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

REQUIRED = ("pytest", "pytest-timeout", "hypothesis", "pyyaml", "rich", "matplotlib", "numpy")
"""What the tests and the benchmark of the kernels import."""
OPPONENTS = ("liger-kernel==0.8.5", "trl==1.16.0", "quack-kernels", "megatron-core>=0.16.1,<0.17")
"""Libraries that are measured beside the kernels; a run does without one that does not install."""
_GIVEN = {"torch": "2.13.0", "triton": "3.7.1"}
"""What the Python with the GPU has, and the version to assume where this Python lacks it."""


class PackageError(Exception):
    """pip could not do it; the message is its last line."""


def prepare(folder: Path, required: Sequence[str] = REQUIRED, opponents: Sequence[str] = OPPONENTS) -> dict[str, str]:
    """Fetch wheels for this Python and platform; returns why opponents are left out, by name.

    Raises PackageError if a required package cannot be fetched.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _download(folder, required)
    left_out: dict[str, str] = {}
    for opponent in opponents:
        try:
            _download(folder, [opponent])
        except PackageError as error:
            left_out[opponent] = str(error)
    return left_out


def install(folder: Path, required: Sequence[str] = REQUIRED, opponents: Sequence[str] = OPPONENTS) -> dict[str, str]:
    """Install into this Python from the folder alone; returns why opponents are left out, by name.

    Raises PackageError if a required package cannot be installed.
    """
    offline = ("install", "--no-index", "--find-links", str(folder))
    _pip(*offline, *required)
    left_out: dict[str, str] = {}
    for opponent in opponents:
        try:
            _pip(*offline, opponent)
        except PackageError as error:
            left_out[opponent] = str(error)
    return left_out


def _download(folder: Path, requirements: Sequence[str]) -> None:
    """Fetch requirements with all that they need beside torch and Triton, and what those need."""
    with tempfile.TemporaryDirectory() as temporary:
        python = _python_with_torch(Path(temporary) / "environment")
        report = Path(temporary) / "report.json"
        _pip("--python", str(python), "install", "--dry-run", "--report", str(report), *requirements)
        found = json.loads(report.read_text(encoding="utf-8"))["install"]
    pinned = [f"{package['metadata']['name']}=={package['metadata']['version']}" for package in found]
    if pinned:
        _pip("wheel", "--no-deps", "--wheel-dir", str(folder), *pinned)


def _python_with_torch(folder: Path) -> Path:
    """An empty environment which pip takes for one with torch and Triton: it has their names and versions only."""
    venv.create(folder)
    (packages,) = folder.glob("lib/python*/site-packages")
    for name, default in _GIVEN.items():
        description = packages / f"{name}-{_version(name, default)}.dist-info"
        description.mkdir()
        lines = ("Metadata-Version: 2.1", f"Name: {name}", f"Version: {_version(name, default)}", "")
        (description / "METADATA").write_text("\n".join(lines), encoding="utf-8")
    return folder / "bin" / "python"


def _version(name: str, default: str) -> str:
    """Of the installed package, without the part behind a plus sign."""
    try:
        return metadata.version(name).partition("+")[0]
    except metadata.PackageNotFoundError:
        return default


def _pip(*arguments: str) -> None:
    """Raises PackageError if it fails."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        lines = (done.stderr or done.stdout).strip().splitlines() or [f"pip ended with status {done.returncode}"]
        raise PackageError(lines[-1])
