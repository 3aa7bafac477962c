"""Training decodes JPEGs fast: other colours at their edges, nothing else; evaluation never does."""

import io

import cv2
import numpy as np
import PIL.Image
import pytest

from adafuse_jax.config import Config
from adafuse_jax.input import decode, prepared, sources
from adafuse_jax.input.decode import UnreadableClip, decode_image

GREY = np.array([0.299, 0.587, 0.114])  # of RGB: what JPEGs store at full size


def picture(height=48, width=72, seed=0, channels=3):
    """Smooth, and of all colours."""
    noise = np.random.default_rng(seed).uniform(0, 255, (height // 8, width // 8, channels))
    return cv2.resize(noise, (width, height), interpolation=cv2.INTER_LINEAR).astype(np.uint8)


def encoded(image, kind="JPEG", mode="RGB", **options):
    file = io.BytesIO()
    PIL.Image.fromarray(image, mode if mode == "CMYK" else None).convert(mode).save(file, kind, **options)
    return file.getvalue()


def both(data):
    """What exact and fast decoding give, as signed integers."""
    return (decode_image(data, "x.jpg", fast).astype(int) for fast in (False, True))


def exif(orientation):
    tags = PIL.Image.Exif()
    tags[0x0112] = orientation
    return tags


@pytest.mark.parametrize("contrast, largest", [(0.5, 20), (0.125, 8)])
def test_brightness_stays_and_colours_are_near(contrast, largest):
    """In the range where RGB isn't clipped."""
    image = (128 + contrast * (picture() - 128.0)).astype(np.uint8)
    exact, fast = both(encoded(image, quality=90))
    assert 0 < np.abs(fast - exact).max() <= largest
    assert np.abs((fast - exact) @ GREY).max() < 1.5  # rounding of three channels
    assert np.abs((fast - exact).mean()) < 0.1  # neither darker nor brighter


@pytest.mark.parametrize(
    "data",
    [
        encoded(picture(), subsampling="4:4:4"),
        encoded(picture(), subsampling="4:4:4", progressive=True),
        encoded(picture(), mode="L"),
        encoded(picture(channels=4), mode="CMYK"),
        encoded(picture(), "PNG"),
        *(encoded(picture(), exif=exif(orientation)) for orientation in range(1, 9)),
    ],
    ids=["4:4:4", "progressive", "grey", "CMYK", "PNG", *map("exif {}".format, range(1, 9))],
)
def test_nothing_changes_where_no_colour_is_repeated(data):
    """Images with Exif data are turned as they ask, by decoding them exactly."""
    exact, fast = both(data)
    assert exact.shape[-1] == 3
    np.testing.assert_array_equal(fast, exact)


def test_broken_jpegs_are_those_that_exact_decoding_finds():
    rng = np.random.default_rng(0)
    data, outcomes = encoded(picture()), {True: 0, False: 0}
    for _ in range(300):
        broken = bytearray(data)
        broken[rng.integers(len(broken))] = rng.integers(256)
        broken = bytes(broken if rng.random() < 0.5 else broken[: rng.integers(len(broken))])
        try:
            shape = decode_image(broken, "x.jpg").shape
        except UnreadableClip:
            shape = None
            with pytest.raises(UnreadableClip):
                decode_image(broken, "x.jpg", fast=True)
        else:
            assert decode_image(broken, "x.jpg", fast=True).shape == shape
        outcomes[shape is not None] += 1
    assert min(outcomes.values()) > 50


def folder(tmp_path, jpegs):
    for i, data in enumerate(jpegs, 1):
        (tmp_path / f"img_{i:05d}.jpg").write_bytes(data)
    (tmp_path / "list.txt").write_text(f"{tmp_path} {len(jpegs)} 0\n")
    lists = {"train_list": str(tmp_path / "list.txt"), "val_list": str(tmp_path / "list.txt")}
    return {"name": "video_list", **lists}


@pytest.mark.parametrize("kind", ["folder", "prepared"])
def test_training_decodes_fast_and_evaluation_exactly(kind, tmp_path, monkeypatch):
    """Of square frames of the size wanted, the only crop is the frame."""
    jpegs = [encoded(picture(32, 32, seed)) for seed in range(4)]
    data = {"num_classes": 1, "num_frames": 4, "image_size": 32, "resize": 32, "scales": (1.0,), "flip": 0.0}
    if kind == "folder":
        data |= folder(tmp_path, jpegs)
    else:
        data |= {"name": "prepared"}
        records = [prepared.Record("clip", 0, 4, np.arange(4), jpegs)]
        monkeypatch.setattr(prepared, "class_names", lambda directory: ["a"])
        monkeypatch.setattr(prepared, "PreparedClips", lambda directory, split: records)
    for split, rng in (("train", np.random.default_rng(0)), ("val", None)):
        clip, _ = sources.make_source(Config.from_dict({"data": data}), split).read(0, rng)
        exact, fast = zip(*map(both, jpegs), strict=True)
        assert (np.array(exact) != fast).any()
        np.testing.assert_array_equal(clip, fast if rng else exact)


def test_only_the_chosen_frames_are_decoded():
    jpegs = [b"broken", encoded(picture()), b"broken"]
    clip = prepared.Record("clip", 0, 3, np.arange(3), jpegs)
    for fast in (False, True):
        (image,) = clip.read_frames(lambda n: [1], fast)
        np.testing.assert_array_equal(image, decode.decode_image(jpegs[1], "x.jpg", fast))
        with pytest.raises(UnreadableClip, match="clip: a broken image, or not one"):
            clip.read_frames(lambda n: [0], fast)
