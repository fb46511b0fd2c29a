import numpy as np
import pytest
from PIL import Image

from camox.data.layouts import cod10k, folder
from camox.errors import DataError


def write(path, width=12, height=8, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((height, width), np.uint8)).save(path, **options)


def write_pairs(root, stems, image_suffix=".jpg"):
    for stem in stems:
        write(root / "images" / f"{stem}{image_suffix}")
        write(root / "masks" / f"{stem}.png")
    return root / "images", root / "masks"


CAMOUFLAGED = ["COD10K-CAM-1-Aquatic-3-Crab-32", "COD10K-CAM-2-Terrestrial-23-Cat-1506"]
NOT_CAMOUFLAGED = ["COD10K-NonCAM-1-Aquatic-1-Fish-5"]


@pytest.fixture
def cod10k_root(tmp_path):
    root = tmp_path / "COD10K-v3"
    for part in ("Train", "Test"):
        for stem in CAMOUFLAGED + NOT_CAMOUFLAGED:
            write(root / part / "Image" / f"{stem}.jpg")
            write(root / part / "GT_Object" / f"{stem}.png")
    return root


@pytest.mark.parametrize("split", ["train", "test"])
def test_cod10k_groups_are_super_classes(cod10k_root, split):
    layout = cod10k(cod10k_root, split)
    assert [(pair.name, pair.group) for pair in layout.pairs] == list(
        zip(CAMOUFLAGED, ["Aquatic", "Terrestrial"], strict=True)
    )
    assert all(split.capitalize() in pair.image.parts for pair in layout.pairs)


def test_cod10k_counts_the_non_camouflaged_images_it_leaves_out(cod10k_root):
    (notice,) = cod10k(cod10k_root, "train").notices
    assert notice.startswith("1 non-camouflaged images")


def test_cod10k_keeps_non_camouflaged_images_on_demand(cod10k_root):
    layout = cod10k(cod10k_root, "train", non_camouflaged=True)
    assert [pair.group for pair in layout.pairs] == ["Aquatic", "Terrestrial", "NonCAM"]
    assert layout.notices == ()


def test_cod10k_missing_folder_says_what_was_expected_where(tmp_path):
    with pytest.raises(DataError, match=r"no folder .*nowhere .*expects Train/Image and Train/GT_Object"):
        cod10k(tmp_path / "nowhere", "train")


def test_cod10k_in_a_folder_one_level_deeper_is_pointed_out(cod10k_root):
    with pytest.raises(DataError, match="COD10K-v3 has them: use that path"):
        cod10k(cod10k_root.parent, "train")


def test_cod10k_unknown_split(cod10k_root):
    with pytest.raises(DataError, match='"valid"'):
        cod10k(cod10k_root, "valid")


def test_folder_pairs_by_stem_in_order_of_names(tmp_path):
    layout = folder(*write_pairs(tmp_path, ["b", "a b ü", "c.d"]))
    assert [pair.name for pair in layout.pairs] == ["a b ü", "b", "c.d"]
    assert all(pair.image.stem == pair.mask.stem for pair in layout.pairs)
    assert {pair.group for pair in layout.pairs} == {""}


def test_folder_ignores_case_of_suffixes_and_foreign_files(tmp_path):
    images, masks = write_pairs(tmp_path, ["a"])
    (images / "a.jpg").rename(images / "a.JPG")
    for stray in (".DS_Store", "Thumbs.db", "._a.jpg", "readme.txt"):
        (images / stray).write_bytes(b"x")
        (masks / stray).write_bytes(b"x")
    assert [pair.name for pair in folder(images, masks).pairs] == ["a"]


def test_folder_matches_composed_and_decomposed_names(tmp_path):
    write(tmp_path / "images" / "u\u0308.jpg")
    write(tmp_path / "masks" / "\u00fc.png")
    assert len(folder(tmp_path / "images", tmp_path / "masks").pairs) == 1


def test_folder_reads_subfolders_as_groups_where_there_is_nothing_else(tmp_path):
    layout = folder(*write_pairs(tmp_path, ["crab/1", "owl/1", "owl/2"]))
    assert [(pair.name, pair.group) for pair in layout.pairs] == [
        ("crab/1", "crab"),
        ("owl/1", "owl"),
        ("owl/2", "owl"),
    ]


def test_folder_counts_masks_without_image(tmp_path):
    images, masks = write_pairs(tmp_path, ["a", "b"])
    (images / "b.jpg").unlink()
    layout = folder(images, masks)
    assert len(layout.pairs) == 1
    assert layout.notices[0].startswith("1 masks of")


def test_images_without_mask_are_counted_and_named(tmp_path):
    images, masks = write_pairs(tmp_path, [f"{i:02d}" for i in range(14)])
    for mask in sorted(masks.iterdir())[:12]:
        mask.unlink()
    with pytest.raises(DataError, match=r"12 of 14 images .*00\.jpg.*09\.jpg, … and 2 more"):
        folder(images, masks)


def test_missing_folder_names_the_folder(tmp_path):
    with pytest.raises(DataError, match=r"no folder .*nothing.*expects the images"):
        folder(tmp_path / "nothing", tmp_path)


def test_empty_folder(tmp_path):
    with pytest.raises(DataError, match="has no image files"):
        folder(tmp_path, tmp_path)


def test_two_files_of_one_stem(tmp_path):
    images, masks = write_pairs(tmp_path, ["a"])
    write(images / "a.png")
    with pytest.raises(DataError, match=r"a\.jpg and a\.png"):
        folder(images, masks)


def test_every_wrong_size_and_unreadable_file_is_listed_in_one_error(tmp_path):
    images, masks = write_pairs(tmp_path, [f"{i:02d}" for i in range(14)])
    for i in range(11):
        write(masks / f"{i:02d}.png", width=5)
    (masks / "12.png").write_bytes(b"")
    (images / "13.jpg").write_bytes(b"no image")
    with pytest.raises(DataError) as caught:
        folder(images, masks)
    message = str(caught.value)
    assert "11 masks differ" in message
    assert "00.jpg 12x8, mask 5x8" in message
    assert "… and 1 more" in message
    assert "12.png: the file is empty" in message
    assert "13.jpg: not an image" in message


@pytest.mark.parametrize(("mask_size", "applied"), [((8, 12), True), ((12, 8), False)])
def test_orientation_is_applied_unless_the_mask_fits_the_stored_pixels(tmp_path, mask_size, applied):
    exif = Image.Exif()
    exif[0x0112] = 6
    write(tmp_path / "images" / "a.jpg", exif=exif)
    write(tmp_path / "masks" / "a.png", width=mask_size[0], height=mask_size[1])
    (pair,) = folder(tmp_path / "images", tmp_path / "masks").pairs
    assert pair.apply_orientation is applied
