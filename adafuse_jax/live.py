"""What a trained model says about a video while it runs: after each frame, in constant memory."""

import statistics
import time
from typing import NamedTuple

import jax
import numpy as np

from adafuse_jax import flops
from adafuse_jax.convert import model_of
from adafuse_jax.input import transforms
from adafuse_jax.input.decode import Image
from adafuse_jax.predict import as_filmed
from adafuse_jax.streaming import Stream
from adafuse_jax.train.run import Trained
from adafuse_jax.train.step import normalize

_DENSE_FRAMES = 9  # to time, for comparison


class Seen(NamedTuple):
    """After a frame.

    Attributes:
        frame: its number in the clip, from 1.
        clip: the clip's number, from 1.
        classes: (name, probability) by the mean over the clip's frames so far, the likeliest first.
        seconds: taken by this frame, from the image on.
        gmacs: spent on it. A channel reused now that wasn't computed at the frame before counts here.
        dense_gmacs: of a frame with everything computed.
        shares: of the actions, over the channels of all sites; empty for a model without policies.
        sites: {site: {action: share of its channels}}.
    """

    frame: int
    clip: int
    classes: list[tuple[str, float]]
    seconds: float
    gmacs: float
    dense_gmacs: float
    shares: dict[str, float]
    sites: dict[str, dict[str, float]]


class Watcher:
    """A checkpoint on one stream of images.

    Args:
        trained: from `train.run.load`.
        clip_frames: a new clip begins after so many frames; 0: never.
        execution: see `Stream`.

    Attributes:
        dense_seconds: that a frame takes with everything computed; None unless executed compactly.

    Raises:
        UserError: see `Stream`.
    """

    def __init__(self, trained: Trained, clip_frames: int, execution: str = "dense"):
        self._data, self._names = as_filmed(trained.config.data), trained.class_names
        self._clip_frames = clip_frames
        model = model_of(trained)
        self._stream = Stream(model, execution)
        size = self._data.image_size
        self._dense = float(model.count((size, size)).dense) / 1e9

        def spent(policies):
            return flops.count(model, policies, image_size=size, num_frames=1).actual[0]

        def step(weights, state, before, image):
            state, out = self._stream.step(weights, state, normalize(image[None], self._data)[:, 0])
            now = {site: policy[:, None] for site, policy in out.policies.items()}
            # Of two frames together more than of the first alone: with what is computed late for reuse.
            both = {site: jax.numpy.concatenate([before[site], now[site]], 1) for site in now}
            macs = (spent(both) - spent(before), spent(now))
            sites = {site: policy[0].sum(0) for site, policy in out.policies.items()}
            return state, now, (jax.nn.softmax(out.logits[0]), macs, sites)

        self._actions = model.actions
        self._step = jax.jit(step)
        self._start = self._stream.init(1, size)
        like = jax.eval_shape(
            self._stream.step, self._stream.weights, self._start, np.zeros((1, size, size, 3), np.float32)
        )[1]
        self._no_policies = {s: np.zeros((1, 1, *p.shape[1:]), p.dtype) for s, p in like.policies.items()}
        self._frame, self._clip = 0, 1
        self._state, self._before = self._start, self._no_policies
        # Compiles, so that no frame waits for it.
        jax.block_until_ready(self._run(np.zeros((1, size, size, 3), np.uint8)))
        self.dense_seconds = None
        if self._stream.execution == "compact":
            dense, image = Watcher(trained, 1), np.zeros((size, size, 3), np.uint8)
            self.dense_seconds = statistics.median(dense(image).seconds for _ in range(_DENSE_FRAMES))

    def _run(self, image):
        return self._step(self._stream.weights, self._state, self._before, image)

    def __call__(self, image: Image) -> Seen:
        """Takes the next image, of any size."""
        began = time.perf_counter()
        if self._clip_frames and self._frame == self._clip_frames:
            self._frame, self._clip = 0, self._clip + 1
            self._state, self._before = self._start, self._no_policies
        data = self._data
        cut = transforms.crops_along([image], data.resize, data.image_size, 1)[0]
        self._state, self._before, results = self._run(cut)
        probabilities, (later, first), sites = jax.device_get(results)
        order = np.argsort(-probabilities, kind="stable")
        self._frame += 1
        return Seen(
            frame=self._frame,
            clip=self._clip,
            classes=[(self._names[i], float(probabilities[i])) for i in order],
            seconds=time.perf_counter() - began,
            gmacs=float(first if self._frame == 1 else later) / 1e9,
            dense_gmacs=self._dense,
            shares=self._shares(sum(sites.values())) if sites else {},
            sites={site: self._shares(counts) for site, counts in sites.items()},
        )

    def _shares(self, counts: np.ndarray) -> dict[str, float]:
        return dict(zip(self._actions, (counts / counts.sum()).tolist(), strict=True))
