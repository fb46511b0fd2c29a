"""Draw image, truth, prediction and boundary uncertainty of a run's test samples, one row each, into one picture.

python tools/prediction_picture.py runs/quickstart --samples 0 1 2 3 --out docs/quickstart.png
"""

import argparse
import sys
from pathlib import Path

import cv2
import numpy as np
import torch

from camox.data.sources import open_sources
from camox.data.transforms import resize_image
from camox.errors import ArgumentParser, CamoxError, DataError
from camox.inference.forward import infer
from camox.inference.loading.loaded_model import load_model
from camox.inference.pictures import prediction_panel


def main() -> int:
    """Parses the command line, predicts, draws."""
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--samples", type=int, nargs="+", default=[0, 1, 2, 3], help="numbers within the test data")
    parser.add_argument("--size", type=int, default=256, help="side of each of the four pictures in a row")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    try:
        picture = draw(options.run, options.samples, options.size)
    except CamoxError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    options.out.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(options.out), cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    return 0


def draw(run: Path, samples: list[int], size: int) -> np.ndarray:
    """The rows as one uint8 RGB image."""
    loaded = load_model(run)
    if loaded.experiment is None or not loaded.experiment.data.test:
        raise DataError(f"{run} has no test data in its experiment: nothing to draw")
    source = open_sources([one.plain() for one in loaded.experiment.data.test], split="test")
    rows = []
    for number in samples:
        if not 0 <= number < len(source):
            raise DataError(f"there is no sample {number}: the test data of {run} are samples 0 to {len(source) - 1}")
        sample = source[number]
        pixels = resize_image(sample.image, loaded.image_size)
        output, maps = infer(loaded.model, torch.from_numpy(pixels).permute(2, 0, 1)[None], loaded.device)
        uncertainty = output.uncertainty[0, 0].cpu().numpy()
        rows.append(prediction_panel(sample.image, sample.mask, maps[0].cpu().numpy(), uncertainty, size))
    return np.concatenate(rows)


if __name__ == "__main__":
    sys.exit(main())
