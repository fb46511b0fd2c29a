"""Images made worse, five degrees of each kind, to see how much of a score is left.

All act on the image as the network sees it, uint8 [S, S, 3] RGB, so a degree is the same for a photograph of any size.
Blur, noise and JPEG take the constants of ImageNet-C (Hendrycks and Dietterich, ICLR 2019).
"""

import zlib
from collections.abc import Callable, Mapping

import cv2
import numpy as np

SEVERITIES = (1, 2, 3, 4, 5)

_BLUR = (1.0, 2.0, 3.0, 4.0, 6.0)
_NOISE = (0.08, 0.12, 0.18, 0.26, 0.38)
_JPEG = (25, 18, 15, 10, 7)
_GAMMA = 2.2
_ELECTRONS = 4000.0


def blur(image: np.ndarray, severity: int, generator: np.random.Generator) -> np.ndarray:
    """Gaussian blur, as of a lens out of focus: sigma 1, 2, 3, 4, 6 pixels at 224², more in a larger image."""
    sigma = _BLUR[severity - 1] * min(image.shape[:2]) / 224
    return cv2.GaussianBlur(image, (0, 0), sigma)


def noise(image: np.ndarray, severity: int, generator: np.random.Generator) -> np.ndarray:
    """Gaussian noise in each channel, of deviation 0.08, 0.12, 0.18, 0.26, 0.38 of the range; cut off at its ends."""
    deviation = 255 * _NOISE[severity - 1]
    return _levels(image + deviation * generator.standard_normal(image.shape, np.float32))


def jpeg(image: np.ndarray, severity: int, generator: np.random.Generator) -> np.ndarray:
    """JPEG of quality 25, 18, 15, 10, 7."""
    quality = [cv2.IMWRITE_JPEG_QUALITY, _JPEG[severity - 1]]
    encoded = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), quality)[1]
    decoded = cv2.imdecode(encoded, cv2.IMREAD_COLOR)
    assert decoded is not None
    return cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB)


def low_light(image: np.ndarray, severity: int, generator: np.random.Generator) -> np.ndarray:
    """An exposure 1 to 5 stops too short: linear light (level ^ 2.2) / 2^stops, counted by a sensor of which 4000
    electrons are white (Poisson noise), and not brightened afterwards."""
    light = (image / np.float32(255)) ** _GAMMA / 2**severity
    counted = generator.poisson(light * _ELECTRONS) / _ELECTRONS
    return _levels(255 * counted ** (1 / _GAMMA))


CORRUPTIONS: Mapping[str, Callable[[np.ndarray, int, np.random.Generator], np.ndarray]] = {
    "blur": blur,
    "noise": noise,
    "jpeg": jpeg,
    "low_light": low_light,
}
"""Kinds by name: image uint8 [S, S, 3], severity in 1 … 5, a generator; gives an image of the same form."""


def corrupt(image: np.ndarray, name: str, kind: str, severity: int) -> np.ndarray:
    """The image made worse. What is random in it depends on the image's name, the kind and the severity alone."""
    assert severity in SEVERITIES, severity
    generator = np.random.default_rng([zlib.crc32(text.encode()) for text in (name, kind)] + [severity])
    return CORRUPTIONS[kind](image, severity, generator)


def _levels(values: np.ndarray) -> np.ndarray:
    return np.rint(values).clip(0, 255).astype(np.uint8)
