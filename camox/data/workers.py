"""What a process that loads data sets up before its first sample."""

import sys

import cv2


def prepare_worker(worker: int) -> None:
    """Of a DataLoader, as its `worker_init_fn`."""
    # OpenCV's own threads in every worker would fight for the same cores.
    cv2.setNumThreads(0)
    # A live display stands in for both streams in the process that this one was forked from. Its lock may have been
    # held then, by a thread that is not here: whoever warns would wait for ever.
    sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
