"""Mini-Kinetics: the clips of 200 classes of Kinetics-400, mp4 files in a folder for each class."""

import argparse
from pathlib import Path
from typing import Any

from adafuse_jax.errors import UserError
from adafuse_jax.input.manifest import Clip
from data import listing
from data.builder import VideoBuilder
from data.listing import Item, Listing

_SUFFIXES = {".mp4", ".mkv", ".webm", ".avi"}
_FOLDERS = {"train": ("train",), "validation": ("val", "validation")}


class MiniKinetics(VideoBuilder):
    """Mini-Kinetics: 200 of the 400 classes of Kinetics, YouTube clips of 10 s, as AR-Net and AdaFuse use it.

    Args:
        classes: file of the classes, one a line in label order; None: classes.txt of manual_dir, or else
            the folders of train/, sorted.
        **kwargs: of `VideoBuilder`.
    """

    HOMEPAGE = "https://github.com/cvdfoundation/kinetics-dataset"
    CITATION = """@inproceedings{meng2020arnet,
  title={AR-Net: Adaptive Frame Resolution for Efficient Action Recognition},
  author={Meng, Yue and Lin, Chung-Ching and Panda, Rameswar and Sattigeri, Prasanna and
          Karlinsky, Leonid and Oliva, Aude and Saenko, Kate and Feris, Rogerio},
  booktitle={European Conference on Computer Vision},
  year={2020}
}
@article{kay2017kinetics,
  title={The Kinetics Human Action Video Dataset},
  author={Kay, Will and Carreira, Joao and Simonyan, Karen and Zhang, Brian and Hillier, Chloe and
          Vijayanarasimhan, Sudheendra and Viola, Fabio and Green, Tim and Back, Trevor and
          Natsev, Paul and others},
  journal={arXiv preprint arXiv:1705.06950},
  year={2017}
}"""
    MANUAL_DOWNLOAD_INSTRUCTIONS = """
    manual_dir holds train/CLASS/CLIP.mp4, val/CLASS/CLIP.mp4 and classes.txt, the 200 classes one a line.
    See data/README.md.
    """
    CLASSES = 200

    def __init__(self, *, classes: Path | None = None, **kwargs: Any):
        self._classes = classes
        super().__init__(**kwargs)

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """See `VideoBuilder`."""
        super().add_arguments(parser)
        parser.add_argument(
            "--classes",
            type=Path,
            help="file of the classes, one a line in label order; default: classes.txt of manual_dir, "
            "or else the folders of train/, sorted",
        )

    def listing(self, manual_dir: Path) -> Listing:
        """The clips of the classes' folders, by class and name; folders of other classes are passed over."""
        folders = {}
        for split, names in _FOLDERS.items():
            found = [name for name in names if (manual_dir / name).is_dir()]
            folders[split] = listing.clips_folder(manual_dir, (found or names)[0])
        path = self._classes or listing.find(manual_dir, "classes.txt", optional=True)
        if path:
            class_names = listing.read_lines(path)
        else:
            class_names = sorted(place.name for place in folders["train"].iterdir() if place.is_dir())
            for place in folders["validation"].iterdir():
                if place.is_dir() and place.name not in class_names:
                    raise UserError(f"{place}: expected a class that train/ has, found another")
        splits = {
            split: [
                item
                for label, name in enumerate(class_names)
                for item in _clips(_class_folder(folder, name), label)
            ]
            for split, folder in folders.items()
        }
        return Listing(class_names, splits)


def _class_folder(folder: Path, name: str) -> Path:
    """The folder of a class: named as it is, or with "_" for spaces."""
    for path in (folder / name, folder / name.replace(" ", "_")):
        if path.is_dir():
            return path
    raise UserError(f"{folder}: expected the folder of class {name!r}, found none")


def _clips(folder: Path, label: int) -> list[Item]:
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES)
    return [Item(path.stem, label, Clip(path, label)) for path in paths]
