"""A run that fails ends with its message: one rank says why, and the launcher adds nothing."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from megatron_lpc import launch

pytestmark = pytest.mark.distributed
WORKER = str(Path(__file__).parent / "failing_worker.py")
Launch = Callable[..., tuple[int, str]]


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Launch]:
    """Launches two ranks from this process; gives the exit code, and all that was printed as an error."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    signals = {number: signal.getsignal(number) for number in signal.valid_signals() if signal.getsignal(number)}
    for name in launch.ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TORCH_CPP_LOG_LEVEL", "FATAL")  # gloo tells of each connection that is closed.
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    def start(*arguments: str) -> tuple[int, str]:
        code: object = 0
        try:
            launch.main(["--standalone", "--nproc-per-node", "2", *arguments])
        except SystemExit as end:
            code = end.code
        assert isinstance(code, int)
        return code, capfd.readouterr().err

    yield start
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    for number, handler in signals.items():
        if number not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(number, handler)


@pytest.mark.parametrize(
    ("way", "code", "message"),
    [
        ("mistake", 2, "error: this cannot work; do that"),
        ("full disk", 1, "error: /somewhere/file: No space left on device"),
        ("known elsewhere", 1, "error: the cause"),
        ("killed", 137, "error: the process of rank 1 was ended by SIGKILL"),
    ],
)
def test_the_message_is_the_end(launched: Launch, way: str, code: int, message: str) -> None:
    ended, errors = launched(WORKER, way)
    lines = errors.splitlines()
    told = [line for line in lines if not re.match(r"rank 0 ends, as another rank has: ", line)]
    assert told == [message], errors
    assert len(lines) <= 2
    assert ended == code


@pytest.mark.parametrize(
    ("way", "why", "code"), [("stops", "is stopped (SIGSTOP)", 1), ("dies", "has ended without a word", 137)]
)
def test_a_rank_that_others_wait_for(launched: Launch, way: str, why: str, code: int) -> None:
    ended, errors = launched(WORKER, way)
    first, *more = errors.splitlines()
    assert re.fullmatch(
        rf"error: rank 1 \(host \S+, process \d+\) {re.escape(why)}: "
        r"its last known step is 3, and it was in optimizer \(\w+\); "
        r"rank 0 waits in evaluation \(all_reduce\) after step 3",
        first,
    ), errors
    assert more == (["error: the process of rank 1 was ended by SIGKILL"] if way == "dies" else [])
    assert ended == code


def test_one_rank_shows_its_stack_trace(launched: Launch) -> None:
    ended, errors = launched(WORKER, "bug")
    assert ended == 1
    assert errors.count("Traceback (most recent call last)") == 1, errors
    assert errors.count('raise ZeroDivisionError("in the program")') == 1
    assert "ChildFailedError" not in errors


def test_a_success_is_silent(launched: Launch, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text("")
    assert launched(str(program)) == (0, "")
