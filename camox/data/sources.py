"""Where samples come from: image and mask files, sets of the hub, synthetic habitats, parts and unions of these."""

import zlib
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from camox.data.decoding import REDUCTIONS, read_image, read_mask, stamp
from camox.data.habitats import Habitats
from camox.data.hub_access import HubAddress
from camox.data.huggingface import ADDRESS_KEYS, COLUMN_KEYS, hub_pairs
from camox.data.layouts import LAYOUTS, SPLITS, Located, locate
from camox.data.pairing import Pair, folder, pair_up
from camox.data.samples import Sample, Samples, Source, content_of, read_reduced
from camox.errors import DataError


class PairedFiles:
    """Image and mask files, or rows of a table that hold such, decoded when asked for."""

    def __init__(self, pairs: Sequence[Pair]):
        self.pairs = pairs
        self.names: Sequence[str] = [pair.name for pair in pairs]
        self.groups: Sequence[str] = [pair.group for pair in pairs]

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Sample:
        return self._read(self.pairs[index], None)

    def reduced(self, index: int, at_least: int) -> Sample:
        return self._read(self.pairs[index], at_least)

    def content(self, index: int) -> str:
        """Paths, sizes and times of both files: to hash all bytes would take as long as to decode them."""
        return f"{stamp(self.pairs[index].image)} {stamp(self.pairs[index].mask)}"

    def _read(self, pair: Pair, at_least: int | None) -> Sample:
        mask = read_mask(pair.mask)
        # Last, so that it is still in the processor's cache when it is resized.
        image = read_image(pair.image, pair.apply_orientation, at_least)
        height, width = mask.shape
        factors = (1,) if at_least is None else REDUCTIONS
        if image.shape[:2] not in [(-(-height // factor), -(-width // factor)) for factor in factors]:
            raise DataError(
                f"{pair.mask}: the mask is {mask.shape[1]}x{mask.shape[0]} but its image {pair.image} is "
                f"{image.shape[1]}x{image.shape[0]}; the files changed since they were checked: start again"
            )
        return Sample(pair.name, pair.group, image, mask)


class Concatenation:
    """Several sources one after the other, each with the weight of its samples."""

    def __init__(
        self,
        parts: Sequence[Samples],
        label: str,
        notices: Sequence[str] = (),
        remarks: Sequence[str] = (),
        weights: Sequence[float] | None = None,
    ):
        self.label = label
        self.notices = notices
        self.remarks = remarks
        of_parts = weights or [1.0] * len(parts)
        self.weights: Sequence[float] = [
            weight for part, weight in zip(parts, of_parts, strict=True) for _ in range(len(part))
        ]
        self.parts = list(parts)
        self.names: Sequence[str] = [name for part in self.parts for name in part.names]
        self.groups: Sequence[str] = [group for part in self.parts for group in part.groups]
        self._ends = list(accumulate(len(part) for part in self.parts))

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Sample:
        part, within = self._located(index)
        return part[within]

    def reduced(self, index: int, at_least: int) -> Sample:
        part, within = self._located(index)
        return read_reduced(part, within, at_least)

    def content(self, index: int) -> str:
        """What tells whether the sample has changed."""
        part, within = self._located(index)
        return content_of(part, within)

    def _located(self, index: int) -> tuple[Samples, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        part = bisect_right(self._ends, index)
        return self.parts[part], index - (self._ends[part - 1] if part else 0)


class Subset:
    """The samples of `source` at `indices`, in that order."""

    def __init__(self, source: Source, indices: Sequence[int]):
        self.source = source
        self.indices = list(indices)
        self.label = source.label
        self.notices = source.notices
        self.remarks = source.remarks
        self.weights: Sequence[float] = [source.weights[i] for i in self.indices]
        self.names: Sequence[str] = [source.names[i] for i in self.indices]
        self.groups: Sequence[str] = [source.groups[i] for i in self.indices]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Sample:
        return self.source[self.indices[index]]

    def reduced(self, index: int, at_least: int) -> Sample:
        return read_reduced(self.source, self.indices[index], at_least)

    def content(self, index: int) -> str:
        """What tells whether the sample has changed."""
        return content_of(self.source, self.indices[index])


_OF_FILES = {"layout", "split", "non_camouflaged", "super_class", "name", "weight"}
_KEYS = {
    **{layout: {"path", *_OF_FILES} for layout in LAYOUTS},
    "folder": {"images", "masks", *_OF_FILES} - {"split"},
    "habitats": {"synthetic", "count", "seed", "size", "kinds", "empty", "tiny", "name", "weight"},
    "hub": {*ADDRESS_KEYS, *COLUMN_KEYS, *_OF_FILES, "streaming"} - {"layout"},
}
_REQUIRED = {**{layout: {"path"} for layout in LAYOUTS}, "folder": {"images", "masks"}, "habitats": {"count"}}
_REQUIRED |= {"hub": set()}


def open_source(specification: Mapping[str, Any], split: str = "train") -> Source:
    """Open the dataset that `specification` describes; no pixel is decoded yet.

    It is one of `{layout=one of layouts.LAYOUTS, path, split?}`, `{layout="folder", images, masks}`, both with
    `non_camouflaged?` and `super_class?` (see `pairing.pair_up`), `{hub, split?, config?, revision?, image?, mask?,
    names?}` with these two as well (see `huggingface.hub_pairs`), and `{synthetic="habitats", count, seed?, size?,
    kinds?, empty?, tiny?}`, each with an optional `name`, which becomes the label, and `weight`. A key whose value is
    None counts as not given. `split` ("train" or "test") holds where the specification has none. Raises `DataError`
    when the dataset is missing, incomplete or of another form.
    """
    given = {key: value for key, value in specification.items() if value is not None}
    kind = "hub" if "hub" in given else given.get("layout", given.get("synthetic"))
    if kind not in _KEYS:
        raise DataError(
            f"a data source is of an unknown form: {dict(specification)}; use layout ({', '.join(LAYOUTS)}) with path, "
            f'layout = "folder" with images and masks, hub with an id or a folder, or synthetic = "habitats" with count'
        )
    if unknown := sorted(given.keys() - _KEYS[kind]):
        raise DataError(f"data source {kind}: unknown {', '.join(unknown)}; it takes {_listed(_KEYS[kind])}")
    if missing := sorted(_REQUIRED[kind] - given.keys()):
        raise DataError(f"data source {kind}: {', '.join(missing)} is missing; it takes {_listed(_KEYS[kind])}")

    label = source_label(specification)
    given.pop("name", None)
    weight = given.pop("weight", 1.0)
    if kind == "habitats":
        arguments = {key: value for key, value in given.items() if key != "synthetic"}
        return Concatenation([Habitats(**arguments)], label, weights=[weight])
    if kind == "hub":
        return _open_hub(given, split, label, weight)
    located = locate_source(given, split)
    pairing = {key: given[key] for key in ("super_class", "non_camouflaged") if key in given}
    found = pair_up(located, **pairing)
    # Whoever writes a layout's name knows it.
    remarks = [located.explanation] if kind == "auto" else []
    return Concatenation([PairedFiles(found.pairs)], label, found.notices, remarks, [weight])


def _open_hub(given: Mapping[str, Any], split: str, label: str, weight: float) -> Source:
    if given.get("streaming"):
        raise DataError(f"{label} can be streamed for training alone: remove streaming here")
    address = HubAddress(**{"split": split, **{key: given[key] for key in ADDRESS_KEYS if key in given}})
    reading = {key: given[key] for key in (*COLUMN_KEYS, "super_class", "non_camouflaged") if key in given}
    found, remark = hub_pairs(address, **reading)
    return Concatenation([PairedFiles(found.pairs)], label, found.notices, [remark], [weight])


def locate_source(specification: Mapping[str, Any], split: str = "train") -> Located:
    """Where the files of a specification with a layout lie; `split` holds where it has none. Raises `DataError`."""
    if specification["layout"] == "folder":
        return folder(specification["images"], specification["masks"])
    return locate(specification["path"], specification["layout"], specification.get("split") or split)


def source_label(specification: Mapping[str, Any]) -> str:
    """What a dataset is called: its name, else its layout, or its folder where that says more."""
    if specification.get("name"):
        return str(specification["name"])
    if "hub" in specification:
        return HubAddress(specification["hub"], "").label
    kind = str(specification.get("layout", specification.get("synthetic")))
    if kind not in ("auto", "pairs", "sinet"):
        return kind
    path = Path(specification["path"]).expanduser().resolve()
    return path.parent.name if path.name.lower() in SPLITS else path.name


def open_sources(specifications: Sequence[Mapping[str, Any]], split: str = "train") -> Source:
    """Open every specification (see `open_source`) and put the sources one after the other.

    The label joins the labels with " + "; notices and remarks carry the label they belong to.
    """
    sources = [open_source(specification, split) for specification in specifications]
    if len(sources) == 1:
        return sources[0]
    notices = [f"{source.label}: {notice}" for source in sources for notice in source.notices]
    remarks = [f"{source.label}: {remark}" for source in sources for remark in source.remarks]
    weights = [source.weights[0] for source in sources]
    joined = Concatenation(sources, " + ".join(source.label for source in sources), notices, remarks, weights)
    # A dataset without groups of its own is one: splits are then stratified by dataset, and tables tell them apart.
    of_dataset = [source.label for source in sources for _ in range(len(source))]
    joined.groups = [group or label for group, label in zip(joined.groups, of_dataset, strict=True)]
    return joined


def open_training_sources(
    train: Sequence[Mapping[str, Any]], val: Sequence[Mapping[str, Any]], val_fraction: float, seed: int
) -> tuple[Source | Subset, Source | Subset]:
    """Open what is trained on and what is held out from it for validation and selection.

    With `val` specifications those are the held-out samples and all of `train` is trained on; without, a part
    `val_fraction` of `train` is held out by `held_out_split`. Raises `DataError` as these do.
    """
    source = open_sources(train)
    if val:
        return source, open_sources(val)
    kept, held_out = held_out_split(source.groups, val_fraction, seed)
    return Subset(source, kept), Subset(source, held_out)


def held_out_split(groups: Sequence[str], fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """Split sample indices into (training, held out), stratified by group.

    `fraction` in (0, 1) of all samples is held out, shared among the groups in proportion to their sizes
    (largest remainders first). Every group of two or more samples keeps at least one for training, and both
    parts have at least one sample. The same arguments give the same split on every machine. Both lists
    ascend. Raises `DataError` when there are fewer than two samples or the fraction is out of range.
    """
    if not 0 < fraction < 1:
        raise DataError(f"val_fraction is {fraction}: a part between 0 and 1 (such as 0.1) can be held out")
    if len(groups) < 2:
        raise DataError(
            f"the training samples, {len(groups)} in all, cannot be split into training and held-out parts: "
            f"give more samples or separate validation data"
        )
    members: dict[str, list[int]] = {}
    for index, group in enumerate(groups):
        members.setdefault(group, []).append(index)

    shares = _shares({group: len(indices) for group, indices in members.items()}, fraction)
    held_out: list[int] = []
    for group, indices in members.items():
        # Seeded per group, so that another dataset added to the run leaves this group's order as it was.
        generator = np.random.default_rng([seed, zlib.crc32(group.encode())])
        held_out += (indices[i] for i in generator.permutation(len(indices))[: shares[group]])
    held = set(held_out)
    return [index for index in range(len(groups)) if index not in held], sorted(held)


def _shares(sizes: dict[str, int], fraction: float) -> dict[str, int]:
    """How many samples each group gives to the held-out part, by the method of largest remainders."""
    total = sum(sizes.values())
    most = {group: max(size - 1, 1) for group, size in sizes.items()}
    wanted = min(max(round(fraction * total), 1), total - 1, sum(most.values()))
    shares = {group: min(int(fraction * size), most[group]) for group, size in sizes.items()}
    # Large groups win ties: a lone sample teaches more than it measures.
    order = sorted(sizes, key=lambda g: (shares[g] - fraction * sizes[g], -sizes[g], g))
    while (lacking := wanted - sum(shares.values())) > 0:
        open_groups = [group for group in order if shares[group] < most[group]]
        for group in open_groups[:lacking]:
            shares[group] += 1
    return shares


def _listed(keys: set[str]) -> str:
    return ", ".join(sorted(keys))
