"""What a rank reads of a streamed set, in which order, and from any place on."""

import json
from collections import Counter
from itertools import islice, takewhile
from pathlib import Path

import datasets
import numpy as np
import pytest

from camox.data.loading import TrainSet, train_loader
from camox.data.sources import open_source
from camox.data.streams import Reading, open_stream
from camox.errors import DataError
from tests.data.hub_sets import as_dataset, encoded, rows, write_image_folder, write_shards

COUNT = 23


@pytest.fixture(autouse=True, scope="module")
def own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        yield


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[int, Path]:
    """Number of files → the same rows in so many."""
    root = tmp_path_factory.mktemp("sets")
    return {shards: write_shards(root / str(shards), rows(COUNT), shards) for shards in (1, 3, 5)}


def reading(folder: Path, rank: int = 0, ranks: int = 1, seed: int = 5, **given) -> Reading:
    stream = open_stream({"hub": str(folder), "count": COUNT, "shuffle_buffer": 4, **given})
    return Reading(stream, seed, rank, ranks)


def names(part: Reading, count: int, attempt: int = 0) -> list[str]:
    return [row.name for row, _ in islice(part.rows(attempt), count)]


ALL = {Path(row["image_name"]).stem for row in rows(COUNT)}


@pytest.mark.parametrize("shards", [1, 3, 5])
@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_ranks_see_disjoint_samples_and_together_all(folders, shards, ranks):
    parts = [reading(folders[shards], rank, ranks).rows(0) for rank in range(ranks)]
    first_pass = [takewhile(lambda entry: entry[1]["start"]["pass"] == 0, part) for part in parts]
    assert Counter(row.name for part in first_pass for row, _ in part) == Counter(ALL)


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("buffer", [1, 4, 100])
def test_each_pass_has_every_row_once_whatever_the_block(folders, shards, buffer):
    seen = names(reading(folders[shards], shuffle_buffer=buffer), 3 * COUNT)
    passes = [seen[start : start + COUNT] for start in (0, COUNT, 2 * COUNT)]
    assert [set(one) for one in passes] == [ALL] * 3
    assert passes[0] != passes[1] or (shards == 1 and buffer == 1)


def test_blocks_and_files_are_shuffled_by_seed_and_blocks_by_attempt(folders):
    first = names(reading(folders[5]), COUNT)
    assert first == names(reading(folders[5]), COUNT)
    assert first != names(reading(folders[5], seed=6), COUNT)
    other = names(reading(folders[5]), COUNT, attempt=1)
    assert first != other
    assert set(first[:4]) == set(other[:4])


@pytest.mark.parametrize(("shards", "rank", "ranks"), [(3, 0, 1), (5, 1, 2), (1, 1, 2)])
def test_goes_on_from_any_place_as_if_it_had_never_stopped(folders, shards, rank, ranks):
    whole = list(islice(reading(folders[shards], rank, ranks).rows(0), 30))
    for stop, (_, after) in enumerate(whole, start=1):
        again = reading(folders[shards], rank, ranks)
        again.load_state_dict(json.loads(json.dumps(after)))
        rest = list(islice(again.rows(0), 6))
        expected = whole[stop : stop + 6]
        assert [row.name for row, _ in rest[: len(expected)]] == [row.name for row, _ in expected]
        assert [place for _, place in rest[: len(expected)]] == [place for _, place in expected]


def test_what_was_read_ahead_is_not_read_again(folders, monkeypatch):
    part = reading(folders[3])
    read = []
    monkeypatch.setattr(part.stream, "row", counting(part.stream.row, read))
    for _ in range(4):
        for _, after in islice(part.rows(0), 5):
            part.place = after
    assert len(read) <= 20 + 2 * part.stream.shuffle_buffer


def counting(function, calls):
    def count(*arguments):
        calls.append(1)
        return function(*arguments)

    return count


def test_a_place_skips_without_making_rows_of_what_lies_before(folders, monkeypatch):
    part = reading(folders[1])
    *_, (_, after) = islice(part.rows(0), 20)
    again, read = reading(folders[1]), []
    monkeypatch.setattr(again.stream, "row", counting(again.stream.row, read))
    again.load_state_dict(after)
    next(again.rows(0))
    assert len(read) <= 2 * again.stream.shuffle_buffer


FORMS = {
    "parquet": lambda folder, made: write_shards(folder, made, 2),
    "image folder": write_image_folder,
    "saved": lambda folder, made: as_dataset(made).save_to_disk(folder, num_shards=2),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_samples_of_the_set(tmp_path, form):
    made = {Path(row["image_name"]).stem: row for row in rows(6)}
    FORMS[form](tmp_path / "set", list(made.values()))
    part = reading(tmp_path / "set", count=6)
    samples = [row.opened()[0] for row, _ in islice(part.rows(0), 6)]
    assert {sample.name for sample in samples} == set(made)
    for sample in samples:
        assert encoded(sample.image) == made[sample.name]["image"]["bytes"]
        assert encoded(sample.mask * np.uint8(255)) == made[sample.name]["mask"]["bytes"]


def test_non_camouflaged_images_are_passed_over(tmp_path):
    made = rows(4)
    made[2]["image_name"] = "COD10K-NonCAM-1-x-2.jpg"
    folder = write_shards(tmp_path / "set", made)
    assert len(set(names(reading(folder), 6))) == 3
    assert len(set(names(reading(folder, non_camouflaged=True), 8))) == 4
    assert "NonCAM-* are passed over" in reading(folder).remarks[0]
    assert "NonCAM" not in reading(folder, non_camouflaged=True).remarks[0]


# ---- what is wrong


def loaded(folder: Path, count: int) -> list[str]:
    """The problems of the first rows, as the loader tells them."""
    keys = [[(0, row) for row, _ in islice(reading(folder).rows(0), count)]]
    (batch,) = train_loader(TrainSet(reading(folder), 32), keys, 0, pin_memory=False)
    assert batch.indices.tolist() == [-1] * count
    assert sum(batch.weights.tolist()) == count - len(batch.problems)
    return batch.problems


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda row: row["mask"].update(bytes=b"no image"), "column mask: not an image of a known format"),
        (
            lambda row: row["mask"].update(bytes=encoded(np.ones((9, 9), np.uint8))),
            "the mask is 9x9 but its image is 40x32",
        ),
        (lambda row: row.update(mask=None), "has no mask"),
        (lambda row: row["image"].update(bytes=encoded(np.zeros((32, 40, 3), np.uint8), "JPEG")[:-2]), "is truncated"),
    ],
)
def test_a_bad_row_is_a_bad_sample_and_not_the_end(tmp_path, damage, words):
    made = rows(3)
    damage(made[1])
    (problem,) = loaded(write_shards(tmp_path / "set", made), 3)
    assert words in problem
    assert "row 1 of file 1" in problem


def test_a_set_that_does_not_tell_its_size_needs_a_count(tmp_path):
    folder = write_shards(tmp_path / "set", rows(3))
    with pytest.raises(DataError, match=r"set \(train\) does not tell how many rows it has: set count"):
        open_stream({"hub": str(folder)})


def test_a_saved_set_tells_its_size(tmp_path):
    as_dataset(rows(3)).save_to_disk(tmp_path / "set")
    assert len(Reading(open_stream({"hub": str(tmp_path / "set")}), 0)) == 3


def test_a_stream_without_masks_is_told_by_its_columns(tmp_path):
    made = [{"image": row["image"], "caption": "crab"} for row in rows(2)]
    with pytest.raises(DataError, match=r"no mask column.*image \(Image\)"):
        open_stream({"hub": str(write_shards(tmp_path / "set", made)), "count": 2})


def test_a_split_that_is_not_there_is_told_with_those_that_are(tmp_path):
    folder = write_shards(tmp_path / "set", rows(2))
    with pytest.raises(DataError, match='has no split "test", only train'):
        open_stream({"hub": str(folder), "count": 2, "split": "test"})


def test_an_id_without_network_is_one_message():
    with pytest.raises(DataError, match="is not on this machine, and HF_HUB_OFFLINE is set"):
        open_stream({"hub": "nobg/COD10K", "count": 9})


def test_a_file_that_vanishes_is_told_with_how_to_go_on(tmp_path):
    folder = write_shards(tmp_path / "set", rows(8), 2)
    part = reading(folder)
    for file in folder.iterdir():
        file.unlink()
    with pytest.raises(DataError, match=r"file . cannot be read from row 0 on .*once it can, go on with --resume auto"):
        names(part, 8)


def test_more_ranks_than_rows_are_refused_and_do_not_wait_for_ever(tmp_path):
    folder = write_shards(tmp_path / "set", rows(2))
    with pytest.raises(DataError, match="has no row for process 2: use fewer processes"):
        names(reading(folder, rank=2, ranks=3), 1)


def test_only_training_data_are_streamed(tmp_path):
    with pytest.raises(DataError, match="set can be streamed for training alone"):
        open_source({"hub": str(write_shards(tmp_path / "set", rows(2))), "streaming": True})
