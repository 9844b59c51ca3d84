"""Runs unmodified Triton clients against a server and prints the rewards they receive as JSON.

    python peer_clients.py HTTP_PORT GRPC_PORT

A separate program, since PyTriton requires another version of NumPy than rmjax.
"""

import asyncio
import importlib.metadata
import json
import sys

import numpy as np

TEXTS = ["a", "Is it? Yes.", "third"]


def column(texts):
    return np.array([[text.encode()] for text in texts], np.object_)


def by_tritonclient(module, url):
    client = module.InferenceServerClient(url)
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("reward_model")
    given = module.InferInput("sentences", [len(TEXTS), 1], "BYTES")
    given.set_data_from_numpy(column(TEXTS))
    named = client.infer("reward_model", [given], outputs=[module.InferRequestedOutput("rewards")])
    unnamed = client.infer("reward_model", [given], request_id="7", timeout=30_000_000)
    np.testing.assert_array_equal(named.as_numpy("rewards").shape, (3, 1))
    client.get_server_metadata(), client.get_model_metadata("reward_model"), client.get_model_config("reward_model")
    client.get_model_repository_index()
    client.load_model("reward_model")
    message = ""
    try:
        client.infer("other", [given])
    except Exception as error:
        message = str(error)
    assert "unknown model 'other'" in message, message
    return unnamed.as_numpy("rewards")[:, 0].tolist()


def tritonclient_json(url):
    """Returns rewards received over HTTP without the binary extension."""
    import tritonclient.http as module

    client = module.InferenceServerClient(url)
    given = module.InferInput("sentences", [len(TEXTS), 1], "BYTES")
    given.set_data_from_numpy(column(TEXTS), binary_data=False)
    wanted = module.InferRequestedOutput("rewards", binary_data=False)
    return client.infer("reward_model", [given], outputs=[wanted]).as_numpy("rewards")[:, 0].tolist()


def tritonclient_stream(url):
    import queue

    import tritonclient.grpc as module

    client, answers = module.InferenceServerClient(url), queue.Queue()
    client.start_stream(callback=lambda result, error: answers.put((result, error)))
    for i, text in enumerate(TEXTS):
        given = module.InferInput("sentences", [1, 1], "BYTES")
        given.set_data_from_numpy(column([text]))
        client.async_stream_infer("reward_model", [given], request_id=str(i))
    found = [answers.get(timeout=30) for _ in TEXTS]
    client.stop_stream()
    assert all(error is None for _, error in found), found
    return [float(result.as_numpy("rewards")[0, 0]) for result, _ in found]


def pytriton_clients(url):
    from pytriton.client import AsyncioModelClient, FuturesModelClient, ModelClient

    with ModelClient(url, "reward_model") as client:
        assert [tensor.name for tensor in client.model_config.outputs] == ["rewards", "exceeded"]
        batch = client.infer_batch(sentences=column(TEXTS))["rewards"]
        sample = client.infer_sample(sentences=np.array([TEXTS[0].encode()], np.object_))["rewards"]
    assert sample.shape == (1,)
    if url.startswith("http"):  # FuturesModelClient ignores the scheme and would use HTTP on the gRPC port
        # Like the clients of NeMo-Aligner: several threads, tokens and lengths.
        with FuturesModelClient(url, "reward_model", max_workers=4) as client:
            futures = [client.infer_batch(sentences=column([text])) for text in TEXTS]
            one = [float(future.result()["rewards"][0, 0]) for future in futures]
            tokens, lengths = np.full((2, 9), 5, np.int64), np.array([[3], [9]], np.int64)
            client.infer_batch(tokens=tokens, sequence_lengths=lengths).result()
        np.testing.assert_allclose(one, batch[:, 0], atol=1e-5)

    async def infer_async():
        async with AsyncioModelClient(url, "reward_model") as client:
            return (await client.infer_batch(sentences=column(TEXTS)))["rewards"]

    np.testing.assert_allclose(asyncio.run(infer_async()), batch, atol=1e-5)
    return batch[:, 0].tolist()


def main(http_port, grpc_port):
    import tritonclient.grpc
    import tritonclient.http

    http, rpc = f"127.0.0.1:{http_port}", f"127.0.0.1:{grpc_port}"
    found = {
        "tritonclient.http": by_tritonclient(tritonclient.http, http),
        "tritonclient.http, JSON": tritonclient_json(http),
        "tritonclient.grpc": by_tritonclient(tritonclient.grpc, rpc),
        "tritonclient.grpc, stream": tritonclient_stream(rpc),
    }
    try:
        version = importlib.metadata.version("nvidia-pytriton")
    except importlib.metadata.PackageNotFoundError:
        version = None
    if version:
        found[f"pytriton {version}, HTTP"] = pytriton_clients(f"http://{http}")
        found[f"pytriton {version}, gRPC"] = pytriton_clients(f"grpc://{rpc}")
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
