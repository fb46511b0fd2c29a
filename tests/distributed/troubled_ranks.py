"""Run by `accelerate launch` in two processes: trains as camox/train.py does, with trouble in process 1's data.

Arguments: "stalls", "raises" or "fills" (its memory), from the second epoch on, then those of camox/train.py. Processes
that the launcher has restarted have no trouble. The file that REACHED names says that it has come.
"""

import os
import sys
import time
from pathlib import Path
from typing import Any

import torch

from camox.data.loading import TrainSet
from camox.train import main


def wait_for_a_disk() -> None:
    while True:
        time.sleep(3600)


def meddle(trouble: str) -> None:
    load = TrainSet.__getitem__

    def troubled(dataset: TrainSet, key: Any) -> Any:
        if key[0] == 1:  # the epoch
            if reached := os.environ.get("REACHED"):
                Path(reached).touch()
            if trouble == "raises":
                raise ValueError("the camera bit")
            if trouble == "fills":
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            wait_for_a_disk()
        return load(dataset, key)

    TrainSet.__getitem__ = troubled  # type: ignore[method-assign]


if __name__ == "__main__":
    torch.set_num_threads(1)
    if os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        meddle(sys.argv[1])
    sys.exit(main(sys.argv[2:]))
