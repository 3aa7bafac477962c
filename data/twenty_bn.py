"""What Twenty Billion Neurons' data sets share, as Qualcomm ships them: named label files, numbered clips."""

from collections.abc import Iterable
from pathlib import Path

from adafuse_jax.errors import UserError
from adafuse_jax.input.manifest import Clip
from data import listing
from data.listing import UNKNOWN, Item, Listing

SPLITS = ("train", "validation", "test")


def label_file(manual_dir: Path, name: str, part: str, optional: bool = False) -> Path | None:
    """The file of `part` (say train.csv), with the prefix of older downloads (jester-v1-train.csv) or not."""
    return listing.find(manual_dir, f"{name}-{part}", part, optional=optional)


def class_names_csv(path: Path) -> list[str]:
    """The classes of labels.csv: one a line, in label order."""
    return listing.read_lines(path)


def rows(path: Path) -> list[tuple[str, str]]:
    """(clip, class) of each line "clip;class"; the class is "" where the line has none."""
    fields = [line.partition(";") for line in listing.read_lines(path)]
    return [(name.strip(), text.strip()) for name, _, text in fields]


def items(
    entries: Iterable[tuple[str, str]], labels: dict[str, int], folder: Path, suffix: str, where: Path
) -> list[Item]:
    """The clips of a split.

    Args:
        entries: (clip, class).
        labels: by class.
        folder: of the clips.
        suffix: of a clip's file; "" for a folder of JPEGs.
        where: the entries come from.

    Raises:
        UserError: for an unknown class.
    """
    found = []
    for name, text in entries:
        label = listing.label_of(name, text, labels, where)
        found.append(Item(name, label, Clip(folder / f"{name}{suffix}", label)))
    return found


def test_items(
    manual_dir: Path,
    name: str,
    numbers: Iterable[str],
    labels: dict[str, int],
    folder: Path,
    suffix: str,
) -> list[Item]:
    """The clips of the test split, with the labels of test-answers.csv, which newer downloads bring.

    Raises:
        UserError: for an unknown class, or a clip that test-answers.csv doesn't name.
    """
    numbers = list(numbers)
    answers = label_file(manual_dir, name, "test-answers.csv", optional=True)
    if answers is None:
        return [Item(n, UNKNOWN, Clip(folder / f"{n}{suffix}", UNKNOWN)) for n in numbers]
    known = dict(rows(answers))
    for number in numbers:
        if number not in known:
            raise UserError(f"{answers}: clip {number} of the test split: expected its class, found none")
    return items([(n, known[n]) for n in numbers], labels, folder, suffix, answers)


def folders_listing(manual_dir: Path, name: str) -> Listing:
    """A data set of JPEG folders, 20bn-NAME/CLIP/00001.jpg, with CSV files of labels.

    Args:
        manual_dir: of the owner's files.
        name: of the data set in file names, "jester-v1".

    Raises:
        UserError: for missing files, an unknown class, a clip listed twice.
    """
    folder = listing.clips_folder(manual_dir, f"20bn-{name}")
    class_names = class_names_csv(label_file(manual_dir, name, "labels.csv"))
    labels = listing.numbered(class_names)
    splits = {}
    for split in SPLITS:
        path = label_file(manual_dir, name, f"{split}.csv", optional=split == "test")
        if split == "test" and path:
            numbers = [number for number, _ in rows(path)]
            splits[split] = test_items(manual_dir, name, numbers, labels, folder, "")
        elif path:
            splits[split] = items(rows(path), labels, folder, "", path)
    return Listing(class_names, splits)
