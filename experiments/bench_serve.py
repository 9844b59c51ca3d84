"""Benchmark of the server against PyTriton, on which NeMo-Aligner's reward servers are built.

    python experiments/bench_serve.py overhead --peer=PYTHON_WITH_NVIDIA_PYTRITON
    python experiments/bench_serve.py model --model=DIR --peer=PYTHON_WITH_NVIDIA_PYTRITON_TORCH_TRANSFORMERS
    python experiments/bench_serve.py overload
    python experiments/bench_serve.py memory

`overhead`: the reward is a sum in NumPy, so only the server's overhead is measured. `model`: a real reward model, with
the samples of one prompt in one request; PyTriton runs transformers. `overload`: requests at three times the maximum
rate, each with a deadline. `memory`: resident memory over 100,000 requests. Both servers are measured alternately with
the same clients; ratios are medians over the rounds. Without --peer, only rmjax is measured. PyTriton needs a separate
interpreter, because it requires another version of NumPy.
"""

import argparse
import asyncio
import json
import pathlib
import socket
import statistics
import struct
import subprocess
import sys
import time
import types

ROUNDS, SECONDS, WARM_UP_SECONDS = 3, 2.0, 0.5
OVERLOAD_SECONDS = 20.0  # many batches, each of a third of a second
CLIENTS = (1, 16, 128, 1024)
INFER = b"/v2/models/reward_model/infer"
PROTOCOLS = ("http", "grpc")
SAMPLES, MAX_LENGTH = 8, 1024
REQUESTS, PARTS = 100_000, 20
WITHOUT_PEER = ("overload", "memory")
LOOP = asyncio.Runner()  # of all clients, since grpc.aio must be used in one event loop only


# Servers, each in its own process.


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def serve_rmjax(http_port, grpc_port, delay):
    """Serves the NumPy reward with rmjax; scoring a sequence takes `delay` seconds more."""
    import numpy as np
    import uvloop

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
        return [np.frombuffer(text.encode(), np.uint8).astype(np.int32) for text in texts]

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
        tokenizer = types.SimpleNamespace(encode=encode, bos_prefix="", pad_and_eos=())
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

    def __init__(self, name, command):
        self.name, self.http, self.grpc = name, free_port(), free_port()
        here = str(pathlib.Path(__file__).resolve())
        command = [part.format(here=here, http=self.http, grpc=self.grpc) for part in command]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
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

    def memory(self):
        """Returns the resident MiB of the process and its children."""
        total, pending = 0, [self.process.pid]
        while pending:
            pid = pending.pop()
            children = pathlib.Path(f"/proc/{pid}/task/{pid}/children")
            pending += [int(child) for child in children.read_text().split()]
            lines = pathlib.Path(f"/proc/{pid}/status").read_text().splitlines()
            total += sum(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))
        return total >> 10

    def stop(self):
        self.process.terminate()
        self.process.wait(60)


def get(port, path):
    with socket.create_connection(("127.0.0.1", port), timeout=5) as client:
        client.sendall(b"GET " + path + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
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


def http_message(given, parameters):
    inputs = [
        {"name": name, "datatype": kind, "shape": shape, "parameters": {"binary_data_size": len(raw)}}
        for name, kind, shape, raw in given
    ]
    outputs = [{"name": "rewards", "parameters": {"binary_data": True}}]
    header = json.dumps({"inputs": inputs, "outputs": outputs, "parameters": parameters}).encode()
    body = header + b"".join(raw for *_, raw in given)
    lines = b"Host: x\r\nInference-Header-Content-Length: %d\r\nContent-Length: %d\r\n\r\n" % (len(header), len(body))
    return b"POST " + INFER + b" HTTP/1.1\r\n" + lines + body


def grpc_message(given, parameters):
    from tritonclient.grpc import service_pb2

    request = service_pb2.ModelInferRequest(model_name="reward_model")
    for name, kind, shape, raw in given:
        request.inputs.add(name=name, datatype=kind, shape=shape)
        request.raw_input_contents.append(raw)
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


async def closed_loop(server, protocol, message, clients, seconds):
    """Returns (requests/s, latencies in seconds) of clients that send the next message after each response."""
    channels = []
    if protocol == "http":
        senders = [await http_client(server.http) for _ in range(clients)]
    else:
        import grpc

        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]
        channels = [grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc}", options) for _ in range(min(clients, 8))]
        calls = [channel.unary_unary("/inference.GRPCInferenceService/ModelInfer") for channel in channels]
        senders = [calls[i % len(calls)] for i in range(clients)]
    times, start = [], time.perf_counter() + WARM_UP_SECONDS
    end = start + seconds

    async def run(send):
        while (sent := time.perf_counter()) < end:
            if await send(message) is False:
                raise SystemExit(f"{server.name} refused a request")
            if sent >= start:
                times.append(time.perf_counter() - sent)

    await asyncio.gather(*map(run, senders))
    for channel in channels:
        await channel.close()
    return len(times) / seconds, times


def alternate(servers, measure):
    """Runs `measure(server)` for each server in each round; prints medians over the rounds, and their ratio."""
    rounds = {server.name: [] for server in servers}
    for _ in range(ROUNDS):
        for server in servers:
            rate, times = measure(server)
            times.sort()
            rounds[server.name].append((rate, times[len(times) // 2], times[int(0.99 * len(times))]))
    for name, measured in rounds.items():
        rate, p50, p99 = (statistics.median(column) for column in zip(*measured, strict=True))
        print(f"    {name:10} {rate:8.1f} /s   p50 {1e3 * p50:8.2f} ms   p99 {1e3 * p99:8.2f} ms", flush=True)
    if len(servers) == 2:
        pairs = list(zip(*rounds.values(), strict=True))
        rate_ratio = statistics.median(own[0] / peer[0] for own, peer in pairs)
        p50_ratio = statistics.median(own[1] / peer[1] for own, peer in pairs)
        print(f"    rmjax / PyTriton: rate {rate_ratio:.2f}, p50 {p50_ratio:.2f}", flush=True)


def overhead(servers):
    """Rates and latencies with a reward that costs almost nothing."""
    bodies = {"text of 1 KB": texts_body([b"x" * 1024]), "tokens 8 x 1024": tokens_body(8, 1024)}
    for protocol in PROTOCOLS:
        serialize = {"http": http_message, "grpc": grpc_message}[protocol]
        for title, body in bodies.items():
            message = serialize(*body)
            for clients in CLIENTS:
                print(f"{protocol}, {title}, {clients} clients", flush=True)
                measure = lambda server: LOOP.run(closed_loop(server, protocol, message, clients, SECONDS))  # noqa: B023
                alternate(servers, measure)
    for server in servers:
        print(f"{server.name}: {server.memory()} MiB at the end")


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
            send, times = await http_client(server.http), []
            await send(messages[0])
            began = time.perf_counter()
            for message in messages[1:]:
                sent = time.perf_counter()
                if not await send(message):
                    raise SystemExit(f"{server.name} refused a request")
                times.append(time.perf_counter() - sent)
            return SAMPLES * len(times) / (time.perf_counter() - began), times

        return LOOP.run(run())

    print(f"{SAMPLES} samples per prompt, one request at a time: samples/s")
    alternate(servers, measure)


def overload(servers):
    """Goodput of an open loop at three times the maximum rate, with a deadline of one second per request."""
    (server,) = servers
    message = http_message(*texts_body([b"x" * 1024], timeout=1_000_000))
    peak, _ = LOOP.run(closed_loop(server, "http", message, 64, SECONDS))

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
    global CLIENTS, PROTOCOLS
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    benchmarks = {"overhead": overhead, "model": model, "overload": overload, "memory": memory}
    choices = [*benchmarks, "serve-rmjax", "serve-pytriton"]
    parser.add_argument("benchmark", choices=choices, metavar="|".join(benchmarks), help="see above")
    parser.add_argument("--peer", default="", help="Python interpreter with nvidia-pytriton")
    parser.add_argument("--model", default="", help="Hugging Face sequence classifier with one label")
    parser.add_argument("--clients", default="", help="numbers of concurrent clients, separated by commas")
    parser.add_argument("--protocol", default="", choices=["", *PROTOCOLS], help="of `overhead`; default: both")
    parser.add_argument("--delay", type=float, default=0.0, help=argparse.SUPPRESS)
    parser.add_argument("--ports", type=int, nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.benchmark == "serve-rmjax":
        return serve_rmjax(*given.ports, given.delay)
    if given.benchmark == "serve-pytriton":
        return serve_pytriton(*given.ports, given.model)
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
    servers = [Server("rmjax", command)]
    try:
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
