"""Speed by a clock that the test sets: what waiting for data is, and what isn't."""

import threading

import jax
import pytest

from adafuse_jax.train.speed import Speed


class Clock:
    """Gives the main thread and the thread that watches the devices their own times, in turn."""

    def __init__(self, main, devices):
        self._times = {True: iter(main), False: iter(devices)}

    def __call__(self):
        return next(self._times[threading.current_thread() is threading.main_thread()])


def measured(main, devices, clips=8):
    """The figures of as many steps as `devices` has times, dispatched as soon as their batch arrived."""
    with Speed([], Clock(main, devices)) as speed:
        for _ in devices:
            with speed.waiting():
                pass
            speed.dispatched(())
        return speed.figures(clips)


@pytest.mark.parametrize(
    "batches, done, share",
    [
        # (asked, arrived) of each batch; when the step before the next is done.
        ([(0, 1), (1, 2), (2, 3)], [4, 7, 10], 1 / 10),  # only the first kept the devices waiting
        ([(0, 3), (3, 6), (6, 9)], [4, 7, 10], (3 + 2 + 2) / 10),  # each came 2 after the step before
        ([(0, 0), (0, 5), (5, 8)], [5, 8, 10], 0.0),  # each just in time
    ],
)
def test_waiting_is_when_the_devices_have_nothing_to_do(batches, done, share):
    figures = measured([0, *sum(batches, ()), 10], done, clips=40)
    assert figures["data_wait_share"] == pytest.approx(share)
    assert figures["clips_per_s"] == 4


def test_what_comes_between_is_not_measured():
    """An evaluation from 5 to 95, after which the devices are idle until the next batch is there."""
    with Speed([], Clock([0, 0, 1, 5, 95, 95, 97, 100], [4, 99])) as speed:
        with speed.waiting():
            pass
        speed.dispatched(())
        first = speed.figures(10)
        speed.start()
        with speed.waiting():
            pass
        speed.dispatched(())
        second = speed.figures(10)
    assert (first["clips_per_s"], first["data_wait_share"]) == (2, 1 / 5)
    assert (second["clips_per_s"], second["data_wait_share"]) == (2, 2 / 5)


class Device:
    process_index = 0

    def __init__(self, stats):
        self._stats = stats

    def memory_stats(self):
        return self._stats


def test_memory_is_what_the_fullest_device_says():
    with Speed([Device({"peak_bytes_in_use": 2e9}), Device({"peak_bytes_in_use": 5e9}), Device({})]) as speed:
        assert speed.figures(1)["device_peak_gb"] == 5
    with Speed(jax.devices()) as speed:  # CPUs say nothing
        figures = speed.figures(1)
    assert figures.keys() == {"clips_per_s", "data_wait_share", "host_peak_gb"}
    assert 0.05 < figures["host_peak_gb"] < 100


def test_real_steps_are_waited_for():
    step = jax.jit(lambda x: (x @ x).sum())
    with Speed(jax.devices()) as speed:
        for _ in range(3):
            with speed.waiting():
                batch = jax.numpy.ones((64, 64))
            speed.dispatched(step(batch))
        figures = speed.figures(3)
    assert figures["clips_per_s"] > 0
    assert 0 <= figures["data_wait_share"] <= 1


def test_a_batch_that_never_comes_is_no_wait():
    with Speed([]) as speed:
        with pytest.raises(StopIteration), speed.waiting():
            next(iter(()))
        assert speed.figures(1)["data_wait_share"] == 0
