"""`adafuse stream`: a video frame by frame is the clip; files wait, what is live doesn't; captions."""

import functools
import http.server
import io
import threading
import time

import av
import jax
import numpy as np
import pytest
import rtsp
from test_predict import CONFIG, FRAMES, SIZE, trained, workdir, write_video  # noqa: F401

from adafuse_jax import cli, flops
from adafuse_jax.errors import UserError
from adafuse_jax.input import live, pipeline
from adafuse_jax.live import Watcher
from adafuse_jax.report import live as shown
from adafuse_jax.train import state as states
from adafuse_jax.train.step import normalize


@pytest.fixture(scope="module")
def clip():
    return pipeline.make_source(CONFIG, "val").read(3, None)[0]


@pytest.fixture(scope="module")
def video(clip, tmp_path_factory):
    """Two clips of FRAMES frames, one after the other, at 25 a second."""
    return write_video(tmp_path_factory.mktemp("live") / "two.mov", np.concatenate([clip, clip]))


@pytest.fixture(scope="module")
def watcher(trained):  # noqa: F811
    return Watcher(trained, FRAMES)


def test_frame_by_frame_is_the_clip(watcher, trained, clip):  # noqa: F811
    assert watcher.dense_seconds is None
    assert_frame_by_frame_is_the_clip(watcher, trained, clip)


def test_compactly_it_is_the_same(native, trained, clip):  # noqa: F811
    compact = Watcher(trained, FRAMES, "compact")
    assert_frame_by_frame_is_the_clip(compact, trained, clip)
    summary = shown.Summary(compact.dense_seconds)
    summary.add(compact(clip[0])._replace(seconds=compact.dense_seconds / 2))
    dense = f"{1000 * compact.dense_seconds:.1f}"
    assert f" ms a frame of {dense} dense (50.0%)" in str(summary)


def assert_frame_by_frame_is_the_clip(watcher, trained, clip):  # noqa: F811
    parts = trained.parts
    model = states.put_together(parts.graph, parts.params, parts.stats)
    out = jax.jit(lambda c: model(c))(normalize(clip[None], CONFIG.data))
    cost = flops.count(model, out.policies, image_size=SIZE)
    for number in (1, 2):  # a new clip begins by itself
        seen = [watcher(image) for image in clip]
        assert [(s.frame, s.clip) for s in seen] == [(t, number) for t in range(1, FRAMES + 1)]
        for t, one in enumerate(seen):
            probabilities = jax.nn.softmax(out.frame_logits[0, : t + 1].mean(0))
            found = dict(one.classes)
            np.testing.assert_allclose([found[n] for n in trained.class_names], probabilities, atol=1e-5)
            taken = sum(policy[0, t].sum(0) for policy in out.policies.values())
            np.testing.assert_allclose([*one.shares.values()], taken / taken.sum(), atol=1e-6)
            for site, policy in out.policies.items():
                np.testing.assert_allclose([*one.sites[site].values()], policy[0, t].mean(0), atol=1e-6)
        # What frames spend adds up to what the clip does (Eq. 5): computed late for reuse is computed.
        np.testing.assert_allclose(sum(s.gmacs for s in seen), float(cost.actual[0]) / 1e9, rtol=1e-5)
        np.testing.assert_allclose(sum(s.dense_gmacs for s in seen), cost.dense / 1e9, rtol=1e-6)
    assert 0 < seen[-1].gmacs < seen[-1].dense_gmacs


@pytest.mark.parametrize(
    ("per_second", "times"), [(25, range(8)), (12.5, range(0, 8, 2)), (5, (0, 5)), (99, range(8))]
)
def test_so_many_frames_a_second(video, clip, per_second, times):
    found = list(live.frames(str(video), per_second))
    assert all(moment.due for moment in found)
    np.testing.assert_allclose([moment.time for moment in found], [t / 25 for t in times], atol=1e-6)
    for moment, t in zip(found, times, strict=True):
        np.testing.assert_array_equal(moment.image, clip[t % FRAMES])
    every = list(live.frames(str(video), per_second, every=True))
    assert len(every) == 8
    assert [m.time for m in every if m.due] == [m.time for m in found]


def test_what_is_live_does_not_wait(clip):
    """While one frame is looked at the next ones pass; the last one is always seen."""
    gate = threading.Event()

    def moments():
        for t in range(20):
            yield live.Moment(float(t), clip[0], True)
            if t == 0:
                gate.wait(10)

    found = []
    for moment in live._newest(moments()):
        found.append(moment.time)
        gate.set()
        time.sleep(0.2)
    assert found[0] == 0
    assert found[-1] == 19
    assert len(found) < 10
    assert found == sorted(found)


def test_an_address(video, clip):
    """Over HTTP: as any address, it is live."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=video.parent)
    handler.func.log_message = lambda *_: None
    with http.server.ThreadingHTTPServer(("localhost", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://localhost:{server.server_port}/{video.name}"
        found = list(live.frames(address, 25))
        np.testing.assert_array_equal(found[-1].image, clip[-1])
        with pytest.raises(UserError, match=r"none\.mov: expected to read it, found: Server returned 404"):
            list(live.frames(address.replace(video.name, "none.mov"), 25))
        server.shutdown()


def test_a_camera_on_the_network(clip):
    with rtsp.Server(np.concatenate([clip, clip])) as camera:
        found = list(live.frames(camera.address, 25))
    assert found[0].time == 0
    assert [moment.time for moment in found] == sorted(moment.time for moment in found)
    for moment in found:  # colours are rounded in another space
        expected = clip[round(rtsp.RATE * moment.time) % FRAMES]
        np.testing.assert_allclose(moment.image.astype(int), expected.astype(int), atol=3)
    np.testing.assert_allclose(found[-1].time, (2 * FRAMES - 1) / rtsp.RATE, atol=1e-3)


def test_a_camera_that_falls_silent(clip, monkeypatch):
    monkeypatch.setattr(live, "TIMEOUT", 3.0)
    message = r"rtsp.*: expected to read it, found: nothing for 3 s"
    with rtsp.Server(clip, goodbye=False) as camera, pytest.raises(UserError, match=message):
        found = live.frames(camera.address, 25)
        assert next(found).time == 0
        list(found)


def test_any_failure_of_what_is_live_is_told(clip):
    """Not only what users can mend: whoever waits for the next frame would wait for ever."""

    def moments():
        yield live.Moment(0.0, clip[0], True)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(live._newest(moments()))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("none.mp4", "video none.mp4: expected a file, a camera's number or an address, found none"),
        ("97", "video 97: expected to read it, found: No such file or directory"),
        ("rtsp://localhost:1/x", "video rtsp://localhost:1/x: expected to read it, found: "),
        (__file__, "expected to read it, found: Invalid data"),
    ],
)
def test_what_cannot_be_watched(source, message):
    with pytest.raises(UserError, match=message) as info:
        list(live.frames(source, 4))
    assert "\n" not in str(info.value)


def test_the_command(workdir, video, tmp_path, capsys):  # noqa: F811
    out = tmp_path / "seen.mp4"
    arguments = ["stream", str(video), "--checkpoint", str(workdir), "--fps", "12.5", "--out", str(out)]
    assert cli.main(arguments) == 0
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 4 + 3 + 1 + 1  # frames, summary, a clip, what was written
    assert printed[4].startswith("frames   4 in 1 clips")
    assert printed[-1] == f"written  {out}"
    with av.open(str(out)) as container:
        written = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert container.streams.video[0].average_rate == 25
    assert [frame.shape for frame in written] == [(SIZE, SIZE, 3)] * 8


def test_the_summary_of_a_source_that_breaks_off(workdir, clip, capsys, monkeypatch):  # noqa: F811
    monkeypatch.setattr(live, "TIMEOUT", 3.0)
    with rtsp.Server(clip, goodbye=False) as camera:
        assert cli.main(["stream", camera.address, "--checkpoint", str(workdir), "--fps", "25"]) == 2
    printed = capsys.readouterr()
    assert printed.err == f"error: video {camera.address}: expected to read it, found: nothing for 3 s\n"
    assert "\nframes   " in printed.out
    assert "\nclip 1 " in printed.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--fps", "0"), "--fps: expected more than 0, found 0.0"),
        (("--clip_frames", "-1"), "--clip_frames: expected 0 or more, found -1"),
        (("--out", "/proc/x.mp4"), "--out /proc/x.mp4: expected to write a video there, found: "),
        (("--out", "x.none"), "--out x.none: expected to write a video there, found: "),
    ],
)
def test_the_command_in_one_line(workdir, video, capsys, arguments, message):  # noqa: F811
    assert cli.main(["stream", str(video), "--checkpoint", str(workdir), *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith(f"error: {message}")
    assert printed.err.count("\n") == 1


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_shows_the_latest_frame_in_place(watcher, clip):
    terminal, plain = Terminal(), io.StringIO()
    seen = [watcher(image) for image in clip[:2]]
    for file in (terminal, plain):
        screen = shown.Screen(file)
        for t, one in enumerate(seen):
            screen.show(t / 25, one)
    assert plain.getvalue().count("\n") == 2
    height = len(shown.lines(0, seen[0]))
    assert terminal.getvalue().count(f"\x1b[{height}F\x1b[J") == 1
    for site, shares in seen[0].sites.items():
        (text,) = [row for row in shown.lines(0, seen[0]) if f" {site} " in row]
        assert abs(text.count("#") - 20 * shares["keep"]) <= 1


def test_a_summary_keeps_no_more_than_it_tells(watcher, clip):
    summary, one = shown.Summary(), watcher(clip[0])
    for number in range(1, 31):
        summary.add(one._replace(clip=number))
    text = str(summary)
    assert text.startswith("frames   30 in 30 clips")
    assert [line.split()[1] for line in text.splitlines()[3:]] == [str(n) for n in range(21, 31)]


def test_captions_leave_the_rest_of_the_image(watcher, clip):
    image = np.full((480, 640, 3), 90, np.uint8)
    marked = shown.captioned(image, watcher(clip[0]))
    assert (image == 90).all()
    assert (marked[150:400] == 90).all()  # neither texts nor bars
    assert (marked[:110] != 90).any()
    assert (marked[-3:] != 90).all(-1).all()  # a bar from side to side
