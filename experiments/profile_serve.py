"""Where the CPU time of a request goes in the server.

    python experiments/profile_serve.py --clients=16

For each protocol and kind of request of `bench_serve.py overhead`, sends 20,000 requests with h2load and prints CPU us
per request by part of the server. The main thread's stack is sampled by its own CPU time; a sample counts for the part
of its innermost frame that has one, so the standard library counts for its caller. What is outside of all parts is the
event loop, which includes gRPC's code in C. Other threads (tokenizer, scoring, gRPC's own) are counted as a whole.
"""

import argparse
import collections
import ctypes
import json
import pathlib
import platform
import signal
import sys
import tempfile
import time

import bench_serve

REQUESTS = 20_000
PARTS = {  # part: parts of the paths of its source files
    "connection": ("uvicorn/", "http/connection.py"),
    "dispatch, headers, response": ("starlette/", "http/server.py", "http/routing.py", "http/hosts.py", "/security.py"),
    "gRPC call": ("site-packages/grpc/", "serving/grpc/server.py"),
    "messages to tensors and back": ("http/tensors.py", "http/decoding.py", "grpc/tensors.py", "/protocol.py"),
    "inputs, passing to the tokenizer": ("serving/services/",),
    "queue, batches": ("serving/engine/",),
    "models, metrics": ("/registry.py", "/metrics.py", "/in_flight.py"),
}
LOOP, THREADS = "event loop, gRPC in C", "other threads"
PERIOD = 0.002  # seconds of CPU time between samples; the kernel rounds it up to its ticks


class Sampler:
    """Counts samples by part; SIGUSR1 starts it, and stops it and writes {part: seconds} to a file."""

    def __init__(self, path):
        self._path, self._counts, self._began = path, collections.Counter(), None
        self._timer, libc = ctypes.c_void_p(), ctypes.CDLL(None)
        event = (ctypes.c_int * 16)(0, 0, signal.SIGPROF, 0)  # struct sigevent: value, signal, SIGEV_SIGNAL
        clock = 3  # CLOCK_THREAD_CPUTIME_ID, which the signal module does not offer
        if libc.timer_create(clock, ctypes.byref(event), ctypes.byref(self._timer)):
            raise SystemExit("timer_create failed")
        self._set = lambda seconds: libc.timer_settime(self._timer, 0, (ctypes.c_long * 4)(0, seconds, 0, seconds), 0)
        signal.signal(signal.SIGPROF, self._sample)
        signal.signal(signal.SIGUSR1, self._switch)

    def _sample(self, number, frame):
        while frame is not None:
            file = frame.f_code.co_filename
            for part, names in PARTS.items():
                if any(name in file for name in names):
                    self._counts[part] += 1
                    return
            frame = frame.f_back
        self._counts[LOOP] += 1

    def _switch(self, number, frame):
        times = time.process_time(), time.thread_time()
        if self._began is None:
            self._counts.clear()
            self._began = times
            self._set(round(1e9 * PERIOD))
            return
        self._set(0)
        process, main = (now - then for now, then in zip(times, self._began, strict=True))
        total = sum(self._counts.values())
        found = {part: main * count / total for part, count in self._counts.items()}
        partial = pathlib.Path(f"{self._path}.partial")
        partial.write_text(json.dumps(found | {THREADS: process - main}))
        partial.rename(self._path)
        self._began = None


def main():
    """Starts the server and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--serve", nargs=3, metavar=("HTTP", "GRPC", "FILE"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        http, grpc, path = given.serve
        sampler = Sampler(path)  # noqa: F841
        return bench_serve.serve_rmjax(int(http), int(grpc), 0)
    file = pathlib.Path(tempfile.mkdtemp()) / "seconds"
    command = [sys.executable, str(pathlib.Path(__file__).resolve()), "--serve", "{http}", "{grpc}", str(file)]
    server = bench_serve.Server("rmjax", command)
    columns = {}
    try:
        for protocol in bench_serve.PROTOCOLS:
            for title, (body, expected) in bench_serve.bodies().items():
                load = bench_serve.Load(server, protocol, body, expected)
                load.send(given.clients, 20 * given.clients)
                server.process.send_signal(signal.SIGUSR1)
                requests = REQUESTS // given.clients * given.clients
                load.send(given.clients, requests)
                server.process.send_signal(signal.SIGUSR1)
                while not file.exists():
                    time.sleep(0.05)
                found = json.loads(file.read_text())
                file.unlink()
                columns[f"{protocol}, {title}"] = {part: 1e6 * value / requests for part, value in found.items()}
    finally:
        server.stop()
    print(f"{given.clients} clients, {requests} requests, Python {platform.python_version()}; CPU us per request")
    print(f"{'':34}" + "".join(f"{title:>24}" for title in columns))
    for part in (*PARTS, LOOP, THREADS):
        print(f"{part:34}" + "".join(f"{column.get(part, 0.0):24.0f}" for column in columns.values()))
    print(f"{'all':34}" + "".join(f"{sum(column.values()):24.0f}" for column in columns.values()))


if __name__ == "__main__":
    main()
