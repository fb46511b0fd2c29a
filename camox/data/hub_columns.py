"""Which columns of a set of the hub hold the image, the mask, the name and the super-class."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from camox.errors import DataError

_IMAGE = ("image", "img", "im", "jpg", "jpeg")
_MASK = ("mask", "gt", "label", "annotation", "segmentation", "groundtruth", "gtobject")
_NAME = ("imagename", "name", "filename", "imageid", "key")


@dataclass(frozen=True)
class Columns:
    """Names of columns; `name` and `super_class` are None where there is none."""

    image: str
    mask: str
    name: str | None = None
    super_class: str | None = None

    def __str__(self) -> str:
        others = {"names": self.name, "super-classes": self.super_class}
        told = [f"{what} column {name}" for what, name in others.items() if name is not None]
        return ", ".join([f"images are column {self.image}", f"masks column {self.mask}", *told])


def choose_columns(
    features: Mapping[str, Any], where: str, image: str | None = None, mask: str | None = None, names: str | None = None
) -> Columns:
    """The columns to read of a set with such `features` (name → type of the `datasets` library).

    What is not named is looked for: of the columns that can hold an image the ones with a usual name, in any case, in
    the plural, and with or without underscores. A class label is no mask, whatever its name.

    Args:
        where: what messages call the set.
        image, mask, names: columns that the user names.

    Raises:
        DataError: there is no such column, none or several that might be meant, or one that holds no images.
    """
    pictures = [name for name, feature in features.items() if _holds_images(feature)]
    return Columns(
        _picture(features, pictures, where, "image", image, _IMAGE),
        _picture(features, pictures, where, "mask", mask, _MASK),
        _text(features, where, names),
        _super_class(features),
    )


def class_names(feature: Any) -> list[str] | None:
    """The names behind the numbers of a column of class labels, None for other columns."""
    names = getattr(feature, "names", None)
    return list(names) if names else None


def _picture(
    features: Mapping[str, Any], pictures: Sequence[str], where: str, what: str, given: str | None, usual: Sequence[str]
) -> str:
    if given is not None:
        if given not in features:
            raise DataError(f'{where} has no column "{given}": set {what} to one of {_listed(features)}')
        if given not in pictures:
            raise DataError(
                f'{where}: column "{given}" holds no images but {_type(features[given])}: set {what} to one of '
                f"{_listed(features)}"
            )
        return given
    found = [name for name in pictures if _plain(name) in usual]
    if len(found) == 1:
        return found[0]
    if found:
        raise DataError(
            f'{where}: {" and ".join(found)} may all be the {what}: name the one to take, as in {what} = "{found[0]}"'
        )
    aside = f' (or name one: {what} = "…")' if len(pictures) > 1 else ""
    raise DataError(
        f"{where} has no {what} column, such as {', '.join(usual[:3])}: its columns are {_listed(features)}; "
        f"camox trains on images with a mask each, so take a set that has them{aside}"
    )


def _text(features: Mapping[str, Any], where: str, given: str | None) -> str | None:
    if given is not None:
        if given not in features or not _holds_text(features[given]):
            raise DataError(f'{where} has no column of names "{given}": set names to one of {_listed(features)}')
        return given
    found = [name for usual in _NAME for name in features if _plain(name) == usual and _holds_text(features[name])]
    return found[0] if found else None


def _super_class(features: Mapping[str, Any]) -> str | None:
    for name, feature in features.items():
        if _plain(name) == "superclas" and (_holds_text(feature) or class_names(feature)):
            return name
    return None


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower()).removesuffix("s")


def _holds_images(feature: Any) -> bool:
    """Images, or their bytes as files without the library's own types have them."""
    if isinstance(feature, dict):
        return {"bytes", "path"} <= feature.keys()
    kind = getattr(feature, "_type", "")
    return kind == "Image" or (kind == "Value" and feature.dtype in ("binary", "large_binary"))


def _holds_text(feature: Any) -> bool:
    return getattr(feature, "dtype", "") in ("string", "large_string")


def _type(feature: Any) -> str:
    kind = getattr(feature, "_type", type(feature).__name__)
    return f"{feature.dtype}" if kind == "Value" else kind


def _listed(features: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} ({_type(feature)})" for name, feature in features.items())
