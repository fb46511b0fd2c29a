"""Loading beside a live display: whoever warns in a worker does not wait for a lock of the process it came from."""

import io
import sys
import threading

import torch
from torch.utils.data import DataLoader, Dataset

from camox.data.workers import prepare_worker
from camox.tracking.console import Console


class Warns(Dataset[torch.Tensor]):
    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> torch.Tensor:
        sys.stderr.write("a palette with transparency\n")  # pytest keeps warnings to itself
        return torch.zeros(1)


def test_a_warning_in_a_worker_that_was_forked_while_lines_were_drawn_hangs_nothing():
    console = Console(stream=io.StringIO(), terminal=True)
    with console.training(1, 1):
        held, released = threading.Event(), threading.Event()

        def draw():
            with console._out._lock:
                held.set()
                released.wait(60)

        thread = threading.Thread(target=draw)
        thread.start()
        held.wait(60)
        loader = iter(DataLoader(Warns(), num_workers=1, timeout=30, worker_init_fn=prepare_worker))
        released.set()
        assert next(loader).shape == (1, 1)
        thread.join()
