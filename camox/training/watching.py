"""All guards of a run together, and which samples the steps that went wrong had."""

import math
from collections import deque
from collections.abc import Sequence
from typing import Any

from camox.errors import DataError
from camox.experiment import Experiment
from camox.stability.guards import BadSamples, Finding, LossScale, NonFiniteSteps, Scores, Spikes, StepReport


class Watch:
    """Hands what is known to the guards that are switched on."""

    def __init__(self, experiment: Experiment):
        stability = experiment.stability
        self.nonfinite = NonFiniteSteps(stability.max_skipped_steps)
        self.skipped_batches = 0
        """Steps of the whole run that were not taken, whatever the reason."""
        self._of_steps: dict[str, NonFiniteSteps | LossScale | Spikes] = {}
        if stability.nonfinite:
            self._of_steps["nonfinite"] = self.nonfinite
        if stability.loss_scale:
            self._of_steps["loss_scale"] = LossScale(stability.max_skip_rate, experiment.precision.min_scale)
        if stability.spike:
            self._of_steps["spikes"] = Spikes()
        self._scores = Scores(experiment.checkpoints.monitor, stability.decline, stability.explosion)
        self._bad = BadSamples(stability.max_bad_samples) if stability.bad_samples else None
        self.problems: list[str] = []
        """Messages of this rank's bad samples in the epoch under way; before a save of all ranks'."""
        self._samples: deque[tuple[int, list[int]]] = deque(maxlen=1000)
        self._suspects: set[int] = set()
        self._cleared: set[int] = set()
        self._loss_sum, self._steps = 0.0, 0

    def began(self, step: int, samples: list[int]) -> None:
        """Notes the indices of this rank's samples of attempted step `step`; streamed ones, which have none, can be
        neither suspected nor left out."""
        self._samples.append((step, [index for index in samples if index >= 0]))

    def met(self, problems: Sequence[str]) -> None:
        """Takes in the messages of this rank's bad samples in a batch.

        Raises:
            DataError: the guard of bad samples is switched off.
        """
        if problems and self._bad is None:
            raise DataError(f"{problems[0]}; mend it, then go on with --resume auto")
        self.problems += problems

    def after_epoch(self, problems: Sequence[str], samples: int) -> list[Finding]:
        """What is found of all ranks' bad samples in an epoch of so many; the next one's begin."""
        self.problems = []
        return [] if self._bad is None else self._bad.after_epoch(problems, samples)

    def after_steps(self, reports: Sequence[StepReport], scale: float | None) -> list[Finding]:
        """What the guards find in the reports of steps, each of which they get once and in order."""
        findings = []
        of_step = dict(self._samples)
        for report in reports:
            self.skipped_batches += not report.taken
            if report.finite:
                self._loss_sum, self._steps = self._loss_sum + report.loss, self._steps + 1
            (self._cleared if report.finite else self._suspects).update(of_step.get(report.step, ()))
            found = [guard.after_step(report, scale) for guard in self._of_steps.values()]
            findings += [finding for finding in found if finding is not None]
        return findings

    def after_validation(self, step: int, images: Sequence[float], loss: float) -> list[Finding]:
        """What the monitored measure of every image and the mean loss say, of the raw weights."""
        training_loss = self._loss_sum / self._steps if self._steps else math.nan
        self._loss_sum, self._steps = 0.0, 0
        finding = self._scores.after_validation(step, images, loss, training_loss)
        return [] if finding is None else [finding]

    def suspects(self) -> tuple[set[int], set[int]]:
        """This rank's samples of steps that were not finite, and those of steps that were: these are not at fault."""
        return self._suspects, self._cleared

    def state_dict(self) -> dict[str, Any]:
        guards = {name: guard.state_dict() for name, guard in self._of_steps.items()}
        return {
            **guards,
            "scores": self._scores.state_dict(),
            "losses": [self._loss_sum, self._steps],
            "skipped_batches": self.skipped_batches,
            "problems": list(dict.fromkeys(self.problems)),
            "bad_samples": {} if self._bad is None else self._bad.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, guard in self._of_steps.items():
            guard.load_state_dict(state[name])
        self._scores.load_state_dict(state["scores"])
        self._loss_sum, self._steps = state["losses"]
        # A run that is rolled back has still skipped what it skipped. Checkpoints of earlier versions do not say.
        self.skipped_batches = max(self.skipped_batches, state.get("skipped_batches", self.nonfinite.total))
        self.problems += state.get("problems", [])
        if self._bad is not None:
            self._bad.load_state_dict(state.get("bad_samples", {}))
