"""Something-Something V2: WebM files, JSON files of labels."""

from pathlib import Path
from typing import Any

from adafuse_jax.errors import UserError
from data import listing, twenty_bn
from data.builder import VideoBuilder
from data.listing import Listing
from data.something_something_v1 import SomethingSomethingV1

_NAME = "something-something-v2"


class SomethingSomethingV2(VideoBuilder):
    """Something-Something V2: 220,847 clips of people doing things with objects, in 174 classes."""

    HOMEPAGE = "https://www.qualcomm.com/developer/software/something-something-v-2-dataset"
    CITATION = SomethingSomethingV1.CITATION
    MANUAL_DOWNLOAD_INSTRUCTIONS = """
    manual_dir holds 20bn-something-something-v2/CLIP.webm and, there or in labels/,
    {labels,train,validation,test}.json or something-something-v2-{labels,train,validation,test}.json.
    See data/README.md.
    """
    CLASSES = 174

    def listing(self, manual_dir: Path) -> Listing:
        """The clips of the owner's files; the classes in the order of the indices of labels.json."""
        folder = listing.clips_folder(manual_dir, f"20bn-{_NAME}")
        class_names = read_classes(twenty_bn.label_file(manual_dir, _NAME, "labels.json"))
        labels = listing.numbered(class_names)
        splits = {}
        for split in twenty_bn.SPLITS:
            path = twenty_bn.label_file(manual_dir, _NAME, f"{split}.json", optional=split == "test")
            if split == "test" and path:
                numbers = [number for number, _ in _entries(path, ["id"])]
                splits[split] = twenty_bn.test_items(manual_dir, _NAME, numbers, labels, folder, ".webm")
            elif path:
                entries = [(number, class_of(text)) for number, text in _entries(path, ["id", "template"])]
                splits[split] = twenty_bn.items(entries, labels, folder, ".webm", path)
        return Listing(class_names, splits)


def class_of(template: str) -> str:
    """The class of a template: "Putting [something] into [something]" without its brackets."""
    return template.replace("[", "").replace("]", "")


def read_classes(path: Path) -> list[str]:
    """The classes of labels.json, {class: index}, by index.

    Raises:
        UserError: when the indices aren't 0, 1, ...
    """
    content = listing.read_json(path)
    try:
        by_index = {int(index): text for text, index in content.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise UserError(f"{path}: expected {{class: index}}, found something else") from error
    if sorted(by_index) != list(range(len(content))):
        raise UserError(f"{path}: expected each index of 0..{len(content) - 1} once, found others")
    return [by_index[i] for i in range(len(by_index))]


def _entries(path: Path, keys: list[str]) -> list[tuple[str, Any]]:
    """The first and the last of `keys` of each entry."""
    content = listing.read_json(path)
    try:
        return [(str(entry[keys[0]]), entry[keys[-1]]) for entry in content]
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{path}: expected a list of entries with {' and '.join(keys)}, found others"
        ) from error
