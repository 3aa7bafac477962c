"""What `adafuse export` writes gives what the model gives, for any batch, clip by clip and frame by frame."""

import subprocess
import sys

import jax
import numpy as np
import pytest
import runs
from helpers import filled

from adafuse_jax import cli, convert, export, weights
from adafuse_jax.errors import UserError
from adafuse_jax.train import run
from adafuse_jax.train.step import normalize

FRAMES, SIZE = runs.SHAPES["num_frames"], runs.SHAPES["image_size"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A folder of converted weights of a net that was never trained, but has opinions."""
    out = tmp_path_factory.mktemp("converted")
    config = runs.config(model={"name": "adafuse_tsn_tiny", "shift": "online"})
    model = filled(lambda: run.make_model(config))
    card = weights.Card(model.name, 12, model.options, weights.card.input_of(config.data))
    weights.save(model, out / weights.files.FILE, card)
    return out


@pytest.fixture(scope="module")
def clip():
    return np.random.default_rng(0).integers(0, 256, (3, FRAMES, SIZE, SIZE, 3), np.uint8)


@pytest.fixture(scope="module")
def wanted(checkpoint, clip):
    trained = run.load(checkpoint)
    model = convert.model_of(trained)
    out = model(normalize(clip, trained.config.data))
    cost = export.cost_of(model, out, trained.config)
    return {"logits": np.asarray(out.logits), "macs": np.asarray(cost.actual)}


def test_clips_of_any_number(checkpoint, clip, wanted, tmp_path):
    assert cli.main(["export", str(checkpoint), "--out", str(tmp_path / "a")]) == 0
    artifact = export.load(tmp_path / "a")
    assert artifact.platforms == export.PLATFORMS
    for count in (1, 3):
        out = artifact.call(clip[:count])
        scale = np.abs(wanted["logits"]).max()
        np.testing.assert_allclose(out["logits"], wanted["logits"][:count], rtol=0, atol=1e-5 * scale)
        np.testing.assert_allclose(out["macs"], wanted["macs"][:count], rtol=1e-6)


def test_without_this_package(checkpoint, clip, wanted, tmp_path):
    """An artifact needs jax and nothing of ours."""
    assert cli.main(["export", str(checkpoint), "--out", str(tmp_path / "a")]) == 0
    np.save(tmp_path / "clip.npy", clip)
    program = (
        "import sys, numpy as np; from jax import export; "
        "out = export.deserialize(bytearray(open('a', 'rb').read())).call(np.load('clip.npy')); "
        "np.save('out.npy', out['logits']); assert not [m for m in sys.modules if m.startswith('adafuse')]"
    )
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True)
    scale = np.abs(wanted["logits"]).max()
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), wanted["logits"], rtol=0, atol=1e-5 * scale)


def test_a_stream_frame_by_frame(checkpoint, clip, wanted, tmp_path):
    assert cli.main(["export", str(checkpoint), "--stream", "--out", str(tmp_path / "a")]) == 0
    artifact = export.load(tmp_path / "a")
    state = export.initial_state(artifact, len(clip))
    for t in range(FRAMES):
        state, out = artifact.call(state, clip[:, t])
    scale = np.abs(wanted["logits"]).max()
    np.testing.assert_allclose(out["logits"], wanted["logits"], rtol=0, atol=1e-5 * scale)
    np.testing.assert_array_equal(state["frames"], [FRAMES] * 3)


def test_weights_come_back(checkpoint, tmp_path):
    assert cli.main(["export", str(checkpoint), "--format=safetensors", "--out", str(tmp_path / "a")]) == 0
    ours, theirs = weights.read(tmp_path / "a"), weights.read(checkpoint)
    assert (ours.card.model, ours.card.options, ours.card.data) == (
        theirs.card.model,
        theirs.card.options,
        theirs.card.data,
    )
    assert ours.arrays.keys() == theirs.arrays.keys()
    jax.tree.map(np.testing.assert_array_equal, ours.arrays, theirs.arrays)


@pytest.mark.filterwarnings("default")  # of jax2onnx and what it imports
def test_onnx(checkpoint, clip, wanted, tmp_path):
    pytest.importorskip("jax2onnx", reason="the extra 'onnx' isn't installed")
    onnxruntime = pytest.importorskip("onnxruntime")
    assert cli.main(["export", str(checkpoint), "--format=onnx", "--out", str(tmp_path / "a.onnx")]) == 0
    session = onnxruntime.InferenceSession(str(tmp_path / "a.onnx"))
    (given,) = session.get_inputs()
    for count in (1, 3):
        (logits,) = session.run(None, {given.name: clip[:count]})
        scale = np.abs(wanted["logits"]).max()
        np.testing.assert_allclose(logits, wanted["logits"][:count], rtol=0, atol=1e-5 * scale)


def test_onnx_without_its_extra(checkpoint, monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    assert cli.main(["export", str(checkpoint), "--format=onnx", "--out", str(tmp_path / "a")]) == 2
    assert "expected pip install 'adafuse_jax[onnx]'" in capsys.readouterr().err


def test_what_cannot_be_exported(checkpoint, tmp_path, capsys):
    assert (
        cli.main(["export", str(checkpoint), "--stream", "--format=onnx", "--out", str(tmp_path / "a")]) == 2
    )
    assert "--stream: expected --format=stablehlo with it, found onnx" in capsys.readouterr().err
    assert cli.main(["export", str(tmp_path), "--out", str(tmp_path / "a")]) == 2
    assert "expected a run's workdir" in capsys.readouterr().err
    (tmp_path / "file").write_text("x")
    assert cli.main(["export", str(checkpoint), "--out", str(tmp_path / "file" / "a")]) == 2
    assert "expected a place to write to" in capsys.readouterr().err


@pytest.mark.parametrize("content", [None, b"", b"hello", bytes(1000)])
def test_a_file_that_is_no_artifact(tmp_path, content):
    if content is not None:
        (tmp_path / "a").write_bytes(content)
    with pytest.raises(UserError, match=r"artifact .*: expected"):
        export.load(tmp_path / "a")
