"""The cache of resized samples: the same bytes as without, made once, anew when data change, within its limit."""

import fcntl
import multiprocessing
import os
import pickle
import resource
import shutil
import signal
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from camox.data import cache
from camox.data.cache import cache_bytes, cached
from camox.data.cache_file import SUFFIX, CacheFile
from camox.data.habitats import Habitats
from camox.data.loading import TrainSet, train_loader
from camox.data.sources import Concatenation, Subset, open_source
from camox.errors import DataError

SIZE = 32
AUGMENT = [{"name": "HorizontalFlip", "p": 0.5}, {"name": "RandomResizedCrop", "size": [24, 24], "p": 0.5}]
GIB = 2**30


@pytest.fixture
def photographs(tmp_path):
    """A folder of six JPEGs with their masks, of other sizes each."""
    habitats = Habitats(count=6, size=64, seed=1, tiny=0.0, empty=0.0)
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    for i in range(6):
        sample, size = habitats[i], (100 - 7 * i, 70 + 5 * i)
        Image.fromarray(sample.image).resize(size).save(tmp_path / f"images/{i}.jpg", quality=90)
        Image.fromarray(sample.mask * 255).resize(size).save(tmp_path / f"masks/{i}.png")
    return tmp_path


def opened(folder):
    return open_source({"layout": "folder", "images": str(folder / "images"), "masks": str(folder / "masks")})


def with_cache(source, folder, sizes=(SIZE,), gib=1.0, workers=0, told=None):
    return cached(source, sizes, Path(folder), gib, workers, (lambda text: None) if told is None else told.append)


def test_making_it_is_counted_once_and_not_what_is_there(photographs, tmp_path):
    shown = []

    @contextmanager
    def counting(what, total):
        done = []
        yield lambda: done.append(1)
        shown.append((what, total, len(done)))

    for _ in range(2):
        cached(opened(photographs), (SIZE,), tmp_path / "cache", 1.0, 0, lambda text: None, counting)
    assert shown == [("caching at 32²", 6, 6)]


def files(folder):
    return sorted(Path(folder).glob(f"*{SUFFIX}"))


def loaded(source, workers=0, size=SIZE):
    keys = [[(epoch, index) for index in range(len(source))] for epoch in (0, 5)]
    batches = list(train_loader(TrainSet(source, size, AUGMENT, seed=3), keys, workers=workers, pin_memory=False))
    return (
        torch.stack([batch.images for batch in batches]),
        torch.stack([batch.masks for batch in batches]),
        [batch.problems for batch in batches],
    )


def same(one, other):
    return torch.equal(one[0], other[0]) and torch.equal(one[1], other[1]) and one[2] == other[2]


@pytest.mark.parametrize("workers", [0, 2])
def test_what_is_trained_on_is_the_same_to_the_bit_for_any_number_of_workers(photographs, workers):
    source = opened(photographs)
    kept = with_cache(source, photographs / "cache", workers=workers)
    assert all(kept.kept(index, SIZE) is not None for index in range(6))
    assert same(loaded(source), loaded(kept, workers))


def test_no_file_is_read_once_it_is_made(photographs, monkeypatch):
    source = opened(photographs)
    expected = loaded(source)
    with_cache(source, photographs / "cache")
    kept = with_cache(source, photographs / "cache")
    shutil.rmtree(photographs / "images")
    assert same(loaded(kept), expected)


def test_a_part_of_a_source_and_habitats_are_kept_by_the_whole(photographs):
    habitats = Concatenation([Habitats(count=4, size=48)], "habitats")
    whole = Concatenation([opened(photographs), habitats], "both")
    for indices in ([7, 0, 3], [1, 9]):
        part = Subset(whole, indices)
        told = []
        assert same(loaded(part), loaded(with_cache(part, photographs / "cache", told=told)))
        assert len(files(photographs / "cache")) == 1
    assert told == []


def test_each_size_has_a_file_and_other_sizes_come_from_the_source(photographs):
    source = opened(photographs)
    kept = with_cache(source, photographs / "cache", sizes=[48, 32, 48])
    assert len(files(photographs / "cache")) == 2
    for size in (32, 48, 40):
        assert (kept.kept(0, size) is None) == (size == 40)
        assert same(loaded(source, size=size), loaded(kept, size=size))
    expected = cache_bytes(6, [48, 32])
    assert sum(file.stat().st_size for file in files(photographs / "cache")) == expected


def test_a_bad_sample_is_the_same_problem_as_without(photographs):
    source = opened(photographs)
    content = (photographs / "images/2.jpg").read_bytes()
    (photographs / "images/2.jpg").write_bytes(content[: len(content) // 2])
    Image.fromarray(np.full((85, 79, 3), 9, np.uint8)).save(photographs / "images/3.jpg")
    plain = loaded(source)
    assert [len(problems) for problems in plain[2]] == [2, 2]
    assert same(plain, loaded(with_cache(source, photographs / "cache")))


# ---- when it is made anew


@pytest.mark.parametrize("change", ["time", "size", "name"])
def test_a_changed_file_makes_another_cache(photographs, change):
    with_cache(opened(photographs), photographs / "cache")
    image = photographs / "images/0.jpg"
    if change == "time":
        os.utime(image, ns=(0, image.stat().st_mtime_ns + 1))
    elif change == "size":
        status = image.stat()
        image.write_bytes(image.read_bytes() + b"\0")
        os.utime(image, ns=(status.st_atime_ns, status.st_mtime_ns))
    else:
        image.rename(photographs / "images/00.jpg")
        (photographs / "masks/0.png").rename(photographs / "masks/00.png")
    with_cache(opened(photographs), photographs / "cache")
    assert len(files(photographs / "cache")) == 2


def test_another_way_of_decoding_makes_another_cache(photographs, monkeypatch):
    with_cache(opened(photographs), photographs / "cache")
    monkeypatch.setattr(cache, "DECODING", cache.DECODING + 1)
    with_cache(opened(photographs), photographs / "cache")
    assert len(files(photographs / "cache")) == 2


@pytest.mark.parametrize(
    "settings", [{"seed": 1}, {"size": 40}, {"kinds": ["rock"]}, {"empty": 0.9}, {"tiny": 0.5}, {"count": 5}]
)
def test_other_habitats_make_another_cache(tmp_path, settings):
    for arguments in ({"count": 4, "size": 48}, {"count": 4, "size": 48} | settings):
        with_cache(Concatenation([Habitats(**arguments)], "habitats"), tmp_path)
    assert len(files(tmp_path)) == 2


def cut_off(file):
    os.truncate(file, file.stat().st_size - 1)


def lose_a_page(file):
    with file.open("r+b") as opened:
        opened.seek(8192)
        opened.write(bytes(4096))


def flip_a_bit(file):
    content = bytearray(file.read_bytes())
    content[-200] ^= 16
    file.write_bytes(content)


def break_the_header(file):
    with file.open("r+b") as opened:
        opened.write(b"{]")


def lose_the_end(file):
    content = file.read_bytes()
    file.write_bytes(content[:-8] + bytes(7) + b"\1")


@pytest.mark.parametrize("damage", [cut_off, lose_a_page, flip_a_bit, break_the_header, lose_the_end])
def test_a_damaged_file_is_told_and_made_anew(photographs, damage):
    source = opened(photographs)
    with_cache(source, photographs / "cache")
    (file,) = files(photographs / "cache")
    content = file.read_bytes()
    damage(file)
    told = []
    kept = with_cache(source, photographs / "cache", told=told)
    assert "damaged" in told[0]
    assert file.read_bytes() == content
    assert same(loaded(source), loaded(kept))


def test_a_sample_that_was_not_kept_is_no_damage(photographs):
    source = opened(photographs)
    (photographs / "images/1.jpg").write_bytes(b"")
    with_cache(source, photographs / "cache")
    told = []
    with_cache(source, photographs / "cache", told=told)
    assert told == []


def test_what_a_kill_left_behind_is_removed(photographs):
    (photographs / "cache").mkdir()
    (photographs / "cache/32px_abc.partial").write_bytes(b"half")
    with_cache(opened(photographs), photographs / "cache")
    assert not list((photographs / "cache").glob("*.partial"))


# ---- limits


def test_what_is_larger_than_the_limit_is_refused_before_anything_is_made(photographs):
    with pytest.raises(DataError, match=r"6 samples at 32², 64² pixels takes 0\.000\d+ GiB, more than data\.cache_gib"):
        with_cache(opened(photographs), photographs / "cache", sizes=[64, 32], gib=cache_bytes(6, [64]) / GIB)
    assert not files(photographs / "cache")


def test_caches_not_used_for_longest_make_room(photographs):
    folder, source = photographs / "cache", opened(photographs)
    for age, size in ((9, 40), (6, 48), (3, 56)):
        with_cache(source, folder, sizes=[size])
        (file,) = (file for file in files(folder) if file.name.startswith(f"{size}px"))
        os.utime(file, (1e9 - age, 1e9 - age))
    with_cache(source, folder, sizes=[40])  # used again: the newest now
    with_cache(source, folder, sizes=[32], gib=(cache_bytes(6, [40, 56, 32]) + 1) / GIB)
    assert [file.name[:2] for file in files(folder)] == ["32", "40", "56"]
    with_cache(source, folder, sizes=[33], gib=(cache_bytes(6, [40, 32, 33]) + 1) / GIB)
    assert [file.name[:2] for file in files(folder)] == ["32", "33", "40"]


def test_a_cache_in_use_is_not_removed(photographs):
    folder, source = photographs / "cache", opened(photographs)
    in_use = with_cache(source, folder, sizes=[64])
    limit = cache_bytes(6, [64]) / GIB
    with pytest.raises(DataError, match="are in use there"):
        with_cache(source, folder, sizes=[32], gib=limit)
    assert in_use.kept(0, 64) is not None
    del in_use
    with_cache(source, folder, sizes=[32], gib=limit)
    assert [file.name[:2] for file in files(folder)] == ["32"]


def test_a_full_disk_is_one_message_and_leaves_nothing(photographs):
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20000, limit[1]))
    try:
        with pytest.raises(DataError, match=r"cannot be written \(File too large\): free some of the disk"):
            with_cache(opened(photographs), photographs / "cache")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
    assert [path.name for path in (photographs / "cache").iterdir()] == [".lock"]


def test_a_disk_with_too_little_room_is_told_before(photographs, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(100, 90, 10))
    with pytest.raises(DataError, match=r"the disk has 0\.00 free"):
        with_cache(opened(photographs), photographs / "cache")


def test_a_folder_that_cannot_be_is_told(photographs):
    (photographs / "cache").write_text("a file")
    with pytest.raises(DataError, match=r"data\.cache another folder"):
        with_cache(opened(photographs), photographs / "cache")


def test_a_source_that_knows_nothing_of_its_content_is_refused(tmp_path):
    source = Concatenation([type("Stream", (), {"names": ["a"], "groups": [""], "__len__": lambda self: 1})()], "s")
    with pytest.raises(DataError, match=r"Stream cannot be cached.*leave data\.cache out"):
        with_cache(source, tmp_path)


# ---- several processes

FORK = multiprocessing.get_context("fork")


def make(folder, tell, started=None):
    """What a process of its own does: tells what `cached` tells, then the sum of all pixels."""
    if started is not None:
        started.wait()
    kept = cached(opened(folder), [32, 256], folder / "cache", 1.0, 0, tell.put)
    tell.put(sum(int(kept.kept(index, size)[0].sum()) for index in range(6) for size in (32, 256)))


def test_processes_that_start_together_make_it_once(photographs):
    told, started = FORK.Queue(), FORK.Barrier(3)
    processes = [FORK.Process(target=make, args=(photographs, told, started)) for _ in range(3)]
    for process in processes:
        process.start()
    heard = []
    while sum(isinstance(entry, int) for entry in heard) < 3:
        heard.append(told.get(timeout=60))
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert sum("samples are resized" in str(entry) for entry in heard) == 2  # two sizes
    assert len({entry for entry in heard if isinstance(entry, int)}) == 1


def test_who_has_to_wait_says_so(photographs):
    (photographs / "cache").mkdir()
    told = FORK.Queue()
    process = FORK.Process(target=make, args=(photographs, told))
    with (photographs / "cache/.lock").open("w") as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX)
        process.start()
        assert "waiting for it" in told.get(timeout=60)
        assert not files(photographs / "cache")
    process.join(60)
    assert process.exitcode == 0
    assert len(files(photographs / "cache")) == 2


def test_spawned_workers_open_the_file_themselves(photographs):
    kept = with_cache(opened(photographs), photographs / "cache")
    content = pickle.dumps(kept)
    assert len(content) < 20_000  # not the pixels
    (image, mask), (expected, truth) = pickle.loads(content).kept(4, SIZE), kept.kept(4, SIZE)
    assert np.array_equal(image, expected)
    assert np.array_equal(mask, truth)


def test_a_sample_can_be_changed_without_the_file(photographs):
    kept = with_cache(opened(photographs), photographs / "cache")
    image, mask = kept.kept(0, SIZE)
    before = image.copy()
    image[:], mask[:] = 0, 0
    assert np.array_equal(kept.kept(0, SIZE)[0], before)


def test_a_file_that_is_gone_is_told(tmp_path):
    with pytest.raises(DataError, match="cannot be opened"):
        CacheFile(tmp_path / "none", 32, 1)


def test_making_it_leaves_the_global_random_state_alone(photographs):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    with_cache(opened(photographs), photographs / "cache", workers=1)
    assert torch.equal(before, torch.get_rng_state())
