import numpy as np
import pytest
from PIL import Image

from camox.data.layouts import locate
from camox.data.pairing import folder, pair_up
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
def test_groups_are_the_super_classes_in_names(cod10k_root, split):
    pairs = pair_up(locate(cod10k_root, split=split)).pairs
    assert [(pair.name, pair.group) for pair in pairs] == list(
        zip(CAMOUFLAGED, ["Aquatic", "Terrestrial"], strict=True)
    )
    assert all(split.capitalize() in pair.image.parts for pair in pairs)
    assert {pair.group for pair in pair_up(locate(cod10k_root), super_class="none").pairs} == {""}


@pytest.mark.parametrize("header", ["name,super_class", "super_class,name"])
def test_groups_may_come_from_a_table(tmp_path, header):
    rows = {"a": "Flying", "b.jpg": "Aquatic", "x": "Other"}
    lines = [f"{n},{c}" if header.startswith("name") else f"{c},{n}" for n, c in rows.items()]
    (tmp_path / "classes.csv").write_text("\n".join([header, *lines]), encoding="utf-8-sig")
    found = pair_up(folder(*write_pairs(tmp_path, ["a", "b", "c"])), super_class=str(tmp_path / "classes.csv"))
    assert [pair.group for pair in found.pairs] == ["Flying", "Aquatic", ""]
    (notice,) = found.notices
    assert notice.startswith("1 images are not in")
    assert notice.endswith(": c")


@pytest.mark.parametrize(
    ("content", "message"),
    [("name,class\na,b", "has no column super_class"), (None, "cannot be read"), (b"\xff\xfe\x00", "cannot be read")],
)
def test_a_table_that_is_none_is_one_message(tmp_path, content, message):
    table = tmp_path / "classes.csv"
    if content is not None:
        table.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=rf"classes\.csv.*{message}.*data\.super_class"):
        pair_up(folder(*write_pairs(tmp_path, ["a"])), super_class=str(table))


def test_non_camouflaged_images_are_left_out_and_counted(cod10k_root):
    (notice,) = pair_up(locate(cod10k_root)).notices
    assert notice.startswith("1 non-camouflaged images")


def test_non_camouflaged_images_are_kept_on_demand(cod10k_root):
    found = pair_up(locate(cod10k_root), non_camouflaged=True)
    assert [pair.group for pair in found.pairs] == ["Aquatic", "Terrestrial", "NonCAM"]
    assert found.notices == ()


def test_nothing_but_non_camouflaged_images_is_an_error(tmp_path):
    with pytest.raises(DataError, match=r"all 1 images are non-camouflaged.*non_camouflaged = true uses them"):
        pair_up(folder(*write_pairs(tmp_path, NOT_CAMOUFLAGED)))


def test_masks_that_two_splits_share_are_no_surplus(tmp_path):
    for split in ("Train", "Test"):
        write(tmp_path / "Images" / split / f"{split}.jpg")
        write(tmp_path / "GT" / f"{split}.png")
    found = pair_up(locate(tmp_path, split="train"))
    assert ([pair.name for pair in found.pairs], found.notices) == (["Train"], ())


def test_sets_of_a_collection_are_told_apart(tmp_path):
    for name in ("CAMO", "NC4K"):
        write(tmp_path / "TestDataset" / name / "Imgs" / "1.jpg")
        write(tmp_path / "TestDataset" / name / "GT" / "1.png")
    pairs = pair_up(locate(tmp_path, split="test")).pairs
    assert [(pair.name, pair.group) for pair in pairs] == [("CAMO/1", "CAMO"), ("NC4K/1", "NC4K")]


def test_folder_pairs_by_stem_in_order_of_names(tmp_path):
    layout = pair_up(folder(*write_pairs(tmp_path, ["b", "a b ü", "c.d"])))
    assert [pair.name for pair in layout.pairs] == ["a b ü", "b", "c.d"]
    assert all(pair.image.stem == pair.mask.stem for pair in layout.pairs)
    assert {pair.group for pair in layout.pairs} == {""}


def test_folder_ignores_case_of_suffixes_and_foreign_files(tmp_path):
    images, masks = write_pairs(tmp_path, ["a"])
    (images / "a.jpg").rename(images / "a.JPG")
    for stray in (".DS_Store", "Thumbs.db", "._a.jpg", "readme.txt"):
        (images / stray).write_bytes(b"x")
        (masks / stray).write_bytes(b"x")
    assert [pair.name for pair in pair_up(folder(images, masks)).pairs] == ["a"]


def test_folder_matches_composed_and_decomposed_names(tmp_path):
    write(tmp_path / "images" / "u\u0308.jpg")
    write(tmp_path / "masks" / "\u00fc.png")
    assert len(pair_up(folder(tmp_path / "images", tmp_path / "masks")).pairs) == 1


def test_folder_reads_subfolders_as_groups_where_there_is_nothing_else(tmp_path):
    layout = pair_up(folder(*write_pairs(tmp_path, ["crab/1", "owl/1", "owl/2"])))
    assert [(pair.name, pair.group) for pair in layout.pairs] == [
        ("crab/1", "crab"),
        ("owl/1", "owl"),
        ("owl/2", "owl"),
    ]


def test_folder_counts_masks_without_image(tmp_path):
    images, masks = write_pairs(tmp_path, ["a", "b"])
    (images / "b.jpg").unlink()
    layout = pair_up(folder(images, masks))
    assert len(layout.pairs) == 1
    assert layout.notices[0].startswith("1 masks of")


def test_images_without_mask_are_counted_and_named(tmp_path):
    images, masks = write_pairs(tmp_path, [f"{i:02d}" for i in range(14)])
    for mask in sorted(masks.iterdir())[:12]:
        mask.unlink()
    with pytest.raises(DataError, match=r"12 of 14 images .*00\.jpg.*09\.jpg, … and 2 more"):
        pair_up(folder(images, masks))


def test_missing_folder_names_the_folder(tmp_path):
    with pytest.raises(DataError, match=r"no folder .*nothing.*expects the images"):
        pair_up(folder(tmp_path / "nothing", tmp_path))


def test_empty_folder(tmp_path):
    with pytest.raises(DataError, match="has no image files"):
        pair_up(folder(tmp_path, tmp_path))


def test_two_files_of_one_stem(tmp_path):
    images, masks = write_pairs(tmp_path, ["a"])
    write(images / "a.png")
    with pytest.raises(DataError, match=r"a\.jpg and a\.png"):
        pair_up(folder(images, masks))


def test_every_wrong_size_and_unreadable_file_is_listed_in_one_error(tmp_path):
    images, masks = write_pairs(tmp_path, [f"{i:02d}" for i in range(14)])
    for i in range(11):
        write(masks / f"{i:02d}.png", width=5)
    (masks / "12.png").write_bytes(b"")
    (images / "13.jpg").write_bytes(b"no image")
    with pytest.raises(DataError) as caught:
        pair_up(folder(images, masks))
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
    (pair,) = pair_up(folder(tmp_path / "images", tmp_path / "masks")).pairs
    assert pair.apply_orientation is applied
