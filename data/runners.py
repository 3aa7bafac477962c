"""Who writes the shards: this process, a process for each core, or Apache Beam on a cluster."""

import concurrent.futures
import importlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool

from adafuse_jax.errors import UserError
from data import shards
from data.shards import Report, Task

_POLL = 0.3  # seconds between two looks at the workers' progress


class Stopped(Exception):
    """Raised in a worker whose run has ended."""


def run(tasks: list[Task], workers: int, advance: Callable[[int], None]) -> Iterator[Report]:
    """Writes shards and gives their reports, in any order.

    Args:
        tasks: the shards.
        workers: processes; 1: this one.
        advance: called with the number of clips done since it was last called.

    Raises:
        UserError: when a worker dies.
    """
    workers = min(workers, len(tasks))
    if workers <= 1:
        for task in tasks:
            yield shards.write(task, lambda: advance(1))
    else:
        yield from _in_processes(tasks, workers, advance)


def _in_processes(tasks: list[Task], workers: int, advance: Callable[[int], None]) -> Iterator[Report]:
    context = multiprocessing.get_context("spawn")  # a fork would copy threads' locks of av and OpenCV
    done, stop, shown = context.Value("q", 0), context.Event(), 0
    pool = concurrent.futures.ProcessPoolExecutor(workers, context, _start_worker, (done, stop))
    try:
        with pool:
            try:
                pending = {pool.submit(_write, task) for task in tasks}
                while pending:
                    ready, pending = concurrent.futures.wait(
                        pending, _POLL, concurrent.futures.FIRST_COMPLETED
                    )
                    count = done.value
                    advance(count - shown)
                    shown = count
                    for future in ready:
                        yield future.result()
            finally:
                stop.set()
                pool.shutdown(wait=False, cancel_futures=True)
    except BrokenProcessPool as error:
        raise UserError(
            "a worker process died (out of memory?): expected it to finish its shard; the same command "
            "goes on with what is missing, --workers takes fewer"
        ) from error


def _start_worker(done, stop) -> None:
    """Sets up a worker: Ctrl-C is for the parent, and when the parent dies the worker does too."""
    global _done, _stop
    _done, _stop = done, stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _write(task: Task) -> Report:
    return shards.write(task, _tick)


def _tick() -> None:
    if _stop.is_set():
        raise Stopped
    with _done.get_lock():
        _done.value += 1


def run_beam(tasks: list[Task], arguments: list[str]) -> list[Report]:
    """Writes shards by Apache Beam, whose workers must see the same files and import this repository.

    Args:
        tasks: the shards.
        arguments: of Beam: --runner=..., --direct_num_workers=...

    Raises:
        UserError: without Apache Beam.
    """
    try:
        beam = importlib.import_module("apache_beam")
        options = importlib.import_module("apache_beam.options.pipeline_options")
    except ImportError as error:
        raise UserError(f"--beam: expected Apache Beam (pip install apache-beam), found: {error}") from error
    with beam.Pipeline(options=options.PipelineOptions(arguments)) as pipeline:
        # Beam may carry out a task twice, even at once: each writes the same bytes and renames its own file.
        written = pipeline | beam.Create(tasks) | beam.Reshuffle()
        _ = written | beam.Map(_write_or_fail)
    return [report for report in map(shards.finished, tasks) if report]


def _write_or_fail(task: Task) -> None:
    report = shards.write(task)
    if not report.finished:
        raise UserError(f"{task.path.name}: too many clips can't be read, the last is {report.rejected[-1]}")
