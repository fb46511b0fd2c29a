"""`--profile`: a few steps of every phase that differs, taken by the real trainer, recorded and told by parts.

Nothing is trained: the learning rate is zero, nothing is validated or saved, and all that is written goes to the folder
`profile` in the run's own, which is a run's folder for itself: another profile replaces it, a run beside it neither
waits for it nor sees it. Untrained routers would send all images to one pair of experts; noise spreads them, as
training does.
"""

import gzip
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from camox.checkpoints.store import list_checkpoints
from camox.errors import TrainingPaused
from camox.experiment import Experiment, ResolvedPhase
from camox.stability.guards import Finding
from camox.training.interruption import STOP
from camox.training.phases import frozen_stages, phase_of
from camox.training.profile_labels import DEVICE, REQUESTS, Labels
from camox.training.profile_parts import Breakdown, break_down
from camox.training.profile_summary import Recorded, Setting, as_json, show
from camox.training.run_folder import RunFolder
from camox.training.step import Controls
from camox.training.telemetry import Clock
from camox.training.trainer import Trainer

FOLDER = "profile"
"""Name of the folder, in the run's, that a profile is written to."""
SUMMARY = "summary.json"
FIRST, UNRECORDED, RECORDED = 3, 3, 5
"""Steps of a phase: those in which kernels are chosen and what was loaded ahead is used up (more, where workers load
more ahead), those timed without a recorder, and those recorded."""
_NOISE = 1.0


class Stage(NamedTuple):
    """What a step of some epochs is like: the first of them stands for all that are no different."""

    epoch: int
    phase: ResolvedPhase
    frozen: int
    """How many of the backbone's stages are frozen."""

    @property
    def name(self) -> str:
        """For people and for files: the phase, and where the same phase has several stages which of them."""
        progressive = self.phase.unfreeze == "progressive"
        return f"{self.phase.name}_frozen_{self.frozen}" if progressive else self.phase.name


def profile_experiment(experiment: Experiment) -> None:
    """Takes and records some steps of the experiment, and says what they take. On all processes alike.

    Raises:
        CamoxError: as a run of the experiment.
    """
    settings = experiment.experiment
    renamed = settings.model_copy(update={"output": str(experiment.run_folder), "name": FOLDER})
    changes = {"experiment": renamed, "tracking": experiment.tracking.model_copy(update={"wandb": "disabled"})}
    if experiment.model.weights is None:  # nothing is fetched: with other weights a step takes as long
        changes["model"] = experiment.model.model_copy(update={"pretrained": False})
    ProfilingTrainer(experiment.model_copy(update=changes)).run()


def stages_of(phases: Sequence[ResolvedPhase]) -> list[Stage]:
    """Every kind of step that a run has, once, in their order."""
    found: dict[Any, Stage] = {}
    for epoch in range(sum(phase.epochs for phase in phases)):
        phase, frozen = phase_of(epoch, phases), frozen_stages(epoch, phases)
        kind = (frozen, phase.batch_size, phase.accumulate, phase.image_sizes)
        found.setdefault(kind, Stage(epoch, phase, frozen))
    return list(found.values())


class ProfileFolder(RunFolder):
    """A run's folder that holds a profile in place of checkpoints; a new one replaces it."""

    def holds_run(self) -> bool:
        return bool(list_checkpoints(self.path))  # of a run that happens to have this name

    def _prepare(self, experiment: Experiment, resume: str | None) -> Path | None:
        found = super()._prepare(experiment, resume)
        for left in (SUMMARY, "metrics.jsonl", "events.jsonl", *(path.name for path in self.path.glob("*.json.gz"))):
            (self.path / left).unlink(missing_ok=True)
        return found


class _AllRecorded(Exception):  # noqa: N818  an end, not an error
    """The stage has been recorded."""


class ProfilingTrainer(Trainer):
    """A trainer that takes a few steps of each stage, with labels on its parts, and saves nothing."""

    def __init__(self, experiment: Experiment):
        super().__init__(experiment)
        self.folder: RunFolder = ProfileFolder(experiment.run_folder)
        self.stages = stages_of(self.phases)
        self.recorded: list[Recorded] = []
        self.recorder: _Recorder | None = None
        self.labels = Labels(self.accelerator.device)

    def _train(self) -> None:
        self.network.set_routing_noise(max([_NOISE, self.experiment.model.moe.router.noise]))
        self.labels.put_on(self)
        last = 0
        for stage in self.stages:
            last = self._begin(stage, last) + self._steps_of(stage)
        with self.watchdog, self.console.training(last, len(self.stages)) as progress:
            for stage in self.stages:
                if stage.phase is not self.phase:
                    self._enter(stage.phase)
                self._freeze(stage.frozen)
                self.at.epoch = stage.epoch
                with self._recording(stage):
                    while True:
                        self.at.batch = 0
                        self._train_epoch(stage.phase, progress)

    @contextmanager
    def _recording(self, stage: Stage) -> Iterator[None]:
        """Ends the block once the stage is recorded, and reads what was."""
        self.at.step = self._begin(stage, self.at.step)
        name = f"{stage.name}_rank_{self.accelerator.process_index}.json.gz"
        recorder = _Recorder(self._first_steps(stage), self.folder.path / name, self.labels)
        self.recorder = recorder
        try:
            yield
        except _AllRecorded:
            steps, every = self._steps_in(stage.phase), self.experiment.tracking.log_every
            logged = RECORDED / recorder.logged * -(-steps // every) / steps
            breakdown = recorder.read(logged)
            setting = Setting(stage.name, stage.epoch, stage.phase, stage.frozen, self.accelerator.num_processes)
            self.recorded.append(
                Recorded(setting, breakdown, recorder.plain_step, dict(self.labels.kept), recorder.peak, recorder.path)
            )
        finally:
            recorder.close()
            self.recorder = None

    def _begin(self, stage: Stage, step: int) -> int:
        """The number, `step` or a later one, after which the last recorded step is one that is logged."""
        return step + -(step + self._steps_of(stage)) % self.experiment.tracking.log_every

    def _steps_of(self, stage: Stage) -> int:
        return self._first_steps(stage) + UNRECORDED + 1 + RECORDED

    def _first_steps(self, stage: Stage) -> int:
        loaded_ahead = 2 * self.experiment.data.workers
        return max(FIRST, 1 - (-loaded_ahead // stage.phase.accumulate))

    def _controls(self, position: float, step: int) -> Controls:
        return replace(super()._controls(position, step), learning_rate=0.0, noise_share=1.0)

    def _values(self, phase: ResolvedPhase, controls: Controls, position: float, clock: Clock) -> dict[str, Any]:
        if self.recorder is not None:
            self.recorder.logged += self.recorder.is_recording
        return super()._values(phase, controls, position, clock)

    def _heed(self, findings: list[Finding]) -> None:
        for finding in findings:  # seen and told; but there is nothing to go back to, and nothing to lose
            self._event(finding.kind, finding.message, finding.severity, dict(finding.details))

    def _heed_requests(self) -> None:
        with self.labels.on(REQUESTS):
            self.saver.look()
            asked = self.requests.ask()
        if STOP in asked:
            raise TrainingPaused(f"profiling was stopped by {self.requests.reason}: nothing was trained; run it again")
        assert self.recorder is not None
        self.recorder.step()

    def _finish(self) -> None:
        if self.accelerator.is_main_process:
            show(self.console, self.experiment, self.recorded)
            document = as_json(self.experiment, self.recorded)
            (self.folder.path / SUMMARY).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


class _Recorder:
    """Counts the steps of a stage, times some without the profiler and records some with it."""

    def __init__(self, first: int, path: Path, labels: Labels):
        self.first, self.path, self.labels = first, path, labels
        self.taken = 0
        self.logged = 0
        """How many of the recorded steps were logged."""
        self.plain_step = 0.0
        """Seconds of a step that is not recorded."""
        self.peak = 0
        """Most bytes of GPU memory in use at once, 0 on a CPU."""
        self._started = 0.0
        self._on_gpu = labels.device.type == "cuda"
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self._on_gpu else [])]
        # The first step of a profiler is slow: it is recorded for nothing.
        steps = schedule(wait=0, warmup=1, active=RECORDED, repeat=1)
        self._profiler = profile(activities=activities, schedule=steps)
        self._is_started = False

    @property
    def is_recording(self) -> bool:
        return self.taken >= self.first + UNRECORDED + 1

    def step(self) -> None:
        """Is called after each step.

        Raises:
            _AllRecorded: that was the last.
        """
        self.taken += 1
        since = self.taken - self.first
        if since == 0:
            if self._on_gpu:
                torch.cuda.reset_peak_memory_stats(self.labels.device)
            self._started = self._now()
        elif since == UNRECORDED:
            self.plain_step = (self._now() - self._started) / UNRECORDED
            if self._on_gpu:
                self.peak = torch.cuda.max_memory_allocated(self.labels.device)
            self._is_started = True
            self._profiler.start()
        elif since > UNRECORDED:
            if since in (UNRECORDED + 1, UNRECORDED + 1 + RECORDED):  # all of the GPU's work, and no other
                with self.labels.on(DEVICE):
                    self._now()
            self.labels.kept.clear()
            with _silent_errors():
                self._profiler.step()
        if since == UNRECORDED + 1 + RECORDED:
            raise _AllRecorded

    def read(self, logged_share: float) -> Breakdown:
        """Writes the trace and gives the parts of its steps."""
        self.close()
        # Packed here: torch packs line by line, which for a million lines takes longer than all of the steps.
        plain = self.path.with_suffix("")
        self._profiler.export_chrome_trace(str(plain))
        trace = plain.read_bytes()
        plain.unlink()
        self.path.write_bytes(gzip.compress(trace, compresslevel=3))
        return break_down(json.loads(trace)["traceEvents"], logged_share)

    def close(self) -> None:
        """Stops what is still being recorded."""
        if self._is_started:
            self._is_started = False
            with _silent_errors():
                self._profiler.stop()

    def _now(self) -> float:
        if self._on_gpu:
            torch.cuda.synchronize(self.labels.device)
        return time.perf_counter()


@contextmanager
def _silent_errors() -> Iterator[None]:
    """Keeps off the screen what the recorder's library writes when it starts and stops, whatever its log level: on a
    CPU an "ERROR" for want of a GPU is among it."""
    sys.stderr.flush()
    before, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)
        os.close(nowhere)
