"""What threads and workers are doing, as they say when asked."""

import multiprocessing
import signal
import threading
import time

import pytest

from camox.stability.stacks import WorkerStacks, thread_stacks


def waits_for_a_friend(released: threading.Event) -> None:
    released.wait()


def test_each_thread_has_its_name_and_its_calls_the_last_one_at_the_end():
    released = threading.Event()
    friend = threading.Thread(target=waits_for_a_friend, args=(released,), name="friend", daemon=True)
    friend.start()
    try:
        paragraphs = thread_stacks().split("thread ")[1:]
    finally:
        released.set()
        friend.join()
    assert paragraphs[0].startswith("MainThread\n")
    assert paragraphs[0].splitlines()[-1].endswith(" thread_stacks")
    (ours,) = [text for text in paragraphs if text.startswith("friend\n")]
    line = waits_for_a_friend.__code__.co_firstlineno + 1
    assert f"    {__file__}:{line} waits_for_a_friend\n" in ours


def works(ready) -> None:
    ready.set()
    sleeps_in_a_worker()


def sleeps_in_a_worker() -> None:
    time.sleep(3600)


@pytest.fixture
def stacks():
    opened = WorkerStacks()
    opened.open()
    yield opened
    opened.close()


def test_each_worker_answers_and_goes_on(stacks):
    context = multiprocessing.get_context("fork")
    workers = []
    try:
        for number in range(2):
            ready = context.Event()
            workers.append(context.Process(target=works, args=(ready,), name=f"loader-{number}", daemon=True))
            workers[-1].start()
            assert ready.wait(60)
        text = stacks.ask()
        assert all(worker.is_alive() for worker in workers)
    finally:
        for worker in workers:
            worker.kill()
            worker.join()
    for worker in workers:
        _, _, told = text.partition(f"worker {worker.name}, pid {worker.pid}\n")
        assert "sleeps_in_a_worker" in told.partition("worker ")[0]


def test_a_worker_that_cannot_answer_is_named(stacks, monkeypatch):
    monkeypatch.setattr("camox.stability.stacks._PATIENCE", 0.2)
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    worker = context.Process(target=deaf, args=(ready,), name="deaf", daemon=True)
    worker.start()
    try:
        assert ready.wait(60)
        assert stacks.ask() == f"worker deaf, pid {worker.pid}\n    does not answer"
    finally:
        worker.kill()
        worker.join()


def deaf(ready) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
    ready.set()
    time.sleep(3600)


def test_another_use_of_the_signal_is_left_alone():
    heard = []
    before = signal.signal(signal.SIGUSR2, lambda number, frame: heard.append(number))
    try:
        stacks = WorkerStacks()
        stacks.open()
        signal.raise_signal(signal.SIGUSR2)
        assert stacks.ask() == ""
        stacks.close()
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert heard == [signal.SIGUSR2]
