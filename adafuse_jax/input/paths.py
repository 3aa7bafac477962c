"""Whether the files and folders that a config names are there, before anything is read from them."""

import os
from collections.abc import Sequence
from pathlib import Path

from adafuse_jax.config import Data
from adafuse_jax.errors import UserError


def check(data: Data, splits: Sequence[str]) -> None:
    """Checks all paths that the clips of `splits` ("train", "val") need.

    Raises:
        UserError: naming the field whose file or folder is missing, is the other of the two, or can't be
            read.
    """
    if data.name == "video_list":
        for split in splits:
            field = f"config.data.{split}_list"
            if not getattr(data, f"{split}_list"):
                raise UserError(f"{field}: expected a list of clips, found nothing")
            readable(field, getattr(data, f"{split}_list"), "file")
        readable("config.data.root", data.root, "folder")
        readable("config.data.class_names", data.class_names, "file")
    if data.name == "prepared":
        if not data.prepared_dir:
            raise UserError(
                "config.data.prepared_dir: expected a folder that data.prepare wrote, found nothing"
            )
        readable("config.data.prepared_dir", data.prepared_dir, "folder")
    if "train" in splits:
        readable("config.data.flip_labels", data.flip_labels, "file")


def readable(field: str, name: str, kind: str) -> None:
    """Raises UserError unless `name`, where it isn't empty, is a file or folder that can be read.

    Args:
        field: of the config, to tell.
        name: of the path.
        kind: "file", "folder", or "file or folder".
    """
    if not name:
        return
    path = Path(name)
    if not path.exists():
        raise UserError(f"{field}: expected a {kind}, found nothing at {path}")
    found = "folder" if path.is_dir() else "file"
    if found not in kind.split():
        raise UserError(f"{field}: expected a {kind}, found a {found} at {path}")
    if not os.access(path, os.R_OK):
        raise UserError(f"{field}: expected a {kind} that can be read, found {path} without the right to")
