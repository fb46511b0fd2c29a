"""Rows of a set of the Hugging Face hub as pairs of an image and a mask, known without decoding a pixel."""

import io
import os
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, cast

from camox.data.decoding import ImageFile, stamp
from camox.data.hub_access import HubAddress, load_table
from camox.data.hub_columns import Columns, choose_columns, class_names
from camox.data.pairing import Pair, Pairs, checked, first_of, grouping, is_non_camouflaged, notices_of_groups, stem_of
from camox.errors import DataError

if TYPE_CHECKING:
    import pyarrow
    from datasets import Dataset

ADDRESS_KEYS = ("hub", "split", "config", "revision")
COLUMN_KEYS = ("image", "mask", "names")


@dataclass(frozen=True)
class Cell:
    """An image in a row of a memory-mapped table that has this one column, read when it is opened."""

    table: "Dataset"
    row: int
    place: str
    """What messages call it."""
    origin: str
    """Another one when the files of the table are, or the part of them that it shows."""

    def __str__(self) -> str:
        return self.place

    def open(self, mode: str) -> IO[bytes]:
        """A copy of the bytes: a view of them, as pyarrow has it, refuses to seek behind its end as files do not."""
        (column,) = self.table[self.row].columns
        (cell,) = column.to_pylist()
        return io.BytesIO(cell["bytes"] if isinstance(cell, dict) else cell)

    def stamp(self) -> str:
        """Part of which files, column and row."""
        return f"{self.origin} {self.table.column_names} {self.row}"


@dataclass(frozen=True)
class RemoteFile:
    """An image file at an address, such as one on the hub that a table refers to."""

    address: str

    def __str__(self) -> str:
        return self.address

    def open(self, mode: str) -> IO[bytes]:
        """Downloads it."""
        import fsspec

        return cast(IO[bytes], fsspec.open(self.address, mode).open())

    def stamp(self) -> str:
        """The address: those of the hub name a commit."""
        return self.address


def hub_pairs(
    address: HubAddress,
    image: str | None = None,
    mask: str | None = None,
    names: str | None = None,
    super_class: str = "names",
    non_camouflaged: bool = False,
) -> tuple[Pairs, str]:
    """The pairs of a set in its order, and which columns they are made of.

    Names come from the column `names`, or one that is usually called so and tells all rows apart, else from the files
    that the images were made from, else they are running numbers. Groups are as `pairing.pair_up` says; for "names" a
    column super_class counts first. Only the two columns of images are ever read.

    Args:
        image, mask, names: columns, where they have no usual name (`hub_columns.choose_columns`).

    Raises:
        DataError: there is no such set or split, or no network to fetch it by; a column is missing; rows lack an image
            or a mask, or have ones that cannot be read or differ in size.
    """
    table, notices = load_table(address)
    columns = choose_columns(table.features, str(address), image, mask, names)
    group_of = grouping(super_class)
    called, columns = _names(table, columns, is_wanted=names is not None)
    images = _files(table, columns.image, str(address), called)
    masks = _files(table, columns.mask, str(address), called)
    groups = [group_of(name) for name in called]
    if columns.super_class is not None and super_class == "names":
        groups = [given or found for given, found in zip(_texts(table, columns.super_class), groups, strict=True)]
    found = [Pair(*pair) for pair in zip(called, images, masks, groups, strict=True)]
    kept = [pair for pair in found if non_camouflaged or not is_non_camouflaged(pair.name)]
    told = (*notices, *_left_out(address, len(found), len(kept)), *notices_of_groups(super_class, kept))
    return Pairs(checked(kept), told), f"of {address} {columns}"


def _left_out(address: HubAddress, all_rows: int, kept: int) -> list[str]:
    """The notice that counts non-camouflaged images. Raises `DataError` where nothing else is there."""
    if not all_rows:
        raise DataError(f"{address} has no rows: choose another split or fill the set")
    number = all_rows - kept
    if not kept:
        raise DataError(
            f"{address}: all {number} images are non-camouflaged (COD10K-NonCAM-*): non_camouflaged = true uses them"
        )
    told = f"{number} non-camouflaged images of {address} are left out (non_camouflaged = true keeps them)"
    return [told] if number else []


def _files(table: "Dataset", column: str, where: str, names: Sequence[str]) -> list[ImageFile]:
    """The images of a column, in the rows themselves or in files that the rows name."""
    alone = table.select_columns([column]).with_format("arrow")
    # Of a part of a split, rows are counted from its own beginning in files that hold all of it.
    origin = " ".join([where, *(stamp(Path(file["filename"])) for file in table.cache_files)])
    stored, paths = stored_and_paths(_column(table, column))
    lacking = [
        name for name, bytes_there, path in zip(names, stored, paths, strict=True) if not bytes_there and not path
    ]
    if lacking:
        raise DataError(
            f"{where}: {len(lacking)} of {len(names)} rows have nothing in column {column}: {first_of(lacking)}; "
            "leave these rows out of the set"
        )
    return [
        Cell(alone, row, f"{where}, row {row} ({names[row]}), column {column}", origin)
        if stored[row]
        else file_at(path)
        for row, path in enumerate(paths)
    ]


def file_at(path: str) -> ImageFile:
    """The file that a row names."""
    return RemoteFile(path) if "://" in path else Path(path)


def stored_and_paths(column: "pyarrow.ChunkedArray") -> tuple[list[bool], list[str]]:
    """Of every cell of a column of images whether its bytes are in it, and the path it names or ""."""
    import pyarrow
    import pyarrow.compute

    if not pyarrow.types.is_struct(column.type):
        return column.is_valid().to_pylist(), [""] * len(column)
    paths = pyarrow.compute.struct_field(column, "path").to_pylist()
    return pyarrow.compute.struct_field(column, "bytes").is_valid().to_pylist(), [path or "" for path in paths]


def _names(table: "Dataset", columns: Columns, is_wanted: bool) -> tuple[list[str], Columns]:
    """A name for each row, and the columns without that of the names where it tells no rows apart, as one of kinds. One
    that the user wants has to."""
    if columns.name is not None:
        names = [stem_of(text) for text in _texts(table, columns.name)]
        if all(names) and len(set(names)) == len(names):
            return names, columns
        if is_wanted:
            what = f"{len(names) - len(set(names))} names occur twice" if all(names) else "some names are empty"
            raise DataError(f'column "{columns.name}": {what}: set names to a column that tells all rows apart')
    _, paths = stored_and_paths(_column(table, columns.image))
    return names_of_files(paths), replace(columns, name=None)


def names_of_files(paths: Sequence[str]) -> list[str]:
    """Names after the files that images were made from: stems, or paths where stems do not tell them apart, else
    running numbers."""
    if all(paths):
        beginning = os.path.commonpath(paths) if all(Path(path).is_absolute() for path in paths) else ""
        whole = [stem_of(os.path.relpath(path, beginning) if beginning else path) for path in paths]
        for names in ([stem.rpartition("/")[2] for stem in whole], whole):
            if len(set(names)) == len(names):
                return [unicodedata.normalize("NFC", name) for name in names]
    return [f"{row:06d}" for row in range(len(paths))]


def _texts(table: "Dataset", column: str) -> list[str]:
    values = _column(table, column).to_pylist()
    classes = class_names(table.features[column])
    if classes:
        return ["" if value is None or value < 0 else classes[value] for value in values]
    return [str(value or "") for value in values]


def _column(table: "Dataset", name: str) -> "pyarrow.ChunkedArray":
    """A column as it is stored: a view, not a copy."""
    return table.select_columns([name]).with_format("arrow")[:].column(0)
