"""Something-Something V1: JPEG folders at height 100 and 12 frames a second, CSV files of labels."""

from pathlib import Path

from data import twenty_bn
from data.builder import VideoBuilder
from data.listing import Listing


class SomethingSomethingV1(VideoBuilder):
    """Something-Something V1: 108,499 clips of people doing things with objects, in 174 classes."""

    HOMEPAGE = "https://www.qualcomm.com/developer/software/something-something-v-2-dataset"
    CITATION = """@inproceedings{goyal2017something,
  title={The "something something" video database for learning and evaluating visual common sense},
  author={Goyal, Raghav and Ebrahimi Kahou, Samira and Michalski, Vincent and Materzynska, Joanna and
          Westphal, Susanne and Kim, Heuna and Haenel, Valentin and Fruend, Ingo and Yianilos, Peter and
          Mueller-Freitag, Moritz and others},
  booktitle={Proceedings of the IEEE International Conference on Computer Vision},
  pages={5842--5850},
  year={2017}
}"""
    MANUAL_DOWNLOAD_INSTRUCTIONS = """
    manual_dir holds 20bn-something-something-v1/CLIP/00001.jpg and, there or in labels/,
    something-something-v1-{labels,train,validation,test}.csv. See data/README.md.
    """
    CLASSES = 174
    FOLDERS = True
    FPS = 12.0

    def listing(self, manual_dir: Path) -> Listing:
        """The clips of the owner's files; the classes in the order of the lines of labels.csv."""
        return twenty_bn.folders_listing(manual_dir, "something-something-v1")
