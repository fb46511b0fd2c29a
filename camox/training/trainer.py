"""The life of a run, top to bottom: open, build, train epoch by epoch, validate, save, score, close."""

import os
import warnings
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, set_seed

from camox.checkpoints.store import Checkpoint, list_checkpoints
from camox.data.loading import EvalSet, TrainBatch
from camox.data.sources import open_sources
from camox.errors import CheckpointError, DataError, TrainingPaused, TrainingStopped
from camox.experiment import Experiment, ResolvedPhase
from camox.inference.evaluation import evaluate
from camox.models.backbone import STRIDES
from camox.models.camoxpert import CamoXpert
from camox.tracking.console import Console, TrainingProgress
from camox.tracking.events import EventLog
from camox.tracking.trackers import JsonlTracker, Trackers, WandbTracker
from camox.training.announcement import announce
from camox.training.building import build_training_step, open_data, wrap_for_training
from camox.training.interruption import SAVE, STOP, TROUBLE, Agreement, Signals, TimeLimit
from camox.training.phases import (
    controls_at,
    frozen_stages,
    phase_loader,
    phase_of,
    phase_sampler,
)
from camox.training.processes import build_accelerator, fail_together, once
from camox.training.routing import RoutingWatch
from camox.training.run_folder import RunFolder, outcome
from camox.training.run_state import Position, RunState, better_weights, open_to_resume
from camox.training.sampler import EpochBatches
from camox.training.saving import Saved, Saver
from camox.training.schedule import Plateau, warmup_factor
from camox.training.step import Controls
from camox.training.telemetry import Clock, Scores, score_values, training_values
from camox.training.validation import Validator


class Trainer:
    """Runs one experiment, alone or as one of several processes started by `accelerate launch`.

    Args:
        experiment: what to run.
        resume: None for a new run, "auto", "latest", or the path of a checkpoint.
        accelerator: one to use instead of the experiment's own; tests inject a gradient scaler by it.

    `run()` raises a `CamoxError` for everything a user can cause; the run's folder then holds `exit.json`.
    """

    def __init__(self, experiment: Experiment, resume: str | None = None, accelerator: Accelerator | None = None):
        self.experiment = experiment
        self.resume = resume
        self.phases = experiment.phases_resolved()
        self.accelerator = accelerator or build_accelerator(experiment)
        self.console = Console(active=self.accelerator.is_main_process)
        self.folder = RunFolder(experiment.run_folder)
        self.phase: ResolvedPhase | None = None
        self.frozen_stages: int | None = None
        self.at = Position()
        self.plateau = Plateau(experiment.checkpoints.monitor, experiment.schedule.patience)
        self.signals = Signals()
        self.failure: CheckpointError | None = None
        self.time_limit = TimeLimit(experiment.experiment.max_hours)

    def run(self) -> None:
        """Trains from the first epoch, or from the checkpoint to resume, to the last."""
        with self.signals:
            checkpoint = once(self.accelerator, lambda: self.folder.open(self.experiment, self.resume))
            try:
                self._build()
                if checkpoint is not None:
                    self._restore(open_to_resume(checkpoint))
                self._start_tracking()
                self._train()
                self._finish()
                # Left to the interpreter's end, the threads of gloo abort the process now and then.
                self.accelerator.end_training()
            except BaseException as error:
                self._close(error)
                raise
            self._close(None)

    # ---- before the first step

    def _build(self) -> None:
        experiment, accelerator = self.experiment, self.accelerator
        settings = experiment.experiment
        set_seed(settings.seed)
        if settings.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
            torch.use_deterministic_algorithms(True, warn_only=True)
        data = experiment.data
        self.train_source, self.held_out = open_data(experiment)
        if data.test:  # opened here already: not after 200 epochs should a wrong path be found
            open_sources([source.plain() for source in data.test], split="test")

        self.network = CamoXpert.from_experiment(experiment).to(accelerator.device)
        self.network_config = self.network.config
        self.training_step = step = build_training_step(experiment, accelerator, self.network)
        self.optimizer, self.average, self.skipped = step.optimizer, step.average, step.skipped
        self.routing = RoutingWatch(self.network)
        self.validator = Validator(
            accelerator,
            EvalSet(self.held_out, data.image_size),
            step.objective,
            experiment.validation.measures,
            data.batch_size,
            data.workers,
        )
        self.saver = Saver(self.folder.path, experiment.checkpoints, self.network_config, experiment.fingerprint())
        self.state = RunState(
            accelerator,
            self.network,
            self.optimizer.optimizer,
            self.average,
            parts={
                "best": self.saver,
                "schedule": self.plateau,
                "skipped_steps": self.skipped,
                "routing": self.routing,
            },
            meters={"batches": step.batch_meters, "steps": step.step_meters},
        )
        self.agreement = Agreement(accelerator)
        # Weights began alike on all ranks; dropout and routing noise must not.
        torch.manual_seed(settings.seed + accelerator.process_index)

    def _start_tracking(self) -> None:
        self.trackers = Trackers([])
        announce(
            self.console, self.experiment, self.accelerator, self.network, self.train_source, self.held_out, self.at
        )
        if not self.accelerator.is_main_process:
            return
        experiment, folder = self.experiment, self.folder.path
        self.events = EventLog(folder / "events.jsonl")
        settings = experiment.tracking
        wandb = WandbTracker(
            settings.wandb,
            settings.project,
            settings.entity,
            experiment.experiment.name,
            experiment.plain(),
            folder,
            experiment.experiment.notes,
            experiment.experiment.tags,
            resume=self.at.step > 0,
            warn=lambda text: self._event("tracking", text, severity="warning"),
        )
        self.trackers = Trackers([JsonlTracker(folder / "metrics.jsonl", resume_step=self.at.step), wandb])
        kind = "resume" if self.at.step else "start"
        self._event(kind, f"{kind} at epoch {self.at.epoch}, step {self.at.step}", severity="info")

    # ---- the loop

    def _train(self) -> None:
        epochs = self.experiment.epochs
        steps = sum(phase.epochs * self._steps_in(phase) for phase in self.phases)
        if self.at.epoch == epochs:
            self.console.notice(f"nothing left to train: all {epochs} epochs are done")
        with self.console.training(steps, epochs) as progress:
            while self.at.epoch < epochs:
                phase = phase_of(self.at.epoch, self.phases)
                if phase is not self.phase:
                    self._enter(phase)
                self._freeze(frozen_stages(self.at.epoch, self.phases))
                self._train_epoch(phase, progress)
                self._agree_on_statistics()
                self.at.epoch, self.at.batch = self.at.epoch + 1, 0
                scores = self._validate() if self._due(self.experiment.validation.every_epochs) else None
                self._follow(scores)
                self._save_if_due(scores)
        self._await_checkpoint()

    def _enter(self, phase: ResolvedPhase) -> None:
        """Sets up a phase: a loader with its sizes."""
        self.phase = phase
        self.sampler = self._sampler(phase)
        pin = self.accelerator.device.type == "cuda"
        self.loader = phase_loader(self.experiment, phase, self.train_source, self.sampler, pin)

    def _freeze(self, stages: int) -> None:
        """Freezes that many of the backbone's stages, and wraps the network afresh for the ranks where that changes."""
        if stages == self.frozen_stages:
            return
        self.frozen_stages = stages
        # Drops the last wrapper; the optimizer, the average and the network itself stay.
        self.accelerator.free_memory()
        # A 1×1 or depthwise kernel has the same order in memory under two kinds of strides; DDP doubts it at length.
        warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
        self.shell = wrap_for_training(self.network, self.accelerator, stages)
        self._event("frozen", f"{stages} of the backbone's {len(STRIDES)} stages are frozen", severity="info")

    def _train_epoch(self, phase: ResolvedPhase, progress: TrainingProgress) -> None:
        """Trains what is left of the epoch: all of it, unless the run was resumed within."""
        at, steps = self.at, self._steps_in(phase)
        self.sampler.set_position(at.epoch, at.batch, at.attempt)
        self.network.train()
        progress.start_epoch(phase.name, at.epoch + 1, steps)
        clock = Clock()
        batches = iter(self.loader)
        done = at.batch // phase.accumulate
        # Validation reads what the last step has set, and that step may have been taken before a resume.
        before = controls_at(at.epoch + done / steps, self.experiment, phase, self.plateau.reductions)
        self.network.anneal_routing_noise(before.noise_share)
        for number in range(done, steps):
            position = at.epoch + (number + 1) / steps
            controls = controls_at(position, self.experiment, phase, self.plateau.reductions)
            with clock.waiting():
                window = list(self._window(batches, phase.accumulate))
            self.training_step(self.shell, window, controls)
            at.step += 1
            at.batch += len(window)
            if at.step % self.experiment.tracking.log_every and number + 1 < steps:
                progress.advance(at.step)
                if at.step % self.experiment.stability.max_skipped_steps == 0:
                    self._watch_skips()
            else:
                values = self._values(phase, controls, position, clock)
                progress.advance(at.step, values)
                self.trackers.log(values, step=at.step, epoch=at.epoch, phase=phase.name)
            self._heed_requests()

    def _heed_requests(self) -> None:
        """Between two steps: does what a signal, the time limit or a checkpoint that failed asks for, on all ranks."""
        mine = []
        if self.signals.stop or self.time_limit.is_near():
            mine.append(STOP)
        if self.signals.save:
            mine.append(SAVE)
            self.signals.save = False
        self._look_after_checkpoint()
        if self.failure is not None:
            mine.append(TROUBLE)
        asked = self.agreement.exchange(*mine)
        if TROUBLE in asked:
            self._fail_together()
        if SAVE in asked:
            self._save({}, improved=False)
        if STOP in asked:
            self._pause()

    def _pause(self) -> None:
        """Saves where the run is and ends it, to be resumed."""
        reason = self.signals.stop or "its time limit"
        self._save({}, improved=False)
        path = self._await_checkpoint()
        message = (
            f"stopped by {reason} at step {self.at.step} (epoch {self.at.epoch}), saved as {path}: "
            "go on with --resume auto"
        )
        self._event("pause", message, severity="info")
        raise TrainingPaused(message)

    def _agree_on_statistics(self) -> None:
        """Gives every rank the main one's buffers: each has its own running statistics after an epoch, and would
        otherwise validate its share of the images with a model that nobody saves."""
        if self.accelerator.num_processes == 1:
            return
        for model in (self.network, *([] if self.average is None else [self.average.model])):
            for buffer in model.buffers():
                buffer.copy_(broadcast(buffer.clone()))

    def _window(self, batches: Iterator[TrainBatch], accumulate: int) -> Iterator[TrainBatch]:
        """The micro-batches of one optimizer step on the device; the last window of an epoch may be shorter."""
        for batch in islice(batches, accumulate):
            if batch.problems:
                raise DataError(f"{batch.problems[0]}; training stopped, finished checkpoints are intact")
            yield batch.to(self.accelerator.device, non_blocking=True)

    def _values(self, phase: ResolvedPhase, controls: Controls, position: float, clock: Clock) -> dict[str, Any]:
        """Reads the meters of the interval that ends here; between logged steps nothing waits for the device."""
        step = self.training_step
        batches = step.batch_meters.read(lambda sums: self.accelerator.reduce(sums, "sum"))
        steps = step.step_meters.read(lambda sums: sums)
        skipped, scale = self._watch_skips()
        network = self.network
        values: dict[str, Any] = training_values(
            batches, steps, self.routing.costs, network.scales, network.learns_routing
        )
        seconds, waited = clock.lap()
        values |= {
            "train/images_per_second": float(batches["images"]) / seconds,
            "train/data_wait": waited / seconds,
            "train/effective_batch": phase.batch_size * phase.accumulate * self.accelerator.num_processes,
            "router/warmup_factor": warmup_factor(position, self.experiment.model.moe.balance.warmup_epochs),
            "router/coefficient": controls.balance_coefficient,
            "amp/skipped_steps": skipped,
            "stability/skipped_batches": skipped,
        }
        values |= {f"lr/{group['name']}": group["lr"] for group in self.optimizer.param_groups}
        for stride in network.scales if network.learns_routing else ():
            values[f"router/stride_{stride}/bias_max"] = network.balance(stride).bias.abs().max().item()
        if scale is not None:
            values["amp/scale"] = scale
        if self.accelerator.device.type == "cuda":
            values["memory/peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
        return values

    def _watch_skips(self) -> tuple[int, float | None]:
        """Skipped steps in all, and the loss scale under fp16; stops the run where the guard says so."""
        in_a_row, skipped = self.skipped.read()
        scaler = self.accelerator.scaler
        scale = None if scaler is None else scaler.get_scale()
        if in_a_row:
            self._event(
                "skipped_step",
                f"gradients were not finite: up to {in_a_row} steps in a row skipped, {skipped} in all",
                details={"in_a_row": in_a_row, "total": skipped, "scale": scale},
            )
        if reason := self.skipped.verdict(in_a_row, scale):
            raise self._stop("skipped_steps", reason)
        return skipped, scale

    # ---- validation and checkpoints

    def _validate(self) -> Scores:
        """Scores raw and averaged weights on the held-out part."""
        try:
            summary, routed = self.validator.score(self.network)
            scores = {"val": summary}
            if self.average is not None:
                scores["val_ema"], _ = self.validator.score(self.average.model, routing=False)
        except CheckpointError as error:  # the weights, or what fp16 makes of them, are not finite
            raise self._stop("validation", str(error)) from error
        self.console.validation(scores["val"], scores.get("val_ema"), epoch=self.at.epoch, step=self.at.step)
        assert self.phase is not None
        values, collapses = self.routing.evaluate(routed, self.at.step)
        values |= score_values(scores)
        self.trackers.log(values, step=self.at.step, epoch=self.at.epoch - 1, phase=self.phase.name)
        for collapse in collapses:
            self._event("router_collapse", collapse.message, details=collapse.details)
        return scores

    def _follow(self, scores: Scores | None) -> None:
        """Lowers the rate of a "plateau" schedule where the monitored measure has stopped improving."""
        settings, monitor = self.experiment.schedule, self.experiment.checkpoints.monitor
        if settings.name == "plateau" and scores and self.plateau.observe(better_weights(scores, monitor)[1]):
            text = f"no new best {monitor} in {settings.patience} validations: the learning rate × {settings.gamma:g}"
            self.console.notice(text)
            self._event("plateau", text, severity="info")

    def _save_if_due(self, scores: Scores | None) -> None:
        """Saves when due or better than ever."""
        improved = self.saver.improves(scores or {}, self.at.epoch)
        if improved or self._due(self.experiment.checkpoints.every_epochs):
            self._save(scores or {}, improved)

    def _save(self, scores: Scores, improved: bool) -> None:
        """Saves where the run is; what holds NaN never becomes a checkpoint."""
        tensors, position = self.state.tensors(), replace(self.at)
        if self.accelerator.is_main_process:
            try:
                self._report(self.saver.wait())
                self.saver.save(position, tensors, self.state.tables(position), scores, improved)
            except CheckpointError as error:
                self.failure = error
        self._fail_together()

    def _look_after_checkpoint(self) -> None:
        """Reports a checkpoint that is written by now; the error of one that could not be is kept for all ranks."""
        try:
            self._report(self.saver.finished())
        except CheckpointError as error:
            self.failure = error

    def _await_checkpoint(self) -> Path | None:
        """The path of the last checkpoint, once it is safe, on all ranks. Collective."""
        saved = None
        try:
            saved = self.saver.wait()
            self._report(saved)
        except CheckpointError as error:
            self.failure = error
        self._fail_together()
        return None if saved is None else saved.path

    def _report(self, saved: Saved | None) -> None:
        if saved is None:
            return
        at = saved.position
        self.console.checkpoint(saved.path, seconds=saved.seconds, note=saved.note)
        values = {"checkpoint/seconds": saved.seconds, "checkpoint/blocked_seconds": saved.blocked}
        assert self.phase is not None
        self.trackers.log(values, step=at.step, epoch=at.epoch - (at.batch == 0), phase=self.phase.name)

    def _fail_together(self) -> None:
        """Ends the run on all ranks where a checkpoint failed on the main one. Collective."""
        try:
            fail_together(self.failure)
        except CheckpointError as error:
            raise self._stop("checkpoint", str(error)) from error

    def _restore(self, checkpoint: Checkpoint) -> None:
        path = checkpoint.path
        self.at = self.state.restore(checkpoint.state, checkpoint, path)
        if (written := checkpoint.state["ranks"]) != self.accelerator.num_processes:
            self._adapt_to_ranks(written)
        if path not in list_checkpoints(self.folder.path):
            self.saver.best = {}  # of another folder: there is nothing here yet to be better than
        best = f"epoch_{self.saver.best['epoch']:04d}" if self.saver.best else None
        once(self.accelerator, lambda: self.folder.go_on_from(path, best))

    def _adapt_to_ranks(self, before: int) -> None:
        """Goes on at the same sample of an epoch that `before` processes began, at the last whole step before it."""
        ranks = self.accelerator.num_processes
        accumulate = phase_of(min(self.at.epoch, self.experiment.epochs - 1), self.phases).accumulate
        self.at.batch = self.at.batch * before // ranks // accumulate * accumulate
        self.console.warning(
            f"the checkpoint was written by {before} process(es) and {ranks} go on: effective batch, random numbers "
            "and which samples share a batch are others, so the run is not the one it would have been"
        )

    # ---- the end

    def _finish(self) -> None:
        """Scores the best checkpoint on the test sources, where there are any, and says where everything is."""
        if not self.accelerator.is_main_process:
            return
        run, data = self.folder.path, self.experiment.data
        if data.test:
            try:
                evaluate(run, batch_size=data.batch_size, workers=data.workers, device=self.accelerator.device)
            except DataError as error:  # training is done and safe
                self._event("evaluation", f"the test data could not be scored: {error}")
        rows: list[tuple[str, object]] = [("run folder", run)]
        if self.saver.best:
            monitor, best = self.experiment.checkpoints.monitor, self.saver.best
            score = f"{best['score']:.4f} at epoch {best['epoch']}, {best['weights']} weights"
            rows.append((f"best {monitor}", score))
            rows.append(("best checkpoint", run / "checkpoints" / f"epoch_{best['epoch']:04d}"))
        rows.append(("inspect it", f"camox inspect {run}"))
        rows.append(("predict with it", f"camox predict {run} IMAGES --out DIR"))
        self.console.summary("done", rows)

    def _close(self, error: BaseException | None) -> None:
        code, reason = outcome(error)
        # Dropped by name: left to the garbage collector, each loader's workers would be waited for, 5 s each.
        for loader in ("loader", "validator"):
            vars(self).pop(loader, None)
        if hasattr(self, "events"):
            self._event("end", reason, severity="info" if code == 0 else "error", details={"code": code})
            self.events.close()
        if hasattr(self, "trackers"):
            self.trackers.finish()
        # An unreadable sample is met by one process alone; the others only see it go.
        if self.accelerator.is_main_process or isinstance(error, DataError):
            try:
                self.folder.close(code, reason)
            except OSError as failure:  # a full disk: the error itself matters more
                self.console.warning(f"exit.json could not be written: {failure}")

    def _stop(self, kind: str, reason: str) -> TrainingStopped:
        """Logs why a guard ends the run, and where to go on from."""
        clean = list_checkpoints(self.folder.path)
        where = f"the last clean checkpoint is {clean[-1]}" if clean else "there is no checkpoint yet"
        message = f"stopped at step {self.at.step} (epoch {self.at.epoch}): {reason}; {where}"
        self._event(kind, message, severity="error")
        return TrainingStopped(message)

    # ---- small things

    def _event(self, kind: str, message: str, severity: Any = "warning", details: dict[str, Any] | None = None) -> None:
        if not self.accelerator.is_main_process:
            return
        self.events.append(kind, message, step=self.at.step, epoch=self.at.epoch, severity=severity, details=details)
        if severity == "warning":
            self.console.warning(message)

    def _sampler(self, phase: ResolvedPhase) -> EpochBatches:
        return phase_sampler(phase, len(self.train_source), self.experiment.experiment.seed, self.accelerator)

    def _steps_in(self, phase: ResolvedPhase) -> int:
        """Optimizer steps in one epoch of a phase."""
        return -(-len(self._sampler(phase)) // phase.accumulate)

    def _due(self, every: int) -> bool:
        return self.at.epoch % every == 0 or self.at.epoch == self.experiment.epochs
