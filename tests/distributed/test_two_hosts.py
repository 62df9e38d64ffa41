"""Two hosts with addresses and disks of their own train as one host does, also when the link between them is cut.

Pipeline stages lie across the hosts, tensor parallel ranks within one.
"""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from launch import run, torchrun_command
from process_tree import descendants, is_alive, kill
from run_files import checksums, metrics, names, newest_checkpoint, steps_done
from two_hosts import ADDRESSES, NAMES, TwoHosts, missing, two_hosts

pytestmark = [pytest.mark.distributed, pytest.mark.slow, pytest.mark.timeout(1800)]

STEPS = 40
TIMEOUT = 60
"""Seconds of `--distributed-timeout-minutes`, of which the least is one."""
PATIENCE = 300
PORT = 29577


@pytest.fixture(scope="module")
def hosts() -> Iterator[TwoHosts]:
    if (why := missing()) is not None:
        pytest.skip(why)
    with two_hosts() as pair:
        yield pair


@pytest.fixture(scope="module")
def flags(tiny_run) -> list[str]:
    layout = ["--tensor-model-parallel-size", "2", "--pipeline-model-parallel-size", "2"]
    saving = ["--save-interval", "5", "--keep-last", "2", "--load", "auto"]
    return ["--config", tiny_run.config, "--train-iters", str(STEPS), *layout, *saving]


@pytest.fixture(scope="module")
def calm(flags: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the run on one host that nothing disturbs."""
    save = tmp_path_factory.mktemp("calm") / "run"
    run(torchrun_command(4, "-m", "megatron_lpc.train", *flags, "--save", str(save)), timeout=PATIENCE)
    return save


@dataclass
class Training:
    """One training on both hosts, through however many launches."""

    hosts: TwoHosts
    flags: list[str]
    save: Path
    own_disk: Path | None = None
    launchers: list[subprocess.Popen] = field(default_factory=list)

    def start(self) -> None:
        """A launcher on each host."""
        self.launchers = []
        for host in range(2):
            rendezvous = ("--nnodes=2", f"--node-rank={host}", f"--master-addr={ADDRESSES[0]}", f"--master-port={PORT}")
            program = ("megatron_lpc.train", *self.flags, "--save", str(self.save))
            command = torchrun_command(2, "-m", *program, rendezvous=rendezvous)
            command[2] = "megatron_lpc.launch"
            self.launchers.append(self.hosts.start(host, command, self.log(host), self.own_disk))

    def log(self, host: int) -> Path:
        """What all launches of a host have printed."""
        return self.save.with_name(f"{self.save.name}-{host}.log")

    def output(self) -> str:
        return "\n\n".join(f"host {host}: {self.log(host).read_text()[-4000:]}" for host in range(2))

    def finish(self) -> None:
        """Wait for a good end."""
        codes = [launcher.wait(PATIENCE) for launcher in self.launchers]
        assert codes == [0, 0], self.output()

    def end(self) -> None:
        """Leave no process."""
        for launcher in self.launchers:
            for pid in [launcher.pid, *descendants(launcher.pid)]:
                kill(pid)
            launcher.wait()

    def wait(self, condition: Callable[[], bool], what: str, seconds: float = PATIENCE) -> float:
        """Seconds until it is so."""
        began = time.monotonic()
        while not condition():
            assert time.monotonic() < began + seconds, f"waited {seconds} s for {what}: {self.output()}"
            time.sleep(0.05)
        return time.monotonic() - began

    def have_ended(self) -> bool:
        return all(launcher.poll() is not None for launcher in self.launchers)


@pytest.fixture
def training(hosts: TwoHosts, flags: list[str], tmp_path: Path) -> Iterator[Training]:
    of_test = Training(hosts, [*flags, "--distributed-timeout-minutes", str(TIMEOUT // 60)], tmp_path / "run")
    yield of_test
    hosts.set_link(up=True)
    of_test.end()


def assert_same(save: Path, calm: Path) -> None:
    assert checksums(save, STEPS) == checksums(calm, STEPS)
    assert metrics(save) == metrics(calm)
    assert names(save) == names(calm), "something is left over"


def test_a_link_that_is_cut(training: Training, calm: Path) -> None:
    """For a moment: the run waits and goes on. For longer than the time-out: it ends, and resumes when started."""
    training.start()
    training.wait(lambda: steps_done(training.save) >= 8, "step 8")
    training.hosts.set_link(up=False)
    time.sleep(10)
    stood = steps_done(training.save)
    time.sleep(5)
    assert steps_done(training.save) == stood, "the stages do not need each other"
    training.hosts.set_link(up=True)
    seconds = training.wait(lambda: steps_done(training.save) >= stood + 4, "the run to go on")
    print(f"cut for 15 s after step {stood}: went on, 4 steps later {seconds:.0f} s after the link was back")
    assert not training.have_ended()

    processes = [pid for launcher in training.launchers for pid in descendants(launcher.pid)]
    training.hosts.set_link(up=False)
    seconds = training.wait(training.have_ended, "the end of both launchers", TIMEOUT + 120)
    cut, kept = steps_done(training.save), newest_checkpoint(training.save)
    codes = [launcher.returncode for launcher in training.launchers]
    print(f"cut again after step {cut}: both launchers ended after {seconds:.0f} s with {codes}; step {kept} is saved")
    assert 0 not in codes
    assert kept >= cut - 5
    for host in range(2):
        # Both have one kernel, so a rank sees that the processes of the other host have ended, where they have.
        message = rf"^error: rank \d \(host {NAMES[1 - host]}, .* (no sign of life for \d+ s|ended without a word)"
        assert re.search(message, training.log(host).read_text(), re.MULTILINE), "the other host is not named"
    training.wait(lambda: not any(map(is_alive, processes)), "the end of all processes", 10)

    training.hosts.set_link(up=True)
    training.start()
    training.finish()
    assert_same(training.save, calm)


def test_disks_of_their_own(training: Training, calm: Path, tmp_path: Path) -> None:
    """Each host tokenizes the data for itself; checkpoints lie in a folder that both share."""
    training.own_disk = tmp_path / "disk"
    training.own_disk.mkdir()
    training.flags += ["--data-cache-path", str(training.own_disk / "cache")]
    training.start()
    training.finish()
    assert names(training.own_disk) == [], "no host has a disk of its own"
    assert_same(training.save, calm)
