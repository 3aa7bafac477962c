"""Small instances of the data sets, laid out as their owners ship them.

Every frame is plain grey and tells its number: brightness 6 a frame, in videos and in JPEGs.
"""

import json

import av
import cv2
import numpy as np

STEP = 6  # brightness between two frames: well above what compression changes
V2_CLASSES = {  # with the templates that the owner's train.json gives; out of order, as a dict may be
    "Pushing something so that it falls": "1",
    "Holding something next to something": "0",
    "Folding something": "2",
}


def images(count, height=24, width=32):
    return [np.full((height, width, 3), STEP * i, np.uint8) for i in range(count)]


def numbers(frames):
    """The frame number that each image tells."""
    return [round(float(np.mean(frame)) / STEP) for frame in frames]


def video(path, count, height=24, width=32, codec="libx264"):
    path.parent.mkdir(parents=True, exist_ok=True)
    fast = (
        {"deadline": "realtime", "cpu-used": "8"} if codec.startswith("libvpx") else {"preset": "ultrafast"}
    )
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=12, options=fast)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for image in images(count, height, width):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


def jpegs(folder, count, height=24, width=32, template="{:05d}.jpg"):
    folder.mkdir(parents=True)
    for number, image in enumerate(images(count, height, width), 1):
        cv2.imwrite(str(folder / template.format(number)), image)


def folders_set(root, name, prefix, classes, splits, frames=12):
    """Something-Something V1 and Jester: JPEG folders and CSV files.

    Args:
        root: the manual_dir.
        name: "jester-v1".
        prefix: of the label files: "jester-v1-", or "labels/" as newer downloads have it.
        classes: in label order.
        splits: {split: [(clip, class or None)]}.
        frames: of the first clip; each further one has one more.
    """
    (root / f"{prefix}labels").parent.mkdir(parents=True, exist_ok=True)
    (root / f"{prefix}labels.csv").write_text("".join(f"{c}\n" for c in classes))
    for split, clips in splits.items():
        lines = [f"{clip};{text}\n" if text else f"{clip}\n" for clip, text in clips]
        (root / f"{prefix}{split}.csv").write_text("".join(lines))
    for i, clip in enumerate(clip for clips in splits.values() for clip, _ in clips):
        jpegs(root / f"20bn-{name}" / clip, frames + i)
    return root


def something_something_v1(root):
    classes = ["Holding something", "Turning something upside down", "Closing something"]
    splits = {
        "train": [("100218", classes[2]), ("7", classes[0]), ("31", classes[1]), ("32", classes[0])],
        "validation": [("48032", classes[1]), ("9", classes[2])],
        "test": [("1420", None)],
    }
    return folders_set(root, "something-something-v1", "something-something-v1-", classes, splits)


def jester(root):
    classes = ["Swiping Left", "Swiping Right", "Doing other things"]
    splits = {
        "train": [("1", classes[2]), ("2", classes[0])],
        "validation": [("3", classes[1])],
        "test": [("4", None), ("5", None)],
    }
    folders_set(root, "jester-v1", "labels/", classes, splits)
    (root / "labels" / "test-answers.csv").write_text(f"5;{classes[0]}\n4;{classes[1]}\n")
    return root


def something_something_v2(root, prefix="labels/"):
    entries = {
        "train": [
            ("78687", "Holding [something] next to [something]"),
            ("3", "Pushing [something] so that it falls"),
            ("41", "Folding [something]"),
        ],
        "validation": [("12", "Folding [something]")],
        "test": [("99", None)],
    }
    (root / f"{prefix}labels").parent.mkdir(parents=True, exist_ok=True)
    (root / f"{prefix}labels.json").write_text(json.dumps(V2_CLASSES))
    for split, clips in entries.items():
        content = [
            {"id": clip}
            | ({"label": "folding a towel", "template": text, "placeholders": []} if text else {})
            for clip, text in clips
        ]
        (root / f"{prefix}{split}.json").write_text(json.dumps(content))
        for clip, _ in clips:
            count = 10 + len(clip)
            video(root / "20bn-something-something-v2" / f"{clip}.webm", count, codec="libvpx-vp9")
    return root


def mini_kinetics(root):
    clips = {
        "train": {"archery": ["a_000001_000011", "b_000000_000010"], "air drumming": ["c_000005_000015"]},
        "val": {"archery": ["d_000000_000010"], "air drumming": ["e_000000_000010"]},
    }
    for split, classes in clips.items():
        for name, names in classes.items():
            for clip in names:
                video(root / split / name / f"{clip}.mp4", 30 + len(name))
    return root


def video_list(root, train=6, frames=20, height=24, width=32):
    """Three classes; the last clip of each list is a JPEG folder."""
    for name, count in (("train", train), ("val", 3)):
        lines = []
        for i in range(count - 1):
            video(root / "clips" / f"{name} {i}.mp4", frames + i, height, width)
            lines.append(f"clips/{name} {i}.mp4 {i % 3}\n")
        jpegs(root / "frames" / name, frames, height, width, "img_{:05d}.jpg")
        (root / f"{name}.txt").write_text("".join(lines) + f"frames/{name} {frames} 2\n")
    (root / "classes.txt").write_text("jump\nrun\nsit\n")
    return root
