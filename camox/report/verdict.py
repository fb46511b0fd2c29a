"""What became of a run, in words: the first thing that its page says."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from camox.checkpoints.folders import is_better
from camox.inference.loading.selection import selected_on
from camox.measures.rendering import MEASURES
from camox.report.damage import missing_from
from camox.report.events import title_of_event
from camox.report.phases import duration, moment, spans_of
from camox.report.routers import RouterVerdict, judge_routers
from camox.report.run import Event, Run, ended
from camox.tracking.console import counted

_STATES = {0: "finished", 3: "stopped", 4: "paused", 130: "interrupted"}


@dataclass(frozen=True)
class Best:
    """The best validation that the run still stands by."""

    score: float
    weights: str
    """"raw" or "EMA"."""
    epoch: int
    """Counted from 1."""
    step: int
    checkpoint: str
    """Name of its folder; empty where there is none."""


@dataclass(frozen=True)
class Verdict:
    """The answers to what a person asks of a run."""

    state: str
    """"finished", "stopped" (by a guard), "paused", "interrupted", "failed", "running" or "gone" (killed)."""
    outcome: str
    best: Best | None
    selection: str
    phases: tuple[str, ...]
    routers: RouterVerdict
    stability: str
    is_calm: bool
    """Whether nothing was skipped or rolled back."""
    tests: tuple[str, ...]
    missing: tuple[str, ...]
    """What the folder should hold and does not, a sentence each."""


def judge(run: Run) -> Verdict:
    """All that can be said without the model."""
    state = state_of(run)
    stability, is_calm = _stability(run)
    return Verdict(
        state=state,
        outcome=_outcome(run, state),
        best=best_of(run),
        selection=selected_on(run.experiment) if run.experiment else "unknown: no valid experiment.toml",
        phases=tuple(_phases(run)),
        routers=judge_routers(run),
        stability=stability,
        is_calm=is_calm,
        tests=tuple(_tests(run.evaluation)),
        missing=tuple(missing_from(run, state == "finished")),
    )


def state_of(run: Run) -> str:
    """One word, see `Verdict.state`."""
    code = _code(run)
    if code is None:
        return "running" if run.is_locked else "gone"
    return _STATES.get(code, "failed")


def best_of(run: Run) -> Best | None:
    """The best scores, by the checkpoint that `best` names; where that is gone, of all that is left."""
    if run.best in run.checkpoints and run.best is not None:
        manifest = run.checkpoints[run.best]
        found = _better(manifest.measures, run.monitor)
        if found:
            return Best(*found, manifest.epoch, manifest.step, run.best.name)
    best: Best | None = None
    for path, manifest in run.checkpoints.items():
        found = _better(manifest.measures, run.monitor)
        if found and is_better(found[0], best.score if best else None, run.monitor):
            best = Best(*found, manifest.epoch, manifest.step, path.name)
    for row in run.validations():
        found = _better(row.values, run.monitor)
        if found and is_better(found[0], best.score if best else None, run.monitor):
            best = Best(*found, row.epoch + 1, row.step, "")
    return best


def number(value: Any, digits: int = 3) -> str:
    """A number for people, a dash where there is none."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return "–"
    return f"{value:.{digits}f}"


def title_of(measure: str) -> str:
    """What a measure is called in tables."""
    return MEASURES[measure][0] if measure in MEASURES else measure


def _code(run: Run) -> int | None:
    code = run.exit.get("code")
    if code is None:
        end = ended(run.events)
        code = end.details.get("code") if end else None
    return code if isinstance(code, int) else None


def _outcome(run: Run, state: str) -> str:
    reason = str(run.exit.get("reason") or getattr(ended(run.events), "message", ""))
    epochs = run.experiment.epochs if run.experiment else None
    done = max((manifest.epoch for manifest in run.checkpoints.values()), default=0)
    done = max([done, *(event.epochs_done for event in run.events), *(row.epoch for row in run.rows)])
    progress = f"{done} of {counted(epochs, 'epoch')} done" if epochs else f"{counted(done, 'epoch')} done"
    progress += f", step {run.last_step}"
    if state == "finished":
        if epochs is None or done < epochs:
            return f"exit.json says that it finished; of what is left, {progress}{_took(run)}."
        return f"All {counted(epochs, 'epoch')} are done, {counted(run.last_step, 'step')}{_took(run)}."
    if state == "running":
        return f"{progress}. Started {moment(_started(run))}; the newest number is of {moment(run.last_written)}."
    if state == "gone":
        gone = "It wrote no end and no process holds its folder: it was killed, or the machine went down"
        return f"{gone}. {progress}; the newest number is of {moment(run.last_written)}."
    guard = next((event.kind for event in reversed(run.events) if _is_stop(event)), None)
    by = f"Stopped by a guard, “{title_of_event(guard)}” ({guard}): " if state == "stopped" and guard else ""
    return f"{by}{reason or 'no reason was written'} ({progress})"


def _is_stop(event: Event) -> bool:
    return event.severity == "error" and event.kind != "end"


def _took(run: Run) -> str:
    """The time that the run was at work: from each start to its last event, pauses left out."""
    starts: list[list[float]] = []
    for event in run.events:
        if event.time is not None:
            if event.kind in ("start", "resume") or not starts:
                starts.append([])
            starts[-1].append(event.time)
    spent = sum(max(times) - min(times) for times in starts)
    return f", in {duration(spent)}" if spent else ""


def _started(run: Run) -> float | None:
    return next((event.time for event in reversed(run.events) if event.kind in ("start", "resume")), None)


def _better(measures: Mapping[str, float], monitor: str) -> tuple[float, str] | None:
    raw, ema = (measures.get(f"{kind}/{monitor}", math.nan) for kind in ("val", "val_ema"))
    if math.isnan(raw) and math.isnan(ema):
        return None
    return (ema, "EMA") if is_better(ema, raw, monitor) else (raw, "raw")


def _phases(run: Run) -> list[str]:
    spans = spans_of(run)
    told = [
        f"{span.name}: from step {span.after + 1} (epoch {span.epoch})" + (f", {span.began}" if span.began else "")
        for span in spans
    ]
    if run.experiment is not None:
        begun = {span.name for span in spans}
        waiting = [phase.name for phase in run.experiment.phases if phase.name not in begun]
        told += [f"{name}: not begun" for name in waiting]
    return told


def _stability(run: Run) -> tuple[str, bool]:
    skipped = int(max((value for value in run.series("stability/skipped_batches")[1] if value >= 0), default=0))
    rollbacks = [event for event in run.events if event.kind == "rollback"]
    nonfinite = sorted({name for row in run.rows for name, value in row.values.items() if math.isnan(value)})
    parts = []
    if skipped:
        share = f" ({skipped / run.last_step:.1%} of all)" if run.last_step else ""
        parts.append(f"{counted(skipped, 'step')} skipped as not finite{share}")
    if rollbacks:
        at = ", ".join(str(event.step) for event in rollbacks[:10]) + (" …" if len(rollbacks) > 10 else "")
        parts.append(f"{counted(len(rollbacks), 'rollback')}, at step {at}")
    warnings = [event for event in run.events if event.severity != "info" and event.kind not in ("end", "rollback")]
    if warnings:
        kinds = ", ".join(sorted({title_of_event(event.kind) for event in warnings}))
        parts.append(f"{counted(len(warnings), 'warning')}: {kinds}")
    if nonfinite:
        parts.append(f"logged as not finite: {', '.join(nonfinite[:3])}{' …' if len(nonfinite) > 3 else ''}")
    if parts:
        return "; ".join(parts) + ".", False
    return "No step was skipped, nothing was rolled back, and no guard spoke up.", True


def _tests(evaluation: Mapping[str, Any]) -> list[str]:
    datasets = evaluation.get("datasets")
    told = []
    for name, summary in datasets.items() if isinstance(datasets, dict) else ():
        if isinstance(summary, dict):
            scores = ", ".join(
                f"{title_of(measure)} {number(summary.get(measure))}" for measure in ("s_measure", "iou", "mae")
            )
            told.append(f"{name}: {scores} ({number(summary.get('count'), 0)} images)")
    return told
