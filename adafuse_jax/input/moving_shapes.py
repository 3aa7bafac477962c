"""`moving_shapes`: a synthetic data set whose labels are the direction of time, drawn on demand.

Twelve classes in six pairs; within a pair each class is the other played backwards. A clip of an odd
class is drawn as one of the even class before it and its frames, noise included, are then reversed, so
the reversal of a clip of one class is distributed exactly as a clip of the other. Whatever ignores the
order of the frames therefore can't tell the two apart better than a coin.

The world is a torus: what leaves the image on one side enters on the other. That lets the sliding things
start anywhere, and the turning thing starts at any angle, so there not even the frame known to be the
first says which of the two it is. (A thing that grows is small first by its very meaning; likewise the
last two pairs.)

Lengths are shares of the image's side, times run over [0, 1], angles are degrees, clockwise on the
screen (x to the right, y down), brightness is in [0, 1] until the clip becomes uint8.
"""

import dataclasses
import operator

import cv2
import numpy as np

from adafuse_jax.errors import UserError, unknown
from adafuse_jax.input.shapes import POINTERS, SOLIDS, Thing, paint, sprite, texture, tint

CLASSES = (
    *("right", "left"),
    *("up", "down"),
    *("grow", "shrink"),
    *("clockwise", "counter-clockwise"),
    *("meet", "part"),
    *("cover", "uncover"),
)
SPLITS = ("train", "val")
MIN_IMAGE_SIZE = 16  # pixels; below, the smaller things are hardly wider than one
MAX_TURN = 60.0  # degrees between two frames, well under half of the bar's symmetry of 180


@dataclasses.dataclass(frozen=True)
class Level:
    """How hard the motion is to see."""

    distractors: int  # small things that drift or stand still, whatever the class
    noise: float  # standard deviation, independent for each pixel, channel and frame
    contrast: tuple[float, float]  # range of the brightness of a thing against the background
    polarity: str  # "bright" things, all bright or all dark in a "clip", or each "thing" for itself
    motion: tuple[float, float]  # range of the amount of motion, as a share of the largest


LEVELS = {
    "easy": Level(0, 0.02, (0.45, 0.60), "bright", (0.75, 1.0)),
    "medium": Level(1, 0.05, (0.35, 0.50), "clip", (0.6, 1.0)),
    "hard": Level(2, 0.10, (0.25, 0.35), "thing", (0.4, 0.8)),
}


class MovingShapes:
    """Random access to clips; the clip at an index depends on nothing but the arguments and the index.

    Any 12 clips from a multiple of 12 on hold each class once.

    Args:
        split: "train" or "val"; the two are drawn from different random streams.
        num_frames: T, at least 2: evenly spaced instants from the start of the motion to its end.
        level: "easy", "medium" or "hard".
        length: number of clips.
        seed: of all draws, 0 or more.
        image_size: height and width in pixels, at least 16.

    Raises:
        UserError: for an argument outside of these.
    """

    def __init__(
        self, split: str, num_frames: int, level: str, length: int, seed: int = 0, image_size: int = 48
    ):
        if split not in SPLITS:
            raise unknown("split of moving_shapes", split, SPLITS)
        if level not in LEVELS:
            raise unknown("level of moving_shapes", level, LEVELS)
        for name, value, least in (
            ("num_frames", num_frames, 2),  # the classes are motions: a single frame shows none
            ("image_size", image_size, MIN_IMAGE_SIZE),
            ("length", length, 1),
            ("seed", seed, 0),
        ):
            if value < least:
                raise UserError(f"moving_shapes: expected {name} of at least {least}, found {value}")
        self.split = split
        self.num_frames = num_frames
        self.level = level
        self.length = length
        self.seed = seed
        self.image_size = image_size

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, np.ndarray | int]:
        """The clip at `index`: {"clip": uint8 (T, H, W, 3) RGB, "label": int, the place in `CLASSES`}.

        Raises:
            IndexError: for an index outside [0, length).
        """
        index = operator.index(index)
        if not 0 <= index < self.length:
            raise IndexError(f"moving_shapes: expected an index in [0, {self.length}), found {index}")
        block, place = divmod(index, len(CLASSES))
        label = int(self._rng("labels", block).permutation(len(CLASSES))[place])
        return {"clip": self.draw(index, label), "label": label}

    def draw(self, index: int, label: int) -> np.ndarray:
        """The clip that `index` would show were `label` its class: uint8 (T, H, W, 3).

        The draws of both classes of a pair at one index are each other's exact reversal.
        """
        pair, backwards = divmod(label, 2)
        rng = self._rng("clips", index)
        clip = _render(rng, pair, LEVELS[self.level], self.num_frames, self.image_size)
        return np.ascontiguousarray(clip[::-1]) if backwards else clip

    def _rng(self, purpose: str, number: int) -> np.random.Generator:
        # The seed stands last: numpy spreads a large one over several words.
        return np.random.default_rng(
            [("labels", "clips").index(purpose), SPLITS.index(self.split), number, self.seed]
        )


# --- Motions: the even class of each pair. (rng, amount of motion, t (T,)) -> things, hindmost first. ---


def _thing(rng: np.random.Generator, t: np.ndarray, x, y, radius, angle=None, among=SOLIDS) -> Thing:
    """A thing of a random shape; what is given as one number stays the same in all frames."""
    places = np.empty((len(t), 4))
    places[:, 0], places[:, 1], places[:, 2] = x, y, radius
    places[:, 3] = rng.uniform(0, 360) if angle is None else angle
    return Thing(among[rng.integers(len(among))], places)


def _right(rng: np.random.Generator, motion: float, t: np.ndarray) -> list[Thing]:
    """Two things go right together, each in a lane of its own and from anywhere on it."""
    way = 0.45 * motion * t  # under half a side even in two frames: on a torus, more would look like less
    return [
        _thing(rng, t, rng.uniform() + way, lane + rng.uniform(-0.06, 0.06), rng.uniform(0.13, 0.18))
        for lane in (0.27, 0.73)
    ]


def _up(rng: np.random.Generator, motion: float, t: np.ndarray) -> list[Thing]:
    """`_right`, a quarter turn further."""
    things = _right(rng, motion, t)
    for thing in things:
        thing.places[:, :2] = np.stack([thing.places[:, 1], -thing.places[:, 0]], axis=-1)
    return things


def _grow(rng: np.random.Generator, motion: float, t: np.ndarray) -> list[Thing]:
    """One thing grows by the same factor from each frame to the next, at most 2.5 in all."""
    x, y = rng.uniform(0.35, 0.65, 2)
    return [_thing(rng, t, x, y, rng.uniform(0.26, 0.34) * 2.5 ** (motion * (t - 1)))]


def _clockwise(rng: np.random.Generator, motion: float, t: np.ndarray) -> list[Thing]:
    """One large thing that looks different at every angle turns by at most 150 degrees."""
    x, y = rng.uniform(0.42, 0.58, 2)
    angle = rng.uniform(0, 360) + min(150 * motion, MAX_TURN * (len(t) - 1)) * t
    return [_thing(rng, t, x, y, rng.uniform(0.34, 0.4), angle, POINTERS)]


def _meet(rng: np.random.Generator, motion: float, t: np.ndarray) -> list[Thing]:
    """Two things come towards each other, along any line, until they touch."""
    centre, toward = rng.uniform(0.45, 0.55, 2), _heading(rng)
    radii = rng.uniform(0.1, 0.13, 2)
    first = rng.uniform(0.4, 0.6)  # share of the way that the first of them goes
    things = []
    for side, share, radius in ((-1, first, radii[0]), (1, 1 - first, radii[1])):
        off = side * (0.45 * radii.sum() + 0.34 * motion * share * (1 - t))
        things.append(_thing(rng, t, *(centre[:, None] + toward[:, None] * off), radius))
    return things


def _cover(rng: np.random.Generator, motion: float, t: np.ndarray) -> list[Thing]:
    """A larger thing comes from any side over one that stands still, and hides it at the end."""
    toward = _heading(rng)
    hidden, hider = rng.uniform(0.13, 0.16), rng.uniform(0.17, 0.2)
    way = 1.15 * (hidden + hider) * motion
    goal = rng.uniform(0.43, 0.57, 2) + toward * way / 2  # the middle of the way lies near the image's
    path = goal[:, None] - toward[:, None] * way * (1 - t)
    return [_thing(rng, t, *goal, hidden), _thing(rng, t, *path, hider, among=("circle", "square"))]


_MOTIONS = (_right, _up, _grow, _clockwise, _meet, _cover)


def _distractor(rng: np.random.Generator, t: np.ndarray) -> Thing:
    """A small thing that drifts any way or, half the time, stands still: alike in both directions of time."""
    way = _heading(rng) * rng.uniform(0.1, 0.4) * rng.integers(2)
    path = rng.uniform(size=2)[:, None] + way[:, None] * t
    return _thing(rng, t, *path, rng.uniform(0.045, 0.07))


def _heading(rng: np.random.Generator) -> np.ndarray:
    angle = rng.uniform(0, 2 * np.pi)
    return np.array([np.cos(angle), np.sin(angle)])


def _render(rng: np.random.Generator, pair: int, level: Level, num_frames: int, side: int) -> np.ndarray:
    """Draws all that is random about a clip of the pair's even class, and the clip: uint8 (T, H, W, 3)."""
    t = np.linspace(0, 1, num_frames)
    things = [_distractor(rng, t) for _ in range(level.distractors)]
    things += _MOTIONS[pair](rng, rng.uniform(*level.motion), t)
    contrasts = rng.uniform(*level.contrast, len(things))
    if level.polarity == "clip":
        contrasts *= rng.choice((-1, 1))
    elif level.polarity == "thing":
        contrasts *= rng.choice((-1, 1), len(things))
    # Where all things lie on one side of the background, it moves to the other side of middle grey.
    ground = 0.5 + rng.uniform(-0.08, 0.08)
    if level.polarity != "thing":
        ground -= contrasts.mean() / 2
    background = texture(rng, side, ground + tint(rng, 0.06), 0.04)
    hue = tint(rng, 0.2)
    pictures = []
    for thing, contrast in zip(things, contrasts, strict=True):
        pictures.append(sprite(rng, thing, ground + contrast + hue, side))
        hue = -hue  # neighbours have opposite hues, to be told apart where they touch
    clip = np.empty((num_frames, side, side, 3), np.uint8)
    for number in range(num_frames):
        frame = background.copy()
        for thing, picture in zip(things, pictures, strict=True):
            paint(frame, picture, thing.places[number])
        noise = rng.standard_normal(frame.shape, np.float32)
        # Rounds, and holds what lies outside of [0, 255] at its ends.
        clip[number] = cv2.addWeighted(frame, 255, noise, 255 * level.noise, 0, dtype=cv2.CV_8U)
    return clip
