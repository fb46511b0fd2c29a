"""Real sets as the `datasets` library reads them, written from a few small images."""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from PIL import Image

Row = dict[str, Any]


def encoded(pixels: np.ndarray, form: str = "PNG", **options: Any) -> bytes:
    """The bytes of an image file of this content."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form, **options)
    return file.getvalue()


def rows(count: int, size: tuple[int, int] = (32, 40)) -> list[Row]:
    """Rows with image, mask and image_name; each image is grey noise around 10 times its row's number."""
    random = np.random.default_rng(0)
    made = []
    for number in range(count):
        mask = np.zeros(size, np.uint8)
        mask[8:20, 8 : 12 + number % 8] = 255
        noise = random.integers(0, 10, (*size, 3), dtype=np.uint8) + np.uint8(10 * (number % 24))
        made.append(
            {
                "image": {"bytes": encoded(noise), "path": f"image_{number}.png"},
                "mask": {"bytes": encoded(mask), "path": None},
                "image_name": f"COD10K-CAM-1-{('Aquatic', 'Terrestrial')[number % 2]}-3-Crab-{number}.jpg",
            }
        )
    return made


def as_dataset(made: Sequence[Row], **features: Any) -> datasets.Dataset:
    """The rows as a table; columns called image, mask or gt hold images, others text unless `features` says."""
    pictures = {name: datasets.Image() for name in made[0] if name in ("image", "mask", "gt")}
    others = {name: datasets.Value("string") for name in made[0] if name not in pictures}
    return datasets.Dataset.from_list(list(made), features=datasets.Features({**others, **pictures, **features}))


def write_shards(folder: Path, made: Sequence[Row], shards: int = 1, split: str = "train", **features: Any) -> Path:
    """Parquet files, as the hub has them."""
    folder.mkdir(parents=True, exist_ok=True)
    table = as_dataset(made, **features)
    for shard in range(shards):
        file = folder / f"{split}-{shard:05d}-of-{shards:05d}.parquet"
        table.shard(shards, shard, contiguous=True).to_parquet(file)
    return folder


def write_image_folder(folder: Path, made: Sequence[Row], split: str = "train") -> Path:
    """Image files with a table that names each image's mask."""
    (folder / split / "masks").mkdir(parents=True)
    with (folder / split / "metadata.jsonl").open("w") as table:
        for row in made:
            name = Path(row["image_name"]).stem + ".png"
            (folder / split / name).write_bytes(row["image"]["bytes"])
            (folder / split / "masks" / name).write_bytes(row["mask"]["bytes"])
            table.write(json.dumps({"file_name": name, "mask_file_name": f"masks/{name}"}) + "\n")
    return folder
