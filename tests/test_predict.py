"""`adafuse predict`: a video through the command is the clip through the model."""

import dataclasses

import av
import jax
import numpy as np
import pytest
from helpers import quick_jit

from adafuse_jax import cli, flops
from adafuse_jax.config import Config
from adafuse_jax.errors import UserError
from adafuse_jax.input import pipeline, transforms
from adafuse_jax.input.moving_shapes import CLASSES
from adafuse_jax.predict import predict
from adafuse_jax.train import run
from adafuse_jax.train import state as states
from adafuse_jax.train.checkpoint import FOLDER, Checkpoints
from adafuse_jax.train.optim import make_optimizer
from adafuse_jax.train.step import normalize

FRAMES, SIZE = 4, 32
CONFIG = Config.from_dict(
    {
        "model": {"name": "adafuse_tsn_tiny", "prior": (0.2, 0.3, 0.5)},
        "data": {"name": "moving_shapes", "num_classes": 12, "num_frames": FRAMES, "image_size": SIZE},
        "train": {"batch_size": 8, "eval_batch_size": 8},
    }
)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run's workdir with a checkpoint of a net that was never trained, but has opinions."""
    path = tmp_path_factory.mktemp("run")
    parts, rng = run.build(CONFIG), np.random.default_rng(0)

    def draw(path, leaf):
        name = jax.tree_util.keystr(path)
        drawn = "'fc" in name and "'kernel'" in name
        return rng.normal(0, 0.5, leaf.shape).astype(np.float32) if drawn else leaf

    params = jax.tree_util.tree_map_with_path(draw, parts.params)
    state = states.initial(params, parts.stats, make_optimizer(CONFIG.optimizer, params, 1, 1))
    with Checkpoints(path / FOLDER) as checkpoints:
        checkpoints.save(1, jax.device_put(state), run.meta(CONFIG, list(CLASSES), None), {"position": 1})
    return path


@pytest.fixture(scope="module")
def trained(workdir):
    return run.load(workdir)


def write_video(path, frames):
    """A video whose frames come back as they are."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("png", rate=25)
        stream.pix_fmt, stream.height, stream.width = "rgb24", *frames.shape[1:3]
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="module")
def model(trained):
    """The model itself, compiled once."""
    parts = trained.parts
    return quick_jit(lambda clip: states.put_together(parts.graph, parts.params, parts.stats)(clip))


@pytest.fixture(scope="module", params=[0, 7])
def predicted(request, trained, tmp_path_factory):
    """A clip of the data set, a video of it, and what is predicted of that."""
    clip, _ = pipeline.make_source(CONFIG, "val").read(request.param, None)
    path = write_video(tmp_path_factory.mktemp("video") / "clip.mov", clip)
    return clip, path, predict(path, trained)


def assert_is_the_models(found, trained, model, clip):
    """Holds a prediction against the model called on the clip (T, H, W, 3), uint8."""
    data = trained.config.data
    out = model(((clip / np.float32(255) - np.float32(data.mean)) / np.float32(data.std))[None])
    cost = flops.count(trained.parts.model, out.policies, image_size=SIZE)
    odds = np.exp(np.asarray(out.logits[0], np.float64))
    expected = dict(zip(CLASSES, odds / odds.sum(), strict=True))
    assert dict(found.classes) == pytest.approx(expected, abs=1e-5)
    assert [p for _, p in found.classes] == sorted(dict(found.classes).values(), reverse=True)
    assert found.gmacs == pytest.approx(float(cost.actual[0]) / 1e9, rel=1e-5)
    assert found.dense_gmacs == cost.dense / 1e9
    assert list(found.sites) == list(out.policies)
    for site, policy in out.policies.items():
        shares = dict(zip(("skip", "reuse", "keep"), np.asarray(policy[0]).mean((0, 1)), strict=True))
        assert found.sites[site] == pytest.approx(shares, abs=1e-6)


def test_a_clip_of_the_data_set_as_a_video(trained, model, predicted):
    clip, _, found = predicted
    assert_is_the_models(found, trained, model, clip)
    assert found.num_frames == FRAMES
    assert sum(p for _, p in found.classes) == pytest.approx(1, abs=1e-6)
    assert 0 < found.gmacs < found.dense_gmacs
    assert sum(found.shares.values()) == pytest.approx(1, abs=1e-6)


def test_any_video_is_sampled_resized_and_cropped_as_in_evaluation(trained, model, tmp_path):
    video = np.random.default_rng(1).integers(0, 256, (10, 60, 80, 3), np.uint8)
    data = dataclasses.replace(CONFIG.data, name="video_list", resize=40)
    trained = dataclasses.replace(trained, config=dataclasses.replace(CONFIG, data=data))
    found = predict(write_video(tmp_path / "clip.mov", video), trained)
    middles = [1, 3, 6, 8]  # of four segments of 2.5 frames
    assert_is_the_models(found, trained, model, transforms.center_crop(video[middles], 40, SIZE))
    assert found.num_frames == 10


def test_several_views_of_a_video(trained, model, tmp_path):
    """As evaluation: the mean of the logits, the sum of the MACs, the actions of all."""
    video = np.random.default_rng(2).integers(0, 256, (80, 40, 64, 3), np.uint8)
    data = dataclasses.replace(
        CONFIG.data, name="video_list", resize=SIZE, sampling="dense", test_clips=2, test_crops=3
    )
    trained = dataclasses.replace(trained, config=dataclasses.replace(CONFIG, data=data))
    path = write_video(tmp_path / "clip.mov", video)
    found = predict(path, trained)
    views = [crop for s in (0, 16) for crop in transforms.crops_along(video[s : s + 64 : 16], SIZE, SIZE, 3)]
    outs = [model(normalize(view[None], data)) for view in views]
    costs = [flops.count(trained.parts.model, out.policies, image_size=SIZE) for out in outs]
    expected = jax.nn.softmax(np.mean([out.logits[0] for out in outs], axis=0))
    assert dict(found.classes) == pytest.approx(dict(zip(CLASSES, expected.tolist(), strict=True)), abs=1e-5)
    assert found.gmacs == pytest.approx(sum(float(c.actual[0]) for c in costs) / 1e9, rel=1e-5)
    assert found.dense_gmacs == pytest.approx(6 * costs[0].dense / 1e9)
    for site, shares in found.sites.items():
        policies = np.concatenate([np.asarray(out.policies[site][0]) for out in outs])
        assert list(shares.values()) == pytest.approx(policies.mean((0, 1)).tolist(), abs=1e-6)


@pytest.mark.parametrize("predicted", [7], indirect=True)
def test_the_command(workdir, predicted, capsys):
    _, video, found = predicted
    assert cli.main(["predict", str(video), "--checkpoint", str(workdir)]) == 0
    lines = capsys.readouterr().out.splitlines()
    same = [line for line in str(found).splitlines() if not line.startswith("time")]
    assert [line for line in lines if not line.startswith("time")] == same
    for line, (name, probability) in zip(lines, found.classes[:5], strict=False):
        assert line.split() == [f"{probability:.1%}", name]
    assert lines[5].startswith(f"cost     {found.gmacs:.4g} GMACs per clip of {found.dense_gmacs:.4g} dense")
    assert lines[6].startswith("time ") and lines[6].endswith(" ms per clip, dense")
    assert lines[7].startswith("actions  skip ")
    assert [line.split()[0] for line in lines[8:]] == ["layer1.0", "layer2.0", "layer3.0"]


@pytest.mark.parametrize("predicted", [7], indirect=True)
def test_compactly(native, workdir, trained, model, predicted, capsys):
    clip, video, _ = predicted
    found = predict(video, trained, "compact")
    assert_is_the_models(found, trained, model, clip)
    assert set(found.seconds) == {"dense", "compact"} and min(found.seconds.values()) > 0
    arguments = ["predict", str(video), "--checkpoint", str(workdir), "--execution", "compact"]
    assert cli.main(arguments) == 0
    cost, time = capsys.readouterr().out.splitlines()[5:7]
    assert cost.startswith("cost ") and time.startswith("time ") and " dense (" in cost and " dense (" in time
    with pytest.raises(UserError, match="unknown execution 'fast'"):
        predict(video, trained, "fast")


def test_bad_input_is_one_line(workdir, tmp_path, capsys):
    good = write_video(tmp_path / "clip.mov", np.zeros((FRAMES, 48, 48, 3), np.uint8))
    garbage = tmp_path / "garbage.mp4"
    garbage.write_bytes(b"no video" * 100)
    cases = (
        ((tmp_path / "none.mp4", workdir), f"video {tmp_path}/none.mp4: expected a file, found none"),
        ((tmp_path, workdir), f"video {tmp_path}: expected a file, found none"),
        ((garbage, workdir), f"video {garbage}: "),
        ((good, tmp_path), f"checkpoint {tmp_path}: expected a run's workdir"),
        ((good, tmp_path / "none"), f"checkpoint {tmp_path}/none: expected a run's workdir"),
    )
    for (video, checkpoint), message in cases:
        assert cli.main(["predict", str(video), "--checkpoint", str(checkpoint)]) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        assert printed.err.startswith(f"error: {message}")
        assert printed.err.count("\n") == 1
