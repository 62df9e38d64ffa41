"""What each rank is doing, told to the other ranks, and an end to waiting for a rank that is silent.

A thread of each rank writes two lines per five seconds into the store of the process group: last step, phase, and the
function in which the main thread is. It also looks whether the next rank still does so. A rank that is stopped, hangs
in a call that holds the interpreter, or has died with its host does not.
"""

from __future__ import annotations

import atexit
import json
import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from typing import Any, TypeVar

import torch.distributed as dist

from megatron_lpc.training import phases
from megatron_lpc.training.phases import Beat, own_beat

T = TypeVar("T")

BEAT = 2.5
"""Seconds between two lines of a rank in the same phase."""
_PAUSE = 0.25
"""Seconds between two lines of a rank at least."""
_AGENT_SECONDS = 45.0
"""That a run may take to end: 30 in which torchrun's agent waits for a process that is stopped, and what is said."""


class StoreIsSilent(Exception):
    """The store of the process group does not answer: the process that keeps it is stopped or gone."""


_LONG = 5.0
"""Seconds after which a store that has not answered is given up."""
_is_silent = False
_threads: list[threading.Thread] = []


def ask_store(work: Callable[[Any], T], seconds: float = _LONG) -> T:
    """What `work` gets from the store of the process group, by a connection of its own.

    In a thread: a store whose process is stopped never answers, and torch's time-outs do not end that. One that has not
    answered for long is not asked again.

    Raises:
        StoreIsSilent: also where the store has an error.
    """
    global _is_silent
    if _is_silent:
        raise StoreIsSilent
    answers: queue.SimpleQueue[tuple[T | None, BaseException | None]] = queue.SimpleQueue()
    store: Any = dist.distributed_c10d._get_default_store()

    def ask() -> None:
        try:
            answers.put((work(store.clone()), None))
        except Exception as error:
            answers.put((None, error))

    _start(ask)
    try:
        answer, error = answers.get(timeout=seconds)
    except queue.Empty:
        _is_silent = seconds >= _LONG
        raise StoreIsSilent from None
    if error is not None:
        raise StoreIsSilent from error
    return answer  # type: ignore[return-value]


def _start(work: Callable[[], None]) -> None:
    thread = threading.Thread(target=work, daemon=True, name=f"heartbeat {work.__name__}")
    _threads[:] = [other for other in _threads if other.is_alive()] + [thread]
    thread.start()


@atexit.register
def _end_threads() -> None:
    """A thread that comes back from the store while the interpreter ends would abort the process."""
    if _heartbeat is not None:
        _heartbeat.end_threads()
    end = time.monotonic() + _LONG
    for thread in _threads:
        thread.join(max(0.0, end - time.monotonic()))


def _key(rank: int) -> str:
    return f"megatron_lpc/heartbeat/{rank}"


class Heartbeat:
    """The two threads of a rank: one talks to the store, one counts for how long there was nothing new.

    Args:
        timeout: seconds that a collective may wait.
        give_up: called, in a thread, when the next rank or the store is silent for so long that the run ends within
            `timeout`, a rank killed by torchrun's agent included. It ends the process, unless all ranks are well.
    """

    def __init__(self, timeout: float, give_up: Callable[[], None]) -> None:
        self._patience = max(timeout / 3, timeout - _AGENT_SECONDS)
        self._give_up = give_up
        self._stops = threading.Event()
        self._has_news = True
        store: Any = dist.distributed_c10d._get_default_store()
        self._store = store.clone()
        self._rank, self._world_size = dist.get_rank(), dist.get_world_size()
        self.first: Beat | None = None
        """The latest line of rank 0, with which the store may go."""
        self._write()
        for work in (self._talk, self._count):
            _start(work)

    def stop(self) -> None:
        """This rank has come to its end, for which nobody waits."""
        self.end_threads()
        phases.end()
        self.tell()

    def end_threads(self) -> None:
        """No more lines."""
        self._stops.set()

    def tell(self) -> None:
        """Write this rank's line now."""
        with suppress(StoreIsSilent):
            ask_store(self._write_into, 1.0)

    def _talk(self) -> None:
        last: bytes | None = None
        written, wrote = phases.count(), time.monotonic()
        while not self._stops.wait(_PAUSE):
            is_due = time.monotonic() >= wrote + BEAT
            if not is_due and phases.count() == written:
                continue
            with suppress(RuntimeError):  # Of a store that is gone there is no news.
                written = phases.count()
                self._write()
                if self.first is None or is_due:
                    first = self._read(0)
                    self.first = Beat(**json.loads(first)) if first else None
                if not is_due:
                    continue
                wrote = time.monotonic()
                line = self._read((self._rank + 1) % self._world_size)
                if line != last or (line and json.loads(line)["speaks"]):
                    last, self._has_news = line, True

    def _read(self, rank: int) -> bytes | None:
        return self._store.get(_key(rank)) if self._store.check([_key(rank)]) else None

    def _count(self) -> None:
        silent, last = 0.0, time.monotonic()
        while not self._stops.wait(BEAT):
            # A process that was itself stopped has not waited.
            passed, last = time.monotonic() - last, time.monotonic()
            silent = 0.0 if self._has_news else silent + min(passed, 2 * BEAT)
            self._has_news = False
            if silent > self._patience:
                self._give_up()

    def _write(self) -> None:
        self._write_into(self._store)

    def _write_into(self, store: Any) -> None:
        store.set(_key(self._rank), json.dumps(asdict(own_beat())))


_heartbeat: Heartbeat | None = None


def start_heartbeat(timeout: float, give_up: Callable[[], None]) -> None:
    """Begin to tell what this rank does, in a world of several; arguments are those of `Heartbeat`."""
    global _heartbeat
    stop_heartbeat()
    phases.begin()
    if dist.get_world_size() > 1 and dist.get_backend() != "fake":
        _heartbeat = Heartbeat(timeout, give_up)


def stop_heartbeat() -> None:
    """This rank has come to its end, for which nobody waits."""
    global _heartbeat
    if _heartbeat is not None:
        _heartbeat.stop()
        _heartbeat = None


def latest_beats() -> list[Beat]:
    """The latest line of each rank; of rank 0 and this one where the store is silent; none without a heartbeat."""
    if _heartbeat is None:
        return []

    def read(store: Any) -> list[Beat]:
        keys = [_key(rank) for rank in range(dist.get_world_size())]
        return [Beat(**json.loads(store.get(key))) for key in keys if store.check([key])]

    try:
        return ask_store(read, _LONG + dist.get_world_size() / 100)
    except StoreIsSilent:
        return [own_beat(), *([_heartbeat.first] if _heartbeat.first else [])]


def tell_failure(error: BaseException | None = None) -> None:
    """This rank has failed, and says why: it is not the one that others wait for. Its lines go on."""
    phases.end(error)
    if _heartbeat is not None:
        _heartbeat.tell()
