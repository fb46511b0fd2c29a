"""Resizing and augmentation of uint8 images with their masks, seeded per sample."""

import difflib
import inspect
import os
import random
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F

from camox.errors import DataError

# Without it every import, also in every loading worker, asks the network for a newer version.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import albumentations
from albumentations.core.transforms_interface import DualTransform, ImageOnlyTransform, Transform3D
from pydantic import ValidationError


def resize_image(image: np.ndarray, size: int) -> np.ndarray:
    """Resize uint8 [H, W, 3] to [size, size, 3], bilinearly and antialiased, as Pillow and torchvision do."""
    if image.shape[:2] == (size, size):
        return image
    # Of bytes with the channels last torch has a kernel that takes a third of cv2's INTER_AREA. It wants writable ones.
    pixels = torch.from_numpy(np.require(image, requirements=("C", "W")))[None].permute(0, 3, 1, 2)
    resized = F.interpolate(pixels, (size, size), mode="bilinear", antialias=True)
    return np.ascontiguousarray(resized[0].permute(1, 2, 0).numpy())


def resize_mask(mask: np.ndarray, size: int) -> np.ndarray:
    """Resize uint8 [H, W] in {0, 1} to [size, size] by nearest neighbour; no new values."""
    if mask.shape == (size, size):
        return mask
    # Not INTER_NEAREST: it takes the pixel up and left of the centre and so shifts the mask.
    return cv2.resize(mask, (size, size), interpolation=cv2.INTER_NEAREST_EXACT)


def augmentation_seed(seed: int, epoch: int, index: int) -> int:
    """The seed in [0, 2^32) of everything random in sample `index` of `epoch`.

    It depends on nothing else, so that neither the number of workers, nor the layout of batches, nor a resume
    changes what a sample looks like.
    """
    return int(np.random.SeedSequence([seed, epoch, index]).generate_state(1)[0])


def build_augmentation(transforms: Sequence[Mapping[str, Any]], image_size: int) -> albumentations.Compose:
    """Chain albumentations transforms, each `{"name": "HorizontalFlip", ...its arguments}`.

    Any transform that acts on an image alone or on an image and its mask, and that leaves uint8 RGB, will do;
    sizes may change. The chain is tried once on an image of `image_size`² pixels with every probability 1.
    Raises `DataError` for an unknown name or argument (with the nearest that exists), a wrong value, and a
    transform that needs more than image and mask or that fails in the trial.
    """
    trial = _TrialImage(image_size)
    chain = []
    for position, entry in enumerate(transforms, start=1):
        arguments = dict(entry)
        name = arguments.pop("name", None)
        if not isinstance(name, str):
            raise DataError(f"augmentation {position} has no name: give that of an albumentations transform")
        chain.append(_build(name, arguments))
        trial.apply(name, _build(name, {**arguments, "p": 1.0}))
    return albumentations.Compose(chain)


def augment(
    augmentation: albumentations.Compose, image: np.ndarray, mask: np.ndarray, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Apply a chain, seeded, to uint8 [H, W, 3] and uint8 [H, W] in {0, 1}; the result has the same form.

    Its size may be another. Raises `DataError` when a transform fails on this image.
    """
    # One generator for all: `set_random_seed` gives each transform the same numbers, and two of equal probability would
    # always be applied together.
    augmentation.set_random_state(np.random.default_rng(seed), random.Random(seed))
    try:
        result = augmentation(image=image, mask=mask)
    except Exception as error:
        raise DataError(f"augmentation failed on an image of {image.shape[1]}x{image.shape[0]}: {error}") from error
    # Interpolation or a fill value may have left the labels; whatever is not background is object.
    return np.ascontiguousarray(result["image"]), (result["mask"] > 0).astype(np.uint8)


def _available() -> dict[str, type]:
    members = {name: getattr(albumentations, name) for name in dir(albumentations)}
    return {
        name: member
        for name, member in members.items()
        if inspect.isclass(member)
        and issubclass(member, ImageOnlyTransform | DualTransform)
        and not issubclass(member, Transform3D)
        and member not in (ImageOnlyTransform, DualTransform)
    }


def _build(name: str, arguments: Mapping[str, Any]) -> albumentations.BasicTransform:
    available = _available()
    if name not in available:
        raise DataError(
            f'unknown augmentation "{name}"{_nearest(name, available)}; '
            f"use an albumentations {albumentations.__version__} transform of images, or of images and masks"
        )
    transform = available[name]
    known = [key for key in inspect.signature(transform).parameters if key != "self"]
    if unknown := [key for key in arguments if key not in known]:
        raise DataError(
            f'augmentation {name} has no argument "{unknown[0]}"{_nearest(unknown[0], known)}; '
            f"it takes {', '.join(known)}"
        )
    probability = arguments.get("p", 1.0)
    if not isinstance(probability, int | float) or not 0 <= probability <= 1:
        raise DataError(f"augmentation {name}: p is {probability!r}: a probability lies between 0 and 1")
    # Without strict some wrong values bring only a warning, and the defaults in place of all arguments.
    # The few transforms without a schema do not take it.
    strict = {"strict": True} if "InitSchema" in vars(transform) else {}
    try:
        return transform(**arguments, **strict)
    except Exception as error:
        raise DataError(f"augmentation {name} does not accept {dict(arguments)}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """One line of a constructor's complaint, without what pydantic prints around it."""
    if not isinstance(error.__cause__, ValidationError):
        return str(error)
    faults = error.__cause__.errors()
    return "; ".join(": ".join([*(str(part) for part in fault["loc"][:1]), fault["msg"]]) for fault in faults)


class _TrialImage:
    """An image and mask that pass through the chain once, before training starts."""

    def __init__(self, size: int):
        noise = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
        self.image = noise
        self.mask = np.zeros((size, size), np.uint8)
        self.mask[size // 4 : size // 2 + 1, size // 4 : size // 2 + 1] = 1

    def apply(self, name: str, transform: albumentations.BasicTransform) -> None:
        compose = albumentations.Compose([transform], seed=0)
        try:
            result = compose(image=self.image, mask=self.mask)
        except Exception as error:
            height, width = self.mask.shape
            raise DataError(
                f"augmentation {name} failed on a trial image of {width}x{height} with its mask: {error}; "
                f"correct its arguments, or use a transform that needs an image and a mask only"
            ) from error
        image, mask = result["image"], result["mask"]
        is_rgb = image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3
        if not is_rgb or mask.shape != image.shape[:2]:
            raise DataError(
                f"augmentation {name} makes {image.dtype} {image.shape} of a uint8 RGB image and "
                f"{mask.shape} of its mask: leave it out; images stay uint8 RGB until the model"
                f" normalises them"
            )
        self.image, self.mask = image, (mask > 0).astype(np.uint8)


def _nearest(word: str, known: Sequence[str] | Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f': did you mean "{near[0]}"?' if near else ""
