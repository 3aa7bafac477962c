"""Frames of videos and JPEG folders: each frame tells its number by its brightness."""

import re

import av
import cv2
import numpy as np
import pytest

from adafuse_jax.input.decode import UnreadableClip, num_frames, read_frames
from adafuse_jax.input.manifest import Clip

STEP = 10  # brightness between two frames: well above what compression changes
FORMATS = {
    "h264.mp4": ("libx264", "yuv420p", {"bf": "3", "g": "12"}),  # stored out of presentation order
    "vp9.webm": ("libvpx-vp9", "yuv420p", {"deadline": "realtime", "cpu-used": "8"}),
    "vp8.webm": ("libvpx", "yuv420p", {"deadline": "realtime"}),
    "mjpeg.avi": ("mjpeg", "yuvj420p", {}),
    "mpeg4.mkv": ("mpeg4", "yuv420p", {}),
}


def write_video(path, images, codec="libx264", pixels="yuv420p", options=None, prepare=lambda stream: None):
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10, options=options or {})
        stream.height, stream.width = images[0].shape[:2]
        stream.pix_fmt = pixels
        prepare(stream)
        for image in images:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return Clip(path, 0)


def greys(count, height=32, width=48):
    return [np.full((height, width, 3), STEP * i, np.uint8) for i in range(count)]


def numbers(frames):
    """The frame number that each image tells."""
    return [round(float(frame.mean()) / STEP) for frame in frames]


@pytest.mark.parametrize("name", FORMATS)
def test_frames_are_those_asked_for(tmp_path, name):
    clip = write_video(tmp_path / name, greys(20), *FORMATS[name])
    counts = []
    indices = [0, 7, 7, 13, 19]
    frames = read_frames(clip, lambda n: counts.append(n) or indices)
    assert numbers(frames) == indices
    assert {(frame.shape, frame.dtype.name) for frame in frames} == {((32, 48, 3), "uint8")}
    assert counts == [20]
    assert num_frames(clip) == 20


def test_channels_are_red_green_blue(tmp_path):
    red = [np.full((32, 32, 3), (200, 60, 20), np.uint8)] * 2
    cv2.imwrite(str(tmp_path / "img_00001.jpg"), red[0][..., ::-1])
    for clip in (write_video(tmp_path / "red.mp4", red), Clip(tmp_path, 0, 1)):
        colour = read_frames(clip, lambda n: [0])[0].mean((0, 1))
        np.testing.assert_allclose(colour, (200, 60, 20), atol=6)


def test_a_header_that_promises_too_much_is_not_believed(tmp_path):
    """A cut AVI still states the 20 frames that it once had."""
    clip = write_video(tmp_path / "cut.avi", greys(20), *FORMATS["mjpeg.avi"])
    data = clip.path.read_bytes()
    start, end = data.index(b"movi"), data.index(b"idx1")  # the frames, then their index
    chunks = [start + match.start() for match in re.finditer(b"00dc", data[start:end])]
    assert len(chunks) == 20
    clip.path.write_bytes(data[: chunks[11]])
    counts = []
    frames = read_frames(clip, lambda n: counts.append(n) or [0, n // 2, n - 1])
    assert counts == [11]
    assert num_frames(clip) == 11
    assert numbers(frames) == [0, 5, 10]


@pytest.mark.skipif(
    not hasattr(av.VideoStream, "set_display_rotation"), reason="this PyAV can't write rotation"
)
@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_orientation(tmp_path, degrees, mirrored):
    image = np.zeros((32, 64, 3), np.uint8)
    image[:16, :32], image[:16, 32:], image[16:, :32] = 80, 160, 240
    clip = write_video(
        tmp_path / "turned.mp4",
        [image] * 2,
        prepare=lambda stream: stream.set_display_rotation(degrees, hflip=mirrored),
    )
    expected = np.rot90(image, degrees // 90)  # counter-clockwise, then mirrored
    expected = expected[:, ::-1] if mirrored else expected
    found = read_frames(clip, lambda n: [1])[0]
    assert found.shape == expected.shape
    assert np.median(np.abs(found.astype(int) - expected)) <= 3
    assert np.abs(found.astype(int) - expected).mean() < 5


def wave(path):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        sound.rate = 8000
        container.mux(stream.encode(sound))
        container.mux(stream.encode())


def truncated(path):
    write_video(path, greys(20))
    path.write_bytes(path.read_bytes()[:-200])  # the index stands last


@pytest.mark.parametrize(
    "name, make, reason",
    [
        ("absent.mp4", lambda path: None, "No such file"),
        ("folder.mp4", lambda path: path.mkdir(), "Is a directory"),
        ("empty.mp4", lambda path: path.touch(), "Invalid data"),
        ("text.mp4", lambda path: path.write_text("not a video\n" * 100), "Invalid data"),
        ("sound.wav", wave, "no video stream"),
        ("truncated.mp4", truncated, "Invalid data"),
    ],
)
def test_unreadable_videos(tmp_path, name, make, reason):
    path = tmp_path / name
    make(path)
    for read in (num_frames, lambda clip: read_frames(clip, lambda n: [0])):
        with pytest.raises(UnreadableClip, match=reason) as caught:
            read(Clip(path, 0))
        assert caught.value.path == path
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.fixture
def jpegs(tmp_path):
    for i, image in enumerate(greys(12), 1):
        cv2.imwrite(str(tmp_path / f"img_{i:05d}.jpg"), image)
    return Clip(tmp_path, 0, 12)


def test_jpeg_folder(jpegs):
    indices = [0, 3, 3, 11]
    assert num_frames(jpegs) == 12
    assert numbers(read_frames(jpegs, lambda n: [n - 12, 3, 3, n - 1])) == indices


def test_jpeg_names_follow_the_template(jpegs):
    (jpegs.path / "img_00005.jpg").rename(jpegs.path / "frame5.jpg")
    assert numbers(read_frames(jpegs, lambda n: [4], "frame{}.jpg")) == [4]


def test_only_the_chosen_jpegs_are_opened(jpegs):
    (jpegs.path / "img_00002.jpg").unlink()
    assert numbers(read_frames(jpegs, lambda n: [0, 2])) == [0, 2]
    with pytest.raises(UnreadableClip, match=r"img_00002\.jpg: No such file"):
        read_frames(jpegs, lambda n: [0, 1])


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.6, 0.95])
def test_truncated_jpeg(jpegs, keep):
    rng = np.random.default_rng(0)
    path = jpegs.path / "img_00003.jpg"
    cv2.imwrite(str(path), rng.integers(0, 256, (32, 48, 3), np.uint8))
    assert len(read_frames(jpegs, lambda n: [2])) == 1
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
    with pytest.raises(UnreadableClip) as caught:
        read_frames(jpegs, lambda n: [0, 2])
    assert caught.value.path == path


def test_jpegs_of_two_sizes(jpegs):
    cv2.imwrite(str(jpegs.path / "img_00003.jpg"), np.zeros((40, 48, 3), np.uint8))
    with pytest.raises(UnreadableClip, match="one size"):
        read_frames(jpegs, lambda n: [0, 2])
