"""What the published loader does (reference.md, section 3), in PyTorch: see `benchmarks.input`."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from adafuse_jax.config import Data
from adafuse_jax.input import manifest, sampling, transforms

DATA = Data()


class Clips(torch.utils.data.Dataset):
    """Clips of a list of JPEG folders as float tensors (T, 3, H, W), normalised."""

    def __init__(self, path: Path, template: str):
        self._clips, self._template = manifest.read_list(path, DATA.num_classes), template
        self._mean, self._std = (torch.tensor(v).reshape(1, 3, 1, 1) for v in (DATA.mean, DATA.std))

    def __len__(self) -> int:
        return len(self._clips)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        clip = self._clips[index]
        indices = sampling.training_indices(clip.num_frames, DATA.num_frames, np.random.randint)
        images = [Image.open(clip.path / self._template.format(int(i) + 1)).convert("RGB") for i in indices]
        size = DATA.image_size
        w, h, x, y = transforms.draw_crop(*images[0].size, size, DATA.scales, np.random.randint)
        images = [
            image.crop((x, y, x + w, y + h)).resize((size, size), Image.Resampling.BILINEAR)
            for image in images
        ]
        pixels = torch.from_numpy(np.stack([np.asarray(image) for image in images]))
        pixels = pixels.permute(0, 3, 1, 2).contiguous().float().div(255)
        return pixels.sub_(self._mean).div_(self._std), clip.label


def batches(path: Path, template: str, batch_size: int, workers: int) -> Iterator[list[torch.Tensor]]:
    """Endless batches of (clips, labels), shuffled.

    Args:
        path: of a list of "folder frames label" lines.
        template: file name of a JPEG, given its 1-based number.
        batch_size: clips.
        workers: processes; 0 reads in this one.
    """
    torch.set_num_threads(
        1
    )  # as in its workers; more wait busily for each other, at twice the time of a core
    clips = Clips(path, template)
    order = torch.utils.data.RandomSampler(clips, replacement=True, num_samples=10**9)
    return iter(torch.utils.data.DataLoader(clips, batch_size, sampler=order, num_workers=workers))
