"""Video files for tests, encoded on the spot."""

import av
import cv2
import numpy as np


def write_video(
    path,
    images,
    codec="libx264",
    pixels="yuv420p",
    options=None,
    muxer=None,
    times=None,
    rate=10,
    seconds_of_sound=0,
    keep_packet=lambda index: True,
):
    """Encodes RGB images.

    Args:
        path: its suffix decides the container.
        images: uint8 (H, W, 3), H and W even.
        codec: of the pictures.
        pixels: their pixel format.
        options: of the encoder.
        muxer: options of the container.
        times: of the frames in 1/1000 s; constant rate when None.
        rate: frames per second.
        seconds_of_sound: length of a silent sound track; 0 for none.
        keep_packet: whether to write a packet, given its index.
    """
    with av.open(str(path), "w", options=muxer or {}) as container:
        stream = container.add_stream(codec, rate=1000 if times else rate, options=options or {})
        stream.height, stream.width = images[0].shape[:2]
        stream.pix_fmt = pixels
        sound = container.add_stream("aac", rate=8000, layout="mono") if seconds_of_sound else None
        packets = []
        for i, image in enumerate(images):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            if times:
                frame.pts = times[i]
            packets += stream.encode(frame)
        packets += stream.encode()
        packets = [packet for i, packet in enumerate(packets) if keep_packet(i)]
        if sound:
            packets += _silence(sound, seconds_of_sound)
            packets.sort(key=lambda packet: packet.dts * packet.time_base)
        for packet in packets:
            container.mux(packet)


def write_sound(path, seconds=1):
    """A file of silence, without pictures."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000, layout="mono")
        for packet in _silence(stream, seconds):
            container.mux(packet)


def greys(count, step=10, height=32, width=48):
    """Images that tell their number by their brightness."""
    return [np.full((height, width, 3), step * i, np.uint8) for i in range(count)]


def textures(count, seed=0, height=64, width=96):
    """Images of a moving texture with noise, which spreads the bytes of a file over its frames."""
    random = np.random.default_rng(seed)
    wide = cv2.resize(random.integers(40, 216, (16, 24, 3), np.uint8), (width + count, height))
    noise = random.integers(-20, 20, (count, height, width, 3))
    return [(wide[:, i : i + width] + noise[i]).astype(np.uint8) for i in range(count)]


def _silence(stream, seconds):
    packets = []
    for start in range(0, 8000 * seconds, 1000):
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1000), np.float32), format="fltp", layout="mono")
        frame.rate, frame.pts = 8000, start
        packets += stream.encode(frame)
    return packets + stream.encode()
