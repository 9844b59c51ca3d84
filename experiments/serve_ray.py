"""Two reward servers behind Ray Serve, and a rolling reload under load that loses no request.

    python -m pip install 'rmjax[ray]'
    python experiments/serve_ray.py --model=PATH [--reload=PATH] [--replicas=2] [--clients=8] [--seconds=10]

A replica is a process with a model and the HTTP interface of rmjax.serve, so its clients need no change:
Client("http://127.0.0.1:8000"). Ray Serve distributes the requests, starts dead replicas again, and replaces replicas
one after the other: a replica that is to go gets no new requests, answers those it has, and ends.

With --seconds, clients send requests all the time while --reload is deployed; each request is sent once, without
retries. Printed are the numbers of requests answered and lost, and by which model they were answered. Without it,
the program serves until Ctrl-C.

To serve: `serve run experiments.serve_ray:build model=PATH` on a cluster.
"""

import argparse
import asyncio
import collections
import json
import os
import sys
import time

import httpx2
import ray
from ray import serve

TEXTS = ["A first text to score.", "Another text, which is a little longer than the first one."]
PATH = "/v2/models/reward_model/infer"


@serve.deployment(
    num_replicas=2,
    max_ongoing_requests=256,  # each; more wait in Ray's proxy
    graceful_shutdown_wait_loop_s=0.2,
    graceful_shutdown_timeout_s=120,
    health_check_period_s=5,
    logging_config={"enable_access_log": False},
)
@serve.ingress()
class RewardServer:
    """A replica."""

    async def __init__(self, path: str, version: str = ""):
        import rmjax  # in the replica's process, after Ray has chosen its devices
        from rmjax.serving.app import make_reward_service
        from rmjax.serving.engine.offload import DeviceMemory
        from rmjax.serving.registry import ModelRegistry

        pipeline = rmjax.load(path).pipeline
        load = lambda metrics: make_reward_service(pipeline, metrics, DeviceMemory())
        self._registry = ModelRegistry({"reward_model": load}, {"reward_model": path})
        await self._registry.start()  # compiles, so that Ray sends requests to warm replicas only
        print(f"replica {os.getpid()} serves {path} {version}", flush=True)

    def __serve_build_asgi_app__(self):
        """Returns the application of rmjax.serve."""
        from rmjax.serving.http.server import HttpApplication
        from rmjax.serving.security import Security

        return HttpApplication(self._registry, Security()).app

    def check_health(self):
        """Raises if the replica is to be replaced."""
        if not self._registry.ready:
            raise RuntimeError("the model is not ready")


def build(arguments: dict[str, str]):
    """Returns the application of a model.

    Args:
      arguments: those of `serve run`: `model`, its path; `replicas`; `version`, which is changed to have a model loaded
        again from the same path.
    """
    replicas = int(arguments.get("replicas", 2))
    version = arguments.get("version", "")
    return RewardServer.options(num_replicas=replicas).bind(os.path.abspath(arguments["model"]), version)


async def send(http: httpx2.AsyncClient) -> tuple[float, ...]:
    """Returns the rewards of `TEXTS`; raises if the request is not answered with them."""
    tensor = {"name": "sentences", "datatype": "BYTES", "shape": [len(TEXTS), 1], "data": TEXTS}
    response = await http.post(PATH, content=json.dumps({"inputs": [tensor], "outputs": [{"name": "rewards"}]}))
    response.raise_for_status()
    return tuple(round(value, 3) for value in response.json()["outputs"][0]["data"])


async def load(url: str, clients: int, ended: asyncio.Event) -> tuple[collections.Counter, list[str]]:
    """Sends requests until `ended`; returns how often each rewards came, and the errors."""
    answers: collections.Counter = collections.Counter()
    lost: list[str] = []

    async def client():
        async with httpx2.AsyncClient(base_url=url, timeout=60, trust_env=False) as http:
            while not ended.is_set():
                try:
                    answers[await send(http)] += 1
                except (httpx2.HTTPError, ValueError, KeyError) as error:
                    lost.append(f"{type(error).__name__}: {error}")

    await asyncio.gather(*(client() for _ in range(clients)))
    return answers, lost


async def reload_under_load(url: str, deploy, clients: int, seconds: float) -> tuple[collections.Counter, list[str]]:
    """Calls `deploy` in a thread while requests are sent, from `seconds` before to `seconds` after."""
    ended = asyncio.Event()
    sending = asyncio.create_task(load(url, clients, ended))
    await asyncio.sleep(seconds)
    started = time.monotonic()
    await asyncio.to_thread(deploy)
    print(f"reloaded in {time.monotonic() - started:.1f} s", flush=True)
    await asyncio.sleep(seconds)
    ended.set()
    return await sending


def main() -> int:
    """Serves --model; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--reload", help="model that takes its place under load; default: --model, loaded again")
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=0, help="of load before and after the reload; 0: none")
    parser.add_argument("--port", type=int, default=8000)
    arguments = parser.parse_args()
    ray.init(address="local", num_cpus=arguments.replicas + 3, include_dashboard=False)
    serve.start(http_options={"host": "127.0.0.1", "port": arguments.port})

    def deploy(path, version, **options):
        serve.run(build({"model": path, "replicas": str(arguments.replicas), "version": version}), **options)

    if not arguments.seconds:
        deploy(arguments.model, "1", blocking=True)
        return 0
    deploy(arguments.model, "1")
    again = lambda: deploy(arguments.reload or arguments.model, "2")
    url = f"http://127.0.0.1:{arguments.port}"
    answers, lost = asyncio.run(reload_under_load(url, again, arguments.clients, arguments.seconds))
    for rewards, count in answers.items():
        print(f"{count:,} answers with the rewards {rewards}")
    print(f"answered {answers.total():,}, lost {len(lost)}" + (f"; first: {lost[0]}" if lost else ""), flush=True)
    serve.shutdown()
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
