"""The price of `rmjax.serve --deterministic`: conversations per second beside the default server.

    python experiments/bench_deterministic.py --model=DIR [--rounds=5 --seconds=10]

Two servers of one model are loaded alternately by clients with one request in flight each: `single`, a conversation per
request, and `samples`, eight responses to one prompt per request, which the default server computes once. Texts are
random words; prompts have some 200 tokens, responses some 60. Prints medians over the rounds, and of the ratios.
"""

import argparse
import concurrent.futures
import contextlib
import os
import platform
import statistics
import subprocess
import sys
import time

import numpy as np

from rmjax.serving import Client

CLIENTS, SAMPLES = 16, 8
PROMPT_WORDS, RESPONSE_WORDS = 150, 45  # mean numbers
WORDS = ("the", "of", "and", "to", "in", "is", "that", "for", "it", "was", "with", "be", "by", "on", "not", "he")


@contextlib.contextmanager
def server(model, *flags):
    """Yields the URL of a server in a process of its own."""
    program = [sys.executable, "-m", "rmjax.serve", f"--model={model}", "--grpc_port=0", "--http_port=0", *flags]
    with subprocess.Popen(program, text=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        try:
            for line in process.stdout:
                if line.startswith("HTTP on "):
                    break
            yield f"http://{line.split()[-1]}"
        finally:
            process.terminate()


def texts(rng, count, mean):
    return [" ".join(rng.choice(WORDS, size=rng.poisson(mean) + 1)) for _ in range(count)]


def rate(url, samples, seconds, seed):
    """Returns the conversations per second that the server answers."""
    end = time.monotonic() + seconds

    def client(i):
        rng, count = np.random.default_rng([seed, i]), 0
        with Client(url) as made:
            while time.monotonic() < end:
                (prompt,), responses = texts(rng, 1, PROMPT_WORDS), texts(rng, samples, RESPONSE_WORDS)
                count += len(made.rewards([f" {response}" for response in responses], prompt))
        return count

    began = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(CLIENTS) as pool:
        return sum(pool.map(client, range(CLIENTS))) / (time.monotonic() - began)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10.0)
    arguments = parser.parse_args()
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, {arguments.model}")
    with server(arguments.model) as default, server(arguments.model, "--deterministic") as deterministic:
        for name, samples in (("single", 1), ("samples", SAMPLES)):
            rates = {default: [], deterministic: []}
            for number in range(arguments.rounds):
                for url in (default, deterministic) if number % 2 else (deterministic, default):
                    rates[url].append(rate(url, samples, arguments.seconds, number))
            ratios = [one / other for one, other in zip(rates[deterministic], rates[default], strict=True)]
            medians = [statistics.median(rates[url]) for url in (default, deterministic)]
            print(
                f"{name}: default {medians[0]:.1f}/s, deterministic {medians[1]:.1f}/s, "
                f"ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
                flush=True,
            )


if __name__ == "__main__":
    main()
