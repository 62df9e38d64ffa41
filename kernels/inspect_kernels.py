"""What the compiler makes of every kernel that ships, on every target, without a GPU.

    python kernels/inspect_kernels.py                             # a table; exit status 1 if a limit is broken
    python kernels/inspect_kernels.py --markdown                  # the same as Markdown
    python kernels/inspect_kernels.py --update kernels/README.md  # into the file, between its inspect_kernels marks

Limits: no stack and no spilled register; shared memory that the target has; matrix instructions (HMMA on sm_80, HGMMA
on sm_90, tcgen05 on sm_100, MFMA on gfx942) in kernels that multiply matrices; no fused fp64 product and sum in
kernels that promise bits.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import triton
from lpc_kernels.shipped import TARGETS, Shipped, shipped
from rich.console import Console
from rich.table import Table
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

# This program comes with `lpc_kernels`, which is used without megatron_lpc: so it has its own table, replacement of a
# file and error message, and not those of megatron_lpc/terminal.py, files.py and command_line.py.
MARKS = ("<!-- inspect_kernels -->", "<!-- /inspect_kernels -->")
COLUMNS = ("kernel", "target", "registers", "stack", "shared", "matrix", "fused fp64")


@dataclass(frozen=True)
class Target:
    """How to compile for a GPU, and what it has."""

    gpu: GPUTarget
    shared: int
    """Bytes of shared memory that one block may have (CUDA C programming guide, compute capabilities; CDNA3
    instruction set, LDS)."""
    matrix: str
    """Pattern of its matrix instructions."""


_TARGETS = {
    "sm_80": Target(GPUTarget("cuda", 80, 32), 163 * 1024, r"\bHMMA\b"),
    "sm_90": Target(GPUTarget("cuda", 90, 32), 227 * 1024, r"\bHGMMA\b"),
    "sm_100": Target(GPUTarget("cuda", 100, 32), 227 * 1024, r"\bUTC\w*MMA\b"),
    "gfx942": Target(GPUTarget("hip", "gfx942", 64), 64 * 1024, r"\bv_mfma_"),
}


@dataclass(frozen=True)
class Made:
    """One kernel as compiled for one target."""

    name: str
    target: str
    registers: int
    """Per thread, including AMD's accumulation registers."""
    stack: int
    """Bytes of local memory per thread, where spilled registers go."""
    shared: int
    """Bytes per block."""
    matrix: int
    """Matrix instructions in the code."""
    fused: int
    """Products and sums of fp64 that were written apart and are one instruction."""
    broken: tuple[str, ...]
    """Messages about the limits that it exceeds."""


def compile_kernel(name: str, target: str) -> Made:
    """Compile the row `name` of `shipped()` for `target`.

    Raises what Triton does for a kernel that does not compile.
    """
    row = next(row for row in shipped() if row.name == name)
    signature = {argument: row.types.get(argument, "constexpr") for argument in row.kernel.arg_names}
    # What the launcher would find by looking at pointers and sizes.
    attributes = {(row.kernel.arg_names.index(argument),): [["tt.divisibility", 16]] for argument in row.aligned}
    source = ASTSource(fn=row.kernel, signature=signature, constexprs=dict(row.constants), attrs=attributes)
    compiled = triton.compile(source, target=_TARGETS[target].gpu, options=dict(row.options))
    code, registers, stack = (
        _amd(compiled.asm["amdgcn"]) if "amdgcn" in compiled.asm else _nvidia(compiled.asm["cubin"])
    )
    matrix = len(re.findall(_TARGETS[target].matrix, code))
    # Fused ones are missing from those left. A quotient is compiled to products and sums too, so there may be more left
    # than written.
    written = len(re.findall(r"= f(?:add|sub|mul) (?:\w+ )*(?:<\d+ x )?double", compiled.asm["llir"]))
    left = len(re.findall(r"\bD(?:ADD|MUL)\b|\bv_(?:pk_)?(?:add|mul)_f64", code))
    shared, fused = compiled.metadata.shared, max(0, written - left)
    return Made(
        name, target, registers, stack, shared, matrix, fused, _broken(row, target, stack, shared, matrix, fused)
    )


def _nvidia(cubin: bytes) -> tuple[str, int, int]:
    """Machine code as text, registers, bytes of stack."""
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = _output(tools / "cuobjdump", "--dump-resource-usage", file.name)
        code = _output(tools / "nvdisasm", file.name)
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", usage)
    if found is None:
        raise RuntimeError(f"cuobjdump: no line 'REG: STACK: SHARED: LOCAL:' in its output: {usage.strip()}")
    registers, stack, local = map(int, found.groups())
    return code, registers, stack + local


def _amd(code: str) -> tuple[str, int, int]:
    def field(name: str) -> int:
        found = re.search(rf"\.{name}:\s+(\d+)", code)
        if found is None:
            raise RuntimeError(f"the assembler's text has no .{name}")
        return int(found[1])

    return (
        code,
        field("vgpr_count") + field("agpr_count"),
        field("private_segment_fixed_size") + 4 * field("vgpr_spill_count"),
    )


def _output(*command: Path | str) -> str:
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True).stdout


def _broken(row: Shipped, target: str, stack: int, shared: int, matrix: int, fused: int) -> tuple[str, ...]:
    limit = _TARGETS[target].shared
    return tuple(
        message
        for broken, message in (
            (stack > 0, f"{stack} bytes of stack"),
            (shared > limit, f"{shared} bytes of shared memory, {target} has {limit}"),
            (row.matrix and not matrix, "no matrix instruction"),
            (fused and not row.fused_fp64, f"{fused} fused fp64 operations"),
        )
        if broken
    )


def compile_all(targets: Sequence[str], jobs: int) -> list[Made]:
    """Every row of `shipped()` for those of `targets` that it ships for, in that order, `jobs` processes at a time."""
    wanted = [(row.name, target) for row in shipped() for target in targets if target in row.targets]
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        return list(pool.map(compile_kernel, *zip(*wanted, strict=True)))


def markdown(made: Sequence[Made]) -> str:
    """The table with the compiler's version above it, without a line end."""
    header = [
        f"Compiled with Triton {triton.__version__}.",
        "",
        f"| {' | '.join(COLUMNS)} |",
        f"|{'---|' * len(COLUMNS)}",
    ]
    return "\n".join([*header, *(f"| {' | '.join(_cells(each))} |" for each in made)])


def update(path: Path, text: str) -> None:
    """Put `text` between the marks of the file.

    Raises ValueError if it lacks them, OSError if it cannot be read or written.
    """
    before, found, rest = path.read_text(encoding="utf-8").partition(MARKS[0])
    _, closed, after = rest.partition(MARKS[1])
    if not (found and closed):
        raise ValueError(f"{path}: no line {MARKS[0]} with a line {MARKS[1]} after it, to put the table between")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(f"{before}{MARKS[0]}\n{text}\n{MARKS[1]}{after}", encoding="utf-8")
    os.replace(temporary, path)


def _cells(made: Made) -> tuple[str, ...]:
    numbers = (made.registers, made.stack, made.shared, made.matrix, made.fused)
    return made.name, made.target, *map(str, numbers)


def _table(made: Sequence[Made]) -> Table:
    table = Table(*COLUMNS, "broken limits", title=f"Triton {triton.__version__}")
    for each in made:
        table.add_row(*_cells(each), "; ".join(each.broken), style="red" if each.broken else None)
    return table


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--target", action="append", choices=TARGETS, help="only this one; may be repeated (default: all)"
    )
    parser.add_argument("--jobs", type=int, default=2, help="compile this many at a time (default: %(default)s)")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--markdown", action="store_true", help="print Markdown instead of a table for the terminal")
    form.add_argument(
        "--update", type=Path, metavar="FILE", help="write the Markdown between the inspect_kernels marks of this file"
    )
    arguments: Any = parser.parse_args(argv)
    if os.environ.get("TRITON_INTERPRET") == "1":
        parser.error("TRITON_INTERPRET=1 makes kernels that cannot be compiled; unset it")
    if arguments.jobs < 1:
        parser.error(f"--jobs must be at least 1, got {arguments.jobs}")
    made = compile_all(arguments.target or TARGETS, arguments.jobs)
    try:
        if arguments.update:
            update(arguments.update, markdown(made))
    except (OSError, ValueError) as error:
        print(f"inspect_kernels: {error}", file=sys.stderr)
        return 1
    if arguments.markdown:
        print(markdown(made))
    elif not arguments.update:
        Console().print(_table(made))
    for each in made:
        for message in each.broken:
            print(f"inspect_kernels: {each.name} on {each.target}: {message}", file=sys.stderr)
    return 1 if any(each.broken for each in made) else 0


if __name__ == "__main__":
    raise SystemExit(main())
