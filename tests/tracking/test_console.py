import io
import os
import subprocess
import sys
from typing import Any

import pytest

from camox.tracking.console import Console, counted, duration

MEASURES = ("iou", "dice", "s_measure", "f_weighted", "f_max", "f_mean", "f_adaptive", "e_max", "mae")
RAW: dict[str, Any] = {"count": 10, "loss": 0.8, **dict.fromkeys(MEASURES, 0.5)}
RAW["groups"] = {name: {"iou": 0.5} for name in ("forest", "desert", "underwater", "rock", "mixture[/x]")}
VALUES = {
    "train/loss": 0.4321,
    "train/iou": 0.5123,
    "lr/backbone": 1e-4,
    "lr/head": 8e-4,
    "train/images_per_second": 1234.5,
}


@pytest.mark.parametrize(
    ("number", "noun", "text"),
    [(1, "step", "1 step"), (0, "step", "0 steps"), (2, "step", "2 steps"), (1, "process", "1 process"),
     (2, "process", "2 processes"), (3, "training sample", "3 training samples")],
)  # fmt: skip
def test_numbers_with_their_nouns(number, noun, text):
    assert counted(number, noun) == text


def test_a_bar_counts_on_a_terminal_and_is_silent_elsewhere():
    for terminal in (True, False):
        stream = io.StringIO()
        with Console(stream=stream, terminal=terminal, width=80).counting("examining[b]", 3) as advance:
            for _ in range(3):
                advance()
        assert ("examining[b]" in stream.getvalue()) == terminal
        assert ("3/3" in stream.getvalue()) == terminal


def everything(console):
    console.header("camox", [("experiment", "a[bold]b.toml"), ("device", "cpu")])
    console.warning("file[/red].png is odd")
    with console.training(total_steps=100000, total_epochs=200) as progress:
        progress.start_epoch("a_phase_with_a_long_name", 199, 2)
        progress.advance(51240)
        progress.advance(51241, VALUES)
    console.validation(RAW, {**RAW, "iou": 0.6}, epoch=199, step=51241)
    console.verdict("problem", "12", "damaged[b]", [("a[/x].png", "remove it")], ["the loader fails"])
    console.verdict("note", "3", "grey masks")
    console.checkpoint("runs/x/checkpoints/epoch_0005", seconds=1.23, note="best s_measure 0.712")
    console.table("sizes[i]", ["name", "images"], [["a[b]", 3]])
    console.summary("done", [("best", "runs/x/checkpoints/epoch_0005")])
    console.notice("bye")
    console.error("no[thing]")


def printed(**arguments):
    stream = io.StringIO()
    everything(Console(stream=stream, **arguments))
    return stream.getvalue()


@pytest.mark.parametrize("terminal", [False, True])
def test_brackets_are_printed_as_they_are(terminal, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    text = printed(terminal=terminal, width=80)
    for literal in ("a[bold]b.toml", "file[/red].png", "mixture[/x]", "a[b]", "sizes[i]", "no[thing]"):
        assert literal in text


def test_inactive_console_prints_nothing():
    assert printed(active=False) == ""


def test_inactive_console_prints_nothing_on_a_terminal():
    assert printed(active=False, terminal=True) == ""


def test_log_file_gets_no_control_characters():
    text = printed(terminal=False)
    assert all(character.isprintable() or character == "\n" for character in text)


def test_no_color_is_respected(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    assert not any(f"\x1b[{code}m" in printed(terminal=True, width=80) for code in range(30, 38))


def test_terminal_output_fits_80_columns(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    stream = io.StringIO()
    Console(stream=stream, terminal=True, width=80).validation(RAW, RAW, epoch=199, step=51241)
    plain = stream.getvalue().replace("\x1b[1m", "").replace("\x1b[2m", "").replace("\x1b[0m", "")
    assert max(len(line) for line in plain.splitlines()) <= 80


def test_one_line_per_log_interval():
    stream = io.StringIO()
    with Console(stream=stream, terminal=False).training(total_steps=10, total_epochs=1) as progress:
        progress.start_epoch("full", 1, 10)
        for step in range(1, 11):
            progress.advance(step, VALUES if step % 5 == 0 else None)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("full 1/1  step 5/10  loss 0.4321  IoU 0.512  ETA ")
    assert lines[0].endswith("lr 8.0e-04  1234 img/s")


def test_raw_and_ema_are_both_shown():
    stream = io.StringIO()
    Console(stream=stream, terminal=False).validation({"iou": 0.25}, {"iou": 0.75}, epoch=1, step=2)
    assert "raw: IoU 0.250" in stream.getvalue()
    assert "ema: IoU 0.750" in stream.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (7.4, "0:07"), (750, "12:30"), (11100, "3:05:00"), (-1, "0:00")]
)
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_warnings_and_errors_go_to_standard_error(capsys):
    console = Console()
    console.notice("note")
    console.warning("careful")
    console.error("wrong")
    captured = capsys.readouterr()
    assert captured.out == "note\n"
    assert captured.err == "warning: careful\nerror: wrong\n"


def test_a_reader_that_is_gone_ends_nothing():
    script = (
        "import sys; from camox.tracking.console import Console; console = Console()\n"
        "for _ in range(9): console.notice('x' * 100_000); sys.stdout.flush()\n"
        "print('went on', file=sys.stderr)"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(1)
        process.stdout.close()
        assert process.stderr.read() == b"went on\n"
    assert process.returncode == 0


def test_a_closed_terminal_ends_no_run(tmp_path):
    """As when an ssh connection or a notebook's cell goes away: its processes go on to save, and to tell their code."""
    script = f"""
import pathlib, sys, time
from camox.tracking.console import Console
console, folder = Console(), pathlib.Path({str(tmp_path)!r})
console.notice("here")
while not (folder / "closed").exists():
    time.sleep(0.02)
console.notice("nobody reads this")
console.warning("nor this")
sys.stderr.write("nor this, which train.py writes at its end")
sys.exit(4)
"""
    ours, theirs = os.openpty()
    with subprocess.Popen([sys.executable, "-c", script], stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        assert os.read(ours, 4) == b"here"
        os.close(ours)
        (tmp_path / "closed").touch()
        assert process.wait(60) == 4
