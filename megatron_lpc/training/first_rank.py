"""Waiting for other ranks, however long they take: a collective that waits fails after
`distributed_timeout_minutes`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from itertools import count
from typing import Any, TypeVar

import torch.distributed as dist
from torch.distributed.distributed_c10d import _get_default_store

from megatron_lpc.config import ConfigError

_LONGEST_PAUSE = 1.0
"""Seconds between two looks of a rank that has been waiting for a while."""
_call_numbers = count()
T = TypeVar("T")


def from_first_rank(work: Callable[[], str]) -> str:
    """What `work` returns on rank 0, on all ranks, which must call this in the same order.

    Collectives: none. The other ranks look again and again whether the store of the process group has the result yet.

    Raises:
        ConfigError: on the other ranks, with the message of whatever was raised on rank 0, and its exit code.
    """
    store = _get_default_store()
    key = f"megatron_lpc/from_first_rank/{next(_call_numbers)}"
    if dist.get_rank() == 0:
        try:
            result = work()
        except BaseException as error:
            store.set(key, json.dumps({"error": _content(error)}))
            raise
        store.set(key, json.dumps({"result": result}))
        return result
    _wait_for([key])
    answer = json.loads(store.get(key))
    if "error" in answer:
        raise _failed(answer["error"])
    return answer["result"]


def on_every_rank(work: Callable[[], T]) -> T:
    """What `work` returns here, when it has returned on every rank.

    Collectives: none; as `from_first_rank`.

    Raises:
        ConfigError: on the other ranks, with the message of what was raised on one of them, and its exit code.
    """
    store, prefix = _get_default_store(), f"megatron_lpc/on_every_rank/{next(_call_numbers)}"
    failed = f"{prefix}/failed"
    try:
        result = work()
    except BaseException as error:
        store.set(failed, json.dumps(_content(error)))
        raise
    finally:
        store.set(f"{prefix}/{dist.get_rank()}", "done")
    _wait_for([f"{prefix}/{rank}" for rank in range(dist.get_world_size())], unless=failed)
    if store.check([failed]):
        raise _failed(json.loads(store.get(failed)))
    return result


def wait_for_all_ranks() -> None:
    """Return when every rank has called this. Collectives: none; as `from_first_rank`."""
    on_every_rank(lambda: None)


def _content(error: BaseException) -> dict[str, Any]:
    exit_code = getattr(error, "exit_code", ConfigError.exit_code)
    return {"message": str(error) or type(error).__name__, "exit_code": exit_code}


def _failed(content: dict[str, Any]) -> ConfigError:
    failed = ConfigError(content["message"])
    failed.exit_code = content["exit_code"]
    return failed


def _wait_for(keys: list[str], unless: str | None = None) -> None:
    """Wait until the store of the process group has these keys, or has `unless`."""
    store = _get_default_store()
    pause = 0.01
    while not store.check(keys) and not (unless and store.check([unless])):
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)
