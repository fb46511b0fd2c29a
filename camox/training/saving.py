"""When a run is saved, under which name, and what is kept; written in the background where that is asked for."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from camox.checkpoints.store import TensorGroups, is_better, retain, set_pointer, write_checkpoint
from camox.checkpoints.writer import BackgroundWriter
from camox.experiment.schema import Checkpoints
from camox.training.run_state import Position, better_weights
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


class Saver:
    """Writes a run's checkpoints, on its main process, and remembers the best score.

    `best` is {"score", "epoch", "weights"} of the best checkpoint so far, empty before the first.
    """

    def __init__(self, run: Path, settings: Checkpoints, config: Mapping[str, Any], fingerprint: str):
        self.run = run
        self.settings = settings
        self.config = config
        self.fingerprint = fingerprint
        self.best: dict[str, Any] = {}
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

    def save(
        self, position: Position, tensors: TensorGroups, state: Mapping[str, Any], scores: Scores, improved: bool
    ) -> None:
        """Saves the state at `position`; on the main process only. The tensors may change as soon as it returns.

        Raises:
            CheckpointError: the last save in the background failed, or, without one, this one did.
        """
        started = time.perf_counter()
        assert self._writer.wait() is None, "the last result was not asked for"
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
                state=state,
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
            return Saved(path, position, seconds, blocked if keep.asynchronous else seconds, note)

        self._writer.save(tensors, write)
        blocked = time.perf_counter() - started

    def finished(self) -> Saved | None:
        """What was written since the last call, as soon as it is; once. Raises CheckpointError where it could not."""
        return self._writer.finished()

    def wait(self) -> Saved | None:
        """The same, waiting for it."""
        return self._writer.wait()
