"""Worker processes that tokenize chunks of comparisons, one chunk at a time each.

A worker is a program of its own, `python -m rmjax.data.tokens.workers`, which reads pickled chunks from its standard
input and writes pickled results to its standard output. Processes of `multiprocessing` would run the user's script
again, or fork a process in which JAX runs threads.
"""

import collections
import concurrent.futures
import contextlib
import os
import pickle
import queue
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

Chunk = TypeVar("Chunk")
_WAITING = 2  # chunks per worker that are read ahead


class _Worker:
    """A worker process; `work` is sent to it and has to be picklable."""

    def __init__(self, work: Callable[[Any], Any]):
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(path or os.curdir for path in sys.path),
            "TOKENIZERS_PARALLELISM": "false",  # one thread: the processes use all cores
        }
        process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            process_group=0 if os.name == "posix" else None,  # Ctrl-C is for the main process, which ends the workers
        )
        assert process.stdin is not None
        assert process.stdout is not None
        self._process, self._input, self._output = process, process.stdin, process.stdout
        self._send(work)

    def __call__(self, chunk: Any) -> Any:
        """Returns `work(chunk)`, or raises its exception."""
        self._send(chunk)
        try:
            succeeded, result = pickle.load(self._output)
        except (EOFError, pickle.UnpicklingError) as error:
            raise RuntimeError(
                f"a process that tokenizes ended with exit status {self._process.wait()} (negative: a signal; -9: "
                "killed, often because memory was full); see its error above"
            ) from error
        if not succeeded:
            raise result
        return result

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._input, self._output):
            with contextlib.suppress(BrokenPipeError):  # of what was not sent
                pipe.close()

    def _send(self, value: Any) -> None:
        with contextlib.suppress(BrokenPipeError):  # reported by the read that follows
            pickle.dump(value, self._input, pickle.HIGHEST_PROTOCOL)
            self._input.flush()


def map_in_processes(work: Callable[[Chunk], Any], chunks: Iterable[Chunk], count: int) -> Iterator[Any]:
    """Yields `work(chunk)` of each chunk in order, computed in `count` processes while further chunks are read.

    Args:
      work: has to be picklable, as chunks and results.
      chunks: read in the present thread, a few ahead.
      count: number of worker processes.

    Raises:
      RuntimeError: a worker process was killed. Exceptions of `work` and `chunks` are raised as they are.
    """
    workers = [_Worker(work) for _ in range(count)]
    free: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
    for worker in workers:
        free.put(worker)

    def run(chunk: Chunk) -> Any:
        worker = free.get()
        try:
            return worker(chunk)
        finally:
            free.put(worker)

    pending: collections.deque[concurrent.futures.Future] = collections.deque()
    executor = concurrent.futures.ThreadPoolExecutor(count)
    try:
        for chunk in chunks:
            pending.append(executor.submit(run, chunk))
            if len(pending) > _WAITING * count:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        executor.shutdown(wait=False, cancel_futures=True)
        for worker in workers:  # after which the threads that wait for them end
            worker.stop()


def main() -> None:
    """Runs a worker process: results of chunks from standard input go to standard output, until its end."""
    source, target = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints does not mix with the results
    work = pickle.load(source)
    while True:
        try:
            chunk = pickle.load(source)
        except EOFError:
            return
        try:
            reply = True, work(chunk)
        except Exception as error:
            reply = False, error
        pickle.dump(reply, target, pickle.HIGHEST_PROTOCOL)
        target.flush()


if __name__ == "__main__":
    main()
