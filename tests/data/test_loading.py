import io
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from camox.data.loading import EvalSet, TrainSet, eval_loader, train_loader
from camox.data.samples import Sample
from camox.data.sources import open_source
from camox.errors import DataError

SIZE = 32
AUGMENT = [
    {"name": "HorizontalFlip", "p": 0.5},
    {"name": "RandomResizedCrop", "size": [24, 24], "p": 0.5},
    {"name": "GaussNoise", "p": 0.5},
]


class Noise:
    """Ten samples of different sizes, drawn anew each time they are asked for."""

    names = [f"sample {i}" for i in range(10)]  # noqa: RUF012
    groups = ["even", "odd"] * 5

    def __len__(self):
        return 10

    def __getitem__(self, index):
        random = np.random.default_rng(index)
        image = random.integers(0, 256, (30 + index, 50 - index, 3), dtype=np.uint8)
        mask = random.integers(0, 2, (30 + index, 50 - index), dtype=np.uint8)
        return Sample(self.names[index], self.groups[index], image, mask)


@pytest.fixture
def damaged(tmp_path):
    """Four pairs of files; the image of the third is cut off after it was checked."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG")
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    for i in range(4):
        content = buffer.getvalue()
        (tmp_path / f"images/{i}.jpg").write_bytes(content if i != 2 else content[: len(content) // 2])
        Image.fromarray(np.full((40, 40), 255, np.uint8)).save(tmp_path / f"masks/{i}.png")
    return open_source({"layout": "folder", "images": str(tmp_path / "images"), "masks": str(tmp_path / "masks")})


def load(batches, workers=0, epoch=0, seed=0):
    keys = [[(epoch, index) for index in batch] for batch in batches]
    dataset = TrainSet(Noise(), SIZE, AUGMENT, seed=seed)
    loaded = {}
    for batch in train_loader(dataset, keys, workers=workers, pin_memory=False):
        for position, index in enumerate(batch.indices.tolist()):
            loaded[index] = torch.cat([batch.images[position], batch.masks[position]])
    return loaded


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[i], other[i]) for i in one)


def test_train_batches_have_the_promised_form():
    keys = [[(0, 3), (0, 1), (0, 7)]]
    (batch,) = train_loader(TrainSet(Noise(), SIZE, AUGMENT), keys, workers=0, pin_memory=False)
    assert batch.images.dtype == batch.masks.dtype == torch.uint8
    assert batch.images.shape == (3, 3, SIZE, SIZE)
    assert batch.masks.shape == (3, 1, SIZE, SIZE)
    assert batch.masks.max() == 1
    assert batch.indices.tolist() == [3, 1, 7]
    assert batch.problems == []


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(workers):
    batches = [[0, 1, 2], [3, 4], [5, 6, 7, 8, 9]]
    assert equal(load(batches), load(batches, workers=workers))


def test_layout_and_order_of_batches_change_nothing():
    assert equal(load([[0, 1, 2, 3, 4, 5]]), load([[5, 3], [4, 0], [2, 1]]))


@pytest.mark.parametrize("other", [{"epoch": 1}, {"seed": 1}])
def test_epoch_and_seed_change_the_augmentation(other):
    assert not equal(load([[0, 1, 2, 3]]), load([[0, 1, 2, 3]], **other))


def test_persistent_workers_load_a_second_epoch_of_the_sampler():
    class Sampler:
        epoch = 0

        def __iter__(self):
            yield [(self.epoch, 0), (self.epoch, 1)]

    sampler = Sampler()
    loader = train_loader(TrainSet(Noise(), SIZE, AUGMENT), sampler, workers=1, pin_memory=False)
    for sampler.epoch in (0, 3):
        (batch,) = loader
        expected = load([[0, 1]], epoch=sampler.epoch)
        assert torch.equal(torch.cat([batch.images[0], batch.masks[0]]), expected[0])


@pytest.mark.parametrize("workers", [0, 1])
def test_loading_leaves_the_global_random_state_alone(workers):
    torch.manual_seed(0)
    np.random.seed(0)
    before = torch.get_rng_state(), str(np.random.get_state())
    load([[0, 1], [2, 3]], workers=workers)
    assert torch.equal(before[0], torch.get_rng_state())
    assert str(np.random.get_state()) == before[1]


@pytest.mark.parametrize("workers", [0, 2])
def test_damaged_image_arrives_as_a_problem_among_whole_ones(damaged, workers):
    keys = [[(0, 0), (0, 1)], [(0, 2), (0, 3)]]
    first, second = train_loader(TrainSet(damaged, SIZE), keys, workers=workers, pin_memory=False)
    assert first.problems == []
    assert len(second.problems) == 1
    assert "2.jpg" in second.problems[0]
    assert second.images[0].max() == second.masks[0].max() == 0
    assert second.images[1].max() > 0


@pytest.mark.parametrize("workers", [0, 1])
def test_damaged_image_is_a_problem_in_evaluation_too(damaged, workers):
    (batch,) = eval_loader(EvalSet(damaged, SIZE), [1, 2], batch_size=2, workers=workers, pin_memory=False)
    assert "2.jpg" in batch.problems[0]
    assert batch.truths[0].sum() == 40 * 40
    assert batch.truths[1].sum() == 0


def test_datasets_survive_pickling_as_spawned_workers_need():
    dataset = pickle.loads(pickle.dumps(TrainSet(Noise(), SIZE, AUGMENT)))
    expected = TrainSet(Noise(), SIZE, AUGMENT)[(2, 5)]
    assert np.array_equal(dataset[(2, 5)].image, expected.image)
    pickle.dumps(EvalSet(Noise(), SIZE).collate)


def test_errors_of_the_program_are_not_hidden_as_problems():
    class Broken(Noise):
        def __getitem__(self, index):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        TrainSet(Broken(), SIZE)[(0, 0)]


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_keeps_order_names_and_native_truths(workers):
    indices = [9, 0, 4, 2, 7]
    source = Noise()
    loader = eval_loader(EvalSet(source, SIZE), indices, batch_size=2, workers=workers, pin_memory=False)
    batches = list(loader)
    assert [batch.images.shape[0] for batch in batches] == [2, 2, 1] == [2] * (len(loader) - 1) + [1]
    assert [i for batch in batches for i in batch.indices.tolist()] == indices
    assert [n for batch in batches for n in batch.names] == [source.names[i] for i in indices]
    assert [g for batch in batches for g in batch.groups] == [source.groups[i] for i in indices]
    for truth, index in zip((t for batch in batches for t in batch.truths), indices, strict=True):
        assert np.array_equal(truth, source[index].mask)


def test_batches_move_to_a_device():
    (train,) = train_loader(TrainSet(Noise(), SIZE), [[(0, 1)]], workers=0, pin_memory=False)
    (evaluation,) = eval_loader(EvalSet(Noise(), SIZE), [1], batch_size=1, workers=0, pin_memory=False)
    moved = train.to("meta", non_blocking=True)
    assert {moved.images.device.type, moved.masks.device.type, moved.indices.device.type} == {"meta"}
    assert evaluation.to("meta").images.device.type == "meta"


def test_batches_can_be_pinned_by_the_loader():
    (train,) = train_loader(TrainSet(Noise(), SIZE), [[(0, 1)]], workers=0, pin_memory=False)
    (evaluation,) = eval_loader(EvalSet(Noise(), SIZE), [1], batch_size=1, workers=0, pin_memory=False)
    assert callable(train.pin_memory)
    assert callable(evaluation.pin_memory)


def test_a_key_with_a_size_gives_that_size_and_none_the_sets_own():
    dataset = TrainSet(Noise(), SIZE, AUGMENT, sizes=[48, 64])
    for size in (48, 64):
        item = dataset[(1, 3, size)]
        assert item.image.shape == (size, size, 3)
        assert np.array_equal(item.image, TrainSet(Noise(), size, AUGMENT)[(1, 3)].image)
    assert dataset[(1, 3)].image.shape == (SIZE, SIZE, 3)


def test_a_crop_that_is_too_large_for_the_smallest_size_is_refused():
    crop = [{"name": "RandomCrop", "height": 40, "width": 40}]
    TrainSet(Noise(), 64, crop, sizes=[64, 48])
    with pytest.raises(DataError, match="trial image of 32x32"):
        TrainSet(Noise(), 64, crop, sizes=[64, 32])


def test_a_problem_in_a_batch_of_another_size_has_zeros_of_that_size(damaged):
    (batch,) = train_loader(TrainSet(damaged, SIZE), [[(0, 1, 48), (0, 2, 48)]], workers=0, pin_memory=False)
    assert batch.images.shape == (2, 3, 48, 48)
    assert len(batch.problems) == 1
