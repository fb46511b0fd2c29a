"""`camox data check` as a user calls it: exit codes, what is printed, what is written."""

import base64
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from camox.cli import main
from camox.diagnosis.data_check.subject import datasets_at
from camox.diagnosis.data_check.tiles import choose_tiles
from tests.data.audit.traps import TRUTH, Pairs, photograph


@pytest.fixture
def halves(tmp_path):
    """A dataset of two splits as it should be."""
    for split, seed in (("train", 0), ("test", 100)):
        pairs = Pairs(tmp_path / "Wild" / split, clean=0)
        for i in range(4):
            pairs.image(f"{split}_{i}.jpg", photograph(seed + i))
            pairs.mask(f"{split}_{i}.png")
    return tmp_path / "Wild"


def leak(root):
    """Put a copy of a training image, saved again, into the test set."""
    Image.fromarray(photograph(2)).save(root / "test" / "Imgs" / "copy ü.jpg", quality=50)
    Image.fromarray(TRUTH * 255).save(root / "test" / "GT" / "copy ü.png")


def test_a_clean_set_ends_with_0(halves, capfd):
    assert main(["data", "check", str(halves)]) == 0
    out = capfd.readouterr().out
    assert out.splitlines()[-1] == "no problems in 8 images: ready to train on"
    assert "Wild (train)" in out
    assert "Wild (test)" in out


def test_notes_alone_end_with_0(halves, capfd):
    (halves / "train" / "GT" / "Thumbs.db").write_bytes(b"x")
    assert main(["data", "check", str(halves)]) == 0
    out = capfd.readouterr().out
    assert "train/GT/Thumbs.db" in out
    told = "no problems in 8 images: ready to train on. 1 note on what the loader deals with by itself: nothing to do"
    assert out.splitlines()[-1] == told


def test_a_note_that_a_person_should_look_at_says_so(halves, capfd):
    Image.fromarray(photograph(2)).save(halves / "train" / "Imgs" / "copy.jpg", quality=50)
    Image.fromarray(TRUTH * 255).save(halves / "train" / "GT" / "copy.png")
    assert main(["data", "check", str(halves)]) == 0
    out = capfd.readouterr().out
    assert "→ a part that is held out may hold a copy: remove one of each pair" in out
    assert out.splitlines()[-1].endswith(
        "1 note on what the loader deals with by itself; look at 1 of them, as is said there"
    )


def test_problems_end_with_1_and_are_listed_with_files_and_remedies(halves, capfd):
    (halves / "train" / "GT" / "train_1.png").unlink()
    leak(halves)
    assert main(["data", "check", str(halves)]) == 1
    out = capfd.readouterr().out
    assert "train/Imgs/train_1.jpg" in out
    assert "add the masks or remove the images" in out
    assert "train/Imgs/train_2.jpg = test/Imgs/copy ü.jpg" in out
    assert "2 problems in 9 images: mend each as is said with it, then check again. 2 notes on" in out


def test_nothing_is_written_without_out(halves, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    main(["data", "check", str(halves)])
    assert sorted(tmp_path.rglob("*")) == before


def test_an_experiment_brings_all_of_its_sources(halves, tmp_path, tiny_experiment, capfd):
    leak(halves)
    tiny_experiment()
    source = f'{{ layout = "auto", path = "{halves}" }}'
    text = (tmp_path / "tiny.toml").read_text()
    text = re.sub(r"^train = .*", f"train = [{source}]\ntest = [{source}]", text, flags=re.MULTILINE)
    (tmp_path / "tiny.toml").write_text(text)
    assert main(["data", "check", str(tmp_path / "tiny.toml"), "--out", str(tmp_path / "audit")]) == 1
    document = json.loads((tmp_path / "audit" / "data_check.json").read_text())
    assert [(one["name"], one["role"], one["images"]) for one in document["datasets"]] == [
        ("Wild", "train", 4),
        ("Wild", "test", 5),
    ]


def test_what_an_experiment_paints_is_not_examined(halves, tmp_path, tiny_experiment, capfd):
    tiny_experiment()
    text = (tmp_path / "tiny.toml").read_text()
    text = re.sub(r"^(train = .*)", rf'\1\ntest = [{{ layout = "auto", path = "{halves}" }}]', text, flags=re.MULTILINE)
    (tmp_path / "tiny.toml").write_text(text)
    assert main(["data", "check", str(tmp_path / "tiny.toml")]) == 0
    assert "train: habitats has no files of images and is not examined" in capfd.readouterr().err


def test_no_problems_in_nothing_is_no_success(tmp_path, tiny_experiment, capfd):
    tiny_experiment()
    assert main(["data", "check", str(tmp_path / "tiny.toml")]) == 2
    assert "nothing to examine" in capfd.readouterr().err


def test_a_folder_of_datasets_is_all_of_them(halves, tmp_path):
    Pairs(tmp_path / "Other", clean=3)
    (tmp_path / "papers").mkdir()
    datasets, notices = datasets_at(tmp_path)
    assert [(one.name, one.role, len(one.listing.entries)) for one in datasets] == [
        ("Other", "", 3),
        ("Wild", "train", 4),
        ("Wild", "test", 4),
    ]
    assert [notice.split("/")[-1] for notice in notices] == ["papers is of no known layout and is not examined"]


def test_datasets_beside_a_collection_of_test_sets_are_examined_too(halves, tmp_path):
    Pairs(tmp_path / "Other", clean=3)
    Pairs(tmp_path / "TestDataset" / "First", clean=2)
    (tmp_path / "papers").mkdir()
    datasets, notices = datasets_at(tmp_path)
    assert [(one.name, one.role, len(one.listing.entries)) for one in datasets] == [
        (tmp_path.name, "test", 2),
        ("Other", "", 3),
        ("Wild", "train", 4),
        ("Wild", "test", 4),
    ]
    assert [notice.split("/")[-1] for notice in notices] == ["papers is of no known layout and is not examined"]


def _empty(root):
    for folder in ("Imgs", "GT"):
        (root / "set" / folder).mkdir(parents=True)
    return root / "set"


def _text_file(root):
    (root / "notes.txt").write_text("x")
    return root / "notes.txt"


def _wrong_experiment(root):
    (root / "wrong.toml").write_text("[data]\ntrian = 1\n")
    return root / "wrong.toml"


def _vanished_source(root):
    quickstart = Path(__file__).resolve().parents[3] / "experiments" / "quickstart.toml"
    source = '{ layout = "cod10k", path = "gone" }'
    (root / "gone.toml").write_text(f'extends = "{quickstart}"\n[data]\ntrain = [{source}]\n')
    return root / "gone.toml"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: root / "nowhere", "nowhere: no such file or folder"),
        (lambda root: root, "holds no folder"),
        (_empty, "no image files in"),
        (_text_file, "notes.txt is neither a folder nor an experiment"),
        (_wrong_experiment, "trian"),
        (_vanished_source, "no folder gone"),
    ],
    ids=["missing", "nothing in it", "empty folders", "another file", "mistakes", "missing source"],
)
def test_what_cannot_be_checked_is_one_message_and_ends_with_2(tmp_path, capfd, make, message):
    assert main(["data", "check", str(make(tmp_path))]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.count("error: ") == 1
    assert message in err
    assert "Traceback" not in err


def test_a_folder_that_cannot_be_read_is_one_message(halves, monkeypatch, capfd):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "iterdir", refuse)
    assert main(["data", "check", str(halves)]) == 2
    assert "cannot be read" in capfd.readouterr().err


def test_a_place_that_cannot_be_written_is_said_before_anything_is_read(halves, tmp_path, capfd):
    (tmp_path / "file").write_text("")
    assert main(["data", "check", str(halves), "--out", str(tmp_path / "file")]) == 2
    assert "give another --out" in capfd.readouterr().err


# ---- what is written


@pytest.fixture
def written(halves, tmp_path):
    """Where a check of a leaking, partly damaged dataset has left its files."""
    leak(halves)
    (halves / "train" / "Imgs" / "train_0.jpg").write_bytes(b"")
    (halves / "test" / "GT" / "test_1.png").unlink()
    assert main(["data", "check", str(halves), "--out", str(tmp_path / "a" / "b"), "--count", "6"]) == 1
    return tmp_path / "a" / "b"


def test_json_has_every_finding(written):
    document = json.loads((written / "data_check.json").read_text())
    found = {(f["kind"], f["path"].split("/")[-1]) for one in document["datasets"] for f in one["findings"]}
    assert {
        ("empty_file", "train_0.jpg"),
        ("image_without_mask", "test_1.jpg"),
        ("unusual_name", "copy ü.jpg"),
    } <= found
    assert document["status"] == "problems"
    assert document["problems"] == 3
    (pair,) = document["near_duplicates"]
    assert [image["image"].split("/")[-1] for image in pair["images"]] == ["train_2.jpg", "copy ü.jpg"]
    assert document["kinds"]["empty_file"]["remedy"]
    statistics = document["datasets"][0]["statistics"]
    assert statistics["images"] == 3
    assert statistics["area"]["median"] == pytest.approx(TRUTH.mean())


def test_the_page_needs_no_other_file_and_shows_problems_and_pairs(written):
    page = (written / "data_check.html").read_text()
    assert re.findall(r'(?:src|href)="(?!data:image/(?:jpeg|png);base64,|#)', page) == []
    assert "<script" not in page
    for words in ("train/Imgs/train_0.jpg", "images without a mask", "test/Imgs/copy ü.jpg", "</svg>"):
        assert words in page
    pictures = re.findall(r'<img src="data:image/jpeg;base64,([^"]+)"', page)
    assert len(pictures) == 6 + 2
    assert all(max(Image.open(io.BytesIO(base64.b64decode(data))).size) <= 240 for data in pictures)


def test_names_of_files_are_no_markup_on_the_page(halves, tmp_path):
    (halves / "train" / "Imgs" / "<b>[red]&.jpg").write_bytes(b"")
    assert main(["data", "check", str(halves), "--out", str(tmp_path / "audit")]) == 1
    page = (tmp_path / "audit" / "data_check.html").read_text()
    assert "<b>[red]" not in page
    assert "&lt;b&gt;[red]&amp;.jpg" in page


def test_the_same_data_give_the_same_files(written, halves, tmp_path):
    main(["data", "check", str(halves), "--out", str(tmp_path / "again"), "--count", "6", "--workers", "1"])
    for name in ("data_check.json", "data_check.html", "contact_sheet.png"):
        assert (written / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_the_sheet_is_a_picture_with_problems_framed_in_red(written):
    sheet = np.asarray(Image.open(written / "contact_sheet.png").convert("RGB"))
    assert (sheet == (190, 30, 30)).all(axis=2).sum() > 1000


@pytest.mark.parametrize(("count", "problems"), [(4, 2), (6, 3), (20, 4)])
def test_problems_come_first_but_leave_room(halves, count, problems):
    from camox.data.audit.dataset import examine_dataset, find_duplicates
    from camox.diagnosis.data_check.result import Result

    leak(halves)
    for i in range(2):
        (halves / "train" / "Imgs" / f"train_{i}.jpg").write_bytes(b"")
    datasets, _ = datasets_at(halves)
    audited = tuple(examine_dataset(one, 1) for one in datasets)
    result = Result(halves, audited, tuple(find_duplicates(audited)), ())
    tiles = choose_tiles(result, count)
    assert [tile.is_problem for tile in tiles] == [True] * problems + [False] * (min(count, 9) - problems)
    assert len({(tile.dataset, tile.name) for tile in tiles}) == len(tiles)
