"""The life of a run, top to bottom: open, build, train epoch by epoch, validate, save, score, close."""

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, NoReturn

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, set_seed

from camox.checkpoints.store import list_checkpoints
from camox.data.loading import TrainBatch
from camox.errors import CheckpointError, DataError, NotFinite, TrainingPaused, TrainingStopped
from camox.experiment import Experiment, ResolvedPhase
from camox.inference.scoring.evaluation import evaluate
from camox.models.backbone import STRIDES
from camox.stability.guards import Finding, Proposal
from camox.stability.recovery import RollBack, remedy
from camox.tracking.console import TrainingProgress
from camox.tracking.events import Severity
from camox.training.adjusting import apply_adjustments
from camox.training.announcement import announce
from camox.training.building import (
    build_network,
    build_recovery,
    build_saver,
    build_state,
    build_training_step,
    build_validator,
    build_watchdog,
    open_data,
    wrap_for_training,
)
from camox.training.endings import last_clean, outcome, stopped_by
from camox.training.held_out_pictures import shown_indices, with_routing
from camox.training.interruption import SAVE, STOP, TROUBLE, Interrupted, Requests
from camox.training.launching.restarts import note_begun
from camox.training.memory import try_largest_phases
from camox.training.phases import begins_stage, controls_at, frozen_stages, phase_loader, phase_of, phase_sampler
from camox.training.processes import Result, build_accelerator, once, patience, share_buffers, together
from camox.training.replay import Attempted, Replays
from camox.training.reporting import Reporter
from camox.training.routing import RoutingWatch
from camox.training.run_folder import RunFolder
from camox.training.run_state import (
    Position,
    Remembered,
    Stateful,
    batch_on_other_ranks,
    better_weights,
    open_to_resume,
    other_ranks_notice,
)
from camox.training.schedule import Plateau, warmup_factor
from camox.training.sharing import require_shared
from camox.training.step import Controls
from camox.training.stream_batches import Batches
from camox.training.summary import summarise
from camox.training.telemetry import Clock, Scores, reference_scales
from camox.training.watching import Watch


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
        self.reporter = Reporter(self.phases, active=self.accelerator.is_main_process)
        self.console = self.reporter.console
        self.folder = RunFolder(experiment.run_folder)
        self.phase: ResolvedPhase | None = None
        self.frozen_stages: int | None = None
        self.at = Position()
        self.plateau = Plateau(experiment.checkpoints.monitor, experiment.schedule.patience)
        self.watch = Watch(experiment)
        self.recovery = build_recovery(experiment)
        self.beginning: Remembered | None = None
        self.requests = Requests(self.accelerator, experiment.experiment.max_hours, patience(experiment))

    def run(self) -> None:
        """Trains from the first epoch, or from the checkpoint to resume, to the last."""
        with self.requests:
            checkpoint = once(self.accelerator, lambda: self.folder.open(self.experiment, self.resume))
            try:
                require_shared(self.accelerator, self.folder.path)
                self._build()
                if checkpoint is not None:
                    self._restore(checkpoint)
                else:
                    self._recall()
                    self._adjust()
                    self.beginning = self.state.remember(self.at) if self.recovery.max_rollbacks else None
                self._introduce()
                if self.accelerator.device.type == "cuda":
                    try_largest_phases(self.experiment, self.accelerator, self.training_step, checkpoint is None)
                self._train()
                self._finish()
                # Left to the interpreter's end, the threads of gloo abort the process now and then.
                self.accelerator.end_training()
            except BaseException as error:
                if (stop := stopped_by(error, self.experiment, self.phase, self.at)) is None:
                    self._close(error)
                    raise
                failure = stop.as_error(str(self._stop(stop.kind, stop.reason)))
                self._close(failure)
                raise failure from error
            self._close(None)

    # ---- before the first step

    def _build(self) -> None:
        experiment, accelerator = self.experiment, self.accelerator
        settings = experiment.experiment
        set_seed(settings.seed)
        if settings.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
            torch.use_deterministic_algorithms(True, warn_only=True)
        self.train_source, self.held_out = open_data(experiment, accelerator, self.console)
        self.network = together(lambda: build_network(experiment, accelerator.device))
        self.training_step = build_training_step(experiment, accelerator, self.network)
        self.optimizer, self.average = self.training_step.optimizer, self.training_step.average
        self.routing = RoutingWatch(self.network)
        self.watchdog = build_watchdog(experiment, accelerator, self.folder, self.reporter, lambda: self.at)
        self.validator = build_validator(
            experiment, self.training_step, self.held_out, self.watchdog.beat, self.requests.interrupt, self.console
        )
        self.saver = build_saver(experiment, self.training_step, self.folder, self.reporter)
        parts: dict[str, Stateful] = {"best": self.saver, "schedule": self.plateau, "routing": self.routing}
        parts |= {"guards": self.watch, "recovery": self.recovery}
        self.state = build_state(experiment, self.training_step, parts, self.train_source)
        self.replays = Replays(experiment, self.train_source, accelerator.scaler is not None)
        # Weights began alike on all ranks; dropout and routing noise must not.
        torch.manual_seed(settings.seed + accelerator.process_index)

    def _introduce(self) -> None:
        note_begun()
        data = self.train_source, self.held_out
        announce(self.console, self.experiment, self.accelerator, self.network, *data, self.at)
        self.reporter.open(self.experiment, self.at)
        kind = "resume" if self.at.step else "start"
        self._event(kind, f"{kind} at {self.at}", severity="info")
        for message in self.folder.damaged:
            self._event("damaged_checkpoint", message)

    # ---- the loop

    def _train(self) -> None:
        epochs = self.experiment.epochs
        steps = sum(phase.epochs * self._steps_in(phase) for phase in self.phases)
        if self.at.epoch == epochs:
            self.console.notice(f"nothing left to train: all {epochs} epochs are done")
        with self.watchdog, self.console.training(steps, epochs) as progress:
            while True:
                try:
                    while self.at.epoch < epochs:
                        self._train_and_validate(progress)
                    self._save_or_heed(lambda: self.saver.settle(wait=True))
                    return
                except RollBack as trouble:
                    self._roll_back(trouble.finding)

    def _train_and_validate(self, progress: TrainingProgress) -> None:
        """One epoch, or what is left of it, with what comes after."""
        phase = phase_of(self.at.epoch, self.phases)
        if phase is not self.phase:
            self._enter(phase)
        self._freeze(frozen_stages(self.at.epoch, self.phases))
        self._train_epoch(phase, progress)
        self._heed(self.watch.after_epoch(gather_object(self.watch.problems), len(self.train_source)))
        share_buffers(self.accelerator, self.network, *([] if self.average is None else [self.average.model]))
        batches, self.at.epoch, self.at.batch = self.at.batch, self.at.epoch + 1, 0
        try:
            scores = self._validate() if self._due(self.experiment.validation.every_epochs) else None
        except Interrupted:
            # Saved as of before it: the validation is done when the run goes on.
            self.at.epoch, self.at.batch = self.at.epoch - 1, batches
            self._pause()
        self._follow(scores)
        self._save_if_due(scores)

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
        self.shell = wrap_for_training(self.network, self.accelerator, stages)
        self._event("frozen", f"{stages} of the backbone's {len(STRIDES)} stages are frozen", severity="info")

    def _train_epoch(self, phase: ResolvedPhase, progress: TrainingProgress) -> None:
        """Trains what is left of the epoch: all of it, unless the run was resumed within."""
        at, steps = self.at, self._steps_in(phase)
        self.sampler.set_position(at.epoch, at.batch, at.attempt)
        if at.batch == 0 and begins_stage(at.epoch, self.phases) and self.training_step.spikes is not None:
            self.training_step.spikes.reset()  # with other parts trained, other losses and norms are normal
        self.network.train()
        progress.start_epoch(phase.name, at.epoch + 1, steps)
        clock = Clock()
        batches = iter(self.loader)
        done = -(-at.batch // phase.accumulate)  # upwards: an epoch's last window may be shorter
        # Validation reads what the last step has set, and that step may have been taken before a resume.
        self.network.anneal_routing_noise(self._controls(at.epoch + done / steps, at.step).noise_share)
        for number in range(done, steps):
            position = at.epoch + (number + 1) / steps
            controls = self._controls(position, at.step + 1)
            self.watchdog.beat("loading data")
            with clock.waiting():
                loaded = self._window(batches, phase.accumulate)
                window = self._to_device(loaded)
            clock.images += sum(len(batch.weights) for batch in loaded)
            self.watch.began(at.step + 1, list(chain(*(batch.indices.tolist() for batch in loaded))))
            self.replays.note(Attempted.of(at.step + 1, at.epoch, loaded, controls))
            self.watchdog.beat("training step")
            self.training_step(self.shell, window, controls)
            at.step += 1
            at.batch += len(window)
            self.sampler.consumed(len(window))
            if at.step % self.experiment.tracking.log_every and number + 1 < steps:
                progress.advance(at.step)
                # On a GPU to look is to wait for it.
                if self.accelerator.device.type == "cpu" or at.step % self.experiment.stability.max_skipped_steps == 0:
                    self._watch_steps()
            else:
                self._watch_steps()
                values = self._values(phase, controls, position, clock)
                progress.advance(at.step, values)
                self.reporter.log(values, step=at.step, epoch=at.epoch, phase=phase.name)
            self._heed_requests()

    def _heed_requests(self) -> None:
        """Between two steps: does what a signal, the time limit or a checkpoint that failed asks for, on all ranks."""
        self.saver.look()
        asked = self.requests.ask(trouble=self.saver.failed)
        if TROUBLE in asked:
            self._save_or_heed(self.saver.settle)
        if SAVE in asked:
            self._save({}, improved=False)
        if STOP in asked:
            self._pause()

    def _pause(self) -> NoReturn:
        """Saves where the run is and ends it, to be resumed."""
        self._save({}, improved=False)
        path = self._save_or_heed(lambda: self.saver.settle(wait=True))
        message = f"stopped by {self.requests.reason} at {self.at}; saved as {path}: go on with --resume auto"
        self._event("pause", message, severity="info")
        raise TrainingPaused(message)

    def _window(self, batches: Iterator[TrainBatch], accumulate: int) -> list[TrainBatch]:
        """The micro-batches of one optimizer step; the last window of an epoch may be shorter."""
        window = list(islice(batches, accumulate))
        for batch in window:
            self.watch.met(batch.problems)
        return window

    def _to_device(self, window: list[TrainBatch]) -> list[TrainBatch]:
        return [batch.to(self.accelerator.device, non_blocking=True) for batch in window]

    def _values(self, phase: ResolvedPhase, controls: Controls, position: float, clock: Clock) -> dict[str, Any]:
        """Reads the meters of the interval that ends here; between logged steps nothing waits for the device."""
        values: dict[str, Any] = self.training_step.interval_values(self.routing.costs)
        ranks = self.accelerator.num_processes
        values |= clock.lap(ranks) | {
            "train/effective_batch": phase.batch_size * phase.accumulate * ranks,
            "router/warmup_factor": warmup_factor(position, self.experiment.model.moe.balance.warmup_epochs),
            "router/coefficient": controls.balance_coefficient,
            "amp/skipped_steps": self.watch.nonfinite.total,
            "stability/skipped_batches": self.watch.skipped_batches,
            "stability/rollbacks": self.recovery.rollbacks,
            "stability/events": self.reporter.troubles,
        }
        if "amp/scale" in values:
            values |= reference_scales(self.experiment.precision.min_scale)
        return values

    # ---- guards and recovery

    def _controls(self, position: float, step: int) -> Controls:
        assert self.phase is not None
        adjustments = self.recovery.adjustments
        return controls_at(position, self.experiment, self.phase, self.plateau.reductions, adjustments, step)

    def _watch_steps(self) -> None:
        """Lets the guards see what became of the last steps, and does what they ask for. Waits for the device."""
        scaler = self.accelerator.scaler
        reports = self.training_step.reports(self.at.step)
        try:
            self._heed(self.watch.after_steps(reports, None if scaler is None else scaler.get_scale()))
        finally:  # before a rollback gives the network other weights
            for text, details in self.replays.after_steps(self.training_step, reports, self.at.step):
                self._event("replay", text, details=details)

    def _heed(self, findings: list[Finding]) -> None:
        """Logs what was found and acts on it.

        Raises:
            RollBack: the run has to go on from an earlier state.
            TrainingStopped: the budget for that is spent.
        """
        for finding in findings:
            self._event(finding.kind, finding.message, finding.severity, dict(finding.details))
            act = self.recovery.decide(finding, self.at.step)
            if act.kind == "adjust":
                self._adjust()
                self._event("recovery", f"{act.message}, because {finding.message}", details={"because": finding.kind})
            elif act.kind == "stop":
                raise self._stop(finding.kind, f"{finding.message}; {act.message}")
            elif act.kind == "roll_back":
                raise RollBack(finding)

    def _roll_back(self, finding: Finding) -> None:
        """Goes back to the last verified checkpoint from before the trouble, and on from there another way."""
        at = self.at
        with suppress(CheckpointError):  # what is being written now is not wanted any more
            self.saver.settle(wait=True)
        sound, start = finding.sound_until, self.beginning is None  # of a resumed run nobody has the beginning
        source, damaged = once(self.accelerator, lambda: self.folder.last_sound(sound, or_first=start))
        for message in damaged:
            self._event("damaged_checkpoint", message)
        of_ranks = gather_object([self.watch.suspects()])
        suspects = set[int]().union(*(bad for bad, _ in of_ranks)).difference(*(good for _, good in of_ranks))
        changes = self.recovery.roll_back(at.step, suspects, len(self.train_source))
        books = self.recovery.state_dict()
        if source is not None:
            self._restore(source)
        elif self.beginning is not None:
            self.at = self.state.restore(self.beginning.state, self.beginning, "the beginning")
            once(self.accelerator, lambda: self.folder.set_aside_after(None))
        else:
            raise self._stop(finding.kind, f"{finding.message}; there is no checkpoint to go back to")
        self.recovery.load_state_dict(books)
        # Steps keep their numbers: a tracker would drop what comes a second time.
        self.at.step, self.at.attempt = at.step, at.attempt + 1
        once(self.accelerator, lambda: self.folder.note_recovery(books))
        where = "the beginning" if source is None else str(source)
        details = {"because": finding.kind, "to": where, **books}
        self._event("rollback", f"rolled back to {where} because {finding.message}: {changes}", details=details)
        self._adjust()
        self.training_step.restart()
        self.phase = None  # its loader has another order, and may have fewer samples

    def _adjust(self) -> None:
        objective = self.training_step.objective
        apply_adjustments(self.recovery.adjustments, self.network, objective, self.experiment.model.moe)

    # ---- validation and checkpoints

    def _validate(self) -> Scores:
        """Scores raw and averaged weights on the held-out part."""
        try:
            shown = shown_indices(self.experiment, len(self.held_out), self.at.epoch)
            raw = self.validator.score(self.network, shown=shown)
            scores = {"val": raw.summary}
            if self.average is not None:
                scores["val_ema"] = self.validator.score(self.average.model, routing=False, name="EMA").summary
        except CheckpointError as error:  # the weights, or what fp16 makes of them, are not finite
            self._heed([Finding("validation", str(error), "roll_back", sound_until=self.at.step - 1)])
            raise AssertionError("a rollback or the end") from error
        values, collapses = self.routing.evaluate(raw.routed, self.at.step)
        draw = partial(with_routing, raw.pictures, raw.routed, self.network)
        self.reporter.validated(scores, values, self.at, draw, raw.undrawn)
        proposal: Proposal = "calm_routers" if self.experiment.stability.collapse else "note"
        findings = [Finding("router_collapse", c.message, proposal, details=c.details) for c in collapses]
        images = [image[self.experiment.checkpoints.monitor] for image in raw.images]
        findings += self.watch.after_validation(self.at.step, images, raw.summary["loss"])
        self._heed(findings)
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
        self._watch_steps()  # what was not looked at yet would be forgotten,
        self.watch.problems = gather_object(self.watch.problems)  # as would bad samples of an epoch under way
        self._save_or_heed(lambda: self.saver.save(replace(self.at), self.state, scores, improved))

    def _save_or_heed(self, save: Callable[[], Result]) -> Result:
        """What holds NaN never becomes a checkpoint: the run goes back to the last that is one. Collective."""
        self.watchdog.beat("saving")
        try:
            return save()
        except NotFinite as error:
            self._heed([Finding("checkpoint", str(error), "roll_back", sound_until=self.at.step - 1)])
            raise AssertionError("a rollback or the end") from error
        except CheckpointError as error:
            raise self._stop("checkpoint", str(error)) from error

    def _restore(self, path: Path) -> None:
        checkpoint = together(lambda: open_to_resume(path))
        with checkpoint.restoring():
            self.at = self.state.restore(checkpoint.state, checkpoint, path)
        written, ranks = checkpoint.state["ranks"], self.accelerator.num_processes
        if written != ranks:
            accumulate = phase_of(min(self.at.epoch, self.experiment.epochs - 1), self.phases).accumulate
            self.at.batch = batch_on_other_ranks(self.at.batch, accumulate, written, ranks)
            self.console.warning(other_ranks_notice(written, ranks))
        if path in list_checkpoints(self.folder.path):
            self._recall()
        else:
            self.saver.best = {}  # of another folder: there is nothing here yet to be better than
        best = f"epoch_{self.saver.best['epoch']:04d}" if self.saver.best else None
        self._adjust()
        once(self.accelerator, lambda: self.folder.go_on_from(path, best))

    def _recall(self) -> None:
        """Takes over what recovery did since the state that the run goes on from was saved, or began."""
        noted = once(self.accelerator, self.folder.noted_recovery)
        if noted is not None and noted["acts"] > self.recovery.acts:
            self.recovery.recall(noted, self.at.step)
            self.at.attempt = max(self.at.attempt, self.recovery.rollbacks)

    # ---- the end

    def _finish(self) -> None:
        """Scores the best checkpoint on the test sources, where there are any."""
        run, data = self.folder.path, self.experiment.data
        if not (data.test and self.accelerator.is_main_process):
            return
        try:
            evaluate(run, batch_size=data.batch_size, workers=data.workers, device=self.accelerator.device)
        except DataError as error:  # training is done and safe
            self._event("evaluation", f"the test data could not be scored: {error}")

    def _close(self, error: BaseException | None) -> None:
        code, reason = outcome(error, self.accelerator.process_index)
        if hasattr(self, "saver"):
            self.saver.look(wait=True)
        # Dropped by name: left to the garbage collector, each loader's workers would be waited for, 5 s each.
        for loader in ("loader", "validator"):
            vars(self).pop(loader, None)
        with suppress(OSError):  # a full disk: the error itself matters more
            self.reporter.end(code, reason, self.at)
        # Such an error, or a bug, may be met by one process alone; the others only see it go.
        if self.accelerator.is_main_process or getattr(error, "met_alone", False) or code == 1:
            try:
                self.folder.close(code, reason)
            except OSError as failure:
                self.console.warning(f"exit.json could not be written: {failure}")
        self.reporter.write_page(code, self.at)
        if code == 0 or hasattr(self, "shell"):  # else nothing was trained
            summarise(self.console, self.experiment, self.at, self.saver.best, code)

    def _stop(self, kind: str, reason: str) -> TrainingStopped:
        """Logs why a guard ends the run, and where to go on from."""
        if hasattr(self, "saver"):
            self.saver.look(wait=True)  # what is being written is the last checkpoint, if it goes well
        message = f"stopped at {self.at}: {reason}; {last_clean(self.folder.path)}{remedy(kind)}"
        self._event(kind, message, severity="error")
        return TrainingStopped(message)

    # ---- small things

    def _event(self, kind: str, message: str, severity: Severity = "warning", details: Any = None) -> None:
        self.reporter.event(kind, message, self.at, severity, details)

    def _sampler(self, phase: ResolvedPhase) -> Batches:
        seed, left_out = self.experiment.experiment.seed, self.recovery.left_out
        return phase_sampler(phase, self.train_source, seed, self.accelerator, left_out)

    def _steps_in(self, phase: ResolvedPhase) -> int:
        """Optimizer steps in one epoch of a phase."""
        return -(-len(self._sampler(phase)) // phase.accumulate)

    def _due(self, every: int) -> bool:
        return self.at.epoch % every == 0 or self.at.epoch == self.experiment.epochs
