"""Waiting for other ranks, however long they take: a collective that waits fails after
`distributed_timeout_minutes`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from itertools import count

import torch.distributed as dist
from torch.distributed.distributed_c10d import _get_default_store

from megatron_lpc.config import ConfigError

_LONGEST_PAUSE = 1.0
"""Seconds between two looks of a rank that has been waiting for a while."""
_call_numbers = count()


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
            exit_code = getattr(error, "exit_code", ConfigError.exit_code)
            store.set(key, json.dumps({"error": str(error) or type(error).__name__, "exit_code": exit_code}))
            raise
        store.set(key, json.dumps({"result": result}))
        return result
    _wait_for([key])
    answer = json.loads(store.get(key))
    if "error" in answer:
        failed = ConfigError(answer["error"])
        failed.exit_code = answer["exit_code"]
        raise failed
    return answer["result"]


def wait_for_all_ranks() -> None:
    """Return when every rank has called this. Collectives: none; as `from_first_rank`."""
    prefix = f"megatron_lpc/wait_for_all_ranks/{next(_call_numbers)}"
    _get_default_store().set(f"{prefix}/{dist.get_rank()}", "here")
    _wait_for([f"{prefix}/{rank}" for rank in range(dist.get_world_size())])


def _wait_for(keys: list[str]) -> None:
    """Wait until the store of the process group has these keys."""
    store = _get_default_store()
    pause = 0.01
    while not store.check(keys):
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)
