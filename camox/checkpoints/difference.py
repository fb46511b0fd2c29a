"""What two checkpoints, or two files of weights, do not have in common; read side by side in small pieces."""

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from camox.checkpoints.folders import resolve
from camox.checkpoints.progress import Progress
from camox.checkpoints.stored import StoredTensor, open_tensors
from camox.checkpoints.survey import Subject, survey
from camox.checkpoints.tally import Tally, as_floats, bits_of, can_be_decoded, is_countable
from camox.errors import CheckpointError

Group = Mapping[str, StoredTensor]
"""Name → tensor, of one file or of all shards of one index."""
Groups = Mapping[str, Group]
"""Stem of the file (`model`, `ema`, …) → its tensors."""


@dataclass(frozen=True)
class TensorDifference:
    """How the numbers of two tensors of one name, dtype and shape differ.

    `changed` of `numbers` are not equal, NaN being equal to NaN and 0.0 to -0.0. Over places where both are finite:
    `max_abs` is the largest magnitude of a difference, `norm` the Euclidean norm of the differences, and `first_norm`
    that of the first tensor. The three are None where there is no such place, and for what is no floating-point number.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    numbers: int
    changed: int
    max_abs: float | None = None
    norm: float | None = None
    first_norm: float | None = None

    @property
    def changed_share(self) -> float:
        """Share of its numbers that changed."""
        return self.changed / self.numbers if self.numbers else 0.0

    @property
    def relative(self) -> float | None:
        """Norm of the difference ÷ norm of the first: infinite where only the latter is 0, None where unknown."""
        return None if self.norm is None or self.first_norm is None else _quotient(self.norm, self.first_norm)


@dataclass(frozen=True)
class OtherForm:
    """A tensor whose dtype or shape differs."""

    name: str
    first: str
    second: str


@dataclass(frozen=True)
class NotFinite:
    """A tensor of one of the two (`side` 0 or 1) with its counts of NaN and Inf."""

    side: int
    name: str
    nan: int
    inf: int


@dataclass(frozen=True)
class Difference:
    """All differences of two subjects; `paths` are what was compared, in the order given.

    Names are `group/name` where there are several groups (`model`, `ema`, `optimizer`, …). `changed` has the largest
    relative difference first (before it, what is all NaN on a side) and what is no floating-point number last.
    """

    paths: tuple[Path, Path]
    only_in: tuple[tuple[str, ...], tuple[str, ...]]
    other_form: tuple[OtherForm, ...]
    changed: tuple[TensorDifference, ...]
    equal: int
    """Tensors without a difference."""
    relative: Mapping[str, float | None]
    """Group ("" where there is but one) → norm of all differences ÷ norm of all of the first, over the tensors of
    floating-point numbers in common; groups without any are left out."""
    not_finite: tuple[NotFinite, ...]

    @property
    def is_identical(self) -> bool:
        """Whether names, dtypes, shapes and all numbers are the same."""
        return not (self.changed or self.other_form or any(self.only_in))

    @property
    def exit_code(self) -> int:
        """0 all finite, 1 NaN or Inf in either; that they differ is no failure."""
        return 1 if self.not_finite else 0


def compare(first: str | Path, second: str | Path, progress: Progress) -> Difference:
    """Compare two files, checkpoints or runs (of a run: its best checkpoint, else its latest), tensor by tensor.

    Files are paired by name without ending, and a lone file with the one of its name, else with `model`. Hashes are
    not checked. Raises CheckpointError where either cannot be read, or it is not clear what to compare.
    """
    subjects = (_subject(Path(first)), _subject(Path(second)))
    with ExitStack() as stack:
        paths, sides = _narrowed(subjects, [_groups(subject, stack) for subject in subjects])
        progress.expect(sum(tensor.size for side in sides for group in side.values() for tensor in group.values()))
        comparison = _Comparison(progress)
        for stem in dict.fromkeys(stem for side in sides for stem in side):
            comparison.add(stem, sides[0].get(stem, {}), sides[1].get(stem, {}))
        return comparison.result(paths)


def _subject(path: Path) -> Subject:
    found = survey(path).subjects
    if len(found) == 1:
        return found[0]
    try:
        return survey(resolve(path)).subjects[0]
    except CheckpointError as error:
        raise CheckpointError(
            f"{path}: holds {len(found)} checkpoints, of which none is marked best or latest. "
            f"Name one of them, such as {found[-1].path}."
        ) from error


def _groups(subject: Subject, stack: ExitStack) -> Groups:
    """The tensors of a subject by stem of their file; all shards of an index are one group of its stem."""
    groups: dict[str, dict[str, StoredTensor]] = {}
    for path in subject.files:
        stem = _stem(subject.index or path)
        tensors = stack.enter_context(open_tensors(path))
        groups.setdefault(stem, {}).update((tensor.name, tensor) for tensor in tensors)
    return groups


def _narrowed(subjects: Sequence[Subject], sides: Sequence[Groups]) -> tuple[tuple[Path, Path], tuple[Groups, Groups]]:
    """What to compare, and where it lies: where one side has but one group, that and the one it belongs to, as ""."""
    if all(len(side) > 1 for side in sides):
        return (subjects[0].path, subjects[1].path), (sides[0], sides[1])
    stems = [
        _stem_like(other, side, subject) for subject, side, other in zip(subjects, sides, sides[::-1], strict=True)
    ]
    first, second = (
        subject.path if len(side) == 1 else next(path for path in subject.files if _stem(path) == stem)
        for subject, side, stem in zip(subjects, sides, stems, strict=True)
    )
    return (first, second), ({"": sides[0][stems[0]]}, {"": sides[1][stems[1]]})


def _stem_like(single: Groups, several: Groups, subject: Subject) -> str:
    """Which of several groups the single one of the other side belongs to."""
    if len(several) == 1:
        return next(iter(several))
    for stem in (*single, "model"):
        if stem in several:
            return stem
    raise CheckpointError(f"{subject.path}: holds {', '.join(several)}: name the one file to compare")


def _stem(path: Path) -> str:
    return path.name.split(".")[0]


class _Comparison:
    """Collects what pairs of groups differ in."""

    def __init__(self, progress: Progress):
        self.progress = progress
        self.only_in: tuple[list[str], list[str]] = ([], [])
        self.other_form: list[OtherForm] = []
        self.compared: list[TensorDifference] = []
        self.relative: dict[str, float | None] = {}
        self.not_finite: list[NotFinite] = []

    def add(self, label: str, first: Group, second: Group) -> None:
        """Compare two groups; their label goes before the names."""
        prefix, before = f"{label}/" if label else "", len(self.compared)
        for name, tensor in first.items():
            if name in second:
                self._add_pair(prefix + name, tensor, second[name])
            else:
                self._add_lone(0, prefix + name, tensor)
        for name, tensor in second.items():
            if name not in first:
                self._add_lone(1, prefix + name, tensor)
        floats = [tensor for tensor in self.compared[before:] if tensor.norm is not None]
        if floats:
            norms = (math.hypot(*(getattr(tensor, of) for tensor in floats)) for of in ("norm", "first_norm"))
            self.relative[label] = _quotient(*norms)

    def result(self, paths: tuple[Path, Path]) -> Difference:
        """What was found so far."""
        changed = sorted((tensor for tensor in self.compared if tensor.changed), key=_by_size_of_change)
        return Difference(
            paths,
            (tuple(self.only_in[0]), tuple(self.only_in[1])),
            tuple(self.other_form),
            tuple(changed),
            equal=len(self.compared) - len(changed),
            relative=self.relative,
            not_finite=tuple(self.not_finite),
        )

    def _add_lone(self, side: int, name: str, tensor: StoredTensor) -> None:
        self.only_in[side].append(name)
        self._look_for_nan(side, name, tensor)

    def _add_pair(self, name: str, first: StoredTensor, second: StoredTensor) -> None:
        if (first.dtype, first.shape) != (second.dtype, second.shape):
            self.other_form.append(OtherForm(name, form(first.dtype, first.shape), form(second.dtype, second.shape)))
            self._look_for_nan(0, name, first)
            self._look_for_nan(1, name, second)
            return
        sums = _Sums(first.dtype)
        for one, other in zip_longest(first.pieces(), second.pieces()):
            if one is None or other is None or len(one) != len(other):
                raise CheckpointError(f"tensor {name!r} is stored sparsely in one of the two: they cannot be compared")
            sums.add(one, other)
            self.progress.advance(2 * len(one))
        for side, tally in enumerate(sums.tallies):
            self._note(side, name, tally)
        self.compared.append(sums.difference(name, first))

    def _look_for_nan(self, side: int, name: str, tensor: StoredTensor) -> None:
        if not is_countable(tensor.dtype):
            return
        tally = Tally(tensor.dtype)
        for piece in tensor.pieces():
            tally.add(piece)
            self.progress.advance(len(piece))
        self._note(side, name, tally)

    def _note(self, side: int, name: str, tally: Tally) -> None:
        if not tally.is_finite:
            self.not_finite.append(NotFinite(side, name, tally.nan, tally.inf))


class _Sums:
    """Running sums over pairs of pieces of two tensors of one dtype."""

    def __init__(self, dtype: str):
        self.dtype = dtype
        self.tallies = (Tally(dtype), Tally(dtype))
        self.numbers = 0
        self.changed = 0
        self.finite_pairs = 0
        self.largest = 0.0
        self.squares = 0.0
        self.first_squares = 0.0

    def add(self, first: NDArray[np.uint8], second: NDArray[np.uint8]) -> None:
        """Count what two pieces of raw bytes differ in."""
        if is_countable(self.dtype):
            for tally, piece in zip(self.tallies, (first, second), strict=True):
                tally.add(piece)
        bits, other_bits = bits_of(first, self.dtype), bits_of(second, self.dtype)
        self.numbers += bits.size
        if not can_be_decoded(self.dtype):
            self.changed += int(np.count_nonzero(bits != other_bits))
            return
        # Sums of double precision may become infinite; a NaN that signals would be told of when it is cast.
        with np.errstate(over="ignore", invalid="ignore"):
            self._add_floats(as_floats(first, self.dtype), as_floats(second, self.dtype))

    def _add_floats(self, first: NDArray[np.float64], second: NDArray[np.float64]) -> None:
        if not all(tally.is_finite for tally in self.tallies):
            both_nan = np.isnan(first) & np.isnan(second)
            both_finite = np.isfinite(first) & np.isfinite(second)
            self.changed += int(np.count_nonzero((first != second) & ~both_nan & ~both_finite))
            first, second = first[both_finite], second[both_finite]
        difference = first - second
        self.finite_pairs += difference.size
        self.changed += int(np.count_nonzero(difference))
        self.largest = max(self.largest, float(difference.max(initial=0)), -float(difference.min(initial=0)))
        self.squares += float(difference @ difference)
        self.first_squares += float(first @ first)

    def difference(self, name: str, tensor: StoredTensor) -> TensorDifference:
        """What the sums say of the whole tensor."""
        found = TensorDifference(name, tensor.dtype, tensor.shape, self.numbers, self.changed)
        if not self.finite_pairs:
            return found
        norms = (self.largest, math.sqrt(self.squares), math.sqrt(self.first_squares))
        return TensorDifference(name, tensor.dtype, tensor.shape, self.numbers, self.changed, *norms)


def form(dtype: str, shape: Sequence[int]) -> str:
    """A dtype and a shape as people write them: `F32 64×3×7×7`."""
    return f"{dtype} {'×'.join(map(str, shape)) or 'scalar'}"


def _quotient(norm: float, of: float) -> float | None:
    """Infinite where only the second is 0, None where a sum was too large for double precision."""
    if not (math.isfinite(norm) and math.isfinite(of)):
        return None
    if of == 0:
        return math.inf if norm else 0.0
    return norm / of


def _by_size_of_change(tensor: TensorDifference) -> tuple[bool, float, float, str]:
    relative = math.inf if tensor.relative is None else tensor.relative
    return not can_be_decoded(tensor.dtype), -relative, -tensor.changed_share, tensor.name
