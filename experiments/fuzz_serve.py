"""Fuzz test of the server: random mutations of valid HTTP and gRPC messages.

    python experiments/fuzz_serve.py --count=100000

The reward is the sum of a text's bytes, so expected scores are known. Every eighth message is valid; a mutated message
may still be valid too. Failures are: an internal server error (HTTP 500, gRPC INTERNAL or UNKNOWN), no response to a
complete request, a wrong score, and a server that stops responding.
"""

import argparse
import asyncio
import collections
import json
import random
import socket
import struct
import threading
import types

import grpc
import numpy as np
from tritonclient.grpc import service_pb2

from rmjax.data.tokens.readouts import Readout
from rmjax.data.tokens.tokenizer import Encoded
from rmjax.serving.app import Server
from rmjax.serving.engine.queue import Engine
from rmjax.serving.registry import ModelRegistry
from rmjax.serving.services.reward import RewardService

THREADS = 4
INFER = "/v2/models/reward_model/infer"
TEXTS = ["a text", "Grüße", "x" * 50]
ALLOWED = {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "UNIMPLEMENTED", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED"}
UNEXPECTED = [None, True, -1, 0, 2**31, 2**63, 2**70, 1.5, "", "\ud800", "x" * 99, [], {}, [[]], [None], {"name": 1},
              "BYTES", "FP32", "sentences", "tokens", [[[1]]], float("nan")]  # fmt: skip


def total(text):
    return float(sum(text.encode()))


def load(metrics):
    """Returns the model: the reward of a text is the sum of its bytes."""

    def score(trees):
        return [
            np.array([[tree.prefix.sum() + branch.sum()] for branch in tree.branches], np.float32) for tree in trees
        ]

    def encode(texts, add_eos):
        rendered = [text if isinstance(text, str) else "".join(m["content"] for m in text) for text in texts]
        return [Encoded(np.frombuffer(text.encode(), np.uint8).astype(np.int32)) for text in rendered]

    engine = Engine(score, lambda: None, max_length=256, batch_tokens=4096, queue_size=1024, metrics=metrics)
    strings = lambda tokens: list(map(str, tokens))
    options = {"bos_prefix": "", "pad_and_eos": (), "readout_place": Readout()}
    tokenizer = types.SimpleNamespace(encode_checked=encode, token_strings=strings, **options)
    return RewardService(engine, tokenizer, vocab_size=1 << 20, attributes=("reward",))


def http_seeds():
    """Returns valid requests as (method, path, headers, body)."""
    data = {"name": "sentences", "datatype": "BYTES", "shape": [len(TEXTS), 1], "data": TEXTS}
    messages = data | {"name": "messages", "data": [json.dumps([{"role": "user", "content": text}]) for text in TEXTS]}
    raw = b"".join(struct.pack("<I", len(text.encode())) + text.encode() for text in TEXTS)
    head = {key: value for key, value in data.items() if key != "data"} | {"parameters": {"binary_data_size": len(raw)}}
    header = json.dumps(
        {"inputs": [head], "outputs": [{"name": "rewards", "parameters": {"binary_data": True}}]}
    ).encode()
    numbers = lambda name, shape, values: {"name": name, "datatype": "INT64", "shape": shape, "data": values}
    tokens = [numbers("tokens", [2, 3], [1, 2, 3, 4, 5, 6]), numbers("sequence_lengths", [2, 1], [3, 1])]
    bodies = [
        (INFER, {"inputs": [data], "id": "1", "parameters": {"truncate": True, "timeout": 10**9}}),
        (INFER, {"inputs": [messages], "outputs": [{"name": "rewards"}]}),
        (INFER, {"inputs": tokens}),
        ("/get_reward", {"query": TEXTS, "prompts": TEXTS, "labels": ["", "", ""]}),
        ("/classify", {"model": "reward_model", "input": TEXTS, "use_activation": False}),
        ("/classify", {"messages": [{"role": "user", "content": "hi"}], "truncate_prompt_tokens": -1}),
        ("/pooling", {"input": [[1, 2], [3]]}),
        ("/predict", {"inputs": [["a", "b"], ["c", "d"]], "raw_scores": True, "truncate": False}),
        ("/score", {"prompt": "a", "response": "b", "label": None}),
        ("/tokenize", {"prompt": "ab", "return_token_strs": True}),
        ("/v2/repository/index", {"ready": True}),
    ]
    seeds = [("POST", path, {}, json.dumps(body).encode()) for path, body in bodies]
    seeds.append(("POST", INFER, {"Inference-Header-Content-Length": str(len(header))}, header + raw))
    gets = ("/", "/docs", "/metrics", "/v2", "/v2/health/ready", "/v2/models/reward_model/config")
    return seeds + [("GET", path, {}, b"") for path in gets]


def grpc_seeds():
    """Returns valid messages as (method, bytes)."""
    typed = service_pb2.ModelInferRequest(model_name="reward_model", id="1")
    typed.inputs.add(name="sentences", datatype="BYTES", shape=[2, 1]).contents.bytes_contents.extend([b"ab", b"c"])
    typed.parameters["truncate"].bool_param = True
    raw = service_pb2.ModelInferRequest(model_name="reward_model", raw_input_contents=[bytes(range(24)), bytes(8)])
    raw.inputs.add(name="tokens", datatype="INT64", shape=[1, 3])
    raw.inputs.add(name="sequence_lengths", datatype="INT64", shape=[1, 1])
    named = service_pb2.ModelMetadataRequest(name="reward_model")
    return [
        ("ModelInfer", typed.SerializeToString()),
        ("ModelInfer", raw.SerializeToString()),
        ("ModelMetadata", named.SerializeToString()),
        ("ModelConfig", named.SerializeToString()),
    ]


def mutate(data, rng):
    """Returns bytes with one to four random changes."""
    data = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at, length = rng.randrange(len(data) + 1), rng.randint(1, 8)
        kind = rng.randrange(6)
        if kind == 0 and data:
            data[min(at, len(data) - 1)] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[at : at + length] = b""
        elif kind == 2:
            data[at:at] = rng.randbytes(length)
        elif kind == 3:
            data[at:at] = data[at : at + 4 * length]
        elif kind == 4:
            data[at : at + length] = rng.choice(
                [b"-1", b"0", b"99999999999999999999", b"\xff" * 8, b"null", b"[", b'"']
            )
        else:
            del data[rng.randrange(len(data) + 1) :]
    return bytes(data)


def mutate_json(value, rng):
    """Returns a JSON value with one node replaced, removed or duplicated."""
    nodes = []

    def walk(node):
        for key in list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ():
            nodes.append((node, key))
            walk(node[key])

    walk(value)
    if nodes:
        node, key = rng.choice(nodes)
        kind = rng.randrange(4)
        if kind == 0:
            del node[key]
        elif kind == 1 and isinstance(node, list):
            node.insert(key, node[key])
        else:
            node[key] = rng.choice(UNEXPECTED)
    return value


def exchange(port, content, seconds):
    """Sends bytes; returns the status and body of the response, or (0, b"") if there is none in time."""
    with socket.create_connection(("127.0.0.1", port)) as client:
        # Closes the connection with a reset: 100,000 connections in TIME_WAIT would exhaust the ports.
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.settimeout(seconds)
        answer = b""
        try:
            client.sendall(content)
            while b"\r\n\r\n" not in answer and (part := client.recv(1 << 16)):
                answer += part
            head, _, body = answer.partition(b"\r\n\r\n")
            lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
            while lengths and len(body) < int(lengths[0].split(b":")[1]) and (part := client.recv(1 << 16)):
                body += part
        except OSError:
            return 0, b""
    return (int(head.split(b" ")[1]), body) if head else (0, b"")


def request(method, path, headers, body):
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def fuzz_http(port, rng, found):
    """Sends one mutated request."""
    method, path, headers, body = rng.choice(http_seeds())
    kind = rng.randrange(10)
    if kind < 4 and method == "POST" and not headers:
        try:
            body = json.dumps(mutate_json(json.loads(body), rng)).encode()
        except RecursionError:
            return
        content = request(method, path, headers, body)
    elif kind < 9 and method == "POST":
        content = request(method, path, headers, mutate(body, rng))
    else:
        content = mutate(request(method, path, headers, body), rng)
        status, answer = exchange(port, content, 0.05)  # an incomplete request gets no response
        check_http(content, status, answer, found)
        return
    status, answer = exchange(port, content, 20)
    if not status:
        found["failed"].append(("no response", content))
    check_http(content, status, answer, found)


def check_http(content, status, answer, found):
    found["http"][status] += 1
    if status >= 500 and status not in (503, 504):
        found["failed"].append((status, answer, content))
    if status >= 400 and content[:4] != b"HEAD" and set(json.loads(answer)) != {"error"}:
        found["failed"].append((status, answer, content))


def fuzz_grpc(channel, rng, found):
    """Sends one mutated message."""
    method, data = rng.choice(grpc_seeds())
    data = mutate(data, rng)
    try:
        channel.unary_unary(f"/inference.GRPCInferenceService/{method}")(data, timeout=20)
        code = "OK"
    except grpc.RpcError as error:
        code = error.code().name
    found["grpc"][code] += 1
    if code not in ALLOWED:
        found["failed"].append((code, method, data))


def valid(port, channel, rng, found):
    """Sends a valid message and checks its scores."""
    texts = [str(rng.random()) for _ in range(rng.randint(1, 3))]
    expected = [total(text) for text in texts]
    if rng.random() < 0.5:
        data = {"name": "sentences", "datatype": "BYTES", "shape": [len(texts), 1], "data": texts}
        status, body = exchange(port, request("POST", INFER, {}, json.dumps({"inputs": [data]}).encode()), 20)
        rewards = json.loads(body)["outputs"][0]["data"] if status == 200 else None
    else:
        message = service_pb2.ModelInferRequest(model_name="reward_model")
        contents = message.inputs.add(name="sentences", datatype="BYTES", shape=[len(texts), 1]).contents
        contents.bytes_contents.extend(text.encode() for text in texts)
        answer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")(
            message.SerializeToString(), timeout=20
        )
        raw = service_pb2.ModelInferResponse.FromString(answer).raw_output_contents[0]
        status, rewards = 200, np.frombuffer(raw, "<f4").tolist()
    found["valid"] += 1
    if rewards != expected:
        found["failed"].append(("wrong score", status, texts, rewards))


def fuzz(count, seed=0):
    """Returns {"http": {status: n}, "grpc": {code: n}, "valid": n, "failed": [description]}."""
    loop = asyncio.new_event_loop()
    serving = threading.Thread(target=loop.run_forever)
    serving.start()
    call = lambda work: asyncio.run_coroutine_threadsafe(work, loop).result(60)

    async def start():
        server = Server(ModelRegistry({"reward_model": load}), "127.0.0.1", 0, 0)
        await server.start()
        await server.warm_up()
        return server

    server = call(start())
    found = {"http": collections.Counter(), "grpc": collections.Counter(), "valid": 0, "failed": []}

    def work(number):
        rng = random.Random(f"{seed} {number}")
        with grpc.insecure_channel(f"127.0.0.1:{server.grpc.port}") as channel:
            for i in range(number, count, THREADS):
                try:
                    if i // THREADS % 8 == 0:
                        valid(server.http.port, channel, rng, found)
                    elif rng.random() < 0.5:
                        fuzz_http(server.http.port, rng, found)
                    else:
                        fuzz_grpc(channel, rng, found)
                except Exception as error:
                    found["failed"].append((i, repr(error)))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    call(server.stop())
    loop.call_soon_threadsafe(loop.stop)
    serving.join()
    loop.close()
    return found


def main():
    """Runs the fuzz test and prints its results; exits with status 1 after failures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100_000, help="number of messages")
    parser.add_argument("--seed", type=int, default=0, help="of the mutations")
    given = parser.parse_args()
    found = fuzz(given.count, given.seed)
    for failure in found["failed"][:20]:
        print("FAILED", failure)
    print(f"HTTP {dict(sorted(found['http'].items()))} (0: no response to an incomplete request)")
    print(f"gRPC {dict(sorted(found['grpc'].items()))}")
    print(f"{found['valid']} valid messages; {len(found['failed'])} failures")
    raise SystemExit(bool(found["failed"]))


if __name__ == "__main__":
    main()
