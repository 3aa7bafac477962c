"""Odd files read right, or rejected with their reason: the real ones of ../shared, and some made here."""

import os
from fractions import Fraction

import av
import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from videos import greys, textures, write_video

from adafuse_jax.input.check import check_folder
from adafuse_jax.input.decode import UnreadableClip, frames_on_screen, num_frames, read_frames
from adafuse_jax.input.manifest import Clip

# Name: frames, (width, height) upright, what check-data says. Counts and sizes are OpenCV's, which counts by
# decoding too; it has no AV1, whose count and size are what PyAV gives.
READABLE = {
    "decord_pancake.mkv": (310, (426, 240), ""),
    "decord_rot0.mov": (3, (568, 320), ""),
    "decord_rot180.mov": (3, (568, 320), ""),
    "decord_rot270.mov": (3, (320, 568), ""),
    "decord_rot90.mov": (3, (320, 568), ""),
    "decord_unordered.mov": (4, (50, 50), ""),
    "made_av1_24.mp4": (24, (336, 256), ""),
    "made_hevc_10fps.mp4": (40, (340, 256), ""),
    "made_long_gop_bframes.mp4": (90, (340, 256), ""),
    "made_mjpeg_5fps.avi": (10, (320, 136), ""),
    "made_mpeg2_25.mpg": (50, (340, 256), ""),
    "made_mpeg4_1499.avi": (60, (640, 272), ""),
    "made_one_frame.mp4": (1, (340, 256), "too short"),
    "made_portrait_h264_60.mp4": (40, (240, 426), ""),
    "made_three_frames.mp4": (3, (340, 256), ""),
    "made_truncated.avi": (78, (320, 240), "truncated"),
    "made_vfr.mkv": (60, (340, 256), ""),
    "made_vp8_12fps.webm": (48, (640, 272), ""),
    "made_vp9_2997.webm": (90, (340, 256), ""),
    "made_yuv444_hi.mp4": (30, (300, 200), ""),
    "mma_demo.mp4": (280, (340, 256), ""),
    "mma_ntu_1080p.avi": (103, (1920, 1080), ""),
    "mma_part_0.mp4": (32, (340, 256), ""),
    "mma_structuralize.mp4": (300, (426, 240), ""),
    "mma_test.avi": (164, (320, 240), ""),
    "mma_test.mp4": (300, (340, 256), ""),
    "skv_bigbuckbunny.mp4": (132, (1280, 720), ""),
    "skv_bikes.mp4": (250, (640, 272), ""),
    "skv_carphone_distorted.mp4": (120, (176, 144), ""),
    "skv_carphone_pristine.mp4": (120, (176, 144), ""),
    "tiny_webm.webm": (1, (8, 8), "too short"),
    "trg_demo.mp4": (150, (1920, 1080), ""),
}
REJECTED = {  # reason of the reader, what check-data says
    "decord_corrupted.mp4": ("Invalid data", "unreadable"),
    "made_empty.mp4": ("Invalid data", "empty"),
    "made_truncated.mp4": ("Invalid data", "truncated"),
    "tiny_AudioVideoInterleave.avi": ("no frames", "too short"),
    "tiny_FlashVideo.flv": ("End of file", "unreadable"),
    "tiny_Mpeg4.mp4": ("no video stream", "no video"),
    "tiny_WindowsMediaVideo.wmv": ("no frames", "too short"),
    "tiny_gif.gif": ("no frames", "too short"),
    "tiny_mp4-with-audio.mp4": ("no video stream", "no video"),
}
NOT_IN_OPENCV = "made_av1_24.mp4"
VARIABLE = "made_vfr.mkv"


def read(path, indices):
    """The frames at those indices that the clip has, and the number of all."""
    counts = []
    frames = read_frames(Clip(path, 0), lambda n: counts.append(n) or [i for i in indices if i < n])
    return frames, counts[-1]


def decoded(path):
    """All frames with their times, by no more than PyAV's own loop."""
    with av.open(str(path)) as container:
        frames = [(frame.to_ndarray(format="rgb24"), frame.time) for frame in container.decode(video=0)]
    return zip(*frames, strict=True)


def test_every_odd_file_is_known(clips):
    assert sorted(os.listdir(clips / "odd")) == sorted(READABLE | REJECTED)


@pytest.mark.parametrize("name", READABLE)
def test_count_size_and_pixels_are_opencvs(clips, name):
    count, (width, height), _ = READABLE[name]
    wanted = [0, 1, 4, 9]
    frames, found = read(clips / "odd" / name, wanted)
    assert found == count
    assert {frame.shape for frame in frames} == {(height, width, 3)}
    if name in (NOT_IN_OPENCV, VARIABLE):
        return
    video = cv2.VideoCapture(str(clips / "odd" / name), cv2.CAP_FFMPEG)  # turns frames upright by itself
    expected = [video.read()[1] for _ in range(min(10, count))]
    for i, frame in zip(wanted, frames, strict=False):
        assert np.abs(frame.astype(int) - expected[i][..., ::-1]).max() <= 2
    if width * height < 500_000:  # the rest would take seconds
        while video.grab():
            expected.append(None)
        assert len(expected) == count


@pytest.mark.parametrize("name", REJECTED)
def test_rejected_with_a_reason(clips, name):
    for function in (num_frames, lambda clip: read_frames(clip, lambda n: [0])):
        with pytest.raises(UnreadableClip, match=REJECTED[name][0]):
            function(Clip(clips / "odd" / name, 0))


def test_what_check_data_says(clips):
    report = check_folder(clips / "odd")
    expected = {name: problem for name, (*_, problem) in (READABLE | REJECTED).items()}
    assert {entry.clip.path.name: entry.problem for entry in report.entries} == expected
    assert all(bool(entry.reason) == bool(entry.problem) for entry in report.entries)


def test_a_real_clip_of_variable_rate_is_spaced_in_time(clips):
    frames, times = decoded(clips / "odd" / VARIABLE)
    times = np.array(times)
    assert np.diff(times).max() > 3 * np.diff(times).min()
    found, count = read(clips / "odd" / VARIABLE, range(60))
    assert count == len(times)
    part = (times[-1] - times[0]) / (count - 1)
    off = []
    for i, frame in enumerate(found):
        now = times[0] + (i + 0.5) * part
        on_screen = max(k for k in range(count) if times[k] <= now)
        np.testing.assert_array_equal(frame, frames[on_screen])
        off.append(on_screen - i)
    assert max(np.abs(off)) >= 3  # by index these would be other frames


@pytest.mark.parametrize(
    "codec, name", [("libx264", "h264.mkv"), ("libvpx", "vp8.webm"), ("libx264", "h264.mp4")]
)
def test_variable_rate(tmp_path, codec, name):
    """12 frames a tenth of a second apart, then 12 at a third of that rate."""
    times = [100 * i for i in range(12)] + [1100 + 300 * i for i in range(1, 13)]
    write_video(tmp_path / name, greys(24), codec, times=times)
    frames, count = read(tmp_path / name, range(24))
    assert count == 24
    moments = [4700 / 23 * (i + 0.5) for i in range(24)]
    expected = [sum(time <= moment for time in times) - 1 for moment in moments]
    assert [round(frame.mean() / 10) for frame in frames] == expected
    assert expected[:6] == [1, 3, 5, 7, 9, 11]
    assert expected[-1] == 23


def test_packets_that_give_no_frame(tmp_path):
    """Without its first packet, a stream decodes from the next key frame on: the packets count too many."""
    write_video(
        tmp_path / "headless.mkv",
        greys(25),
        options={"g": "10", "bf": "0", "sc_threshold": "0"},
        keep_packet=lambda index: index > 0,
    )
    counts = []
    frames = read_frames(Clip(tmp_path / "headless.mkv", 0), lambda n: counts.append(n) or [0, n - 1])
    assert counts == [24, 15]
    assert [round(frame.mean() / 10) for frame in frames] == [10, 24]


def test_times_out_of_order_are_not_believed(tmp_path):
    """AVI has no times; for frames stored out of order those made up for it go back and forth."""
    write_video(tmp_path / "b.avi", textures(20), options={"bf": "3"})
    frames, times = decoded(tmp_path / "b.avi")
    assert min(np.diff(times)) < 0
    found, count = read(tmp_path / "b.avi", range(20))
    assert count == 20
    np.testing.assert_array_equal(found, frames)


rising = st.lists(st.integers(1, 10_000), min_size=1, max_size=60).map(lambda gaps: np.cumsum([0, *gaps]))


@given(st.integers(1, 300), st.integers(10, 5000), st.randoms(use_true_random=False))
def test_a_constant_rate_keeps_every_index(count, interval, random):
    times = [i * interval + random.randint(-interval // 3, interval // 3) for i in range(count)]
    assert frames_on_screen(times) == list(range(count))


@given(rising, st.integers(-(10**6), 10**6), st.integers(1, 1000))
def test_start_and_unit_of_time_do_not_matter(times, start, unit):
    assert frames_on_screen((start + unit * times).tolist()) == frames_on_screen(times.tolist())


@given(rising)
def test_what_is_on_screen(times):
    """The last frame that isn't after the middle of its part; or frame i while none is an interval off."""
    times, last = times.tolist(), len(times) - 1
    shown = frames_on_screen(times)
    interval = Fraction(times[-1], last)
    if all(abs(time - i * interval) <= interval for i, time in enumerate(times)):
        assert shown == list(range(len(times)))
    else:
        middles = [(i + Fraction(1, 2)) * interval for i in range(len(times))]
        assert shown == [sum(time <= middle for time in times) - 1 for middle in middles]


@pytest.mark.parametrize("times", [[], [7], [0, None, 900], [0, 500, 500, 600], [0, 900, 100], [5, 5]])
def test_without_times_a_rate_is_constant(times):
    assert frames_on_screen(times) == list(range(len(times)))
