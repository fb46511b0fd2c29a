"""Opening sets of the Hugging Face hub, and local folders of the same forms, by the `datasets` library."""

import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from camox.data.layouts import splits_of
from camox.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

_ID = re.compile(r"[\w.-]+/[\w.-]+")
_ANSWER_SECONDS = 10
"""How long the hub has to say whether it has a set."""


@dataclass(frozen=True)
class HubAddress:
    """Which set, and which part of it.

    `hub` is an id of the hub ("owner/name") or a local folder: one that `save_to_disk` wrote, or one of parquet files,
    of image files with a table of their masks, or another that `datasets.load_dataset` reads. `config` names one of
    several configurations; `revision`, a branch, tag or commit, is for ids of the hub alone.
    """

    hub: str
    split: str
    config: str | None = None
    revision: str | None = None

    def __str__(self) -> str:
        return f"{self.hub} ({self.split})"

    @property
    def folder(self) -> Path | None:
        """The local folder, None for an id of the hub."""
        path = Path(self.hub).expanduser()
        return path if path.is_dir() else None

    @property
    def label(self) -> str:
        """What the set is called in tables."""
        return (self.folder or Path(self.hub)).resolve().name


def load_table(address: HubAddress) -> "tuple[Dataset, tuple[str, ...]]":
    """The rows of a set, memory-mapped, and what the user must be told.

    A set that is not in the library's cache is downloaded, or converted, into it first; of several processes one does
    it and the others wait. Raises `DataError` where there is no such set or split, or no network to fetch it by.
    """
    _require_sense(address)
    with _library(address) as (datasets, notices):
        if _is_saved(address):
            return _part_of_saved(datasets, address), notices
        return datasets.load_dataset(_path(address), address.config, **_which(address)), notices


def load_stream(address: HubAddress) -> "tuple[IterableDataset, int | None, tuple[str, ...]]":
    """The rows of a set, to be read one after the other without a download; how many there are, where the set tells it;
    and what the user must be told. Raises `DataError` as `load_table` does."""
    _require_sense(address)
    with _library(address) as (datasets, notices):
        if _is_saved(address):
            saved = _part_of_saved(datasets, address)
            return saved.to_iterable_dataset(num_shards=max(len(saved.cache_files), 1)), len(saved), notices
        stream = datasets.load_dataset(_path(address), address.config, streaming=True, **_which(address))
        split = (stream.info.splits or {}).get(address.split)
        return stream, getattr(split, "num_examples", None) or None, notices


_OF_A_SET = ("metadata.*", "*.parquet", "*.arrow")
"""Files of which a folder that is a set of its own has one."""


def _require_sense(address: HubAddress) -> None:
    """Everything that can be told without the library."""
    folder = address.folder
    if folder is None and not _ID.fullmatch(address.hub):
        raise DataError(
            f'hub = "{address.hub}": there is no such folder, and it is no id of the hub ("owner/name"): correct it; '
            f"relative paths start from {Path.cwd()}"
        )
    if folder is not None and address.revision is not None:
        raise DataError(f'hub = "{address.hub}" is a folder, which has no revisions: remove revision')
    if folder is not None and splits_of(folder) and not any(any(folder.rglob(pattern)) for pattern in _OF_A_SET):
        raise DataError(
            f'hub = "{address.hub}" is a folder of images beside one of masks: use '
            f'{{ layout = "auto", path = "{address.hub}" }}'
        )
    if _is_saved(address) and address.config is not None:
        raise DataError(f'{folder} holds one saved set, without configurations: remove config = "{address.config}"')


def _is_saved(address: HubAddress) -> bool:
    """Whether the folder was written by `save_to_disk`."""
    folder = address.folder
    return folder is not None and any((folder / name).is_file() for name in ("state.json", "dataset_dict.json"))


def _path(address: HubAddress) -> str:
    # Not as it was given: a folder called "json" would be taken for the reader of that name.
    return address.hub if address.folder is None else str(address.folder.resolve())


def _which(address: HubAddress) -> dict[str, Any]:
    return {"split": address.split, "revision": address.revision}


def _part_of_saved(datasets: Any, address: HubAddress) -> "Dataset":
    saved = datasets.load_from_disk(str(address.folder))
    if isinstance(saved, datasets.DatasetDict):
        if address.split not in saved:
            raise DataError(_no_split(address, list(saved)))
        return saved[address.split]
    if saved.split is not None and str(saved.split) != address.split:
        raise DataError(_no_split(address, [str(saved.split)]))
    return saved


def _no_split(address: HubAddress, splits: Sequence[str]) -> str:
    there = ", ".join(splits)
    return f'hub = "{address.hub}" has no split "{address.split}", only {there}: set split to one of these'


@contextmanager
def _library(address: HubAddress) -> Iterator[tuple[Any, tuple[str, ...]]]:
    """The library, and notices about where it will get the set from; its errors become one `DataError`."""
    import datasets  # takes a second, and only these sources need it

    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    verbosity = datasets.logging.get_verbosity()
    datasets.logging.set_verbosity_error()  # what matters of its warnings is told here
    offline = datasets.config.HF_HUB_OFFLINE
    reachable = address.folder is not None or offline or _answers(address)
    copy = f"{address}: the hub cannot be reached; the copy in the cache of this machine is used"
    notices = () if reachable else (copy,)
    try:
        with _as_if_offline(not reachable):
            yield datasets, notices
    except DataError:
        raise
    except Exception as error:  # the library lets through whatever its readers and clients raise
        raise _told(address, error, bool(offline)) from error
    finally:
        datasets.logging.set_verbosity(verbosity)


def _answers(address: HubAddress) -> bool:
    """One request to the hub, which its client would try for a minute; False where nobody answers.

    Raises:
        DataError: the hub says that there is no such set, or that it is not for everybody.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        HfApi().dataset_info(address.hub, revision=address.revision, timeout=_ANSWER_SECONDS)
    except HfHubHTTPError as error:
        raise _told(address, error, offline=False) from error
    except Exception:  # noqa: BLE001  of whatever network library the client is built on
        return False
    return True


@contextmanager
def _as_if_offline(wanted: bool) -> Iterator[None]:
    """Without it the library would look for the hub again, with retries, before it takes the copy in its cache."""
    import datasets

    before = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = before or wanted
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = before


def _told(address: HubAddress, error: Exception, offline: bool) -> DataError:
    """What went wrong in words, by the kind of the library's error."""
    from datasets.exceptions import DatasetNotFoundError
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    this = f'hub = "{address.hub}"'
    text = " ".join(str(error).split())
    if isinstance(error, RevisionNotFoundError):
        return DataError(f'{this} has no revision "{address.revision}": give a branch, tag or commit that it has')
    if isinstance(error, GatedRepoError) or "gated" in text:
        return DataError(
            f"{this}: access has to be granted: accept its conditions on https://huggingface.co/datasets/{address.hub} "
            "and log in with hf auth login (or set HF_TOKEN)"
        )
    if isinstance(error, RepositoryNotFoundError | DatasetNotFoundError) and address.folder is None:
        return DataError(
            f"{this}: the hub has no set of this name, or a private one: correct the id, or log in with hf auth login "
            "(or set HF_TOKEN)"
        )
    if isinstance(error, HfHubHTTPError):
        return DataError(f"{this}: the hub refuses it: {text}")
    if address.folder is None and isinstance(error, ConnectionError):
        reason = "HF_HUB_OFFLINE is set" if offline else "the hub cannot be reached"
        return DataError(
            f"{this} is not on this machine, and {reason}: connect to the network, or save the set elsewhere with "
            f'datasets.load_dataset("{address.hub}").save_to_disk(FOLDER) and give hub = "FOLDER"; '
            f"if it means a folder, there is none at {Path.cwd() / address.hub}"
        )
    if match := re.match(r"(?:Unknown|Bad) split.*(?:Should be one of|Available splits:) \[(.*)\]", text):
        return DataError(_no_split(address, match[1].replace("'", "").split(", ")))
    if "Config name is missing" in text or "BuilderConfig" in text:
        given = f'has no configuration "{address.config}"' if address.config else "has several configurations"
        return DataError(f"{this} {given}: set config to one it has ({text})")
    if isinstance(error, FileNotFoundError):
        return DataError(
            f"{this} holds no data that can be read ({text}): give a folder of parquet files, one of images with a "
            "table of their masks, or one that save_to_disk wrote"
        )
    reason = f"{type(error).__name__}: {_root(error)}"
    return DataError(f"{this}: cannot be read ({reason}): check its files, or fetch it again")


def _root(error: BaseException) -> str:
    """What an error came from: the library wraps what its readers raise."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split())
