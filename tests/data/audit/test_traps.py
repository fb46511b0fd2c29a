"""Every trap is found under its name, and the loader does with it what the finding says."""

import unicodedata

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from camox.data.audit import files
from camox.data.audit.dataset import Dataset, examine_dataset
from camox.data.audit.findings import KINDS
from camox.data.audit.listing import list_dataset
from camox.data.layouts import locate
from camox.data.loading import TrainSet
from camox.data.pairing import folder, pair_up
from camox.data.sources import open_source
from camox.errors import DataError
from tests.data.audit.traps import FAILS, HEIGHT, REFUSED, TRAPS, TRUTH, UNSEEN, WIDTH, Pairs, photograph


def findings_in(root):
    located = locate(root)
    return examine_dataset(Dataset("set", "", located, list_dataset(located)), workers=1).findings


def opened(root):
    return open_source({"layout": "auto", "path": str(root)})


def test_there_is_a_trap_for_every_kind():
    assert TRAPS.keys() == KINDS.keys()


@pytest.mark.parametrize("kind", KINDS)
def test_a_trap_is_found_with_its_file(tmp_path, kind):
    pairs = Pairs(tmp_path)
    path = TRAPS[kind][0](pairs)
    found = [finding for finding in findings_in(tmp_path) if finding.kind == kind]
    assert path in [finding.path for finding in found]


@pytest.mark.parametrize("kind", KINDS)
def test_the_loader_does_what_the_finding_says(tmp_path, kind):
    pairs = Pairs(tmp_path)
    write, outcome = TRAPS[kind]
    path = write(pairs)
    if outcome == REFUSED:
        with pytest.raises(DataError) as caught:
            pair_up(folder(pairs.images, pairs.masks))
        assert path.stem in str(caught.value)
        assert "refuses" in KINDS[kind].loader
        return
    source = opened(tmp_path)
    if outcome == UNSEEN:
        assert all("clean" in name for name in source.names)
        return
    (index,) = [i for i, name in enumerate(source.names) if "clean" not in name]
    if outcome == FAILS:
        problem = TrainSet(source, 64)[0, index].problem
        assert problem is not None
        assert "trap" in problem
        assert "fails when its turn comes" in KINDS[kind].loader
        return
    image, mask = outcome
    sample = source[index]
    if image is not None:
        assert np.abs(sample.image.astype(int) - image).max() <= 1
    if mask is not None:
        assert np.array_equal(sample.mask, mask)
    assert TrainSet(source, 64)[0, index].problem is None


def test_a_dark_mask_calls_more_than_the_object_object(tmp_path):
    pairs = Pairs(tmp_path)
    TRAPS["dark_mask"][0](pairs)
    source = opened(tmp_path)
    assert source[list(source.names).index("trap")].mask.sum() > 1.1 * TRUTH.sum()


@pytest.mark.parametrize("kind", [kind for kind in KINDS if KINDS[kind].severity == "problem"])
def test_every_problem_says_what_to_do(kind):
    assert KINDS[kind].remedy


def test_a_set_as_it_should_be_has_no_findings(tmp_path):
    Pairs(tmp_path, clean=6)
    assert findings_in(tmp_path) == ()


@settings(max_examples=30)
@given(
    kinds=st.lists(st.sampled_from(sorted(TRAPS.keys() - {"no_images", "huge_image", "same_stem"})), unique=True),
    seed=st.integers(0, 99),
)
def test_a_set_opens_exactly_when_no_finding_says_that_it_is_refused(tmp_path_factory, kinds, seed):
    # Traps are written over each other in any order: whatever the mixture, listing and loader must agree.
    root = tmp_path_factory.mktemp("mixed")
    pairs = Pairs(root)
    for kind in np.random.default_rng(seed).permutation(kinds):
        TRAPS[kind][0](pairs)
    found = findings_in(root)
    refused = any("refuses" in KINDS[finding.kind].loader for finding in found)
    failing = {f.path.stem for f in found if "fails when its turn comes" in KINDS[f.kind].loader}
    try:
        source = opened(root)
    except DataError:
        assert refused
        return
    assert not refused
    samples = TrainSet(source, 32)
    failed = {name for i, name in enumerate(source.names) if samples[0, i].problem is not None}
    assert failed == {unicodedata.normalize("NFC", stem) for stem in failing}


@settings(max_examples=60)
@given(
    level=st.integers(3, 128),
    blur=st.sampled_from([0, 1.5, 4]),
    quality=st.sampled_from([None, 60, 95]),
    labelled=st.booleans(),
)
def test_a_lost_label_is_told_from_soft_edges_and_ringing(tmp_path_factory, level, blur, quality, labelled):
    root = tmp_path_factory.mktemp("levels")
    pairs = Pairs(root, clean=0)
    levels = TRUTH * 255
    if blur:
        levels = cv2.GaussianBlur(levels, (0, 0), blur)
    if labelled:
        levels[10:50, 10:60] = level
    pairs.image()
    if quality is None:
        pairs.mask(levels=levels)
    elif labelled:
        return  # a JPEG spreads a label over levels nearby
    else:
        pairs.mask("trap.jpg", levels, quality=quality)
    kinds = {finding.kind for finding in findings_in(root)}
    assert ("label_below_threshold" in kinds) == labelled


def test_a_rim_of_one_grey_level_is_an_edge_and_no_label(tmp_path):
    pairs = Pairs(tmp_path, clean=0)
    rim = cv2.dilate(TRUTH, np.ones((3, 3), np.uint8)) - TRUTH
    assert rim.mean() > 0.005
    pairs.image()
    pairs.mask(levels=TRUTH * 255 + rim * 90)
    assert findings_in(tmp_path) == ()


def test_an_object_that_fills_most_of_the_image_is_not_inverted(tmp_path):
    pairs = Pairs(tmp_path)
    large = np.zeros((HEIGHT, WIDTH), np.uint8)
    large[8:-8, 8:-8] = 255
    pairs.image("large.jpg", photograph(7))
    pairs.mask("large.png", large)
    assert findings_in(tmp_path) == ()


@settings(max_examples=60)
@given(
    form=st.sampled_from(["JPEG", "PNG", "BMP", "TIFF", "WEBP", "GIF"]),
    role=st.sampled_from(["image", "mask"]),
    seed=st.integers(0, 10**6),
)
def test_whatever_damage_is_a_finding_where_the_loader_fails(tmp_path_factory, form, role, seed):
    random = np.random.default_rng(seed)
    root = tmp_path_factory.mktemp("damaged")
    pairs = Pairs(root, clean=0)
    pairs.image(), pairs.mask()
    path = pairs.images / "trap.jpg" if role == "image" else pairs.masks / "trap.png"
    picture = Image.fromarray(photograph() if role == "image" else TRUTH * 255)
    picture.save(path, form)
    data = np.frombuffer(path.read_bytes(), np.uint8).copy()
    places = random.integers(0, min(len(data), random.choice([80, 10**6])), 6)
    data[places] = random.integers(0, 256, 6)
    path.write_bytes(data[: random.integers(1, len(data) + 1)].tobytes())
    kinds = {finding.kind for finding in findings_in(root)}
    try:
        fails = TrainSet(opened(root), 32)[0, 0].problem is not None
    except DataError:
        fails = True
    told = [kind for kind in kinds if "refuses" in KINDS[kind].loader or "fails when" in KINDS[kind].loader]
    assert fails == bool(told)


def test_a_file_that_vanishes_meanwhile_is_a_finding(tmp_path, monkeypatch):
    Pairs(tmp_path, clean=1)
    read = files.read_header

    def read_and_lose(path):
        header = read(path)
        path.unlink()
        return header

    monkeypatch.setattr(files, "read_header", read_and_lose)
    (finding,) = findings_in(tmp_path)
    assert finding.kind == "damaged_header"
    assert finding.path.name == "clean_0.jpg"
