"""Line-by-line JSON files that survive being killed: one complete object per line, always valid JSON."""

import errno
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from camox.errors import ExperimentError, TrainingStopped


class JsonLines:
    """Appends objects to a file, one line each, each handed to the operating system at once.

    Args:
        path: The file; its folder is made if missing.
        last_step: Where given, lines whose "step" is larger are removed first, so that a resumed run does not
            hold the same step twice. Lines torn by a kill in mid-write are removed in any case.
    """

    def __init__(self, path: str | Path, last_step: int | None = None):
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        _cut(self.path, last_step)
        # Unbuffered: what a full disk refused would be tried again on closing, and raise there.
        self._file = self.path.open("ab", buffering=0)

    def append(self, record: Mapping[str, Any]) -> None:
        """Write one object.

        Raises:
            ValueError: it holds NaN or Inf, which JSON does not; nothing is written.
            TrainingStopped: the disk refuses; the file is as it was.
        """
        line = (json.dumps(record, allow_nan=False, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")
        size = os.fstat(self._file.fileno()).st_size
        try:
            if self._file.write(line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            os.ftruncate(self._file.fileno(), size)
            raise TrainingStopped(
                f"{self.path}: cannot be written ({error.strerror}): free space on that disk or look at its "
                "permissions, then go on from the last checkpoint with --resume auto"
            ) from error

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        self._file.close()


def read_records(path: str | Path) -> list[dict[str, Any]]:
    """The objects of such a file in order, without what is damaged; none where it cannot be read."""
    try:
        lines = Path(path).read_bytes().splitlines(keepends=True)
    except OSError:
        return []
    return [json.loads(line) for line in lines if stays(line, None)]


def plain(value: Any) -> Any:
    """Turn NumPy and torch values, paths, tuples and sets into what JSON holds; NaN and Inf pass through."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(plain(item) for item in value)
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    raise TypeError(f"{type(value).__name__} cannot be written as JSON: {value!r}")


def is_non_finite(value: Any) -> bool:
    """Whether a value is a float NaN or Inf."""
    return isinstance(value, float) and not math.isfinite(value)


def spell_non_finite(value: Any) -> Any:
    """Plain values with NaN and Inf as the strings "nan", "inf" and "-inf", which JSON can hold."""
    if isinstance(value, dict):
        return {key: spell_non_finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [spell_non_finite(item) for item in value]
    return str(value) if is_non_finite(value) else value


def _cut(path: Path, last_step: int | None) -> None:
    if not os.path.lexists(path):
        return
    if not path.is_file():  # to open a pipe would wait for ever
        raise ExperimentError(f"{path} is no file that lines can be added to: move it away, or choose another --output")
    lines = path.read_bytes().splitlines(keepends=True)
    kept = [line for line in lines if stays(line, last_step)]
    if len(kept) == len(lines):
        return
    # Through a second file and a rename: a kill in between leaves either the old file or the new one.
    replacement = path.with_name(path.name + ".partial")
    with replacement.open("wb") as file:
        file.writelines(kept)
        file.flush()
        os.fsync(file.fileno())
    os.replace(replacement, path)


def stays(line: bytes, last_step: int | None) -> bool:
    """Whether a line of a file is a whole record, and of no step after `last_step`, where that is given."""
    if not line.endswith(b"\n"):
        return False
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return False
    if not isinstance(record, dict):
        return False
    step = record.get("step")
    return last_step is None or step is None or (isinstance(step, int | float) and step <= last_step)
