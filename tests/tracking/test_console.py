import io
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from camox.tracking.console import Console, InOnePiece, counted, duration

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


def test_where_every_step_was_skipped_there_is_no_loss_and_no_nan():
    stream = io.StringIO()
    with Console(stream=stream, terminal=False).training(total_steps=10, total_epochs=1) as progress:
        progress.start_epoch("full", 1, 10)
        progress.advance(1, VALUES | {"train/loss": float("nan"), "train/iou": float("nan"), "amp/skip_rate": 1.0})
    assert "step 1/10  all skipped  ETA" in stream.getvalue()
    assert "nan" not in stream.getvalue()


@pytest.mark.parametrize("before", [0, 40])
def test_the_rest_takes_as_long_as_the_steps_since_the_start(before, monkeypatch):
    """Two seconds for each of three steps of a hundred, of which a resumed run had taken 40 before."""
    stream, clock = io.StringIO(), iter([0.0, 6.0])
    monkeypatch.setattr("camox.tracking.progress.time.monotonic", lambda: next(clock))
    with Console(stream=stream, terminal=False).training(total_steps=100, total_epochs=1) as progress:
        progress.start_epoch("full", 1, 100, completed=before)
        for step in range(1, 4):
            progress.advance(before + step, VALUES if step == 3 else None)
    assert f"ETA {duration(2 * (97 - before))}  " in stream.getvalue()


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


class Terminal(io.StringIO):
    """A stream that says it is a terminal, as one that a person sits before."""

    def isatty(self):
        return True


def without_codes(text):
    """What was written, without what moves the cursor and changes colour."""
    import re

    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def test_what_is_counted_within_training_stands_below_its_line():
    stream = io.StringIO()
    console = Console(stream=stream, terminal=True, width=80)
    with console.training(total_steps=10, total_epochs=5) as progress:
        progress.start_epoch("full", 2, 10)
        progress.advance(1, VALUES)
        with console.counting("validating EMA", 20) as done:
            done(15)
        progress.advance(2, VALUES)
    drawn = without_codes(stream.getvalue())
    lines = drawn.replace("\r", "\n").splitlines()
    (at, *_) = [number for number, line in enumerate(lines) if line.startswith("validating EMA") and "15/20" in line]
    assert lines[at - 1].startswith("full 2/5")
    assert "loss 0.4321" in lines[at - 1]
    assert lines[-2].startswith("full 2/5")  # and is alone again


def test_counts_of_several_processes_end_at_the_total():
    stream = io.StringIO()
    with Console(stream=stream, terminal=True, width=80).counting("validating", 5) as done:
        done(4)
        done(4)
    assert "5/5" in stream.getvalue()
    assert "8/5" not in stream.getvalue()


@pytest.mark.parametrize(("seconds", "lines"), [(0.1, 0), (1, 3), (100, 10)])
def test_a_log_gets_a_line_each_half_minute_or_tenth_whichever_is_later(seconds, lines, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    stream = io.StringIO()
    with Console(stream=stream, terminal=False).counting("scoring NC4K", 100) as done:
        for _ in range(100):
            now[0] += seconds
            done()
    written = stream.getvalue().splitlines()
    assert len(written) == lines
    assert all(line.startswith("scoring NC4K: ") and "images/s" in line for line in written)
    if lines == 3:
        assert written[0] == "scoring NC4K: 30/100 (30%)  ETA 1:10  1.0 images/s"


@pytest.mark.parametrize(
    "environment", [{"TERM": "dumb"}, {"CI": "true"}, {"FORCE_COLOR": "1", "TERM": "xterm", "plain": "1"}], ids=str
)
def test_nothing_moves_where_nobody_could_see_it(environment, monkeypatch):
    """In a log of a CI machine every change of a live line would be a line."""
    monkeypatch.setenv("TERM", "xterm")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    stream = io.StringIO() if "plain" in environment else Terminal()
    everything(Console(stream=stream, width=80))
    assert "\x1b[2K" not in stream.getvalue()
    assert "\x1b[?25l" not in stream.getvalue()
    assert "step 51241/100000" in stream.getvalue()  # the line of a log, in place of the bar


def test_lines_are_live_on_a_terminal(monkeypatch):
    for name in ("CI", "FORCE_COLOR", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    everything(Console(stream=stream, width=80))
    assert "\x1b[2K" in stream.getvalue()


@pytest.mark.parametrize("width", [10, 20, 40])
def test_live_lines_fit_a_narrow_terminal(width):
    stream = io.StringIO()
    console = Console(stream=stream, terminal=True, width=width)
    with console.training(total_steps=100000, total_epochs=200) as progress:
        progress.start_epoch("a_phase_with_a_long_name", 199, 2)
        progress.advance(51241, VALUES)
        with console.counting("scoring a dataset of a very long name", 4121) as done:
            done(4121)
    drawn = without_codes(stream.getvalue()).replace("\r", "\n").splitlines()
    assert max(map(len, drawn)) <= width
    if width == 40:
        assert any("4121/4121" in line for line in drawn)


def test_scores_fit_a_narrow_terminal(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    stream = io.StringIO()
    Console(stream=stream, terminal=True, width=40).validation(RAW, RAW, epoch=199, step=51241)
    lines = without_codes(stream.getvalue()).splitlines()
    assert max(map(len, lines)) <= 40
    assert "MAE" in stream.getvalue()


def test_a_terminal_breaks_lines_between_words_and_leaves_paths_and_commands_whole():
    path, command = Path("runs/a_long_name/of_a_run/that_goes_on"), "camox predict runs/a_long_name IMAGES --out DIR"
    for width in (30, 40, 80):
        stream = io.StringIO()
        console = Console(stream=stream, terminal=True, width=width)
        console.summary(
            "done", [("run folder", path), ("why", f"a word and {path} and more words")], [("go", InOnePiece(command))]
        )
        console.warning(f"something is wrong with {path}: do something about it")
        text = without_codes(stream.getvalue())
        assert text.count(str(path)) == 3
        assert command in text
        allowed = {line for line in text.splitlines() if str(path) in line or command in line}
        assert all(len(line) <= width for line in text.splitlines() if line not in allowed)


def test_a_note_on_a_checkpoint_is_not_torn():
    for width, lines in ((40, 2), (100, 1)):
        stream = io.StringIO()
        console = Console(stream=stream, terminal=True, width=width)
        console.checkpoint("runs/x/checkpoints/epoch_0005", seconds=1.23, note="best s_measure 0.712")
        text = without_codes(stream.getvalue())
        assert len(text.splitlines()) == lines
        assert max(map(len, text.splitlines())) <= width


def test_a_log_has_lines_of_any_length_and_tables_that_are_not_folded():
    stream = io.StringIO()
    console = Console(stream=stream, terminal=False, width=80)
    console.warning("word " * 50)
    console.table("scores", ["", *(f"dataset_number_{number}" for number in range(9))], [["S", *["0.8864 ±0.015"] * 9]])
    lines = stream.getvalue().splitlines()
    assert lines[0] == "warning: " + "word " * 50
    assert any(line.count("0.8864 ±0.015") == 9 for line in lines)
    assert all(line == line.rstrip() for line in lines[1:])


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
@pytest.mark.parametrize("terminal", [False, True])
def test_any_encoding_can_carry_what_is_said(encoding, terminal):
    """As with PYTHONIOENCODING=ascii, an old Windows console, or a file whose name is no text."""
    kept = io.BytesIO()
    stream = io.TextIOWrapper(kept, encoding=encoding)
    console = Console(stream=stream, terminal=terminal, width=60)
    everything(console)
    console.table("±", ["≥", "…"], [["×", "0.5 ±0.1"]])
    console.verdict("warn", "lr", "2e-3 → 1e-3", [("rate ≥ 1", "lower it")])
    console.warning("\udcff.png and 图.png cannot be read")
    with console.counting("a name that is too long for the line", 3) as done:
        done()
    stream.flush()
    text = kept.getvalue().decode(encoding)
    assert ("->" in text) == (encoding != "utf-8")
    assert ("±" in text) == (encoding != "ascii")
    assert "\\udcff.png" in text


def test_the_command_line_speaks_ascii():
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "camox", "score", "--help"]  # has a "…"
    shown = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "0 ... 255" in " ".join(shown.stdout.replace("|", " ").split())
