"""Static checks of the cluster files under experiments/launch: they parse, and name what exists."""

import re
import subprocess

import pytest
import yaml

from rmjax.core import config_file
from tests.conftest import ROOT

LAUNCH = ROOT / "experiments" / "launch"
FILES = sorted(path for path in LAUNCH.iterdir() if path.is_file())


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_the_command_names_a_configuration_and_its_keys(path):
    text = path.read_text()
    assert "rmjax.train" in text or "rmjax-train" in text
    (given,) = set(re.findall(r"--config=(\S+)", text))
    name, _, argument = given.partition(":")
    config = config_file.load(str(ROOT / name) + f":{argument}")
    for key in re.findall(r"--config\.([\w.]+)=", text):
        section, _, leaf = key.partition(".")
        assert leaf in config[section]
    assert "--workdir=" in text
    assert set(re.findall(r"(?<=pip install ')rmjax\[(\w+)\]|\.\[(\w+)\]", text)) <= {("tpu", ""), ("", "cuda")}


@pytest.mark.parametrize("path", [path for path in FILES if path.suffix == ".sh"], ids=lambda path: path.name)
def test_scripts_are_valid_and_stop_at_errors(path):
    subprocess.run(["bash", "-n", path], check=True)
    assert "set -euo pipefail" in path.read_text()
    assert path.stat().st_mode & 0o111
    assert "JAX_COORDINATOR_ADDRESS" in path.read_text()


def test_the_jobset_has_a_host_for_each_part_of_its_slice():
    manifest = yaml.safe_load((LAUNCH / "gke_jobset.yaml").read_text())
    assert (manifest["apiVersion"], manifest["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    (job,) = manifest["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    rows, columns = map(int, pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x"))
    chips = container["resources"]["limits"]["google.com/tpu"]
    assert spec["parallelism"] == spec["completions"] == rows * columns // chips
    (variable,) = container["env"]
    host, port = variable["value"].split(":")
    name = manifest["metadata"]["name"]
    assert (variable["name"], host) == ("JAX_COORDINATOR_ADDRESS", f"{name}-{job['name']}-0-0.{name}")
    assert int(port) in {entry["containerPort"] for entry in container["ports"]}
    mounted = {mount["mountPath"] for mount in container["volumeMounts"]}
    assert all(argument.split("=")[-1].startswith(tuple(mounted)) for argument in container["args"][1:])
    assert spec["backoffLimit"] == 0  # the job set restarts all hosts, not a host alone
    assert manifest["spec"]["failurePolicy"]["maxRestarts"] > 0


def test_the_sky_task_asks_for_the_chips_of_its_configuration():
    task = yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())
    assert task["resources"]["accelerators"] == "H100:8"
    assert "llama3_8b.py:h100-8" in task["run"]
    assert all(path in task["run"] for path in task["file_mounts"])
