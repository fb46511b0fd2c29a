"""The questions that a person asks of a run and their answers, as the first screen of its page shows them."""

import math
from collections.abc import Mapping
from typing import Any

from camox.report.gallery import Examined, card_id, embedded
from camox.report.routers import RouterVerdict
from camox.report.run import Run
from camox.report.verdict import Best, Verdict, number, title_of

_MOODS = {"finished": "good", "running": "note", "paused": "note"}
_LEADS = {"no": "No.", "yes": "Yes.", "recovered": "Yes, but it recovered.", "unknown": "Not known."}
_STATES = {
    "finished": "✓ Finished", "stopped": "✗ Stopped by a guard", "paused": "‖ Paused, can be resumed",
    "interrupted": "✗ Interrupted", "failed": "✗ Failed", "running": "… Still running",
    "gone": "✗ Ended without a word (killed?)",
}  # fmt: skip
_THUMBS = ("image", "truth", "prediction")


def facts_of(run: Run, verdict: Verdict, examined: Examined) -> list[dict[str, Any]]:
    """`name` of each question, its answer as `text` or as several `parts`, which `lead` sums up, and a `mood` that the
    page shows by a mark and a colour; the worst image has a `link` to its card and small pictures, `thumbs`."""
    facts: list[dict[str, Any]] = [
        {"name": "Outcome", "text": verdict.outcome, "mood": mood_of(verdict)},
        {
            "name": "Did a router collapse?",
            "lead": _LEADS[verdict.routers.answer],
            "text": verdict.routers.sentence,
            "mood": _router_mood(verdict.routers),
        },
        {
            "name": "Which phase began when?",
            "parts": verdict.phases or ["No step has been logged."],
            "mood": "plain",
        },
    ]
    if worst := _worst(run, examined):
        facts.append({"name": "Which image is worst?", "mood": "plain", **worst})
    return [
        *facts,
        {
            "name": f"Best {title_of(run.monitor)} (val/{run.monitor})",
            "text": _best(verdict.best, verdict.selection, validated=bool(run.validations())),
            "mood": "plain",
        },
        {"name": "Test scores", "parts": verdict.tests or ["No evaluation in this folder."], "mood": "plain"},
        {
            "name": "Was anything skipped or undone?",
            "text": verdict.stability,
            "mood": "good" if verdict.is_calm else "note",
        },
    ]


def mood_of(verdict: Verdict) -> str:
    """ "good", "note" or "bad": a finished run whose folder lost something is not good."""
    mood = _MOODS.get(verdict.state, "bad")
    return "bad" if mood == "good" and verdict.missing else mood


def state_in_words(verdict: Verdict) -> str:
    """The state with its mark."""
    if verdict.state == "finished" and verdict.missing:
        return "✗ Finished, but its folder is damaged"
    return _STATES[verdict.state]


def worst_name(run: Run, examined: Examined) -> str:
    """The worst image and its IoU in a few words, a dash where none is known."""
    worst = _worst(run, examined)
    return str(worst["text"]) if worst else "–"


def _worst(run: Run, examined: Examined) -> Mapping[str, Any] | None:
    """Of the images that the model was run on, else of those that the run's evaluation has scored."""
    if examined.ranked:
        key = examined.ranked[0]
        seen = next((seen for seen in examined.images if seen.key == key), None)
        if seen is not None:
            text = f"{key.name}, IoU {number(seen.scores.get('iou'))}"
            thumbs = [(what, embedded(seen.pictures[what])) for what in _THUMBS if what in seen.pictures]
            return {"text": text, "link": f"#{card_id(key)}", "thumbs": thumbs}
    scored = [(score, row["name"]) for row in run.per_image if math.isfinite(score := _number(row.get("iou")))]
    if not scored:
        return None
    score, name = min(scored)
    return {"text": f"{name}, IoU {number(score)}, of the run's own evaluation"}


def _number(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return math.nan


def _router_mood(routers: RouterVerdict) -> str:
    if routers.answer == "no":
        return "note" if any(scale.signs for scale in routers.scales) else "good"
    return "bad" if routers.answer == "yes" else "note"


def _best(best: Best | None, selection: str, validated: bool) -> str:
    if best is None:
        none = "No held-out image has an object: nothing to score" if validated else "No validation yet"
        return f"{none}. Selected on: {selection}."
    where = f", checkpoint {best.checkpoint}" if best.checkpoint else ""
    when = f"at epoch {best.epoch} (step {best.step})"
    return f"{best.score:.4f} {when}, {best.weights} weights{where}. Selected on: {selection}."
