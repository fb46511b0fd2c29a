"""Anyone's prediction maps: the same tables and files as for a checkpoint."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from camox.data.pairing import is_non_camouflaged, super_class_of
from camox.errors import DataError
from camox.inference.scoring.results import report, report_comparison, save_scores
from camox.measures.breakdown import DatasetScores
from camox.measures.protocol import get_protocol
from camox.measures.scoring import score_folder
from camox.tracking.console import Console


def score_maps(
    predictions: Sequence[Path], truths: Path, out: Path | None, protocol: str, workers: int, console: Console
) -> dict[str, Any]:
    """Score folders of maps against one of ground truths; several are compared with the first.

    Groups come from COD10K's names. Gives what measures.json holds. Raises DataError as `score_folder`, and where `out`
    cannot be written.
    """
    scores: dict[str, DatasetScores] = {}
    for name, folder in zip(_names(predictions), predictions, strict=True):
        found = score_folder(folder, truths, protocol, workers, super_class_of, is_non_camouflaged)
        for notice in found.notices:
            console.warning(notice if len(predictions) == 1 else f"{folder}: {notice}")
        scores[name] = found
    choices = get_protocol(protocol).as_dict()
    folders = [str(folder) for folder in predictions]
    described = choices | {"predictions": folders[0] if len(folders) == 1 else folders, "truths": str(truths)}
    if len(scores) == 1:
        return report(scores, described, out, console)
    report_comparison({truths.resolve().name: scores}, described, [], out, console)
    return save_scores(scores, described, out)


def _names(folders: Sequence[Path]) -> list[str]:
    """What folders are called in tables: by their own names, where these differ, else with those of their parents."""
    resolved = [folder.resolve() for folder in folders]
    for parts in (1, 2, 3):
        names = ["/".join(folder.parts[-parts:]) for folder in resolved]
        if len(set(names)) == len(names):
            return names
    raise DataError(
        f"{folders[0]}: folders of predictions are given twice, or their last three names agree: rename one"
    )
