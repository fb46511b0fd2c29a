"""What shows only over all files of a dataset, or over several datasets."""

import numpy as np
import pytest

from camox.data.audit.dataset import Dataset, count_findings, examine_dataset, find_duplicates
from camox.data.audit.listing import list_dataset
from camox.data.layouts import locate
from tests.data.audit.traps import TRUTH, Pairs, photograph


def audited(root, role="", workers=2):
    located = locate(root)
    return examine_dataset(Dataset(root.name, role, located, list_dataset(located)), workers)


def same_findings(first, second):
    return first.findings == second.findings and [a.entry for a in first.examined] == [b.entry for b in second.examined]


def test_the_number_of_threads_changes_nothing(tmp_path):
    pairs = Pairs(tmp_path / "set", clean=9)
    pairs.image()
    pairs.mask(levels=TRUTH * 0)
    one, many = audited(tmp_path / "set", workers=1), audited(tmp_path / "set", workers=4)
    assert same_findings(one, many)
    assert [a.measured.area for a in one.examined] == [b.measured.area for b in many.examined]


def test_progress_counts_every_image(tmp_path):
    Pairs(tmp_path, clean=5)
    located = locate(tmp_path)
    calls = []
    examine_dataset(Dataset("set", "", located, list_dataset(located)), 2, lambda: calls.append(1))
    assert len(calls) == 5


@pytest.mark.parametrize(("roles", "severity"), [(("train", "test"), "problem"), (("test", "test"), "note")])
def test_a_copy_is_a_problem_where_the_two_are_used_for_different_things(tmp_path, roles, severity):
    for name, seed in (("a", 40), ("b", 60)):
        pairs = Pairs(tmp_path / name, clean=0)
        for i in range(3):
            pairs.image(f"{i}.jpg", photograph(seed + i))
            pairs.mask(f"{i}.png")
    Pairs.image(pairs, "copy.png", photograph(41))
    pairs.mask("copy.png")
    sets = [audited(tmp_path / name, role) for name, role in zip("ab", roles, strict=True)]
    (found,) = find_duplicates(sets)
    assert found.severity == severity
    names = [sets[i].examined[j].entry.name for i, j in (found.first, found.second)]
    assert names == ["1", "copy"]
    assert count_findings(sets, [found], "problem") == (severity == "problem")


def test_one_file_in_two_lists_is_a_copy_only_across_roles(tmp_path):
    Pairs(tmp_path / "set", clean=2)
    twice = [audited(tmp_path / "set", "train"), audited(tmp_path / "set", "train")]
    assert find_duplicates(twice) == []
    both = [audited(tmp_path / "set", "train"), audited(tmp_path / "set", "test")]
    assert [duplicate.severity for duplicate in find_duplicates(both)] == ["problem", "problem"]


def test_images_that_cannot_be_read_do_not_shift_the_others(tmp_path):
    pairs = Pairs(tmp_path / "set", clean=0)
    pairs.image("a.jpg").write_bytes(b"")
    for name in "bc":
        pairs.image(f"{name}.jpg", photograph(3))
    for name in "abc":
        pairs.mask(f"{name}.png")
    one = audited(tmp_path / "set")
    (found,) = find_duplicates([one])
    assert [one.examined[j].entry.name for _, j in (found.first, found.second)] == ["b", "c"]


@pytest.mark.parametrize(("inverted", "expected"), [(4, 0), (6, 1)])
def test_most_masks_must_look_inverted_for_the_dataset_to(tmp_path, inverted, expected):
    pairs = Pairs(tmp_path, clean=0)
    for i in range(10):
        pairs.image(f"{i}.png", photograph(i))
        pairs.mask(f"{i}.png", ((1 - TRUTH) if i < inverted else TRUTH) * 255)
    kinds = [finding.kind for finding in audited(tmp_path).findings]
    assert kinds.count("inverted_dataset") == expected
    assert kinds.count("inverted_mask") == inverted


def test_masks_that_two_splits_share_are_counted_once(tmp_path):
    for split in ("Train", "Test"):
        Pairs(tmp_path / "Images" / split, clean=0).image("x.jpg", photograph(len(split)))
        (tmp_path / "Images" / split / "Imgs" / "x.jpg").rename(tmp_path / "Images" / split / f"{split}.jpg")
    (tmp_path / "GT").mkdir()
    for split in ("Train", "Test"):
        Pairs(tmp_path / f"other{split}", clean=0).mask(f"{split}.png")
        (tmp_path / f"other{split}" / "GT" / f"{split}.png").rename(tmp_path / "GT" / f"{split}.png")
    (tmp_path / "GT" / "Thumbs.db").write_bytes(b"x")
    sets = []
    for split in ("train", "test"):
        located = locate(tmp_path, "camo", split)
        sets.append(examine_dataset(Dataset("camo", split, located, list_dataset(located)), 1))
    assert count_findings(sets, [], "note") == 1
    assert count_findings(sets, [], "problem") == 0
    assert np.array_equal([len(one.measured) for one in sets], [1, 1])
