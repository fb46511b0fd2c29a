"""The `[data]` table: where images and masks come from and how they are fed."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from camox.experiment.table import Table

Habitat = Literal["forest", "desert", "underwater", "rock", "mixture"]


class Cod10kSource(Table):
    """Pairs in the layout in which COD10K-v3 is distributed (`Train/Image`, `Train/GT_Object`, …)."""

    layout: Literal["cod10k"]
    """Names the layout."""

    path: str = Field(min_length=1)
    """Folder that holds `Train` and `Test`."""

    split: Literal["train", "test"] | None = None
    """Which half to take. By default the one of the list it stands in: `train` and `val` take "train", `test`
    "test"."""

    non_camouflaged: bool = False
    """Also take the images without a camouflaged object; their masks are black. Usual COD training leaves
    them out."""

    name: str | None = Field(default=None, min_length=1)
    """Label of the dataset in tables; by default the layout's own."""


class FolderSource(Table):
    """A folder of images and one of masks, paired by file name without extension."""

    layout: Literal["folder"]
    """Names the layout."""

    images: str = Field(min_length=1)
    """Folder of images."""

    masks: str = Field(min_length=1)
    """Folder of masks, one for each image."""

    name: str | None = Field(default=None, min_length=1)
    """Label of the dataset in tables; by default the layout's own."""


class HabitatsSource(Table):
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

    name: str | None = Field(default=None, min_length=1)
    """Label of the dataset in tables; by default the generator's own."""


SOURCES: dict[str, type[Table]] = {"cod10k": Cod10kSource, "folder": FolderSource, "habitats": HabitatsSource}


def source_kind(source: Any) -> str | None:
    """Return the kind a source says it is, a key of `SOURCES`; None if it says nothing or nothing known."""
    if isinstance(source, Table):
        return next(kind for kind, table in SOURCES.items() if type(source) is table)
    if not isinstance(source, dict):
        return None
    key = "layout" if "layout" in source else "synthetic"
    kind = source.get(key)
    # A layout must not pass for a generator, nor a generator for a layout.
    if not isinstance(kind, str) or kind not in SOURCES or key not in SOURCES[kind].model_fields:
        return None
    return kind


Source = Annotated[
    Annotated[Cod10kSource, Tag("cod10k")]
    | Annotated[FolderSource, Tag("folder")]
    | Annotated[HabitatsSource, Tag("habitats")],
    Discriminator(source_kind),
]


class Augmentation(Table, extra="allow"):
    """One albumentations transform; every key but `name` is an argument of its constructor."""

    name: str = Field(min_length=1)
    """Class name of the transform, such as "HorizontalFlip"."""

    def specification(self) -> dict[str, Any]:
        """Return name and arguments as one plain dictionary."""
        return {"name": self.name, **(self.model_extra or {})}


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

    val_fraction: float = Field(default=0.1, ge=0, lt=1)
    """Share of `train` held out for validation, stratified by group. 0 where `val` is given."""

    workers: int = Field(default=4, ge=0)
    """Processes that load data, per device; 0 loads in the training process. The batches are the same for any
    number."""

    augment: tuple[Augmentation, ...] = ()
    """Transforms of training images and masks, in this order."""

    @model_validator(mode="before")
    @classmethod
    def _hold_nothing_out_beside_val(cls, table: Any) -> Any:
        if isinstance(table, dict) and table.get("val") and "val_fraction" not in table:
            return {**table, "val_fraction": 0.0}
        return table

    @field_validator("train", "val", "test")
    @classmethod
    def _fill_in_split(cls, sources: tuple[Source, ...], info: Any) -> tuple[Source, ...]:
        split = "test" if info.field_name == "test" else "train"
        return tuple(
            source.model_copy(update={"split": split})
            if isinstance(source, Cod10kSource) and source.split is None
            else source
            for source in sources
        )
