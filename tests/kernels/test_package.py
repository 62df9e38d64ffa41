"""`lpc_kernels` by itself: its example runs, and what `pip install ./kernels` installs needs nothing of the rest."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import lpc_kernels
import pytest

KERNELS = Path(__file__).parents[2] / "kernels"

IMPORT_EVERY_MODULE = """
import importlib, importlib.util, pkgutil, sys
import lpc_kernels
assert lpc_kernels.__file__.startswith(sys.path[0]), lpc_kernels.__file__
has_triton = importlib.util.find_spec("triton") is not None
for module in pkgutil.walk_packages(lpc_kernels.__path__, "lpc_kernels."):
    needs_triton = module.name.rpartition(".")[2] in ("triton_kernels", "triton_backend", "shipped")
    needs_triton |= module.name == "lpc_kernels.gumbel_mix.ops"
    if has_triton or not needs_triton:
        importlib.import_module(module.name)
assert not any(name.split(".")[0] in ("megatron", "megatron_lpc") for name in sys.modules)
print(lpc_kernels.__version__)
"""


def test_example_of_the_readme_runs():
    (example,) = re.findall(r"```python\n(.*?)```", (KERNELS / "README.md").read_text(), flags=re.DOTALL)
    assert len(example.splitlines()) <= 15
    result = subprocess.run([sys.executable, "-c", example], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    loss = float(result.stdout)
    assert 0 < loss < 100


@pytest.mark.timeout(300)
def test_installs_without_the_rest(tmp_path):
    """From a copy, as a build leaves files beside the sources."""
    source, target = tmp_path / "kernels", tmp_path / "installed"
    shutil.copytree(KERNELS, source, ignore=shutil.ignore_patterns("build", "*.egg-info", "__pycache__"))
    install = ["install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--target", str(target)]
    subprocess.run([sys.executable, "-m", "pip", *install, str(source)], check=True)
    program = f"import sys; sys.path.insert(0, {str(target)!r})\n{IMPORT_EVERY_MODULE}"
    result = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == lpc_kernels.__version__
