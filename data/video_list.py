"""Anybody's own videos: the lists that `config.data.train_list` and `val_list` take."""

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from adafuse_jax.errors import UserError
from adafuse_jax.input import manifest
from data import listing
from data.builder import VideoBuilder
from data.encode import VideoEncoder
from data.listing import Item, Listing

_ANY = 2**31  # classes to allow where nobody says how many there are


class VideoList(VideoBuilder):
    """Anybody's own videos, by lists of "path label" (a video) or "folder frames label" (JPEGs) lines.

    Args:
        train_list: in manual_dir, or anywhere by its full path; None: train.txt, where there is one.
        val_list: likewise; None: val.txt.
        test_list: likewise; None: test.txt.
        classes: likewise, the names of the classes, one a line in label order; None: classes.txt, and
            numbers where there is none.
        frame_template: file name of a JPEG in a folder, given its 1-based number.
        **kwargs: of `VideoBuilder`.
    """

    MANUAL_DOWNLOAD_INSTRUCTIONS = """
    manual_dir holds train.txt, val.txt and classes.txt, and what the paths in the lists start from.
    See data/README.md.
    """

    def __init__(
        self,
        *,
        train_list: Path | None = None,
        val_list: Path | None = None,
        test_list: Path | None = None,
        classes: Path | None = None,
        frame_template: str = "img_{:05d}.jpg",
        **kwargs: Any,
    ):
        self._lists = {
            "train": (train_list, "train.txt"),
            "validation": (val_list, "val.txt"),
            "test": (test_list, "test.txt"),
        }
        self._classes, self._template = classes, frame_template
        super().__init__(**kwargs)

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """See `VideoBuilder`."""
        super().add_arguments(parser)
        parser.add_argument("--train_list", type=Path, help="default: train.txt of manual_dir, if there")
        parser.add_argument("--val_list", type=Path, help="default: val.txt of manual_dir, if there")
        parser.add_argument("--test_list", type=Path, help="default: test.txt of manual_dir, if there")
        parser.add_argument("--classes", type=Path, help="default: classes.txt of manual_dir, else numbers")
        parser.add_argument("--frame_template", default="img_{:05d}.jpg", help="JPEG of a 1-based number")

    @property
    def encoder(self) -> VideoEncoder:
        """See `VideoBuilder`."""
        return dataclasses.replace(super().encoder, template=self._template)

    def listing(self, manual_dir: Path) -> Listing:
        """The clips of the lists."""
        classes = _path(manual_dir, self._classes, "classes.txt")
        class_names = listing.read_lines(classes) if classes else []
        splits = {}
        for split, (given, default) in self._lists.items():
            if path := _path(manual_dir, given, default):
                clips = manifest.read_list(path, len(class_names) or _ANY, manual_dir)
                splits[split] = [Item(_name(clip.path, manual_dir), clip.label, clip) for clip in clips]
        if not splits:
            raise UserError(f"{manual_dir}: expected train.txt or --train_list, found neither")
        if not class_names:
            count = 1 + max(item.label for items in splits.values() for item in items)
            class_names = [str(label) for label in range(count)]
        return Listing(class_names, splits)


def _path(manual_dir: Path, given: Path | None, default: str) -> Path | None:
    if given:
        return manual_dir / given
    return manual_dir / default if (manual_dir / default).exists() else None


def _name(path: Path, root: Path) -> str:
    return str(path.relative_to(root) if path.is_relative_to(root) else path)
