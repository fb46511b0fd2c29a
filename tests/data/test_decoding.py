import io

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from camox.data import decoding
from camox.data.decoding import read_header, read_image, read_mask
from camox.errors import DataError


def photograph(height=48, width=64):
    rows, columns = np.mgrid[:height, :width]
    channels = [rows * 255 // height, columns * 255 // width, np.full_like(rows, 90)]
    return np.stack(channels, axis=2).astype(np.uint8)


def encoded(image, form, **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def save(path, array, **options):
    Image.fromarray(array).save(path, **options)
    return path


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "L", "LA", "1", "CMYK"])
def test_every_pillow_mode_becomes_uint8_rgb(tmp_path, mode):
    path = tmp_path / ("image.tif" if mode == "CMYK" else "image.png")
    Image.fromarray(photograph()).convert(mode).save(path)
    image = read_image(path)
    assert image.dtype == np.uint8
    assert image.shape == (48, 64, 3)


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_jpeg_equals_pillow_within_rounding(tmp_path, mode, progressive):
    path = tmp_path / "image.jpg"
    Image.fromarray(photograph()).convert(mode).save(path, progressive=progressive, quality=95)
    reference = np.array(Image.open(path).convert("RGB")).astype(int)
    assert np.abs(read_image(path).astype(int) - reference).max() <= 2


def test_channels_are_in_rgb_order(tmp_path):
    red = np.zeros((16, 16, 3), np.uint8)
    red[..., 0] = 200
    image = read_image(save(tmp_path / "red.jpg", red, quality=100))
    assert image[..., 0].min() > 190
    assert image[..., 1:].max() < 10


def test_sixteen_bit_grey_keeps_its_range(tmp_path):
    levels = np.linspace(0, 65535, 64 * 48).reshape(48, 64).astype(np.uint16)
    cv2.imwrite(str(tmp_path / "deep.png"), levels)
    assert np.array_equal(read_image(tmp_path / "deep.png")[..., 0], (levels >> 8).astype(np.uint8))


@pytest.mark.parametrize("suffix", ["jpg", "png"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_as_pillow_applies_it(tmp_path, orientation, suffix):
    path = tmp_path / f"turned.{suffix}"
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(photograph()).save(path, exif=exif, quality=95)
    reference = np.array(ImageOps.exif_transpose(Image.open(path)))
    image = read_image(path)
    assert image.shape == reference.shape
    assert np.abs(image.astype(int) - reference).max() <= 2
    assert read_header(path).upright == reference.shape[1::-1]
    assert read_image(path, apply_orientation=False).shape == (48, 64, 3)


@pytest.mark.parametrize("progressive", [False, True])
@settings(max_examples=40, deadline=None)
@given(share=st.floats(0.0, 0.995))
def test_truncated_jpeg_never_decodes(tmp_path_factory, progressive, share):
    noise = np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)
    whole = encoded(Image.fromarray(noise), "JPEG", progressive=progressive)
    path = tmp_path_factory.mktemp("cut") / "cut.jpg"
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(DataError, match=r"cut\.jpg"):
        read_image(path)


def test_truncated_jpeg_with_a_whole_thumbnail_in_its_exif_does_not_decode(tmp_path):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    thumbnail = encoded(noise.resize((16, 16)), "JPEG")
    whole = encoded(noise, "JPEG", exif=b"Exif\x00\x00" + thumbnail)
    (tmp_path / "cut.jpg").write_bytes(whole[:-200])
    with pytest.raises(DataError, match="truncated"):
        read_image(tmp_path / "cut.jpg")


def test_jpeg_with_bytes_after_its_end_decodes(tmp_path):
    (tmp_path / "tail.jpg").write_bytes(encoded(Image.fromarray(photograph()), "JPEG") + b"camera notes")
    assert read_image(tmp_path / "tail.jpg").shape == (48, 64, 3)


@settings(max_examples=60)
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_in_a_png_is_never_decoded(tmp_path_factory, place, bit):
    data = bytearray(encoded(Image.fromarray(photograph()), "PNG"))
    start, end = data.index(b"IHDR"), data.index(b"IEND")
    data[start + int(place * (end - 4 - start))] ^= 1 << bit
    path = tmp_path_factory.mktemp("flipped") / "flipped.png"
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"flipped\.png"):
        read_image(path)


@settings(max_examples=100, deadline=None)
@given(form=st.sampled_from(["JPEG", "PNG", "BMP", "TIFF", "WEBP"]), seed=st.integers(0, 10**6))
def test_damaged_bytes_give_an_image_or_a_data_error(tmp_path_factory, form, seed):
    random = np.random.default_rng(seed)
    data = np.frombuffer(encoded(Image.fromarray(photograph()), form), np.uint8).copy()
    places = random.integers(0, len(data), 12)
    data[places] = random.integers(0, 256, 12)
    path = tmp_path_factory.mktemp("damaged") / "damaged"
    path.write_bytes(data[: random.integers(1, len(data) + 1)].tobytes())
    for read in (read_image, read_mask):
        try:
            read(path)
        except DataError as error:
            assert "damaged" in str(error)  # noqa: PT017


@pytest.mark.parametrize("content", [b"", b"not an image at all"])
@pytest.mark.parametrize("read", [read_image, read_mask, read_header])
def test_what_is_no_image_is_named(tmp_path, read, content):
    path = tmp_path / "a name with spaces ü.png"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a name with spaces ü\.png: .*(empty|not an image)"):
        read(path)


@pytest.mark.parametrize("read", [read_image, read_mask, read_header])
def test_missing_file_is_named(tmp_path, read):
    with pytest.raises(DataError, match=r"gone\.png: no such file"):
        read(tmp_path / "gone.png")


def test_floating_point_pixels_are_refused(tmp_path):
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(DataError, match="floating-point"):
        read_image(tmp_path / "float.tif")


TRUTH = np.zeros((20, 30), np.uint8)
TRUTH[5:12, 8:21] = 1


@pytest.mark.parametrize(
    "levels",
    [
        TRUTH,
        TRUTH * 255,
        TRUTH * 255 + (1 - TRUTH) * 2,
        TRUTH * 129,
        (1 - TRUTH) * 128 + TRUTH * 200,
        TRUTH * 7,
    ],
    ids=["0-1", "0-255", "2-255", "0-129", "128-200", "0-7"],
)
def test_levels_of_masks(tmp_path, levels):
    assert np.array_equal(read_mask(save(tmp_path / "mask.png", levels.astype(np.uint8))), TRUTH)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "CMYK"])
def test_modes_of_masks(tmp_path, mode):
    path = tmp_path / ("mask.tif" if mode == "CMYK" else "mask.png")
    Image.fromarray(TRUTH * 255).convert(mode).save(path)
    assert np.array_equal(read_mask(path), TRUTH)


@pytest.mark.parametrize("scale", [1, 255, 65535])
def test_sixteen_bit_masks(tmp_path, scale):
    cv2.imwrite(str(tmp_path / "mask.png"), TRUTH.astype(np.uint16) * scale)
    assert np.array_equal(read_mask(tmp_path / "mask.png"), TRUTH)


def test_jpeg_mask_is_clean_in_spite_of_its_ringing(tmp_path):
    assert np.array_equal(read_mask(save(tmp_path / "mask.jpg", TRUTH * 255, quality=75)), TRUTH)


def test_palette_mask_with_label_colours(tmp_path):
    mask = Image.fromarray(TRUTH).convert("P")
    mask.putdata(TRUTH.ravel().tolist())
    mask.putpalette([0, 0, 0, 128, 0, 0])
    mask.save(tmp_path / "mask.png")
    assert np.array_equal(read_mask(tmp_path / "mask.png"), TRUTH)


def test_mask_in_the_alpha_channel(tmp_path):
    white = np.full((20, 30, 3), 255, np.uint8)
    rgba = np.concatenate([white, TRUTH[..., None] * 255], axis=2)
    assert np.array_equal(read_mask(save(tmp_path / "mask.png", rgba)), TRUTH)


def test_a_photograph_in_the_place_of_a_mask_is_refused(tmp_path):
    rows, columns = np.mgrid[0:96, 0:128]
    photograph = 120 + 60 * np.sin(rows / 9) + 50 * np.cos(columns / 13)
    path = tmp_path / "frog.png"
    Image.fromarray(photograph.clip(0, 255).astype(np.uint8)).save(path)
    with pytest.raises(DataError, match=r"frog\.png: is no mask: \d+% of its pixels"):
        read_mask(path)


def test_a_mask_with_soft_edges_is_one(tmp_path):
    mask = np.zeros((96, 128), np.uint8)
    cv2.circle(mask, (64, 48), 30, 255, -1)
    path = tmp_path / "soft.png"
    Image.fromarray(cv2.GaussianBlur(mask, (0, 0), 6)).save(path)
    expected = mask > 128
    assert (read_mask(path) != expected).mean() < 0.02


def test_empty_mask_stays_empty(tmp_path):
    assert read_mask(save(tmp_path / "mask.png", TRUTH * 0)).sum() == 0


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"exif": b"Exif\0\0"}, {"comment": b"\xff\xd9"}])
def test_a_jpeg_is_the_same_whether_pillow_reads_its_header_or_not(tmp_path, monkeypatch, mode, options):
    path = tmp_path / "image.jpg"
    Image.fromarray(photograph()).convert(mode).save(path, quality=90, **options)
    image = read_image(path)
    monkeypatch.setattr(decoding, "_plain_jpeg_size", lambda data: None)
    assert np.array_equal(image, read_image(path))


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**31), height=st.integers(1, 70), width=st.integers(1, 70),
    levels=st.sampled_from([(0, 255), (0, 1), (0, 1, 255), (0, 128, 129, 255), (7,)]), optimize=st.booleans(),
)  # fmt: skip
def test_a_plain_png_mask_is_read_as_pillow_reads_it(tmp_path_factory, seed, height, width, levels, optimize):
    array = np.random.default_rng(seed).choice(np.array(levels, np.uint8), (height, width))
    path = tmp_path_factory.mktemp("mask") / "mask.png"
    Image.fromarray(array).save(path, optimize=optimize)
    assert decoding._is_plain_png(path.read_bytes())
    mask = read_mask(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoding, "_is_plain_png", lambda data: False)
        assert np.array_equal(mask, read_mask(path))


@pytest.mark.parametrize("orientation", [None, 1, 6])
def test_the_header_of_a_png_tells_its_orientation_and_decodes_nothing_without_one(tmp_path, monkeypatch, orientation):
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    Image.fromarray(np.zeros((4, 7), np.uint8)).save(tmp_path / "mask.png", exif=exif)
    if orientation is None:
        monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", None)
    assert read_header(tmp_path / "mask.png").upright == ((4, 7) if orientation == 6 else (7, 4))


@pytest.mark.parametrize("change", ["mode", "transparency", "orientation", "depth"])
def test_a_png_whose_pixels_depend_on_more_is_left_to_pillow(tmp_path, change):
    image = Image.fromarray(np.eye(8, dtype=np.uint8) * 255)
    path = tmp_path / "mask.png"
    if change == "mode":
        image.convert("P").save(path)
    elif change == "transparency":
        image.save(path, transparency=0)
    elif change == "orientation":
        exif = Image.Exif()
        exif[0x0112] = 3
        image.save(path, exif=exif)
    else:
        image.convert("1").save(path)
    assert not decoding._is_plain_png(path.read_bytes())
    assert read_mask(path).sum() == 8


@given(st.integers(8, 10_000), st.integers(0, 7))
def test_a_png_with_a_flipped_bit_or_cut_off_is_never_plain(tmp_path_factory, place, bit):
    path = tmp_path_factory.mktemp("mask") / "mask.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 2, (40, 40), np.uint8)).save(path)
    content = bytearray(path.read_bytes())
    place = min(place, len(content) - 1)
    assert not decoding._is_plain_png(bytes(content[:place]))
    content[place] ^= 1 << bit
    assert not decoding._is_plain_png(bytes(content))
