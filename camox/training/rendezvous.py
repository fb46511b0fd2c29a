"""Lets processes that an elastic launcher has restarted find each other."""

import os
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from torch.distributed import PrefixStore, Store
from torch.distributed.rendezvous import register_rendezvous_handler, rendezvous

_SCHEME = "restarted"


def init_method() -> str | None:
    """What `init_process_group` should use; None: its default, the environment.

    The launcher of one machine serves one store for all restarts, with `accelerate launch` as with torchrun, and
    there the processes of before have left their addresses: the new ones would wait for these. Launchers of several
    machines count their restarts each for itself, and `--rdzv_backend c10d` gives them a new store every time.
    """
    if _restarts() == "0" or os.environ.get("GROUP_WORLD_SIZE") != "1":
        return None
    return f"{_SCHEME}://"


def _restarts() -> str:
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")


def _meet(url: str, timeout: timedelta, **options: Any) -> Iterator[tuple[Store, int, int]]:
    for store, rank, ranks in rendezvous("env://", timeout=timeout, **options):
        yield PrefixStore(f"restart_{_restarts()}", store), rank, ranks


register_rendezvous_handler(_SCHEME, _meet)
