"""Check of data, models and workdirs in an object store: an emulation of S3 (moto's server) on loopback.

    python -m pip install 'moto[server]' s3fs
    python experiments/check_remote.py --faults=0.2

Data and a model are put in a bucket. `rmjax.train` and `rmjax.score` read both from there, in their own processes; the
results are those of the same commands with local paths. Then a run with its workdir there is killed by SIGKILL several
times, and continued each time without its local copy, as on another machine, to the same losses. With --faults, a proxy
before the store answers this share of requests with 503, or drops the connection in the middle of the answer.
"""

import argparse
import asyncio
import filecmp
import json
import os
import pathlib
import shlex
import subprocess
import sys
import tempfile
import time

BUCKET = "s3://rmjax"


class Proxy:
    """Forwards connections to a port; disturbs a share of them."""

    def __init__(self, target: int, share: float):
        self._target, self._share = target, share
        self.connections = self.disturbed = 0

    async def serve(self) -> asyncio.Server:
        """Returns the server, listening at a free port."""
        return await asyncio.start_server(self._connection, "127.0.0.1", 0)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        if self.connections * self._share // 1 > self.disturbed:
            self.disturbed += 1
            request = await reader.read(1 << 16)
            if self.disturbed % 2:
                writer.write(b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            else:
                up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self._target)
                up_writer.write(request)
                writer.write((await up_reader.read(1 << 16))[:-1])
                up_writer.close()
            writer.close()
            return
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self._target)

        async def copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
            while data := await source.read(1 << 16):
                target.write(data)
                await target.drain()
            target.close()

        await asyncio.gather(copy(reader, up_writer), copy(up_reader, writer), return_exceptions=True)


def run(*arguments: str, **environment: str) -> str:
    """Runs a command and returns its output; ends the program if it fails."""
    print("$", shlex.join(arguments), flush=True)
    result = subprocess.run(arguments, env=os.environ | environment, capture_output=True, text=True)
    if result.returncode:
        raise SystemExit(f"exit status {result.returncode}:\n{result.stdout[-2000:]}\n{result.stderr[-3000:]}")
    return result.stdout


def kill_and_resume(command: list[str], directory: pathlib.Path, environment: dict[str, str]) -> None:
    """Runs a training command to its end, killing it after each upload of a new checkpoint, and removing its copy."""
    command = [*command, "--config.checkpoint.every=2", "--config.evaluation.every=4"]
    print("$", shlex.join(command), flush=True)
    kills = 0
    while True:
        cache = directory / f"cache-{kills}"
        process = subprocess.Popen(command, env=os.environ | environment | {"RMJAX_CACHE": str(cache)})
        seen = None
        while process.poll() is None:
            time.sleep(0.2)
            notes = list(cache.glob("workdirs/*.json"))
            uploaded = json.loads(notes[0].read_text())["files"] if notes else {}
            steps = {name.split("/")[1] for name in uploaded if name.startswith("checkpoints/")}
            if seen is not None and steps - seen and kills < 3:
                process.kill()
                process.wait()
                break
            seen = steps if seen is None and notes else seen
        else:
            if process.returncode:
                raise SystemExit(f"exit status {process.returncode}")
            print(f"killed {kills} times")
            return
        kills += 1


async def check(directory: pathlib.Path, port: int, share: float) -> None:
    """Runs the programs with local paths and with URLs, and compares."""
    proxy = Proxy(port, share)
    server = await proxy.serve()
    address = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    remote = {
        "AWS_ENDPOINT_URL": address,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_MAX_ATTEMPTS": "1",  # retries are rmjax's
    }
    python = sys.executable
    os.environ["RMJAX_CACHE"] = str(directory / "cache")
    train = [python, "-m", "rmjax.train", "--config=configs/binary.py", "--config.train.steps=60"]
    run(*train, f"--workdir={directory / 'base'}")
    run(python, "-m", "rmjax.export", f"--workdir={directory / 'base'}", f"--output={directory / 'model'}")
    from rmjax.data.records import synthetic

    data = directory / "data.jsonl"
    records = [item.record for item in synthetic.comparisons("train", 200, "pairs")]
    data.write_text("".join(json.dumps(record) + "\n" for record in records))
    import fsspec

    store = fsspec.filesystem(
        "s3", key="test", secret="test", client_kwargs={"endpoint_url": f"http://127.0.0.1:{port}"}
    )
    store.mkdir("rmjax")
    store.put(str(data), "rmjax/data/data.jsonl")
    store.put(f"{directory / 'model'}/", "rmjax/model/", recursive=True)
    sides = {
        "local": (str(data), str(directory / "model"), {}),
        "s3": (f"{BUCKET}/data/*.jsonl", f"{BUCKET}/model", remote),
    }
    for name, (source, model, environment) in sides.items():
        options = [
            f"--config.model.path={model}",
            f"--config.data.train={source}",
            f"--config.data.validation={source}",
        ]
        await asyncio.to_thread(run, *train, *options, f"--workdir={directory / name}", **environment)
        score = [python, "-m", "rmjax.score", f"--model={model}", f"--input={source}"]
        await asyncio.to_thread(run, *score, f"--output={directory / f'{name}.jsonl'}", **environment)
    workdir = f"{BUCKET}/runs/killed"
    await asyncio.to_thread(kill_and_resume, [*train, *options, f"--workdir={workdir}"], directory, remote)
    store.get("rmjax/runs/killed/metrics.jsonl", str(directory / "killed" / "metrics.jsonl"))
    losses = [
        [
            line["loss"]
            for line in map(json.loads, (directory / name / "metrics.jsonl").read_text().splitlines())
            if line["split"] == "train"
        ]
        for name in (*sides, "killed")
    ]
    same = filecmp.cmp(directory / "local.jsonl", directory / "s3.jsonl", shallow=False)
    print(f"connections {proxy.connections}, disturbed {proxy.disturbed}")
    equal = all(side == losses[0] for side in losses)
    print(f"losses equal: {equal}, score files equal: {same}")
    if not equal or not same:
        raise SystemExit("the results differ")


def main() -> None:
    """Starts the store, and checks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=float, default=0.2, help="share of connections that fail")
    flags = parser.parse_args()
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(check(pathlib.Path(directory), server.get_host_and_port()[1], flags.faults))
    server.stop()
    print(f"{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
