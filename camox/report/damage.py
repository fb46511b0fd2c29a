"""What a run's folder should hold and does not: a folder may have lost files since the run ended."""

from camox.report.run import Run, ended


def missing_from(run: Run, is_finished: bool) -> list[str]:
    """What is missing or unreadable, a sentence each. Of a run that has not finished only what was there before: how
    much more there should be, nobody knows."""
    missing = list(run.notes)
    if is_finished:
        missing += [text for text in (_numbers(run), _end(run), _checkpoints(run), _evaluation(run)) if text]
    return missing


def _numbers(run: Run) -> str:
    """The last step, of which a validation tells, is logged in any case."""
    if not run.rows and any(note.startswith("metrics.jsonl") for note in run.notes):
        return ""
    last = run.rows[-1].step if run.rows else 0
    end = ended(run.events)  # before a rollback there may have been events of later steps
    known = max([end.step if end else run.last_step, *(manifest.step for manifest in run.checkpoints.values())])
    if last < known:
        return f"metrics.jsonl: its numbers end at step {last} of {known}"
    epochs = run.experiment.epochs if run.experiment else 0
    done = run.rows[-1].epoch + 1 if run.rows else 0
    return f"metrics.jsonl: its numbers end in epoch {done} of {epochs}" if done < epochs else ""


def _end(run: Run) -> str:
    return "" if ended(run.events) or not run.events else "events.jsonl: the end of the run is not in it"


def _checkpoints(run: Run) -> str:
    return "" if run.checkpoints else "checkpoints: none is left, so there is no model to look at or to go on from"


def _evaluation(run: Run) -> str:
    """Training scores its test data at its end, or says by an event why it could not."""
    if run.experiment is None or not run.experiment.data.test or run.evaluation:
        return ""
    if any(event.kind == "evaluation" for event in run.events):
        return ""
    return "evaluation/measures.json is missing: camox evaluate makes it anew"
