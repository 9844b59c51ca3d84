"""Static checks of the files under deploy/: they are consistent with the server and with each other."""

import configparser
import json
import re
import shlex

import pytest
import yaml

from rmjax.serving.metrics import Metrics, ModelMetrics
from tests.conftest import ROOT

DEPLOY = ROOT / "deploy"
HTTP, GRPC = 8000, 8001


def load(name):
    return yaml.safe_load((DEPLOY / name).read_text())


def dockerfile(name="Dockerfile"):
    """Returns {instruction: [arguments]}."""
    lines = [line for line in (DEPLOY / name).read_text().splitlines() if not line.startswith("#")]
    found = {}
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        if line:
            instruction, rest = line.split(maxsplit=1)
            found.setdefault(instruction, []).append(rest)
    return found


def server_flags():
    """Returns the flags of rmjax.serve, parsed from its source: absl's flags are global to the test process."""
    return set(re.findall(r'FLAGS\.\w+\(\s*"(\w+)"', (ROOT / "rmjax" / "serve.py").read_text()))


@pytest.fixture(scope="module")
def container():
    """The container of the KServe manifest."""
    manifest = load("kserve.yaml")
    assert (manifest["apiVersion"], manifest["kind"]) == ("serving.kserve.io/v1beta1", "InferenceService")
    (container,) = manifest["spec"]["predictor"]["containers"]
    return container


@pytest.fixture(scope="module")
def dashboard():
    return json.loads((DEPLOY / "grafana" / "rmjax.json").read_text())


def test_flags_exist_and_all_servers_listen_on_all_interfaces(container):
    known = server_flags()
    commands = [
        json.loads(dockerfile()["CMD"][0]),
        load("compose.yaml")["services"]["rmjax"]["command"],
        container["args"],
    ]
    for command in commands:
        flags = dict(re.fullmatch(r"--(\w+)=(.+)", part).groups() for part in command)
        assert set(flags) <= known
        assert (flags["host"], flags["http_port"], flags["grpc_port"]) == ("0.0.0.0", str(HTTP), str(GRPC))
    assert json.loads(dockerfile()["ENTRYPOINT"][0]) == ["python", "-m", "rmjax.serve"]


def test_flags_named_in_comments_exist():
    docker_flags = {"init", "rm", "build", "gpus", "ipc", "net", "privileged"}
    known = server_flags() | {"config", "workdir"}  # of rmjax.serve and rmjax.train
    for path in DEPLOY.iterdir():
        if path.is_file():
            named = re.findall(r"(?<![-\w])--([a-z_]+)", "\n".join(re.findall(r"#.*", path.read_text())))
            assert set(named) - docker_flags <= known, path


def test_the_image_runs_as_a_non_root_user_with_a_health_check():
    image = dockerfile()
    assert image["FROM"][0].endswith("-slim")
    assert image["USER"] == ["10001"]
    assert image["EXPOSE"] == [f"{HTTP} {GRPC}"]
    (health,) = image["HEALTHCHECK"]
    program = json.loads(health[health.index("[") :])
    compile(program[2], "HEALTHCHECK", "exec")
    assert f"127.0.0.1:{HTTP}/v2/health/ready" in program[2]


@pytest.mark.parametrize("name", ["Dockerfile", "Dockerfile.train"])
def test_images_copy_what_exists_and_is_not_ignored(name):
    ignored = (DEPLOY / f"{name}.dockerignore").read_text().splitlines()
    for line in dockerfile(name)["COPY"]:
        for source in shlex.split(line)[:-1]:
            assert (ROOT / source).exists()
            assert f"!{source}" in ignored


def test_the_extras_that_images_are_built_with_exist():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    extras = setup["options.extras_require"]
    named = set(re.findall(r"EXTRA=(\w+)", (DEPLOY / "Dockerfile.train").read_text()))
    assert named == {"cuda", "tpu"}
    assert named <= set(extras)
    packages = set(re.findall(r"JAX='(jax\[\w+\])'", (DEPLOY / "Dockerfile").read_text()))
    assert packages == {extras[name].strip() for name in named}


def test_kserve_replaces_a_replica_by_a_ready_one_and_drains_it(container):
    predictor = load("kserve.yaml")["spec"]["predictor"]
    assert load("kserve.yaml")["metadata"]["annotations"]["serving.kserve.io/deploymentMode"] == "Standard"
    assert predictor["minReplicas"] == 2
    strategy = {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}}
    assert predictor["deploymentStrategy"] == strategy
    program, seconds = container["lifecycle"]["preStop"]["exec"]["command"]
    assert program == "sleep"
    unready = container["readinessProbe"]["periodSeconds"] * container["readinessProbe"].get("failureThreshold", 3)
    assert unready <= int(seconds) < predictor["terminationGracePeriodSeconds"] / 2


def test_kserve_probes_paths_and_ports_of_the_server(container):
    served = (ROOT / "rmjax" / "serving" / "http" / "server.py").read_text()
    assert {"name": "PROTOCOL", "value": "v2"} in container["env"]
    assert [port["containerPort"] for port in container["ports"]] == [HTTP]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"]["port"] == HTTP
        assert f'"{container[probe]["httpGet"]["path"]}"' in served
    assert container["securityContext"]["runAsNonRoot"]


def test_compose_mounts_existing_files_and_publishes_on_the_loopback_interface():
    services = load("compose.yaml")["services"]
    (job,) = load("prometheus.yaml")["scrape_configs"]
    assert job["static_configs"][0]["targets"] == [f"rmjax:{HTTP}"]
    for service in services.values():
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
        for volume in service["volumes"]:
            if volume.startswith("./"):
                assert (DEPLOY / volume.split(":")[0]).is_file()
    assert (ROOT / services["rmjax"]["build"]["dockerfile"]).is_file()
    mounted = {volume.split(":")[1] for volume in services["grafana"]["volumes"]}
    (provider,) = load("grafana/dashboards.yaml")["providers"]
    assert f"{provider['options']['path']}/rmjax.json" in mounted


def test_the_dashboard_shows_exactly_the_exported_metrics(dashboard):
    metrics = Metrics()
    model = ModelMetrics(metrics, "m")
    model.count_request(0.0, ValueError())
    samples = [sample for family in metrics.registry.collect() for sample in family.samples]
    exported = {sample.name for sample in samples if not sample.name.endswith("_created")}
    labels = {label for sample in samples for label in sample.labels}
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    shown = {name for expression in expressions for name in re.findall(r"rmjax_\w+", expression)}
    assert shown == exported
    for expression in expressions:
        grouped = re.findall(r"by \(([^)]*)\)", expression)
        assert {label.strip() for group in grouped for label in group.split(",")} <= labels
        assert expression.count("(") == expression.count(")")
    for variable in dashboard["templating"]["list"]:
        metric, label = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["query"]["query"]).groups()
        assert metric in exported
        assert label in labels


def test_the_dashboard_uses_the_provisioned_data_source(dashboard):
    (source,) = load("grafana/datasources.yaml")["datasources"]
    users = [dashboard["templating"]["list"][0], *dashboard["panels"]]
    users += [target for panel in dashboard["panels"] for target in panel["targets"]]
    assert {user["datasource"]["uid"] for user in users} == {source["uid"]}
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
