"""What a run says of itself at its end: how it went, where everything is, and what to do next.

Read back from the run's own files, so that a run of several starts is told as a whole.
"""

import json
import shlex
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from camox.errors import TrainingPaused, TrainingStopped
from camox.experiment import Experiment
from camox.inference.loading.selection import selected_on
from camox.measures.rendering import NAMES
from camox.tracking.console import Console, InOnePiece, counted, duration
from camox.tracking.jsonl import read_records
from camox.training.run_state import Position

Record = Mapping[str, Any]
Rows = list[tuple[str, object]]

_OUTCOMES = {
    0: "done",
    TrainingPaused.exit_code: "paused",
    TrainingStopped.exit_code: "stopped by a guard",
    130: "interrupted",
}
_TEST_MEASURES = ("s_measure", "f_weighted", "mae", "iou")


def summarise(console: Console, experiment: Experiment, at: Position, best: Record, code: int) -> None:
    """Prints the end of a run, on the main process: all of it where it is done, else what is needed to go on.

    Args:
        at: where it ended.
        best: of `Saver.best`.
        code: its exit code.
    """
    if not console.active:
        return
    run = experiment.run_folder
    events, rows = read_records(run / "events.jsonl"), read_records(run / "metrics.jsonl")
    went: Rows = [("trained", f"{at.epoch} of {counted(experiment.epochs, 'epoch')}, {counted(at.step, 'step')}")]
    went += _how_long(events)
    if best:
        went += _best(experiment, best, rows)
    if code == 0 and experiment.data.test:
        went += _test_scores(run)
    went += _how_well(rows)
    went.append(("guards", _kinds(events)))
    outcome = _OUTCOMES.get(code, f"failed with code {code}")
    console.summary(f"{outcome}: {experiment.experiment.name}", went, [*_places(run, best)], [*_next(run, code)])


def _how_long(events: Sequence[Record]) -> Rows:
    starts = [event["time"] for event in events if event.get("kind") in ("start", "resume")]
    if not starts:
        return []
    text = duration(time.time() - starts[-1])
    return [("took", text if len(starts) == 1 else f"{text} since the last of {len(starts)} starts")]


def _best(experiment: Experiment, best: Record, rows: Sequence[Record]) -> Rows:
    monitor, epoch = experiment.checkpoints.monitor, best["epoch"]
    score = f"{best['score']:.4f} at epoch {epoch}, {best['weights']} weights"
    for row in rows:  # after a rollback the last of several is the one that counts
        if row["epoch"] == epoch - 1 and None not in (row.get(f"val/{monitor}"), row.get(f"val_ema/{monitor}")):
            both = f"raw {row[f'val/{monitor}']:.4f}, EMA {row[f'val_ema/{monitor}']:.4f}"
            score = f"{both} at epoch {epoch}: {best['weights']} weights"
    return [(f"best {monitor}", score), ("selected on", selected_on(experiment))]


def _test_scores(run: Path) -> Rows:
    try:
        datasets = json.loads((run / "evaluation" / "measures.json").read_text(encoding="utf-8"))["datasets"]
    except (OSError, ValueError, LookupError):  # the evaluation has said why there are none
        return []
    found: Rows = []
    for name, scores in datasets.items():
        known = [f"{NAMES[key]} {scores[key]:.3f}" for key in _TEST_MEASURES if scores.get(key) is not None]
        found.append(("tested", f"{name}: {', '.join(known)}"))
    return found


def _how_well(rows: Sequence[Record]) -> Rows:
    """Steps that were lost, memory and speed."""
    found: Rows = []
    last = {name: value for row in rows for name, value in row.items() if name.startswith("stability/")}
    if "stability/skipped_batches" in last:
        skipped = counted(last["stability/skipped_batches"], "step")
        found.append(("lost", f"{skipped} skipped, {counted(last['stability/rollbacks'], 'rollback')}"))
    if peaks := [peak for row in rows if (peak := row.get("memory/peak_gib")) is not None]:
        found.append(("peak memory", f"{max(peaks):.2f} GiB of the GPU"))
    speeds: dict[str, list[float]] = {}
    for row in rows:
        if row.get("train/images_per_second") is not None:
            speeds.setdefault(row["phase"], []).append(row["train/images_per_second"])
    if speeds:
        of_phases = ", ".join(f"{median(values):.1f} in {phase}" for phase, values in speeds.items())
        found.append(("images/s", f"{of_phases} (medians)"))
    return found


def _kinds(events: Sequence[Record]) -> str:
    """Kinds of warnings and errors, the most frequent first."""
    kinds = Counter(event["kind"] for event in events if event["severity"] != "info" and event["kind"] != "end")
    return ", ".join(f"{kind} {number}" for kind, number in kinds.most_common()) or "no warnings"


def _places(run: Path, best: Record) -> Iterator[tuple[str, object]]:
    places = {"run folder": run}
    if best:
        places["best checkpoint"] = run / "checkpoints" / f"epoch_{best['epoch']:04d}"
    latest = _pointed_at(run / "checkpoints" / "latest")
    if latest != places.get("best checkpoint"):
        places["last checkpoint"] = latest or run / "checkpoints" / "latest"
    places |= {name: run / file for name, file in _FILES.items()}
    yield from ((name, place) for name, place in places.items() if place.exists())
    yield from _wandb(run)


_FILES = {
    "numbers": "metrics.jsonl",
    "events": "events.jsonl",
    "test scores": "evaluation",
    "report": "report.html",
    "stacks": "stacks.txt",
}


def _pointed_at(pointer: Path) -> Path | None:
    try:
        return pointer.parent / pointer.read_text(encoding="utf-8").strip()
    except OSError:
        return None


def _wandb(run: Path) -> Iterator[tuple[str, object]]:
    """Where Weights & Biases has the run, or how to send it there; TensorBoard's command too."""
    try:
        address = json.loads((run / "wandb_run.json").read_text(encoding="utf-8")).get("url")
    except (OSError, ValueError, AttributeError):
        address = None
    if address:
        yield "W&B", InOnePiece(address)
    elif parts := sorted((run / "wandb").glob("offline-run-*")):
        yield "W&B, to send", InOnePiece(f"wandb sync {' '.join(shlex.quote(str(part)) for part in parts)}")
    if (run / "tensorboard").is_dir():
        yield "TensorBoard", InOnePiece(f"tensorboard --logdir {shlex.quote(str(run / 'tensorboard'))}")


def _next(run: Path, code: int) -> Iterator[tuple[str, object]]:
    """Commands, to be copied."""
    folder, experiment = shlex.quote(str(run)), shlex.quote(str(run / "experiment.toml"))
    if code == 0:
        yield "inspect it", InOnePiece(f"camox inspect {folder}")
        yield "predict with it", InOnePiece(f"camox predict {folder} IMAGES --out DIR")
        yield "score it", InOnePiece(f"camox evaluate {folder} --data NAME=PATH")
        if not (run / "report.html").exists():
            yield "report on it", InOnePiece(f"camox report {folder}")
        return
    if code == TrainingStopped.exit_code:
        yield "look at it", InOnePiece(f"camox inspect {folder} --last-clean")
        if (run / "replays").is_dir():
            yield "find the cause", InOnePiece(f"camox diagnose --replay {folder}")
    yield "go on", InOnePiece(f"camox train {experiment} --resume auto")
