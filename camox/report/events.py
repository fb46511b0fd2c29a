"""What the kinds of events mean, in a sentence each, and events as a table for people."""

from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

from camox.report.phases import moment
from camox.report.run import Event
from camox.tracking.console import counted


class Meaning(NamedTuple):
    """What an event is called for people, in a few words, and what it says about a run."""

    title: str
    text: str


MEANINGS = {
    "unscored": Meaning(
        "Nothing to score",
        "Without an object in a held-out image no measure is defined, and no checkpoint can be the best.",
    ),
    "start": Meaning("Start", "Training began from the first step."),
    "resume": Meaning("Resumed", "Training went on from a checkpoint."),
    "frozen": Meaning(
        "Frozen backbone stages",
        "How much of the backbone is kept as it was before training; it changes where a phase begins.",
    ),
    "pause": Meaning(
        "Paused", "A signal or the time limit ended training early; its state was saved, and --resume auto goes on."
    ),
    "end": Meaning("End", "The process that trained ended, with this reason."),
    "tracking": Meaning(
        "Tracker or picture failed",
        "Weights & Biases, TensorBoard, or a picture for them failed; training does not depend on it.",
    ),
    "report": Meaning(
        "Report not written",
        "This page could not be written at the end of training; camox report makes it at any time.",
    ),
    "evaluation": Meaning(
        "Test data not scored", "The test data could not be scored after training; camox evaluate does it at any time."
    ),
    "plateau": Meaning(
        "Learning rate lowered",
        "The schedule lowered the learning rate, because the monitored measure had stopped improving.",
    ),
    "bad_sample": Meaning("Unreadable sample", "A sample could not be read; training goes on without it."),
    "skipped_step": Meaning(
        "Step skipped",
        "A step's loss or gradient was not finite, so it changed no weight; routine now and then in fp16.",
    ),
    "skipped_steps": Meaning("Many steps skipped", "Many steps in a row were not finite, which is no accident."),
    "router_gradients": Meaning(
        "Router gradients not finite",
        "Only the routers' gradients were not finite: they are trained more carefully from here.",
    ),
    "loss_scale": Meaning("fp16 overflows", "Under fp16 too many steps overflowed, or the loss scale fell too low."),
    "spike": Meaning(
        "Loss spike",
        "The loss or the gradient was far above the last steps': a batch like no other, or a rate too high.",
    ),
    "dip": Meaning(
        "One poor validation", "A validation was far below the best one, but losses were as before; nothing was done."
    ),
    "explosion": Meaning(
        "Scores fell apart", "The monitored measure fell below half of its best and the loss rose: learning was undone."
    ),
    "decline": Meaning(
        "Scores declining", "The monitored measure fell in three validations in a row by more than chance."
    ),
    "router_collapse": Meaning(
        "Router collapse", "A router sends nearly all images to the same experts, or treats all images alike."
    ),
    "validation": Meaning("NaN in validation", "The model gave NaN on held-out images."),
    "checkpoint": Meaning(
        "Checkpoint not saved", "A checkpoint could not be saved, because weights were not finite or the disk refused."
    ),
    "damaged_checkpoint": Meaning(
        "Damaged checkpoint", "A checkpoint did not match its checksums and was passed over."
    ),
    "recovery": Meaning("Setting changed", "A setting was changed to help against what a guard had found."),
    "rollback": Meaning(
        "Rollback",
        "Training went back to an earlier checkpoint and on from there, at a lower rate and in another order.",
    ),
    "replay": Meaning(
        "Step repeated in fp32",
        "A step that was not finite was taken again in fp32, which names the operation at fault.",
    ),
    "stall": Meaning(
        "Training stood still",
        "Nothing moved for longer than stability.stall_seconds; every thread's stack is in stacks.txt.",
    ),
    "memory": Meaning("Memory full", "The device's memory was full."),
}
"""By kind, as events.jsonl has it."""

_KEPT = 3
_MOST = 400


def title_of_event(kind: str) -> str:
    """Words for a kind of event, which a newer or older camox may have alone."""
    return MEANINGS[kind].title if kind in MEANINGS else kind.replace("_", " ")


def event_rows(events: Sequence[Event]) -> list[dict[str, object]]:
    """Rows of a table; of many events of one kind in a row only the first and the last ones are shown."""
    rows: list[dict[str, object]] = []
    for _, group in groupby(events, key=lambda event: event.kind):
        same = list(group)
        if len(same) <= 2 * _KEPT:
            rows += map(_row, same)
            continue
        between = same[_KEPT:-_KEPT]
        steps = f"steps {between[0].step} to {between[-1].step}"
        text = f"{counted(len(between), 'more event')} of this kind, {steps}, {_are(len(between))} in events.jsonl"
        rows += [*map(_row, same[:_KEPT]), _row(between[0]) | {"message": text}, *map(_row, same[-_KEPT:])]
    if len(rows) > _MOST:
        left_out: dict[str, object] = {
            "time": "",
            "step": "",
            "epochs_done": "",
            "kind": "",
            "title": "…",
            "severity": "info",
            "meaning": "",
        }
        left_out["message"] = f"{len(rows) - _MOST} rows are left out here; all are in events.jsonl"
        rows = [*rows[: _MOST // 2], left_out, *rows[-_MOST // 2 :]]
    return rows


def _are(number: int) -> str:
    return "is" if number == 1 else "are"


def _row(event: Event) -> dict[str, object]:
    return {
        "time": moment(event.time),
        "step": event.step,
        "epochs_done": event.epochs_done,
        "kind": event.kind,
        "severity": event.severity if event.severity in ("info", "warning", "error") else "info",
        "message": event.message,
        "title": title_of_event(event.kind),
        "meaning": MEANINGS[event.kind].text if event.kind in MEANINGS else "",
    }
