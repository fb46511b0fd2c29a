"""The order of samples is a pure function; ranks share it without overlap."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from camox.errors import ExperimentError
from camox.training.sampler import EpochBatches


def batches_of(epoch: int, **arguments) -> list[list[tuple[int, int]]]:
    sampler = EpochBatches(**arguments)
    sampler.set_position(epoch)
    return list(sampler)


@given(
    samples=st.integers(1, 200),
    batch_size=st.integers(1, 9),
    ranks=st.integers(1, 4),
    epoch=st.integers(0, 50),
    seed=st.integers(0, 2**32 - 1),
)
def test_ranks_share_an_epoch_without_overlap(samples, batch_size, ranks, epoch, seed):
    if samples < batch_size * ranks:
        return
    shards = [
        batches_of(epoch, weights=[1.0] * samples, batch_size=batch_size, seed=seed, rank=rank, ranks=ranks)
        for rank in range(ranks)
    ]
    lengths = {len(shard) for shard in shards}
    assert lengths == {samples // (batch_size * ranks)}
    keys = [key for shard in shards for batch in shard for key in batch]
    indices = [index for _, index in keys]
    assert len(set(indices)) == len(indices)
    assert set(indices) <= set(range(samples))
    assert {of_epoch for of_epoch, _ in keys} == {epoch}
    assert all(len(batch) == batch_size for shard in shards for batch in shard)


def test_one_process_sees_the_batches_of_two_put_together():
    one = batches_of(3, weights=[1.0] * 40, batch_size=8, seed=1)
    two = [batches_of(3, weights=[1.0] * 40, batch_size=4, seed=1, rank=rank, ranks=2) for rank in range(2)]
    assert one == [left + right for left, right in zip(*two, strict=True)]


@given(start=st.integers(0, 10))
def test_starting_in_mid_epoch_gives_the_rest_of_it(start):
    whole = batches_of(2, weights=[1.0] * 43, batch_size=4, seed=7)
    sampler = EpochBatches([1.0] * 43, 4, seed=7)
    sampler.set_position(2, start=start)
    assert list(sampler) == whole[start:]


def test_epochs_attempts_and_seeds_give_different_orders():
    def order(epoch: int, attempt: int, seed: int) -> list[list[tuple[int, int]]]:
        sampler = EpochBatches([1.0] * 100, 10, seed=seed)
        sampler.set_position(epoch, attempt=attempt)
        return [[index for _, index in batch] for batch in sampler]

    orders = [order(0, 0, 0), order(1, 0, 0), order(0, 1, 0), order(0, 0, 1)]
    assert all(a != b for i, a in enumerate(orders) for b in orders[:i])
    assert order(1, 2, 3) == order(1, 2, 3)


@given(
    weights=st.lists(st.sampled_from([0.01, 0.25, 0.5, 1.0, 1.5, 3.0]), min_size=1, max_size=40),
    epoch=st.integers(0, 20),
    left_out=st.sets(st.integers(0, 39), max_size=5),
)
def test_samples_come_as_often_as_their_weights_say(weights, epoch, left_out):
    kept = {weight: [i for i, w in enumerate(weights) if w == weight and i not in left_out] for weight in set(weights)}
    expected = {weight: max(1, round(weight * len(members))) for weight, members in kept.items() if members}
    if not expected:
        return
    batches = batches_of(epoch, weights=weights, batch_size=1, seed=5, left_out=left_out)
    times = Counter(index for batch in batches for _, index in batch)
    for weight, members in kept.items():
        assert sum(times[i] for i in members) == expected.get(weight, 0)
        assert all(times[i] in (int(weight), int(weight) + 1) for i in members)
    assert not left_out & times.keys()


def test_a_share_of_the_samples_is_another_one_in_each_epoch_until_all_have_come():
    epochs = [
        {i for batch in batches_of(e, weights=[0.25] * 40, batch_size=5, seed=2) for _, i in batch} for e in range(4)
    ]
    assert [len(epoch) for epoch in epochs] == [10] * 4
    assert set.union(*epochs) == set(range(40))


@given(
    seed=st.integers(0, 2**32 - 1), epoch=st.integers(0, 50), attempt=st.integers(0, 3), start=st.integers(0, 9),
    ranks=st.integers(1, 3),
)  # fmt: skip
def test_a_batch_has_one_size_that_depends_on_its_place_in_the_epoch_alone(seed, epoch, attempt, start, ranks):
    def keys(sizes: tuple[int, ...], rank: int, start: int) -> list[list[tuple[int, ...]]]:
        sampler = EpochBatches([1.0] * 60, 2, seed, rank, ranks, sizes=sizes)
        sampler.set_position(epoch, start=start, attempt=attempt)
        return list(sampler)

    sized = [keys((32, 64, 96), rank, 0) for rank in range(ranks)]
    sizes = [[{size for *_, size in batch} for batch in of_rank] for of_rank in sized]
    assert all(of_rank == sizes[0] for of_rank in sizes)
    assert all(len(size) == 1 and size <= {32, 64, 96} for size in sizes[0])
    assert keys((32, 64, 96), 0, start) == sized[0][start:]
    # The order is that of one size.
    assert [[key[:2] for key in batch] for batch in sized[0]] == keys((), 0, 0)


def test_each_size_comes_about_equally_often_and_elsewhere_in_every_epoch():
    def sizes(epoch: int, attempt: int = 0) -> list[int]:
        sampler = EpochBatches([1.0] * 600, 2, seed=1, sizes=(32, 64, 96))
        sampler.set_position(epoch, attempt=attempt)
        return [batch[0][2] for batch in sampler]

    assert all(70 < count < 130 for count in Counter(sizes(0)).values())
    assert len({tuple(sizes(0)), tuple(sizes(1)), tuple(sizes(0, attempt=1))}) == 3


def test_too_few_samples_say_what_to_change():
    with pytest.raises(ExperimentError, match=r"7 training samples.*4 on 2 process.*data\.batch_size"):
        EpochBatches([1.0] * 7, 4, seed=0, ranks=2)
