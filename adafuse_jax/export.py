"""`adafuse export`: a trained model as a file that runs without this package.

StableHLO by jax.export: one artifact for CPU, CUDA and TPU and any batch, weights included, of the clip model
or of a stream's step. It takes frames as bytes; normalisation is inside. Read it with `load`, or wherever
`jax.export.deserialize` is: nothing of this package is needed. ONNX (optional extra "onnx"): the clip model.
"""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import export
from jax.extend.core import jaxpr_as_fun

from adafuse_jax.errors import UserError
from adafuse_jax.streaming import State, Stream
from adafuse_jax.train.run import Trained
from adafuse_jax.train.state import put_together
from adafuse_jax.train.step import cost_of, normalize

PLATFORMS = ("cpu", "cuda", "tpu")


def clip_function(trained: Trained) -> Callable[[jax.Array], dict[str, jax.Array]]:
    """uint8 clips (B, T, H, W, 3) -> {"logits": (B, classes), "macs": per clip, (B,)}."""
    parts = trained.parts

    def classify(clip: jax.Array) -> dict[str, jax.Array]:
        model = put_together(parts.graph, parts.params, parts.stats)
        out = model(normalize(clip, trained.config.data))
        macs = jnp.broadcast_to(cost_of(model, out, trained.config).actual, clip.shape[:1])
        return {"logits": out.logits, "macs": macs}

    return classify


def stream_function(trained: Trained) -> tuple[Callable, Callable[[int], dict[str, Any]]]:
    """A stream's step on bytes and plain dicts, and its initial state for a batch.

    (state, uint8 frames (B, H, W, 3)) -> (state, {"logits": mean over the frames so far, "frame_logits"}).

    Raises:
        UserError: for a model that can't be a stream.
    """
    parts, data = trained.parts, trained.config.data
    stream = Stream(put_together(parts.graph, parts.params, parts.stats))

    def plain(state: State) -> dict[str, Any]:
        carry = {str(i): array for i, array in enumerate(state.carry)}
        return {"carry": carry, "total": state.total, "frames": state.frames}

    def step(state: dict[str, Any], frame: jax.Array):
        carry = tuple(state["carry"][str(i)] for i in range(len(state["carry"])))
        state = State(carry, state["total"], state["frames"])
        state, out = stream.step(stream.weights, state, normalize(frame, data))
        return plain(state), {"logits": out.logits, "frame_logits": out.frame_logits}

    return step, lambda batch: plain(stream.init(batch, data.image_size))


def stablehlo(trained: Trained, streaming: bool = False) -> bytes:
    """The serialized artifact, for any batch.

    Args:
        trained: a checkpoint.
        streaming: the step of a stream instead of the clip model.

    Raises:
        UserError: for a model that can't be a stream.
    """
    data = trained.config.data
    (batch,) = export.symbolic_shape("b")
    size = (data.image_size, data.image_size, 3)
    if not streaming:
        clip = jax.ShapeDtypeStruct((batch, data.num_frames, *size), jnp.uint8)
        return _serialized(clip_function(trained), clip)
    step, initial = stream_function(trained)
    state = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct((batch, *a.shape[1:]), a.dtype), jax.eval_shape(lambda: initial(1))
    )
    return _serialized(step, state, jax.ShapeDtypeStruct((batch, *size), jnp.uint8))


def _serialized(function: Callable, *arguments: Any) -> bytes:
    exported = export.export(jax.jit(function), platforms=PLATFORMS)(*arguments)
    try:
        return bytes(exported.serialize())
    except ImportError as error:
        raise UserError(f"StableHLO: expected pip install 'adafuse_jax[export]', found: {error}") from error


def load(path: Path) -> export.Exported:
    """An artifact read back; `.call(...)` runs it.

    Raises:
        UserError: for a file that is missing or no artifact.
    """
    try:
        return export.deserialize(bytearray(Path(path).read_bytes()))
    except OSError as error:
        raise UserError(f"artifact {path}: expected a file, found: {error.strerror}") from error
    except Exception as error:  # of flatbuffers and jax, for nearly any bytes
        raise UserError(f"artifact {path}: expected one of jax.export, found something else") from error


def initial_state(artifact: export.Exported, batch: int) -> dict[str, Any]:
    """The state before the first frame for an artifact of a stream's step: zeros."""
    (state, _), _ = jax.tree.unflatten(artifact.in_tree, artifact.in_avals)
    return jax.tree.map(lambda a: jnp.zeros((batch, *a.shape[1:]), a.dtype), state)


def onnx(trained: Trained) -> bytes:
    """The clip model as ONNX, for any batch: uint8 clips -> logits.

    Raises:
        UserError: without the extra "onnx".
    """
    logging.getLogger("jax2onnx").setLevel(logging.ERROR)  # it tells of every library that isn't there
    try:
        from jax2onnx import to_onnx
    except ImportError as error:
        raise UserError(f"ONNX: expected pip install 'adafuse_jax[onnx]', found: {error}") from error
    data, classify = trained.config.data, clip_function(trained)
    (batch,) = export.symbolic_shape("B")
    clip = jax.ShapeDtypeStruct((batch, data.num_frames, data.image_size, data.image_size, 3), jnp.uint8)
    # As primitives: its own versions of some functions of jax.nn go wrong under vmap.
    primitives = jaxpr_as_fun(jax.make_jaxpr(lambda clip: classify(clip)["logits"])(clip))
    return to_onnx(lambda clip: primitives(clip)[0], [clip]).SerializeToString()


def write(data: bytes, path: Path) -> None:
    """Writes an artifact whole or not at all; raises UserError where it can't be written."""
    fresh = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh.write_bytes(data)
        fresh.replace(path)
    except OSError as error:
        raise UserError(f"artifact {path}: expected a place to write to, found: {error.strerror}") from error
