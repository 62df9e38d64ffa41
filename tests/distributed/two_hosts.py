"""Two hosts on this machine: network namespaces with a name and an address each and a link between them, and disks of
their own.

Needs root and iproute2; `missing` says what is not there.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from launch import ENVIRONMENT

ADDRESSES = ("10.77.0.1", "10.77.0.2")
_INTERFACE = "hostnet"
NAMES = ("host-0", "host-1")
_BE_HOST = """
echo "$1" > /proc/sys/kernel/hostname
if [ -n "$2" ]; then mount -t tmpfs none "$2"; export TMPDIR="$2"; fi
shift 2
exec "$@"
"""


def missing() -> str | None:
    """Why there can be no such hosts here; None where there can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "there is no `ip` (iproute2)"
    name = f"lpc-{os.getpid()}-try"
    made = _ip("netns", "add", name, check=False)
    if made.returncode != 0:
        return f"ip netns add: {made.stderr.strip()}"
    _ip("netns", "del", name)
    return None


@dataclass(frozen=True)
class TwoHosts:
    """Host 0 and host 1."""

    namespaces: tuple[str, str]

    def set_link(self, up: bool) -> None:
        """Cut the cable between them, or put it back."""
        _ip("-n", self.namespaces[0], "link", "set", _INTERFACE, "up" if up else "down")

    def start(self, host: int, command: Sequence[str], log: Path, own_disk: Path | None = None) -> subprocess.Popen:
        """Run a command on a host.

        Args:
            log: gets what it prints, behind what is there.
            own_disk: a folder that is an empty disk of this host, for this command and what it starts.
        """
        be_host = ["unshare", "--uts", "sh", "-ec", _BE_HOST, "sh", NAMES[host], str(own_disk or "")]
        variables = {"GLOO_SOCKET_IFNAME": _INTERFACE, "TP_SOCKET_IFNAME": _INTERFACE}
        with log.open("ab") as output:
            return subprocess.Popen(
                ["ip", "netns", "exec", self.namespaces[host], *be_host, *command],
                env=ENVIRONMENT | variables,
                stdout=output,
                stderr=subprocess.STDOUT,
            )


@contextmanager
def two_hosts() -> Iterator[TwoHosts]:
    """They are gone in the end."""
    hosts = TwoHosts((f"lpc-{os.getpid()}-0", f"lpc-{os.getpid()}-1"))
    try:
        for name in hosts.namespaces:
            _ip("netns", "add", name)
            _ip("-n", name, "link", "set", "lo", "up")
        end = ("type", "veth", "peer", "name", _INTERFACE, "netns", hosts.namespaces[1])
        _ip("-n", hosts.namespaces[0], "link", "add", _INTERFACE, *end)
        for name, address in zip(hosts.namespaces, ADDRESSES, strict=True):
            _ip("-n", name, "address", "add", f"{address}/24", "dev", _INTERFACE)
            _ip("-n", name, "link", "set", _INTERFACE, "up")
        yield hosts
    finally:
        for name in hosts.namespaces:
            _ip("netns", "del", name, check=False)


def _ip(*words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0 or not check, f"ip {' '.join(words)}: {done.stderr}"
    return done
