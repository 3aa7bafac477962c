"""How fast a run goes, what it waits for, and how much memory it takes."""

import contextlib
import resource
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax


class Speed:
    """Measures between two logs; see `figures`.

    Steps are dispatched while earlier ones still run, so a batch that the loop waits for may keep no device
    waiting. A thread notes when each step is done: waited for data is only the time in which the devices had
    nothing left to do and the next batch wasn't there.

    Args:
        devices: whose memory to tell.
        clock: seconds from any start.
    """

    def __init__(self, devices: list[jax.Device], clock=time.perf_counter):
        self._devices, self._clock = devices, clock
        self._watch = ThreadPoolExecutor(1, thread_name_prefix="speed")
        self._idle_from: Future[float] | None = None  # when the step dispatched last is done
        self.start()

    def start(self) -> None:
        """Measures from now on; to be called after what isn't training, such as an evaluation."""
        self._began, self._waits = self._clock(), []

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Around what gives the next batch."""
        asked = self._clock()
        yield
        self._waits.append((asked, self._clock(), self._idle_from))

    def dispatched(self, outputs: Any) -> None:
        """Takes note of a step that was started; `outputs` are any of its arrays, not donated later."""
        self._idle_from = self._watch.submit(self._done, outputs)

    def _done(self, outputs: Any) -> float:
        jax.block_until_ready(outputs)
        return self._clock()

    def figures(self, clips: float) -> dict[str, float]:
        """Since `start`, after the devices are done (which this waits for).

        Args:
            clips: trained on since.

        Returns:
            `clips_per_s`, which before the first log includes compiling; `data_wait_share` of the time;
            `host_peak_gb`, most memory that this process had at once; `device_peak_gb`, most that a device
            had in use, where it says so; in 1e9 bytes.
        """
        waited = 0.0
        for asked, arrived, idle_from in self._waits:
            idle = asked if idle_from is None else max(asked, idle_from.result())
            waited += max(0.0, arrived - idle)
        if self._idle_from is not None:
            self._idle_from.result()
        seconds = max(self._clock() - self._began, 1e-9)
        return {
            "clips_per_s": clips / seconds,
            "data_wait_share": waited / seconds,
            **memory(self._devices),
        }

    def close(self) -> None:
        """Ends the thread."""
        self._watch.shutdown()

    def __enter__(self) -> "Speed":
        return self

    def __exit__(self, *_) -> None:
        self.close()


def memory(devices: list[jax.Device]) -> dict[str, float]:
    """Peaks of this process and of its fullest device, in 1e9 bytes; see `Speed.figures`."""
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes
    found = {"host_peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9}
    own = [device.memory_stats() or {} for device in devices if device.process_index == jax.process_index()]
    peaks = [stats["peak_bytes_in_use"] for stats in own if "peak_bytes_in_use" in stats]
    return found | ({"device_peak_gb": max(peaks) / 1e9} if peaks else {})
