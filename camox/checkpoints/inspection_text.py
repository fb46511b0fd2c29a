"""What `camox inspect` prints for people: compact tables in which names, of any length, stand where they do no harm."""

import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from camox.checkpoints.difference import Difference, TensorDifference
from camox.checkpoints.folders import CHECKPOINTS
from camox.checkpoints.scan import FileReport, Report, SubjectReport, TensorReport

MOST_ROWS = 20
"""Tensors that are listed without `--all`: where all of a network is NaN, the first ones tell enough."""
_GIVEN_UP_FIRST = ("tensors", "epoch")
"""Columns of the overview that are left out, in this order, where it is wider than the terminal."""
_SCORES = 2
"""Measures in the overview: a run has one that it monitors."""


class _Column(NamedTuple):
    heading: str
    cells: Sequence[str]
    to_the_left: bool = False

    @property
    def width(self) -> int:
        return max(len(self.heading), *map(len, self.cells))


def report_lines(report: Report, every_tensor: bool) -> Iterator[str]:
    """A scan: an overview where there are several checkpoints, then what is not clean in detail, then the verdict."""
    names = [_name(subject.path, report.path) for subject in report.subjects]
    several = len(names) > 1
    if several:
        yield from _table(_overview(report.subjects, names), width=shutil.get_terminal_size().columns)
    for subject in report.subjects:
        if every_tensor or not several or not subject.is_clean:
            if several:
                yield ""
            yield from _subject_lines(subject, every_tensor, every_file=every_tensor or not several)
    if several:
        yield ""
    yield from (f"note: {note}" for note in report.notes)
    yield _verdict(report, names)


def difference_lines(difference: Difference, every_tensor: bool) -> Iterator[str]:
    """A difference: what only one has, what has another form, what changed, and how much in all."""
    for mark, path in zip("AB", difference.paths, strict=True):
        yield f"{mark}  {path}"
    for mark, only in zip("AB", difference.only_in, strict=True):
        if only:
            yield ""
            yield f"only in {mark}: {_count(len(only), 'tensor')}"
            yield from _cut([f"  {name}" for name in only], every_tensor)
    if difference.other_form:
        yield ""
        yield f"other dtype or shape: {_count(len(difference.other_form), 'tensor')}"
        rows = [f"  {tensor.first} → {tensor.second}  {tensor.name}" for tensor in difference.other_form]
        yield from _cut(rows, every_tensor)
    if difference.changed:
        yield ""
        yield from _cut(list(_table(_changes(difference.changed))), every_tensor, headings=1)
    yield ""
    for side, mark in enumerate("AB"):
        found = [tensor for tensor in difference.not_finite if tensor.side == side]
        if found:
            counts = _nonfinite(sum(tensor.nan for tensor in found), sum(tensor.inf for tensor in found))
            yield f"{mark} holds {counts} in {_count(len(found), 'tensor')}, such as {found[0].name}"
    if difference.not_finite:
        yield "NaN and Inf are left out of relative and max abs"
    yield _difference_verdict(difference)


def _name(path: Path, scanned: Path) -> str:
    """How the overview calls a checkpoint: by its place below what was scanned."""
    try:
        parts = path.relative_to(scanned).parts
    except ValueError:  # the folder of checkpoints is reached by a link
        return path.name
    return "/".join(parts[1:] if parts[:1] == (CHECKPOINTS,) else parts) or path.name


def _overview(subjects: Sequence[SubjectReport], names: Sequence[str]) -> list[_Column]:
    manifests = [subject.manifest for subject in subjects]
    measures = [manifest.measures if manifest else {} for manifest in manifests]
    columns = [
        _Column("checkpoint", names, to_the_left=True),
        _Column("epoch", [str(manifest.epoch) if manifest else "" for manifest in manifests]),
        _Column("step", [str(manifest.step) if manifest else "" for manifest in manifests]),
        *(_Column(name, [_score(of.get(name)) for of in measures]) for name in _monitored(measures)),
        _Column("size", [_size(subject.size) for subject in subjects]),
        _Column("tensors", [str(subject.tensor_count) for subject in subjects]),
        _Column("verdict", [_short_verdict(subject) for subject in subjects], to_the_left=True),
        _Column("", [", ".join(subject.pointers) for subject in subjects], to_the_left=True),
    ]
    return [column for column in columns if any(column.cells)]


def _monitored(measures: Sequence[Mapping[str, float]]) -> list[str]:
    """The measures that checkpoints are ranked by: in a manifest they have no prefix, unlike `val/iou`."""
    plain = dict.fromkeys(name for of in measures for name in of if "/" not in name)
    return list(plain)[:_SCORES]


def _short_verdict(subject: SubjectReport) -> str:
    """The worst of it, as the exit code has it; the rest is told in detail below."""
    if not subject.is_finite:
        return _nonfinite(subject.nan, subject.inf)
    return "damaged" if subject.defects else "finite"


def _subject_lines(subject: SubjectReport, every_tensor: bool, every_file: bool) -> Iterator[str]:
    manifest = subject.manifest
    about = [f"epoch {manifest.epoch}", f"step {manifest.step}"] if manifest else []
    if manifest:
        about += [f"{name} {_score(manifest.measures[name])}" for name in _monitored([manifest.measures])]
    yield "  ".join([str(subject.path), *([", ".join([*about, *subject.pointers])] if about else [])])
    files = [file for file in subject.files if every_file or file.bad]
    lines = _table(_file_columns(files), indent=2, headings=False) if files else iter(())
    for file, line in zip(files, lines, strict=False):
        yield line
        shown = file.tensors if every_tensor else file.bad
        if shown:
            yield from _cut(list(_table(_tensor_columns(shown), indent=4)), every_tensor, headings=1)
    yield from (f"  damaged: {defect}" for defect in subject.defects)


def _file_columns(files: Sequence[FileReport]) -> list[_Column]:
    return [
        _Column("", [file.path.name for file in files], to_the_left=True),
        _Column("", [_size(file.size) for file in files]),
        _Column("", [_count(len(file.tensors), "tensor") for file in files]),
        _Column("", [_file_verdict(file) for file in files], to_the_left=True),
    ]


def _file_verdict(file: FileReport) -> str:
    if not file.bad:
        return "finite"
    counts = _nonfinite(sum(tensor.nan for tensor in file.bad), sum(tensor.inf for tensor in file.bad))
    return f"{counts} in {_count(len(file.bad), 'tensor')}"


def _tensor_columns(tensors: Sequence[TensorReport]) -> list[_Column]:
    return [
        _Column("NaN", [str(tensor.nan) for tensor in tensors]),
        _Column("Inf", [str(tensor.inf) for tensor in tensors]),
        _Column("zeros", [_share(tensor.zero_share) for tensor in tensors]),
        _Column("absmax", ["-" if tensor.absmax is None else f"{tensor.absmax:.4g}" for tensor in tensors]),
        *_forms(tensors),
    ]


def _changes(tensors: Sequence[TensorDifference]) -> list[_Column]:
    return [
        _Column("relative", [_number(tensor.relative) for tensor in tensors]),
        _Column("max abs", [_number(tensor.max_abs) for tensor in tensors]),
        _Column("changed", [_share(tensor.changed_share) for tensor in tensors]),
        *_forms(tensors),
    ]


def _forms(tensors: Sequence[TensorReport] | Sequence[TensorDifference]) -> list[_Column]:
    """The name comes last: however long, it moves no other column."""
    return [
        _Column("dtype", [tensor.dtype for tensor in tensors], to_the_left=True),
        _Column("shape", ["×".join(map(str, tensor.shape)) or "scalar" for tensor in tensors], to_the_left=True),
        _Column("tensor", [tensor.name for tensor in tensors], to_the_left=True),
    ]


def _verdict(report: Report, names: Sequence[str]) -> str:
    bad = [name for name, subject in zip(names, report.subjects, strict=True) if not subject.is_clean]
    clean = [name for name, subject in zip(names, report.subjects, strict=True) if subject.is_clean]
    if not bad:
        return "clean: every tensor is finite" if len(names) == 1 else f"all {len(names)} clean: every tensor is finite"
    listed = ", ".join(bad[:3]) + (", …" if len(bad) > 3 else "")
    newest = f"; the newest clean one is {clean[-1]}" if clean else ""
    return f"{len(bad)} of {len(names)} not clean: {listed}{newest}"


def _difference_verdict(difference: Difference) -> str:
    if difference.is_identical:
        return f"identical: {_count(difference.equal, 'tensor')} of the same names, dtypes, shapes and numbers"
    common = difference.equal + len(difference.changed)
    if not common:
        return "no tensor of one name, dtype and shape in both"
    groups = [f"{group} {_number(value)}".strip() for group, value in difference.relative.items()]
    changed = f"{len(difference.changed)} of {_count(common, 'tensor')} in common changed"
    return "; relative difference: ".join([changed, ", ".join(groups)]) if groups else changed


def _table(columns: Sequence[_Column], indent: int = 0, headings: bool = True, width: int = 0) -> Iterator[str]:
    """Lines of aligned cells; where they are wider than `width` (0: any), some columns are left out."""
    kept = list(columns)
    for heading in _GIVEN_UP_FIRST:
        if width and sum(column.width + 2 for column in kept) - 2 > width:
            kept = [column for column in kept if column.heading != heading]
    rows = zip(*(column.cells for column in kept), strict=True)
    for cells in [tuple(column.heading for column in kept)] * headings + list(rows):
        line = "  ".join(
            cell.ljust(column.width) if column.to_the_left else cell.rjust(column.width)
            for cell, column in zip(cells, kept, strict=True)
        )
        yield " " * indent + line.rstrip(" ")


def _cut(rows: list[str], every_row: bool, headings: int = 0) -> Iterator[str]:
    """The first rows, and how many more there are."""
    most = len(rows) if every_row else MOST_ROWS + headings
    yield from rows[:most]
    if len(rows) > most:
        indent = " " * (len(rows[-1]) - len(rows[-1].lstrip()))
        yield f"{indent}… {len(rows) - most} more: see them with --all"


def _nonfinite(nan: int, inf: int) -> str:
    return ", ".join(f"{_short(count)} {kind}" for count, kind in ((nan, "NaN"), (inf, "Inf")) if count)


def _short(count: int) -> str:
    """A count in at most six characters."""
    for unit, power in (("G", 9), ("M", 6)):
        if count >= 10**power:
            return f"{count / 10**power:.1f}{unit}"
    return str(count)


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _size(size: int) -> str:
    for unit, power in (("GB", 9), ("MB", 6)):
        if size >= 10**power:
            return f"{size / 10**power:.1f} {unit}"
    return f"{size / 1000:.1f} kB"


def _share(share: float | None) -> str:
    """Per cent, in which some is never none and most is never all."""
    if share is None:
        return "-"
    if share in (0, 1):
        return f"{share:.0%}"
    return f"{min(max(share, 0.001), 0.999):.1%}"


def _score(score: float | None) -> str:
    return "" if score is None else f"{score:.4f}"


def _number(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.3g}"
