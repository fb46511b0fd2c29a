"""`camox diagnose`: all checks of an experiment, from the cheap to the dear."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

from camox.diagnosis.checks import check_gradients, check_losses, check_outputs
from camox.diagnosis.estimates import card_capacity, check_estimates
from camox.diagnosis.finding import Finding
from camox.diagnosis.lr_plot import draw_range_test
from camox.diagnosis.lr_range import STEPS, check_range, run_range_test
from camox.diagnosis.overfit import STEPS as OVERFIT_STEPS
from camox.diagnosis.overfit import check_overfit
from camox.diagnosis.settings import check_average, check_settings
from camox.diagnosis.subject import Subject, build_subject
from camox.errors import ExperimentError
from camox.experiment import Experiment
from camox.inference.loading.selection import what_held_out
from camox.tracking.console import Console, duration
from camox.tracking.jsonl import plain, spell_non_finite
from camox.training.processes import precision_name, precision_notices


def diagnose(
    experiment: Experiment,
    card: str | None = None,
    processes: int = 1,
    lr_range: bool = False,
    plot: Path | None = None,
    report: Path | None = None,
    console: Console | None = None,
) -> int:
    """Runs every check and prints what it finds. Nothing is written but `plot` and `report`.

    Args:
        card: the GPU to estimate memory for, a name or a size; None for this machine's, if any.
        processes: how many the experiment is meant for: they make the effective batch and share an epoch.
        lr_range: whether to run the range test, by far the longest of the checks.
        plot: PNG of the range test, by default `<name>_lr_range.png` in the current folder.
        report: JSON file for all findings.

    Returns:
        0 where all pass, 1 where something failed or looks wrong.

    Raises:
        CamoxError: what would keep the run from starting, an unknown card, a file that cannot be written.
    """
    console = console or Console()
    if card is not None:
        card_capacity(card)
    for path in (report, plot):
        if path is not None and not path.resolve().parent.is_dir():
            raise ExperimentError(f"{path} cannot be written: {path.resolve().parent} is no folder")
    subject = build_subject(experiment)
    _introduce(subject, console)
    findings = []
    with console.counting("checks", 8 if lr_range else 7, unit=None) as done:
        for finding in _checks(subject, console, card, processes, lr_range, plot):
            problems = [(problem.message, problem.remedy) for problem in finding.problems]
            console.verdict(finding.status, finding.check, finding.summary, problems, finding.notes)
            findings.append(finding)
            done()
    wrong = [finding.check for finding in findings if finding.status != "pass"]
    console.notice(f"\n{len(findings)} checks: " + (f"look at {', '.join(wrong)}" if wrong else "all pass"))
    if report is not None:
        _write(report, experiment, findings)
    return 1 if wrong else 0


def _introduce(subject: Subject, console: Console) -> None:
    experiment, accelerator = subject.experiment, subject.accelerator
    notices = dict.fromkeys([*subject.source.notices, *subject.held_out.notices])
    for text in [*notices, *precision_notices(experiment, accelerator)]:
        console.warning(text)
    parameters = sum(parameter.numel() for parameter in subject.network.parameters()) / 1e6
    of_validation = f"{len(subject.held_out)} {what_held_out(experiment)}"
    rows: list[tuple[str, object]] = [
        ("data", f"{len(subject.source)} training ({subject.source.label}), {of_validation}"),
        ("model", f"{experiment.model.backbone}, {parameters:.1f} M parameters"),
        ("device", f"{accelerator.device.type}, {precision_name(accelerator)}"),
    ]
    console.header(f"camox diagnose: {experiment.experiment.name}", rows)
    console.notice("")


def _checks(
    subject: Subject, console: Console, card: str | None, processes: int, lr_range: bool, plot: Path | None
) -> Iterator[Finding]:
    experiment = subject.experiment
    settings = check_settings(experiment, len(subject.source), processes)
    yield settings
    yield check_average(experiment.ema, settings.values["steps"])
    yield check_estimates(subject, card, processes)
    yield check_outputs(subject)
    yield check_losses(subject)
    yield check_gradients(subject)
    started = time.perf_counter()
    with console.counting("overfit", OVERFIT_STEPS, "steps") as done:
        overfit = check_overfit(subject, done)
    seconds_per_step = (time.perf_counter() - started) / len(overfit.values["losses"])
    yield overfit
    if lr_range:
        console.notice(f"lr range: {STEPS} steps on real batches, about {duration(STEPS * seconds_per_step)}")
        path = plot or Path(f"{experiment.experiment.name}_lr_range.png")
        with console.counting("lr range", STEPS, "steps") as done:
            test = run_range_test(subject, done)
        peaks = {phase.name: phase.lr for phase in experiment.phases_resolved()}
        if test is not None:
            draw_range_test(test, peaks, f"camox diagnose: {experiment.experiment.name}", path)
        yield check_range(subject, test, path)


def _write(path: Path, experiment: Experiment, findings: list[Finding]) -> None:
    document = {
        "experiment": experiment.experiment.name,
        "fingerprint": experiment.fingerprint(),
        "status": max((f.status for f in findings), key=["pass", "warn", "fail"].index),
        "checks": [finding.plain() for finding in findings],
    }
    path.write_text(json.dumps(spell_non_finite(plain(document)), indent=2, allow_nan=False, ensure_ascii=False) + "\n")
