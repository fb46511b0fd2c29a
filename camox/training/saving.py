"""When a run is saved, under which name, and what is kept; written in the background where that is asked for."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from accelerate import Accelerator

from camox.checkpoints.store import is_better, retain, set_pointer, write_checkpoint
from camox.checkpoints.writer import BackgroundWriter, TensorGroups
from camox.errors import CheckpointError
from camox.experiment.schema import Checkpoints
from camox.training.processes import fail_together
from camox.training.run_state import Position, RunState, better_weights
from camox.training.telemetry import Scores, score_values


class Saved(NamedTuple):
    """A checkpoint that was written."""

    path: Path
    position: Position
    seconds: float
    """From the decision to save until it was safe on the disk."""
    blocked: float
    """Seconds of these for which training stood still."""
    note: str
    is_best: bool
    """Whether no checkpoint before it was as good."""
    measures: Mapping[str, float]


class Saver:
    """Writes a run's checkpoints, on its main process, and remembers the best score.

    `best` is {"score", "epoch", "weights"} of the best checkpoint so far, empty before the first. `failed` says on the
    main process that a checkpoint could not be written; `settle` then raises on all.

    Args:
        config: the arguments that build the model.
        fingerprint: the experiment's.
        report: is told, on the main process, of every checkpoint that is safe.
    """

    def __init__(
        self,
        run: Path,
        settings: Checkpoints,
        config: Mapping[str, Any],
        fingerprint: str,
        accelerator: Accelerator,
        report: Callable[[Saved], None],
    ):
        self.run = run
        self.settings = settings
        self.config = config
        self.fingerprint = fingerprint
        self.accelerator = accelerator
        self.report = report
        self.best: dict[str, Any] = {}
        self._failure: CheckpointError | None = None
        self._writer: BackgroundWriter[Saved] = BackgroundWriter(settings.asynchronous)

    def state_dict(self) -> dict[str, Any]:
        return self.best

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best = state

    def improves(self, scores: Scores, epoch: int) -> bool:
        """Whether the scores after `epoch` are better than all before; remembers them if they are."""
        monitor = self.settings.monitor
        weights, score = better_weights(scores, monitor)
        if score is None or not is_better(score, self.best.get("score"), monitor):
            return False
        self.best = {"score": score, "epoch": epoch, "weights": weights}
        return True

    def save(self, position: Position, state: RunState, scores: Scores, improved: bool) -> None:
        """Saves the state at `position`, once the last save is safe. Collective; tensors may change when it returns.

        Raises:
            NotFinite: the last save, or this one, holds NaN or Inf and was not written.
            CheckpointError: the disk refuses.
        """
        tensors = state.tensors()
        self.look(wait=True)
        if self.accelerator.is_main_process and not self.failed:
            try:
                self._write(position, tensors, state.tables(position), scores, improved)
            except CheckpointError as error:
                self._failure = error
        self.settle()

    def look(self, wait: bool = False) -> Path | None:
        """Reports a checkpoint that is safe by now, and keeps the error of one that could not be written."""
        try:
            saved = self._writer.wait() if wait else self._writer.finished()
        except CheckpointError as error:
            self._failure = error
            return None
        if saved is None:
            return None
        self.report(saved)
        return saved.path

    @property
    def failed(self) -> bool:
        """Whether this process knows of a checkpoint that could not be written."""
        return self._failure is not None

    def settle(self, wait: bool = False) -> Path | None:
        """Raises on all processes what kept the main one from saving, once; else gives what is safe. Collective."""
        path = self.look(wait)
        failure, self._failure = self._failure, None
        fail_together(failure)
        return path

    def _write(
        self, position: Position, tensors: TensorGroups, tables: Mapping[str, Any], scores: Scores, improved: bool
    ) -> None:
        started = time.perf_counter()
        name = f"epoch_{position.epoch:04d}" + (f"_step_{position.step:07d}" if position.batch else "")
        monitor = self.settings.monitor
        measures = {key: value for key, value in score_values(scores).items() if value is not None}
        if (score := better_weights(scores, monitor)[1]) is not None:
            measures[monitor] = score  # of the better weights: what checkpoints are ranked by
        is_best = improved or not self.best
        note = f"best {monitor} {self.best['score']:.3f} ({self.best['weights']})" if improved else ""
        blocked = 0.0

        def write(host: TensorGroups) -> Saved:
            path = write_checkpoint(
                self.run,
                name,
                host,
                state=tables,
                config=self.config,
                measures=measures,
                experiment_fingerprint=self.fingerprint,
                step=position.step,
                epoch=position.epoch,
            )
            if is_best:
                set_pointer(self.run, "best", name)
            set_pointer(self.run, "latest", name)
            keep = self.settings
            retain(self.run, keep.keep_last, keep.keep_best, keep.monitor, keep.keep_every)
            seconds = time.perf_counter() - started
            return Saved(path, position, seconds, blocked if keep.asynchronous else seconds, note, is_best, measures)

        self._writer.save(tensors, write)
        blocked = time.perf_counter() - started
