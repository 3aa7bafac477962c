"""Jester: JPEG folders at height 100 and 12 frames a second, CSV files of labels."""

from pathlib import Path

from data import twenty_bn
from data.builder import VideoBuilder
from data.listing import Listing


class Jester(VideoBuilder):
    """Jester V1: 148,092 clips of hand gestures in front of a camera, in 27 classes."""

    HOMEPAGE = "https://www.qualcomm.com/developer/software/jester-dataset"
    CITATION = """@inproceedings{materzynska2019jester,
  title={The Jester Dataset: A Large-Scale Video Dataset of Human Gestures},
  author={Materzynska, Joanna and Berger, Guillaume and Bax, Ingo and Memisevic, Roland},
  booktitle={Proceedings of the IEEE/CVF International Conference on Computer Vision Workshops},
  year={2019}
}"""
    MANUAL_DOWNLOAD_INSTRUCTIONS = """
    manual_dir holds 20bn-jester-v1/CLIP/00001.jpg and, there or in labels/,
    {labels,train,validation,test}.csv or jester-v1-{labels,train,validation,test}.csv. See data/README.md.
    """
    CLASSES = 27
    FOLDERS = True
    FPS = 12.0

    def listing(self, manual_dir: Path) -> Listing:
        """The clips of the owner's files; the classes in the order of the lines of labels.csv."""
        return twenty_bn.folders_listing(manual_dir, "jester-v1")
