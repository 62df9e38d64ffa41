"""The built wheel, installed without the checkout: it holds every module, all can be imported, every program answers.

The environment sees the libraries of the test environment by a `.pth` file. Python does not process the `.pth` files of
a folder that is added so, which leaves out the finder of an editable installation: all of this project comes from the
wheel.
"""

from __future__ import annotations

import configparser
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {"megatron_lpc": ROOT / "megatron_lpc", "lpc_kernels": ROOT / "kernels" / "lpc_kernels"}
IMPORT_MODULES = """
import importlib, json, sys
files, missing = {}, {}
for name in sys.argv[1:]:
    try:
        files[name] = importlib.import_module(name).__file__
    except ModuleNotFoundError as error:
        missing[name] = error.name
print(json.dumps([files, missing]))
"""


@dataclass(frozen=True)
class Installation:
    """A virtual environment that holds the wheel, and an empty folder to work in."""

    wheel: Path
    environment: Path
    empty: Path

    def run(self, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a program of the environment, which knows nothing of the checkout."""
        variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        command = [str(self.environment / "bin" / program), *arguments]
        return subprocess.run(
            command, cwd=self.empty, env=variables, capture_output=True, text=True, timeout=300, check=False
        )

    @property
    def modules(self) -> set[str]:
        """The Python files of the wheel, as they are imported."""
        with ZipFile(self.wheel) as content:
            return {_module(Path(name)) for name in content.namelist() if name.endswith(".py")}

    @property
    def console_programs(self) -> dict[str, str]:
        """Command -> module of each console entry point."""
        entry_points = configparser.ConfigParser()
        with ZipFile(self.wheel) as content:
            (file,) = (name for name in content.namelist() if name.endswith(".dist-info/entry_points.txt"))
            entry_points.read_string(content.read(file).decode())
        return {name: target.partition(":")[0] for name, target in entry_points["console_scripts"].items()}


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Installation:
    pytest.importorskip("setuptools")
    folder = tmp_path_factory.mktemp("wheel")
    # From a copy: a build writes beside the sources, and takes up what an earlier one left there.
    source = folder / "source"
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info", "build")
    for package in ("megatron_lpc", "kernels"):
        shutil.copytree(ROOT / package, source / package, ignore=ignored)
    for file in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, source)
    _pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(source))
    (wheel,) = folder.glob("*.whl")

    environment = folder / "environment"
    venv.create(environment, with_pip=False, symlinks=True)
    _pip("--python", str(environment / "bin" / "python"), "install", "--no-deps", "--no-index", str(wheel))
    (site_packages,) = environment.glob("lib/python*/site-packages")
    libraries = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (site_packages / "libraries.pth").write_text("\n".join(libraries) + "\n", encoding="utf-8")

    empty = folder / "empty"
    empty.mkdir()
    return Installation(wheel, environment, empty)


def _pip(*arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


def _module(file: Path) -> str:
    """`a/b.py` -> `a.b`, `a/__init__.py` -> `a`."""
    parts = file.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _modules_of_checkout() -> dict[str, Path]:
    """All modules that the wheel must hold, with their files."""
    return {
        _module(file.relative_to(package.parent)): file
        for package in PACKAGES.values()
        for file in package.rglob("*.py")
    }


def _programs() -> list[str]:
    """What follows `python -m` for each program of the checkout."""
    is_program = {
        name: 'if __name__ == "__main__":' in file.read_text("utf-8") for name, file in _modules_of_checkout().items()
    }
    # What an export for servers is given runs from there.
    names = [name for name, answers in is_program.items() if answers and ".convert.hub." not in name]
    return sorted(name.removesuffix(".__main__") for name in names)


def test_the_wheel_holds_every_module_and_no_other(installation):
    assert installation.modules == set(_modules_of_checkout())
    with ZipFile(installation.wheel) as content:
        page = {f"megatron_lpc/evaluation/report/page.{suffix}" for suffix in ("html", "css")}
        assert {"megatron_lpc/py.typed", "lpc_kernels/py.typed", *page} <= set(content.namelist())


def test_every_module_can_be_imported(installation):
    programs = {name for name in installation.modules if name.endswith(".__main__")}  # Importing runs them.
    wanted = sorted(installation.modules - programs)
    done = installation.run("python", "-c", IMPORT_MODULES, *wanted)
    assert done.returncode == 0, done.stderr
    files, missing = json.loads(done.stdout.splitlines()[-1])
    # Triton may be missing, and servers import their logits processors in an environment of their own.
    absent = {library for library in ("triton", "vllm", "sglang") if importlib.util.find_spec(library) is None}
    unexpected = {name: library for name, library in missing.items() if library not in absent}
    assert not unexpected, "these modules lack a library"
    outside = [name for name, file in files.items() if not Path(file).is_relative_to(installation.environment)]
    assert not outside, "these modules are not those of the wheel"


def _command(program: str) -> str:
    """Console entry point of a program: `megatron_lpc.train` -> `megatron-lpc-train`."""
    return program.replace(".", "-").replace("_", "-")


def test_every_program_has_a_console_entry_point(installation):
    programs = installation.console_programs
    assert sorted(programs) == sorted(_command(program) for program in _programs())
    assert set(programs.values()) <= installation.modules


@pytest.mark.parametrize("program", _programs())
def test_every_program_answers_help(installation, program):
    for command in (("python", "-m", program), (_command(program),)):
        done = installation.run(*command, "--help")
        assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
        assert "usage" in done.stdout.lower(), command
