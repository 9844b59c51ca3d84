"""Speed of the server against PyTriton, whose servers NeMo-Aligner's reward models run in.

    python experiments/bench_serve.py overhead --peer=PYTHON_WITH_NVIDIA_PYTRITON
    python experiments/bench_serve.py model --model=DIR --peer=PYTHON_WITH_NVIDIA_PYTRITON_TORCH_TRANSFORMERS
    python experiments/bench_serve.py overload
    python experiments/bench_serve.py memory

`overhead`: the reward is a sum in NumPy, so that what is measured is the server. `model`: a real reward model, samples
of one prompt together; the peer runs transformers. `overload`: three times as many requests as can be answered, each
with a deadline. `memory`: what the server holds in memory while it answers 100,000 requests. Both sides run in turns,
asked by the same clients; the ratio is the median over the turns. Without --peer only our side runs. PyTriton needs an
interpreter of its own, since it wants another NumPy.
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

ROUNDS, SECONDS, WARM = 3, 2.0, 0.5
OVERLOAD_SECONDS = 20.0  # many batches of a third of a second
CLIENTS = (1, 16, 128, 1024)
INFER = b"/v2/models/reward_model/infer"
FACES = ("http", "grpc")
SAMPLES, MAX_LENGTH = 8, 1024
REQUESTS, PARTS = 100_000, 20
ALONE = ("overload", "memory")  # without the peer
LOOP = asyncio.Runner()  # of the clients: grpc.aio does not outlive one event loop well


# The servers, each in a process of its own.


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def serve_ours(http_port, grpc_port, delay):
    """Serves the NumPy reward with rmjax."""
    import numpy as np
    import uvloop

    from rmjax.serving.app import serve
    from rmjax.serving.engine.queue import Engine
    from rmjax.serving.registry import ModelRegistry
    from rmjax.serving.security import Security
    from rmjax.serving.services.reward import RewardService

    def score(trees):
        if delay:  # a sleep of 0 would still hand the interpreter over
            time.sleep(delay * sum(len(tree.branches) for tree in trees))
        sums = [(tree.prefix.sum(), [branch.sum() for branch in tree.branches]) for tree in trees]
        return [np.array([[shared + own] for own in each], np.float32) for shared, each in sums]

    def encode(texts, close):
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
    """Serves the NumPy reward, or a model by transformers, with PyTriton, bound as NeMo-Aligner binds its own."""
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
            inside = np.arange(inputs["tokens"].shape[1]) < lengths
            return {"rewards": (inputs["tokens"] * inside).sum(axis=1, keepdims=True).astype(np.float32)}
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


# The clients: messages are made once, so that the clients cost little.


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
    """Returns a coroutine function that sends a message and returns whether it was answered."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)

    async def ask(message):
        writer.write(message)
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length: ")[-1].split(b"\r\n")[0])
        await reader.readexactly(length)
        return head.startswith(b"HTTP/1.1 200")

    return ask


async def drive(server, face, message, clients, seconds):
    """Returns (requests/s, seconds of each) of clients that send the next message when they have the answer."""
    channels = []
    if face == "http":
        asks = [await http_client(server.http) for _ in range(clients)]
    else:
        import grpc

        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]
        channels = [grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc}", options) for _ in range(min(clients, 8))]
        calls = [channel.unary_unary("/inference.GRPCInferenceService/ModelInfer") for channel in channels]
        asks = [calls[i % len(calls)] for i in range(clients)]
    times, began = [], time.perf_counter()
    counted, ends = began + WARM, began + WARM + seconds

    async def run(ask):
        while (sent := time.perf_counter()) < ends:
            answer = await ask(message)
            if answer is False:
                raise SystemExit(f"{server.name} refused a request")
            if sent >= counted:
                times.append(time.perf_counter() - sent)

    await asyncio.gather(*map(run, asks))
    for channel in channels:
        await channel.close()
    return len(times) / seconds, times


def in_turns(servers, measure):
    """Runs `measure(server)` for the servers in turns; prints each one's medians and the ratio."""
    figures = {server.name: [] for server in servers}
    for _ in range(ROUNDS):
        for server in servers:
            rate, times = measure(server)
            times.sort()
            figures[server.name].append((rate, times[len(times) // 2], times[int(0.99 * len(times))]))
    for name, found in figures.items():
        rate, middle, slow = (statistics.median(column) for column in zip(*found, strict=True))
        print(f"    {name:10} {rate:8.1f} /s   p50 {1e3 * middle:8.2f} ms   p99 {1e3 * slow:8.2f} ms", flush=True)
    if len(servers) == 2:
        pairs = list(zip(*figures.values(), strict=True))
        rates = statistics.median(ours[0] / peer[0] for ours, peer in pairs)
        middles = statistics.median(ours[1] / peer[1] for ours, peer in pairs)
        print(f"    ours / peer: rate {rates:.2f}, p50 {middles:.2f}", flush=True)


def overhead(servers):
    """What the servers cost by themselves."""
    bodies = {"text of 1 KB": texts_body([b"x" * 1024]), "tokens 8 x 1024": tokens_body(8, 1024)}
    for face in FACES:
        make = {"http": http_message, "grpc": grpc_message}[face]
        for title, body in bodies.items():
            message = make(*body)
            for clients in CLIENTS:
                print(f"{face}, {title}, {clients} clients", flush=True)
                in_turns(servers, lambda server: LOOP.run(drive(server, face, message, clients, SECONDS)))  # noqa: B023
    for server in servers:
        print(f"{server.name}: {server.memory()} MiB at the end")


def model(servers):
    """Comparisons/s of a real model; a request holds the samples of one prompt."""
    words = [
        f"{start}{end}" for start in ("re", "un", "over", "fore") for end in ("see", "do", "take", "go", "make", "find")
    ]
    line = lambda seed, count: " ".join(words[(seed * 7 + i * (i + seed)) % len(words)] for i in range(count))
    made = [[f"{line(i, 250)} Answer: {line(100 * i + k, 30)}.".encode() for k in range(SAMPLES)] for i in range(5)]
    messages = [http_message(*texts_body(texts)) for texts in made]

    def measure(server):
        async def run():
            ask, times = await http_client(server.http), []
            await ask(messages[0])
            began = time.perf_counter()
            for message in messages[1:]:
                sent = time.perf_counter()
                if not await ask(message):
                    raise SystemExit(f"{server.name} refused a request")
                times.append(time.perf_counter() - sent)
            return SAMPLES * len(times) / (time.perf_counter() - began), times

        return LOOP.run(run())

    print(f"{SAMPLES} samples a prompt, one request at a time: samples/s")
    in_turns(servers, measure)


def overload(servers):
    """Three times as many requests as can be answered, open loop, each with a deadline of a second."""
    (server,) = servers
    message = http_message(*texts_body([b"x" * 1024], timeout=1_000_000))
    peak, _ = LOOP.run(drive(server, "http", message, 64, SECONDS))

    async def run():
        asks = [await http_client(server.http) for _ in range(4096)]
        free, times, refused, tasks = list(asks), [], 0, set()

        async def one(ask):
            nonlocal refused
            sent = time.perf_counter()
            if await ask(message):
                times.append(time.perf_counter() - sent)
            else:
                refused += 1
            free.append(ask)

        began = time.perf_counter()
        sent = 0
        while (now := time.perf_counter() - began) < OVERLOAD_SECONDS:
            while sent < 3 * peak * now and free:
                task = asyncio.create_task(one(free.pop()))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
                sent += 1
            await asyncio.sleep(0.002)
        while tasks:
            await asyncio.wait(tasks)
        return len(times) / OVERLOAD_SECONDS, refused, sorted(times)

    goodput, refused, times = LOOP.run(run())
    slow = 1e3 * times[int(0.99 * len(times))]
    print(
        f"peak {peak:.0f} /s; at three times that: goodput {goodput:.0f} /s ({goodput / peak:.2f} of the peak), "
        f"{refused} refused or expired, p99 of the answered {slow:.0f} ms"
    )


def memory(servers):
    """The server's resident memory while 16 clients send REQUESTS texts of 1 KB, each another one."""
    (server,) = servers

    async def run():
        asks = [await http_client(server.http) for _ in range(16)]
        for part in range(PARTS + 1):
            print(f"{part * REQUESTS // PARTS:7,} requests: {server.memory()} MiB", flush=True)
            numbers = iter(range(part * REQUESTS // PARTS, min(part + 1, PARTS) * REQUESTS // PARTS))

            async def one(ask):
                for number in numbers:  # noqa: B023
                    if not await ask(http_message(*texts_body([b"%01024d" % number]))):
                        raise SystemExit(f"{server.name} refused a request")

            await asyncio.gather(*map(one, asks))

    began = time.perf_counter()
    LOOP.run(run())
    print(f"{REQUESTS / (time.perf_counter() - began):.0f} requests/s")


def main():
    """Runs what the flags say."""
    global CLIENTS, FACES
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["overhead", "model", "overload", "memory", "serve-ours", "serve-pytriton"])
    parser.add_argument("--peer", default="", help="interpreter with nvidia-pytriton")
    parser.add_argument("--model", default="", help="Hugging Face sequence classifier with one label")
    parser.add_argument("--clients", default="", help="numbers of clients, with commas")
    parser.add_argument("--face", default="", choices=["", *FACES], help="that one alone")
    parser.add_argument("--delay", type=float, default=0.0, help=argparse.SUPPRESS)
    parser.add_argument("--ports", type=int, nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.what == "serve-ours":
        return serve_ours(*given.ports, given.delay)
    if given.what == "serve-pytriton":
        return serve_pytriton(*given.ports, given.model)
    if given.clients:
        CLIENTS = tuple(map(int, given.clients.split(",")))
    if given.face:
        FACES = (given.face,)
    ports = ["--ports", "{http}", "{grpc}"]
    if given.what == "model":
        ours = [
            sys.executable,
            "-m",
            "rmjax.serve",
            f"--model={given.model}",
            "--http_port={http}",
            "--grpc_port={grpc}",
            f"--max_length={MAX_LENGTH}",
        ]
    else:
        delay = 0.005 if given.what == "overload" else 0.0
        ours = [sys.executable, "{here}", "serve-ours", f"--delay={delay}", *ports]
    servers = [Server("ours", ours)]
    try:
        if given.peer and given.what not in ALONE:
            servers.append(
                Server("PyTriton", [given.peer, "{here}", "serve-pytriton", f"--model={given.model}", *ports])
            )
        elif given.what not in ALONE:
            print("PyTriton is left out: no --peer")
        {"overhead": overhead, "model": model, "overload": overload, "memory": memory}[given.what](servers)
    finally:
        for server in servers:
            server.stop()


if __name__ == "__main__":
    main()
