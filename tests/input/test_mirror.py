"""Labels of mirrored clips: pairs swap, everything else stays, and a file that can't be is one line."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adafuse_jax.errors import UserError
from adafuse_jax.input.mirror import mirrored_labels

NAMES = ["moving left", "standing", "moving right", "turning clockwise", "turning counterclockwise"]
PAIRS = Path(__file__).resolve().parents[2] / "configs" / "flip_labels"


@pytest.fixture
def write(tmp_path):
    def write(text):
        path = tmp_path / "pairs.txt"
        path.write_text(text)
        return path

    return write


def test_names_and_numbers(write):
    expected = [2, 1, 0, 4, 3]
    for text in (
        "moving left\tmoving right\nturning clockwise\tturning counterclockwise\n",
        "0\t2\n\n  4 \t 3\n",
        "moving right\t0\n3\t4",
    ):
        np.testing.assert_array_equal(mirrored_labels(write(text), NAMES), expected)


def test_a_name_that_is_a_number_is_the_name(write):
    np.testing.assert_array_equal(mirrored_labels(write("2\t0\n"), ["0", "2", "1"]), [1, 0, 2])


@given(st.integers(2, 30), st.randoms(use_true_random=False))
def test_a_swap_of_labels_undoes_itself(tmp_path_factory, num_classes, random):
    order = random.sample(range(num_classes), num_classes)
    pairs = list(zip(order[::2], order[1::2], strict=False))[: random.randint(1, num_classes)]
    path = tmp_path_factory.getbasetemp() / "swaps.txt"
    path.write_text("".join(f"{a}\t{b}\n" for a, b in pairs))
    mirrored = mirrored_labels(path, [f"class {i}" for i in range(num_classes)])
    np.testing.assert_array_equal(mirrored[mirrored], np.arange(num_classes))
    assert all(mirrored[a] == b for a, b in pairs)
    assert np.sum(mirrored != np.arange(num_classes)) == 2 * len(pairs)


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "expected a pair a line, found none"),
        (
            "moving left moving right\n",
            "line 1: expected two classes separated by a tab, found 'moving left m",
        ),
        ("0\t2\n0\t2\t3", r"line 2: expected two classes separated by a tab, found '0\\t2\\t3'"),
        ("0\t5", r"unknown class in mirrored classes .*pairs\.txt, line 1: '5'"),
        ("0\tmoving rigt", r"line 1: 'moving rigt' \(did you mean 'moving right'\?\)"),
        ("1\t1", "line 1: expected a class in one pair, with another, found '1' again"),
        (
            "0\t2\n3\tmoving left",
            "line 2: expected a class in one pair, with another, found 'moving left' again",
        ),
    ],
)
def test_what_cannot_be_is_one_line(write, text, message):
    with pytest.raises(UserError, match=message) as error:
        mirrored_labels(write(text), NAMES)
    assert "\n" not in str(error.value)


def test_a_missing_file(tmp_path):
    with pytest.raises(UserError, match=r"absent\.txt: expected a text file, found: No such file"):
        mirrored_labels(tmp_path / "absent.txt", NAMES)


SWAPS = {"left": "right", "right": "left", "clockwise": "counterclockwise", "counterclockwise": "clockwise"}


@pytest.mark.parametrize("name, count", [("something_something", 3), ("jester", 3)])
def test_the_pairs_of_the_data_sets_are_each_others_mirror_image(name, count):
    lines = (PAIRS / f"{name}.txt").read_text().splitlines()
    names = [text for line in lines for text in line.split("\t")]
    assert len(set(names)) == len(names) == 2 * count
    for line in lines:
        first, second = line.lower().split("\t")
        assert " ".join(SWAPS.get(word, word) for word in first.split()) == second
    mirrored = mirrored_labels(PAIRS / f"{name}.txt", names)
    assert all(mirrored[i] == i ^ 1 for i in range(2 * count))
