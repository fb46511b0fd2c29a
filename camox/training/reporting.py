"""What a run says while it goes on: to the console, to events.jsonl, and to the trackers."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from camox.errors import TrainingPaused, TrainingStopped
from camox.experiment import Experiment, ResolvedPhase
from camox.tracking.console import Console
from camox.tracking.events import EventLog, Severity
from camox.tracking.tensorboard_tracker import TensorBoardTracker
from camox.tracking.trackers import JsonlTracker, Picture, Tracker, Trackers
from camox.tracking.wandb_tracker import WandbTracker
from camox.training.held_out_pictures import harmless
from camox.training.phases import phase_of
from camox.training.run_state import Position
from camox.training.saving import Saved
from camox.training.telemetry import Scores, score_values

_UNSCORED = (
    "no held-out image has an object, so no measure is defined and no checkpoint can be the best: hold out more by "
    "data.val_fraction, others by experiment.seed, or name some by data.val"
)


class Reporter:
    """Hands events and numbers on; silent on all processes but the main one, and before `open`.

    Args:
        phases: of the run.
        active: whether this is the main process.
    """

    def __init__(self, phases: Sequence[ResolvedPhase], active: bool):
        self.phases = phases
        self.active = active
        self.console = Console(active=active)
        self._events: EventLog | None = None
        self._trackers = Trackers([])
        self._artifacts = "none"
        self._is_refused = False
        self._is_unscored = False
        self._draws = True
        self._experiment: Experiment | None = None

    def open(self, experiment: Experiment, at: Position) -> None:
        """Opens the files of the run's folder, and Weights & Biases and TensorBoard if they are wanted, for a run that
        goes on from `at`.

        Raises:
            ExperimentError: one of them is asked for and cannot be had.
        """
        if not self.active:
            return
        self._experiment = experiment
        settings, folder = experiment.tracking, experiment.run_folder
        self._events = EventLog(folder / "events.jsonl", resume_step=at.step)
        resume_step = at.step or None
        environment = (folder / "environment.json").read_text(encoding="utf-8")

        def warn(text: str) -> None:
            self.event("tracking", text, at)

        trackers: list[Tracker] = [JsonlTracker(folder / "metrics.jsonl", resume_step=at.step)]
        if settings.tensorboard:
            text = {"experiment": _indented(experiment.to_toml()), "environment": _indented(environment)}
            trackers.append(TensorBoardTracker(folder, text, resume_step, warn))
        wandb = WandbTracker(
            settings.wandb,
            settings.project,
            settings.entity,
            experiment.experiment.name,
            {**experiment.plain(), "environment": json.loads(environment)},
            folder,
            experiment.experiment.notes,
            experiment.experiment.tags,
            resume=at.step > 0,
            warn=warn,
        )
        self._trackers, self._artifacts = Trackers([*trackers, wandb]), settings.artifacts

    def event(
        self,
        kind: str,
        message: str,
        at: Position,
        severity: Severity = "warning",
        details: Mapping[str, Any] | None = None,
    ) -> None:
        """Keeps an event; warnings are shown too."""
        if self._events is None:
            return
        with self._once_refused():
            self._events.append(kind, message, step=at.step, epoch=at.epoch, severity=severity, details=details)
        if severity != "info" and kind != "tracking":  # what a tracker says of itself it cannot send
            self._trackers.alert(kind, message, severity, step=at.step)
        if severity == "warning":
            self.console.warning(message)

    def log(self, values: Mapping[str, Any], step: int, epoch: int, phase: str) -> None:
        """Hands the numbers of a step to the trackers."""
        with self._once_refused():
            self._trackers.log(values, step=step, epoch=epoch, phase=phase)

    @property
    def troubles(self) -> int:
        """Warnings and errors among the events so far."""
        return 0 if self._events is None else self._events.troubles

    def validated(
        self,
        scores: Scores,
        values: Mapping[str, Any],
        at: Position,
        draw: Callable[[], Mapping[str, Picture]],
        undrawn: str = "",
    ) -> None:
        """Tells what the validation after the epoch that has just ended found.

        `values` are logged beside the scores. `draw` gives pictures, by name; it is called only where a tracker takes
        them. `undrawn` says why some of them are lost: it is told once, and no more are shown.
        """
        self.console.validation(scores["val"], scores.get("val_ema"), epoch=at.epoch, step=at.step)
        if scores["val"].get("count") == 0 and not self._is_unscored:
            self._is_unscored = True
            self.event("unscored", _UNSCORED, at)
        epoch = at.epoch - 1
        phase = phase_of(epoch, self.phases).name
        self.log({**values, **score_values(scores)}, at.step, epoch, phase)
        if not (self._trackers.takes_pictures and self._draws):
            return
        troubles = [undrawn] if undrawn else []
        with harmless(troubles):
            if not undrawn and (pictures := draw()):
                self._trackers.show(pictures, step=at.step, epoch=epoch, phase=phase)
        if troubles:
            self._draws = False
            self.event("tracking", f"no more pictures: drawing or showing them failed ({troubles[0]})", at)

    @contextmanager
    def _once_refused(self) -> Iterator[None]:
        """A full disk ends the run by the first line that it refuses; what is said of that end must not fail too."""
        try:
            yield
        except TrainingStopped:
            if not self._is_refused:
                self._is_refused = True
                raise

    def saved(self, saved: Saved) -> None:
        """Tells of a checkpoint that is safe."""
        at, epoch = saved.position, max(0, saved.position.epoch - (saved.position.batch == 0))
        self.console.checkpoint(saved.path, seconds=saved.seconds, note=saved.note)
        values = {"checkpoint/seconds": saved.seconds, "checkpoint/blocked_seconds": saved.blocked}
        self.log(values, at.step, epoch, phase_of(epoch, self.phases).name)
        if self._artifacts == "all" or (self._artifacts == "best" and saved.is_best):
            aliases = ["latest", saved.path.name, *(["best"] if saved.is_best else [])]
            self._trackers.keep(saved.path, saved.measures, aliases)

    def end(self, code: int, reason: str, at: Position) -> None:
        """Keeps how the run ended, and closes."""
        is_sound = code in (0, TrainingPaused.exit_code)
        self.event("end", reason, at, "info" if is_sound else "error", {"code": code})
        self.close()

    def write_page(self, code: int, at: Position) -> None:
        """Writes report.html into the folder of a run that has ended and been closed.

        A pause has seconds left, and after a failure of the code nobody asks how good the model is: no page for these.
        """
        if self._experiment is None or not self._experiment.tracking.report:
            return
        if code not in (0, TrainingStopped.exit_code):
            return
        folder = self._experiment.run_folder
        try:
            from camox.report.report import write_report  # imports what no step needs

            self.console.notice(f"report: {write_report([folder])}")
        except KeyboardInterrupt:  # the second Ctrl-C, of somebody who does not want to wait
            self.console.notice(f"no report: camox report {folder} makes it")
        except Exception as error:  # noqa: BLE001  the run is done and safe, whatever is wrong with its page
            text = f"report.html could not be written: {error}"
            try:
                self._events = EventLog(folder / "events.jsonl")
                self.event("report", text, at)
            except (OSError, TrainingStopped):  # a full disk, which takes no line either
                self.console.warning(text)
            self.close()

    def close(self) -> None:
        """Closes files and trackers; what is said later is lost."""
        if self._events is not None:
            self._events.close()
            self._events = None
        self._trackers.finish()


def _indented(text: str) -> str:
    """As Markdown shows code."""
    return "".join(f"    {line}" for line in text.splitlines(keepends=True))
