"""Stopping a run between two steps: Ctrl-C and SIGTERM ask, the loop saves and ends.

A KeyboardInterrupt raised wherever the run happens to be may leave Orbax's writing threads waiting for
minutes for a signal that never comes.
"""

import signal
import threading


class Stop:
    """While entered, the first SIGINT or SIGTERM only sets `asked`; a second one ends the process as usual.

    Outside of the main thread, where Python allows no handlers, nothing is ever asked.
    """

    def __init__(self):
        self.asked: signal.Signals | None = None
        self._before = {}

    def __enter__(self) -> "Stop":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *_) -> None:
        self._restore()

    def _ask(self, number: int, _) -> None:
        self.asked = signal.Signals(number)
        self._restore()

    def _restore(self) -> None:
        while self._before:
            signal.signal(*self._before.popitem())
