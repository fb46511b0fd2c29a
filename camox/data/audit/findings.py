"""What can be said about a file or a dataset, how bad it is, and what the loader does about it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Severity = Literal["problem", "note"]


@dataclass(frozen=True)
class Kind:
    """One trap. A "problem" fails or makes something wrong; a "note" is handled by the loader."""

    severity: Severity
    title: str
    loader: str
    """What the loader does about it."""
    remedy: str = ""
    """What a person should do; "" where nothing has to be done."""


@dataclass(frozen=True)
class Finding:
    """A trap met in one file or folder; `kind` is a key of `KINDS` and `detail` says what was seen."""

    kind: str
    path: Path
    detail: str = ""

    @property
    def severity(self) -> Severity:
        """That of its kind."""
        return KINDS[self.kind].severity


def _problem(title: str, loader: str, remedy: str) -> Kind:
    return Kind("problem", title, loader, remedy)


def _note(title: str, loader: str, remedy: str = "") -> Kind:
    return Kind("note", title, loader, remedy)


_REFUSES = "refuses the whole dataset and names the file"
_FAILS = "opens the dataset, but this file fails when its turn comes"
_AGAIN = "copy or download it again, or remove the pair"

# In the order in which a report lists them.
KINDS: Mapping[str, Kind] = {
    # What is missing or too much
    "no_images": _problem("folder without image files", "refuses the dataset", "correct the path or fill the folder"),
    "image_without_mask": _problem("images without a mask", _REFUSES, "add the masks or remove the images"),
    "same_stem": _problem(
        "two files of one name", _REFUSES, "keep one: a mask is found by its name without the suffix"
    ),
    "broken_link": _problem("links to nowhere", "takes no notice of it", "restore what it points to, or remove it"),
    "mask_without_image": _note("masks without an image", "leaves them out and counts them"),
    "nested_file": _note("images in subfolders, beside images", "leaves them out: the folder itself has images"),
    "non_camouflaged": _note(
        "non-camouflaged images (COD10K-NonCAM)", "leaves them out and counts them", "non_camouflaged = true keeps them"
    ),
    "system_file": _note("files of an operating system", "takes no notice of them"),
    "other_file": _note("files that are no images by their suffix", "takes no notice of them"),
    # Files that cannot be read
    "empty_file": _problem("empty files (0 bytes)", _REFUSES, _AGAIN),
    "not_an_image": _problem("files that are no image of a known format", _REFUSES, _AGAIN),
    "damaged_header": _problem("files whose header cannot be read", _REFUSES, _AGAIN),
    "truncated_jpeg": _problem("truncated JPEGs", _FAILS, _AGAIN),
    "damaged_file": _problem("damaged files", _FAILS, _AGAIN),
    "floating_point": _problem("floating-point pixels", _FAILS, "save it with 8 or 16 bits"),
    # Image and mask do not belong together
    "mask_size": _problem(
        "masks of another size than their image", _REFUSES, "make the mask again at its image's size"
    ),
    "photograph_mask": _problem("photographs in a mask's place", _FAILS, "put the mask in its place"),
    "exif_ignored": _note("EXIF rotation that the mask does not follow", "leaves the image as stored, to fit its mask"),
    "exif_ambiguous": _note(
        "EXIF rotation that leaves the size as it is",
        "turns the image; sizes cannot tell whether its mask was drawn before",
        "look at these pairs in the contact sheet",
    ),
    "exif_rotation": _note("EXIF rotation", "turns the image upright"),
    # What masks show
    "inverted_dataset": _problem(
        "most masks look inverted (a suspicion)",
        "takes what is bright for the object",
        "look at the contact sheet; invert the masks if the background is bright",
    ),
    "inverted_mask": _problem(
        "masks that look inverted (a suspicion)",
        "takes what is bright for the object",
        "look at them; invert those whose background is bright",
    ),
    "full_mask": _problem(
        "masks that are object everywhere", "takes every pixel for object", "make the mask again or remove the pair"
    ),
    "label_below_threshold": _problem(
        "labels from 3 to 128 beside brighter ones",
        "takes what exceeds 128 for object, so these labels become background",
        "save every object as 255",
    ),
    "dark_mask": _problem(
        "masks of soft edges that are nowhere bright",
        "takes their levels, all below 129, for labels, so that everything above 0 is object",
        "save background as 0 and objects as 255",
    ),
    "empty_mask": _note("empty masks", "takes them as images without an object"),
    "grey_mask": _note("masks of many grey levels", "takes what exceeds 128 for object"),
    "faint_label": _note("labels 1 or 2 beside brighter ones", "takes them for background"),
    "low_labels": _note("masks of low labels, such as 0 and 1", "takes every label above 0 for object"),
    "colour_mask": _note("colour masks", "takes the largest channel of each pixel"),
    "palette_mask": _note("palette masks", "looks the colours up, then takes the largest channel"),
    "alpha_mask": _note("masks with transparency", "takes transparent pixels for background"),
    "deep_mask": _note("16-bit masks", "scales levels above 255 to 8 bits"),
    "jpeg_mask": _note("JPEG masks", "takes what exceeds 128 for object, which drops the ringing at edges"),
    # What images show
    "constant_image": _problem("images of a single colour", _FAILS, "replace the image or remove the pair"),
    "tiny_image": _note("images with a side below 160 pixels", "enlarges them to the training size"),
    "huge_image": _note("images above 12 megapixels", "decodes all of it each time, then shrinks it"),
    "long_image": _note("images more than 3 times as long as wide", "squeezes them to a square"),
    "grey_image": _note("grey images", "gives all three channels the grey value"),
    "palette_image": _note("palette images", "looks the colours up"),
    "cmyk_image": _note("CMYK images", "converts them to RGB without a colour profile"),
    "alpha_image": _note("images with transparency", "drops it; the colours below it stay"),
    "deep_image": _note("16-bit images", "keeps the upper 8 bits"),
    "several_frames": _note("files of several frames or pages", "takes the first"),
    "progressive_jpeg": _note("progressive JPEGs", "reads them as any other"),
    # Names
    "unusual_name": _note("names with spaces or letters beyond ASCII", "pairs them in either form of Unicode"),
    "suffix_case": _note("suffixes in capitals", "reads them as any other"),
    "wrong_suffix": _note("suffixes of another format than the file's", "goes by the content"),
}
