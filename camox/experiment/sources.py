"""The `[data]` table: where images and masks come from and how they are fed."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import Discriminator, Field, Tag, model_validator

from camox.experiment.augmentations import SUGGESTED
from camox.experiment.table import Table

Habitat = Literal["forest", "desert", "underwater", "rock", "mixture"]


class _Source(Table):
    """What all sources have."""

    name: str | None = Field(default=None, min_length=1)
    """Label of the dataset in tables; by default its folder's, or that of its form."""

    weight: float = Field(default=1.0, gt=0, le=100)
    """How often each sample comes in an epoch of training: 2 shows all of them twice, augmented alike both times, 0.5
    another half in each epoch."""


class _FileSource(_Source):
    """What sources have whose images and masks are files."""

    non_camouflaged: bool = False
    """Also take the images without a camouflaged object (COD10K-NonCAM-…); their masks are black. Usual COD training
    leaves them out."""

    super_class: str | None = Field(default=None, min_length=1)
    """As `data.super_class`, which holds where this is not given."""


class LayoutSource(_FileSource):
    """A dataset in one folder, laid out as the field's datasets are."""

    layout: Literal["auto", "cod10k", "camo", "sinet", "pairs"]
    """COD10K-v3 (`Train/Image`, `Train/GT_Object`, …), CAMO (`Images/Train` and `Images/Test` with one `GT`), SINet's
    collection (`TrainDataset`, `TestDataset/<set>`), or a folder of images beside one of masks (CHAMELEON, NC4K and
    most others). "auto" looks which of these it is, and the run says what it took."""

    path: str = Field(min_length=1)
    """Folder of the dataset."""

    split: Literal["train", "test"] | None = None
    """Which half to take of a dataset that has two. By default the one of the list it stands in: `train` and `val` take
    "train", `test` "test"."""


class FolderSource(_FileSource):
    """A folder of images and one of masks, paired by file name without extension."""

    layout: Literal["folder"]
    """Names the layout."""

    images: str = Field(min_length=1)
    """Folder of images."""

    masks: str = Field(min_length=1)
    """Folder of masks, one for each image."""


class HubSource(_FileSource):
    """A set of the Hugging Face hub, or a local folder of the same forms, read by the `datasets` library."""

    hub: str = Field(min_length=1)
    """Id of a set, such as "nobg/COD10K", or a folder: one that `save_to_disk` wrote, one of parquet files, or one of
    image files with a table that names each image's mask."""

    split: str | None = Field(default=None, min_length=1)
    """Which part to take, such as "train" or "train[:90%]". By default "train" for `train`, "validation" for `val`,
    "test" for `test`."""

    image: str | None = Field(default=None, min_length=1)
    """Column of the images, if none is called image, img or so."""

    mask: str | None = Field(default=None, min_length=1)
    """Column of the masks, if none or several are called mask, gt, label or annotation."""

    names: str | None = Field(default=None, min_length=1)
    """Column of the names. By default image_name or one like it, else the names of the files that the images were made
    from, else running numbers."""

    config: str | None = Field(default=None, min_length=1)
    """Which of several configurations of the set."""

    revision: str | None = Field(default=None, min_length=1)
    """Branch, tag or commit of the set on the hub."""

    streaming: bool = False
    """Whether the set is read while it is trained on, instead of being downloaded first. For `train`, as its only
    source, beside a `val` that is not streamed."""

    count: int | None = Field(default=None, ge=1)
    """Samples of an epoch of a streamed set, over all devices; by default as many as the set says it has."""

    shuffle_buffer: int | None = Field(default=None, ge=1)
    """Rows of a streamed set that are shuffled among each other; by default 256. Each device holds two such blocks of
    undecoded images in memory."""


class HabitatsSource(_Source):
    """Synthetic camouflage, painted from a seed: no files, no downloads."""

    synthetic: Literal["habitats"]
    """Names the generator."""

    count: int = Field(ge=1)
    """Number of images."""

    seed: int = Field(default=0, ge=0)
    """Image i of a seed is the same everywhere; give training and test different seeds."""

    size: int = Field(default=128, ge=32)
    """Height and width in pixels."""

    kinds: tuple[Habitat, ...] = Field(default=("forest", "desert", "underwater", "rock", "mixture"), min_length=1)
    """Habitats to draw from, in equal shares. Each hides its object by another cue."""

    empty: float = Field(default=0.05, ge=0, le=1)
    """Share of images without an object."""

    tiny: float = Field(default=0.1, ge=0, le=1)
    """Share of images with tiny objects only. `empty` and `tiny` together are at most 1."""


SOURCES: dict[str, type[Table]] = {
    **dict.fromkeys(get_args(LayoutSource.model_fields["layout"].annotation), LayoutSource),
    "folder": FolderSource,
    "habitats": HabitatsSource,
    "hub": HubSource,
}


def source_kind(source: Any) -> str | None:
    """Return the kind a source says it is, a key of `SOURCES`; None if it says nothing or nothing known."""
    if isinstance(source, Table):
        return "hub" if isinstance(source, HubSource) else str(getattr(source, "layout", "habitats"))
    if not isinstance(source, dict):
        return None
    if "hub" in source:
        return "hub"
    key = "layout" if "layout" in source else "synthetic"
    kind = source.get(key)
    # A layout must not pass for a generator, nor a generator for a layout.
    if not isinstance(kind, str) or kind not in SOURCES or key not in SOURCES[kind].model_fields:
        return None
    return kind


def _form(source: Any) -> str | None:
    kind = source_kind(source)
    return None if kind is None else SOURCES[kind].__name__


Source = Annotated[
    Annotated[LayoutSource, Tag("LayoutSource")]
    | Annotated[FolderSource, Tag("FolderSource")]
    | Annotated[HubSource, Tag("HubSource")]
    | Annotated[HabitatsSource, Tag("HabitatsSource")],
    Discriminator(_form),
]


class Augmentation(Table, extra="allow"):
    """One albumentations transform; every key but `name` is an argument of its constructor."""

    name: str = Field(min_length=1, json_schema_extra={"anyOf": [{"enum": list(SUGGESTED)}, {"type": "string"}]})
    """Class name of the transform, such as "HorizontalFlip". Any that takes images, or images and masks; editors offer
    those that need no argument."""

    def specification(self) -> dict[str, Any]:
        """Return name and arguments as one plain dictionary."""
        return {"name": self.name, **(self.model_extra or {})}


Scale = Annotated[float, Field(gt=0, le=4)]
_SIZE_STEP = 32
"""The largest stride of the network, in pixels."""


def batch_sizes(image_size: int, multi_scale: Sequence[float]) -> tuple[int, ...]:
    """Return the sizes in pixels that batches draw from: `image_size` alone without factors, else with each factor the
    nearest multiple of 32."""
    if not multi_scale:
        return (image_size,)
    return tuple(max(_SIZE_STEP, round(image_size * factor / _SIZE_STEP) * _SIZE_STEP) for factor in multi_scale)


class Data(Table):
    """Where images and masks come from and how they are fed."""

    train: tuple[Source, ...] = Field(min_length=1)
    """Sources to train on, joined."""

    val: tuple[Source, ...] = ()
    """Sources to validate on and to select the best checkpoint with. If empty, `val_fraction` of `train` is
    held out."""

    test: tuple[Source, ...] = ()
    """Sources scored once at the end. Never used for selection."""

    image_size: int = Field(default=352, ge=32)
    """Height and width in pixels that images are resized to for training and prediction."""

    batch_size: int = Field(default=8, ge=1)
    """Images per device and micro-batch. The effective batch is this × `optimizer.accumulate` × devices."""

    super_class: str = Field(default="names", min_length=1)
    """Where the groups come from that splits are stratified by and tables are broken down by: "names" (COD10K's names
    hold the super-class; else the subfolder), "none", or the path of a CSV file with the columns name and
    super_class."""

    val_fraction: float = Field(default=0.1, ge=0, lt=1)
    """Share of `train` held out for validation, stratified by group. 0 where `val` is given."""

    workers: int = Field(default=4, ge=0)
    """Processes that load data, per device; 0 loads in the training process. The batches are the same for any
    number."""

    cache: str = ""
    """Folder of resized training images and masks: made once by the run that needs them first, then read in place of
    the files, with the same result to the bit. Several runs may share it. "" for none."""

    cache_gib: float = Field(default=20.0, gt=0)
    """The most, in GiB, that the caches in that folder may take. Those not used for longest are removed for new
    ones."""

    multi_scale: tuple[Scale, ...] = ()
    """Factors of the phase's image size of which each batch draws one, such as [0.75, 1.0, 1.25]; sizes are rounded to
    multiples of 32. Empty for images of one size. Validation and prediction always see `image_size`."""

    augment: tuple[Augmentation, ...] = ()
    """Transforms of training images and masks, in this order."""

    @property
    def is_streamed(self) -> bool:
        """Whether what is trained on is read as it comes."""
        return any(isinstance(source, HubSource) and source.streaming for source in self.train)

    @model_validator(mode="before")
    @classmethod
    def _hold_nothing_out_beside_val(cls, table: Any) -> Any:
        if isinstance(table, dict) and table.get("val") and "val_fraction" not in table:
            return {**table, "val_fraction": 0.0}
        return table

    @model_validator(mode="after")
    def _fill_in(self) -> Self:
        """Gives sources what the table says for all."""
        for name in ("train", "val", "test"):
            filled = tuple(_filled(source, name, self.super_class) for source in getattr(self, name))
            object.__setattr__(self, name, filled)  # this very object is what validation returns
        return self


def _filled(source: Source, role: str, super_class: str) -> Source:
    found: dict[str, Any] = {}
    if isinstance(source, LayoutSource) and source.split is None:
        found["split"] = "test" if role == "test" else "train"
    if isinstance(source, HubSource) and source.split is None:
        # The library's own names; images that are trained on must not be what is validated on by default.
        found["split"] = "validation" if role == "val" else role
    if isinstance(source, _FileSource) and source.super_class is None:
        found["super_class"] = super_class
    return source.model_copy(update=found) if found else source
