"""Which datasets there are to examine: those of an experiment, or those in a folder."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from camox.data.audit.dataset import Dataset
from camox.data.audit.listing import list_dataset
from camox.data.layouts import SPLITS, Located, locate, splits_of
from camox.data.sources import locate_source, source_label
from camox.errors import DataError
from camox.experiment import Experiment


def datasets_at(path: Path) -> tuple[list[Dataset], list[str]]:
    """List the datasets of an experiment file, of a dataset's folder, or of a folder of datasets.

    Returns:
        The datasets, and what of the path is not examined, a line each.

    Raises:
        CamoxError: there is nothing at the path, or nothing that is a dataset of files, or no image in any of them, or
            a folder cannot be read.
    """
    try:
        return _datasets_at(path.expanduser())
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error}): check its permissions and the disk it is on") from error


def _datasets_at(path: Path) -> tuple[list[Dataset], list[str]]:
    if path.is_dir():
        datasets, notices = _in_folder(path)
    elif path.is_file() and path.suffix.lower() == ".toml":
        datasets, notices = _of_experiment(Experiment.load(path))
    elif path.exists():
        raise DataError(f"{path} is neither a folder nor an experiment: give a dataset's folder or EXPERIMENT.toml")
    else:
        raise DataError(f"{path}: no such file or folder: give a dataset's folder or EXPERIMENT.toml")
    if not datasets:
        raise DataError(f"{path}: none of its sources are folders of images and masks, so there is nothing to examine")
    if not any(dataset.listing.entries for dataset in datasets):
        folders = ", ".join(dict.fromkeys(str(part.images) for one in datasets for part in one.located.parts))
        raise DataError(f"no image files in {folders}: correct the path or fill the folder")
    return datasets, notices


def _in_folder(path: Path) -> tuple[list[Dataset], list[str]]:
    datasets = list(_splits(path)) if splits_of(path) else []
    # What SINet's folders lie beside: a folder of datasets may itself be laid out as a dataset.
    taken = {folder for one in datasets for part in one.located.parts for folder in (part.images, part.masks)}
    children = [
        child
        for child in sorted(path.iterdir())
        if child.is_dir()
        and not child.name.startswith(".")
        and not any(folder.is_relative_to(child) for folder in taken)
    ]
    known = [child for child in children if splits_of(child)]
    if datasets and not known:
        return datasets, []
    if not known:
        locate(path)  # says what is wrong with it
    notices = [f"{child} is of no known layout and is not examined" for child in children if child not in known]
    return [*datasets, *(dataset for child in known for dataset in _splits(child))], notices


def _splits(path: Path) -> Iterator[Dataset]:
    """The splits of one dataset; a set that has none is one, without a role."""
    by_split = {split: locate(path, split=split) for split in splits_of(path)}
    name = path.resolve().name
    if len({located.parts for located in by_split.values()}) == 1 < len(by_split):
        yield _dataset(name, "", by_split[SPLITS[0]])
        return
    for split, located in by_split.items():
        yield _dataset(name, split, located)


def _of_experiment(experiment: Experiment) -> tuple[list[Dataset], list[str]]:
    data = experiment.data
    datasets: list[Dataset] = []
    notices: list[str] = list(experiment.warnings)
    for role, sources in (("train", data.train), ("val", data.val), ("test", data.test)):
        for source in sources:
            specification = {key: value for key, value in source.plain().items() if value is not None}
            if "layout" not in specification:
                notices.append(f"{role}: {source_label(specification)} has no files of images and is not examined")
                continue
            located = locate_source(specification)  # its split has been filled in by role
            datasets.append(_dataset(source_label(specification), role, located, specification))
    return datasets, notices


def _dataset(name: str, role: str, located: Located, specification: Mapping[str, Any] | None = None) -> Dataset:
    given = {key: value for key, value in (specification or {}).items() if key in ("super_class", "non_camouflaged")}
    return Dataset(name, role, located, list_dataset(located, **given))
