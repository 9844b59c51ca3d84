"""Benchmark of the server against PyTriton, on which NeMo-Aligner's reward servers are built.

    python experiments/bench_serve.py overhead --peer=PYTHON_WITH_NVIDIA_PYTRITON
    python experiments/bench_serve.py model --model=DIR --peer=PYTHON_WITH_NVIDIA_PYTRITON_TORCH_TRANSFORMERS
    python experiments/bench_serve.py overload
    python experiments/bench_serve.py memory

`overhead`: the reward is a sum in NumPy, so only the server's overhead is measured: requests/s at saturation, latency,
and the CPU time of the server and of the load generator per request. The generator is h2load (package nghttp2-client),
with one connection per client for HTTP/1.1 and for gRPC. `model`: a real reward model, with the samples of one prompt
in one request; PyTriton runs transformers. `overload`: requests at three times the maximum rate, each with a deadline.
`memory`: resident memory over 100,000 requests.

The servers are measured alternately; numbers and ratios are medians over the rounds. Without --peer, only rmjax is
measured; --base names another checkout of rmjax to compare with. PyTriton needs a separate interpreter, because it
requires another version of NumPy.
"""

import argparse
import asyncio
import contextlib
import json
import os
import pathlib
import platform
import re
import resource
import shutil
import signal
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
import types
import urllib.request

ROUNDS, SECONDS, WARM_UP_SECONDS = 3, 2.0, 0.5
WARM_UP_REQUESTS = 200  # at least; a multiple of the number of clients
OVERLOAD_SECONDS = 20.0  # many batches, each of a third of a second
CLIENTS = (1, 16, 128, 1024)
INFER = b"/v2/models/reward_model/infer"
LENGTH_HEADER = "Inference-Header-Content-Length"
PROTOCOLS = ("http", "grpc")
SAMPLES, MAX_LENGTH = 8, 1024
REQUESTS, PARTS = 100_000, 20
WITHOUT_PEER = ("overload", "memory")
GRPC_METHOD = "/inference.GRPCInferenceService/ModelInfer"
LOOP = asyncio.Runner()


# Servers, each in its own process.


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def serve_rmjax(http_port, grpc_port, delay):
    """Serves the NumPy reward with rmjax; scoring a sequence takes `delay` seconds more."""
    import numpy as np
    import uvloop

    from rmjax.data.tokens.readouts import Readout
    from rmjax.data.tokens.tokenizer import Encoded
    from rmjax.serving.app import serve
    from rmjax.serving.engine.queue import Engine
    from rmjax.serving.registry import ModelRegistry
    from rmjax.serving.security import Security
    from rmjax.serving.services.reward import RewardService

    def score(trees):
        if delay:  # sleep(0) would release the GIL too
            time.sleep(delay * sum(len(tree.branches) for tree in trees))
        sums = [(tree.prefix.sum(), [branch.sum() for branch in tree.branches]) for tree in trees]
        return [np.array([[prefix + branch] for branch in branches], np.float32) for prefix, branches in sums]

    def encode(texts, add_eos):
        return [Encoded(np.frombuffer(text.encode(), np.uint8).astype(np.int32)) for text in texts]

    def load(metrics):
        engine = Engine(
            score,
            lambda: None,
            max_length=2048,
            batch_tokens=64 * 1024,
            queue_size=16384,
            queue_tokens=1 << 24,
            metrics=metrics,
        )
        options = {"bos_prefix": "", "pad_and_eos": (), "readout_place": Readout()}
        tokenizer = types.SimpleNamespace(encode_checked=encode, **options)
        return RewardService(engine, tokenizer, vocab_size=1 << 31, attributes=("reward",))

    async def main():
        await serve(ModelRegistry({"reward_model": load}), "127.0.0.1", grpc_port, http_port, Security())

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


def serve_pytriton(http_port, grpc_port, model):
    """Serves the NumPy reward, or a model of transformers, with PyTriton, configured as NeMo-Aligner's servers."""
    import numpy as np
    from pytriton.decorators import batch
    from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
    from pytriton.triton import Triton, TritonConfig

    if model:
        import torch
        import transformers

        tokenizer = transformers.AutoTokenizer.from_pretrained(model)
        classifier = transformers.AutoModelForSequenceClassification.from_pretrained(model).eval()

    @batch
    def infer(**inputs):
        if "sentences" not in inputs:
            lengths = inputs["sequence_lengths"]
            mask = np.arange(inputs["tokens"].shape[1]) < lengths
            return {"rewards": (inputs["tokens"] * mask).sum(axis=1, keepdims=True).astype(np.float32)}
        texts = [text.decode() for text in inputs["sentences"][:, 0]]
        if not model:
            sums = [[np.frombuffer(text.encode(), np.uint8).sum(dtype=np.int64)] for text in texts]
            return {"rewards": np.array(sums, np.float32)}
        with torch.no_grad():
            encoded = tokenizer(texts, padding=True, return_tensors="pt", add_special_tokens=False)
            logits = classifier(encoded["input_ids"], encoded["attention_mask"]).logits
        return {"rewards": logits.numpy().astype(np.float32)}

    config = TritonConfig(
        http_port=http_port,
        grpc_port=grpc_port,
        allow_metrics=False,
        http_address="127.0.0.1",
        grpc_address="127.0.0.1",
    )
    with Triton(config=config) as triton:
        triton.bind(
            model_name="reward_model",
            infer_func=infer,
            inputs=[
                Tensor(name="sentences", shape=(-1,), dtype=bytes, optional=True),
                Tensor(name="tokens", shape=(-1,), dtype=np.int64, optional=True),
                Tensor(name="sequence_lengths", shape=(-1,), dtype=np.int64, optional=True),
            ],
            outputs=[Tensor(name="rewards", shape=(1,), dtype=np.float32)],
            config=ModelConfig(max_batch_size=128, batcher=DynamicBatcher(max_queue_delay_microseconds=2000)),
        )
        triton.serve()


class Server:
    """A server in a subprocess."""

    def __init__(self, name, command, path=""):
        self.name, self.http, self.grpc = name, free_port(), free_port()
        here = str(pathlib.Path(__file__).resolve())
        command = [part.format(here=here, http=self.http, grpc=self.grpc) for part in command]
        environment = os.environ | ({"PYTHONPATH": path} if path else {})
        null = subprocess.DEVNULL
        self.process = subprocess.Popen(command, stdout=null, stderr=null, env=environment)
        for _ in range(1200):
            if self.process.poll() is not None:
                raise SystemExit(f"{name} did not start: {' '.join(command)}")
            try:
                if get(self.http, b"/v2/models/reward_model/ready"):
                    return
            except OSError:
                pass
            time.sleep(0.1)
        raise SystemExit(f"{name} was not ready within two minutes")

    def processes(self):
        """Returns the /proc directories of the process and its children."""
        found, pending = [], [self.process.pid]
        while pending:
            found.append(pathlib.Path(f"/proc/{pending.pop()}"))
            for children in found[-1].glob("task/*/children"):
                pending += [int(child) for child in children.read_text().split()]
        return found

    def memory(self):
        """Returns the resident MiB of the process and its children."""
        lines = [line for process in self.processes() for line in (process / "status").read_text().splitlines()]
        return sum(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) >> 10

    def cpu_seconds(self):
        """Returns the CPU time that the process and its children have used, in user and kernel mode."""
        stats = [(process / "stat").read_text().rpartition(") ")[2].split() for process in self.processes()]
        return sum(int(stat[11]) + int(stat[12]) for stat in stats) / os.sysconf("SC_CLK_TCK")

    def stop(self):
        for process in self.processes():  # PyTriton does not stop its own ones on SIGTERM
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(process.name), signal.SIGTERM)
        self.process.wait(60)


def get(port, path):
    with socket.create_connection(("127.0.0.1", port), timeout=5) as client:
        client.sendall(b"GET " + path + b" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        return b" 200 " in client.recv(1 << 16).split(b"\r\n")[0]


# Clients: messages are serialized once, so that the clients use little CPU time.


def texts_body(texts, **parameters):
    raw = b"".join(struct.pack("<I", len(text)) + text for text in texts)
    given = [("sentences", "BYTES", [len(texts), 1], raw)]
    return given, parameters


def tokens_body(rows, width):
    import numpy as np

    tokens = np.random.default_rng(0).integers(0, 1000, (rows, width), np.int64)
    lengths = np.full((rows, 1), width, np.int64)
    return [
        ("tokens", "INT64", [rows, width], tokens.tobytes()),
        ("sequence_lengths", "INT64", [rows, 1], lengths.tobytes()),
    ], {}


def bodies():
    """Returns {title: (body, bytes of the rewards)} of the requests of `overhead`."""
    import numpy as np

    tokens = tokens_body(8, 1024)
    sums = np.frombuffer(tokens[0][0][3], np.int64).reshape(8, 1024).sum(1)
    return {
        "text of 1 KB": (texts_body([b"x" * 1024]), np.float32(1024 * ord("x")).tobytes()),
        "tokens 8 x 1024": (tokens, sums.astype(np.float32).tobytes()),
    }


def http_body(given, parameters):
    """Returns the size of the JSON part, and the body."""
    inputs = [
        {"name": name, "datatype": kind, "shape": shape, "parameters": {"binary_data_size": len(raw)}}
        for name, kind, shape, raw in given
    ]
    outputs = [{"name": "rewards", "parameters": {"binary_data": True}}]
    header = json.dumps({"inputs": inputs, "outputs": outputs, "parameters": parameters}).encode()
    return len(header), header + b"".join(raw for *_, raw in given)


def http_message(given, parameters):
    size, body = http_body(given, parameters)
    lines = b"Host: localhost\r\n%s: %d\r\nContent-Length: %d\r\n\r\n" % (LENGTH_HEADER.encode(), size, len(body))
    return b"POST " + INFER + b" HTTP/1.1\r\n" + lines + body


def grpc_message(given, parameters):
    from tritonclient.grpc import service_pb2

    request = service_pb2.ModelInferRequest(model_name="reward_model")
    for name, kind, shape, raw in given:
        request.inputs.add(name=name, datatype=kind, shape=shape)
        request.raw_input_contents.append(raw)
    request.outputs.add(name="rewards")
    return request.SerializeToString()


async def http_client(port):
    """Returns a coroutine function that sends a message and returns whether the response has status 200."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)

    async def send(message):
        writer.write(message)
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length: ")[-1].split(b"\r\n")[0])
        await reader.readexactly(length)
        return head.startswith(b"HTTP/1.1 200")

    return send


class Load:
    """Requests that h2load sends to one protocol of a server; a first one checks the rewards of the reply.

    Args:
      expected: bytes of the rewards, at the end of each reply.
    """

    def __init__(self, server, protocol, body, expected):
        self.server = server
        if protocol == "http":
            self.path, (size, data) = INFER.decode(), http_body(*body)
            headers, port = {LENGTH_HEADER: str(size)}, server.http
            request = urllib.request.Request(f"http://localhost:{port}{self.path}", data, headers)
            with urllib.request.urlopen(request) as response:
                reply = response.read()
            self.reply_size = len(reply)
        else:
            import grpc

            message, port, self.path = grpc_message(*body), server.grpc, GRPC_METHOD
            headers, data = {"content-type": "application/grpc", "te": "trailers"}, frame(message)
            with grpc.insecure_channel(f"localhost:{port}") as channel:
                reply = channel.unary_unary(self.path)(message)
            self.reply_size = len(frame(reply))
        if not reply.endswith(expected):
            raise SystemExit(f"{server.name}, {protocol}: the rewards are not {expected!r}, but {reply[-80:]!r}")
        self.file = tempfile.NamedTemporaryFile()  # noqa: SIM115
        self.file.write(data)
        self.file.flush()
        options = [f"--header={name}: {value}" for name, value in headers.items()]
        options += ["--h1"] if protocol == "http" else []
        self.command = ["h2load", "--max-concurrent-streams=1", f"--data={self.file.name}", *options]
        self.url = f"http://localhost:{port}{self.path}"

    def send(self, clients, requests):
        """Returns (requests/s, latencies in seconds, CPU seconds of server and generator) of `requests` requests."""
        with tempfile.NamedTemporaryFile("r") as log:
            options = [f"--clients={clients}", f"--requests={requests}", f"--log-file={log.name}"]
            server, own = self.server.cpu_seconds(), resource.getrusage(resource.RUSAGE_CHILDREN)
            done = subprocess.run([*self.command, *options, self.url], capture_output=True, text=True, check=True)
            used = resource.getrusage(resource.RUSAGE_CHILDREN)
            server = self.server.cpu_seconds() - server
            times = [int(line.split()[2]) / 1e6 for line in log]
        good = re.search(r"(\d+) succeeded", done.stdout), re.search(r"\((\d+)\) data", done.stdout)
        # A gRPC call that fails has status 200 too, but no message.
        if [int(match[1]) for match in good] != [requests, requests * self.reply_size]:
            raise SystemExit(f"{self.server.name} refused requests: {done.stdout}")
        rate = float(re.search(r"([\d.]+) req/s", done.stdout)[1])
        return rate, times, server, used.ru_utime - own.ru_utime + used.ru_stime - own.ru_stime

    def measure(self, clients):
        """Returns (requests/s, p50 and p99 in ms, CPU us per request of server and generator) at saturation."""
        rate, *_ = self.send(clients, clients * -(-WARM_UP_REQUESTS // clients))
        requests = clients * max(1, round(SECONDS * rate / clients))
        rate, times, server, own = self.send(clients, requests)
        times.sort()
        latencies = (1e3 * times[len(times) // 2], 1e3 * times[int(0.99 * len(times))])
        return rate, *latencies, 1e6 * server / requests, 1e6 * own / requests


def frame(message):
    """Returns an uncompressed message as gRPC sends it in HTTP/2."""
    return struct.pack(">BI", 0, len(message)) + message


def overhead(servers):
    """Rates, latencies and CPU times with a reward that costs almost nothing."""
    if not shutil.which("h2load"):
        raise SystemExit("h2load is not installed: apt-get install nghttp2-client")
    version = subprocess.run(["h2load", "--version"], capture_output=True, text=True, check=True).stdout.split()[-1]
    setup = f"h2load {version}, Python {platform.python_version()}, {os.cpu_count()} cores"
    print(f"{setup}; {ROUNDS} rounds of {SECONDS} s")
    print("requests/s, p50 and p99 in ms, CPU us per request of server and h2load; ratios: rmjax / other")
    for protocol in PROTOCOLS:
        for title, (body, expected) in bodies().items():
            loads = [Load(server, protocol, body, expected) for server in servers]
            for clients in CLIENTS:
                print(f"{protocol}, {title}, {clients} clients", flush=True)
                rounds = [[load.measure(clients) for load in loads] for _ in range(ROUNDS)]
                for server, measured in zip(servers, zip(*rounds, strict=True), strict=True):
                    rate, p50, p99, cpu, own = map(statistics.median, zip(*measured, strict=True))
                    ratios = [
                        [first / value for first, value in zip(own_round[0], row, strict=True)]
                        for own_round, row in zip(rounds, measured, strict=True)
                    ]
                    rate_ratio, p50_ratio, _, cpu_ratio, _ = map(statistics.median, zip(*ratios, strict=True))
                    compared = f"   ratios: rate {rate_ratio:.2f}, p50 {p50_ratio:.2f}, CPU {cpu_ratio:.2f}"
                    print(
                        f"    {server.name:10} {rate:8.1f} /s   p50 {p50:8.2f}   p99 {p99:8.2f}   CPU {cpu:6.0f} + "
                        f"{own:4.0f}{compared if server is not servers[0] else ''}",
                        flush=True,
                    )
    for server in servers:
        print(f"{server.name}: {server.memory()} MiB at the end")


async def closed_loop(server, message, clients, seconds):
    """Returns the requests/s of HTTP clients that send the next message after each response."""
    senders = [await http_client(server.http) for _ in range(clients)]
    count, start = 0, time.perf_counter() + WARM_UP_SECONDS
    end = start + seconds

    async def run(send):
        nonlocal count
        while (sent := time.perf_counter()) < end:
            if await send(message) is False:
                raise SystemExit(f"{server.name} refused a request")
            count += sent >= start

    await asyncio.gather(*map(run, senders))
    return count / seconds


def model(servers):
    """Samples/s of a real model; a request holds the samples of one prompt."""
    words = [
        f"{start}{end}" for start in ("re", "un", "over", "fore") for end in ("see", "do", "take", "go", "make", "find")
    ]
    line = lambda seed, count: " ".join(words[(seed * 7 + i * (i + seed)) % len(words)] for i in range(count))
    requests = [[f"{line(i, 250)} Answer: {line(100 * i + k, 30)}.".encode() for k in range(SAMPLES)] for i in range(5)]
    messages = [http_message(*texts_body(texts)) for texts in requests]

    def measure(server):
        async def run():
            send = await http_client(server.http)
            await send(messages[0])
            began = time.perf_counter()
            for message in messages[1:]:
                if not await send(message):
                    raise SystemExit(f"{server.name} refused a request")
            return SAMPLES * len(messages[1:]) / (time.perf_counter() - began)

        return LOOP.run(run())

    print(f"{SAMPLES} samples per prompt, one request at a time: samples/s")
    rounds = [[measure(server) for server in servers] for _ in range(ROUNDS)]
    for server, rates in zip(servers, zip(*rounds, strict=True), strict=True):
        ratio = statistics.median(own / rate for (own, *_), rate in zip(rounds, rates, strict=True))
        print(f"    {server.name:10} {statistics.median(rates):8.1f} /s; rmjax: {ratio:.2f} times that")


def overload(servers):
    """Goodput of an open loop at three times the maximum rate, with a deadline of one second per request."""
    (server,) = servers
    message = http_message(*texts_body([b"x" * 1024], timeout=1_000_000))
    peak = LOOP.run(closed_loop(server, message, 64, SECONDS))

    async def run():
        idle = [await http_client(server.http) for _ in range(4096)]
        times, refused, tasks = [], 0, set()

        async def request(send):
            nonlocal refused
            sent = time.perf_counter()
            if await send(message):
                times.append(time.perf_counter() - sent)
            else:
                refused += 1
            idle.append(send)

        began = time.perf_counter()
        sent = 0
        while (now := time.perf_counter() - began) < OVERLOAD_SECONDS:
            while sent < 3 * peak * now and idle:
                task = asyncio.create_task(request(idle.pop()))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
                sent += 1
            await asyncio.sleep(0.002)
        while tasks:
            await asyncio.wait(tasks)
        return len(times) / OVERLOAD_SECONDS, refused, sorted(times)

    goodput, refused, times = LOOP.run(run())
    p99 = 1e3 * times[int(0.99 * len(times))]
    print(
        f"maximum rate {peak:.0f} /s; at three times that: goodput {goodput:.0f} /s ({goodput / peak:.2f} of the "
        f"maximum), {refused} refused or expired, p99 of the successful requests {p99:.0f} ms"
    )


def memory(servers):
    """Resident memory of the server while 16 clients send REQUESTS different texts of 1 KB."""
    (server,) = servers

    async def run():
        senders = [await http_client(server.http) for _ in range(16)]
        for part in range(PARTS + 1):
            print(f"{part * REQUESTS // PARTS:7,} requests: {server.memory()} MiB", flush=True)
            numbers = iter(range(part * REQUESTS // PARTS, min(part + 1, PARTS) * REQUESTS // PARTS))

            async def run_client(send):
                for number in numbers:  # noqa: B023
                    if not await send(http_message(*texts_body([b"%01024d" % number]))):
                        raise SystemExit(f"{server.name} refused a request")

            await asyncio.gather(*map(run_client, senders))

    began = time.perf_counter()
    LOOP.run(run())
    print(f"{REQUESTS / (time.perf_counter() - began):.0f} requests/s")


def main():
    """Starts the servers and runs a benchmark."""
    global CLIENTS, PROTOCOLS, ROUNDS
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    benchmarks = {"overhead": overhead, "model": model, "overload": overload, "memory": memory}
    choices = [*benchmarks, "serve-rmjax", "serve-pytriton"]
    parser.add_argument("benchmark", choices=choices, metavar="|".join(benchmarks), help="see above")
    parser.add_argument("--peer", default="", help="Python interpreter with nvidia-pytriton")
    parser.add_argument("--base", default="", help="another checkout of rmjax to compare with")
    parser.add_argument("--model", default="", help="Hugging Face sequence classifier with one label")
    parser.add_argument("--clients", default="", help="numbers of concurrent clients, separated by commas")
    parser.add_argument("--protocol", default="", choices=["", *PROTOCOLS], help="of `overhead`; default: both")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="default: %(default)s")
    parser.add_argument("--delay", type=float, default=0.0, help=argparse.SUPPRESS)
    parser.add_argument("--ports", type=int, nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.benchmark == "serve-rmjax":
        return serve_rmjax(*given.ports, given.delay)
    if given.benchmark == "serve-pytriton":
        return serve_pytriton(*given.ports, given.model)
    ROUNDS = given.rounds
    if given.clients:
        CLIENTS = tuple(map(int, given.clients.split(",")))
    if given.protocol:
        PROTOCOLS = (given.protocol,)
    ports = ["--ports", "{http}", "{grpc}"]
    if given.benchmark == "model":
        command = [
            sys.executable,
            "-m",
            "rmjax.serve",
            f"--model={given.model}",
            "--http_port={http}",
            "--grpc_port={grpc}",
            f"--max_length={MAX_LENGTH}",
        ]
    else:
        delay = 0.005 if given.benchmark == "overload" else 0.0
        command = [sys.executable, "{here}", "serve-rmjax", f"--delay={delay}", *ports]
    root = str(pathlib.Path(__file__).resolve().parents[1])
    servers = [Server("rmjax", command, root)]
    try:
        if given.base:
            servers.append(Server("base", command, given.base))
        if given.peer and given.benchmark not in WITHOUT_PEER:
            servers.append(
                Server("PyTriton", [given.peer, "{here}", "serve-pytriton", f"--model={given.model}", *ports])
            )
        elif given.benchmark not in WITHOUT_PEER:
            print("PyTriton is not measured: --peer is not set")
        benchmarks[given.benchmark](servers)
    finally:
        for server in servers:
            server.stop()


if __name__ == "__main__":
    main()
