"""What `infra/` ships is valid where it will be used: images, manifests, clusters, boards and alerts."""

import json
import re
import shutil
import subprocess
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import promql_parser
import pytest
import yaml

from cmasd.config import load
from cmasd.pipeline.metrics import METRICS, exported_names

ROOT = Path(__file__).resolve().parents[2]
INFRA = ROOT / "infra"
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
PINS = dict(
    line.split("==") for line in (INFRA / "constraints.txt").read_text().splitlines() if not line.startswith("#")
)
KUBERNETES = "1.37"


def text(*names: str) -> str:
    return INFRA.joinpath(*names).read_text(encoding="utf-8")


# ---------------------------------------------------------------- Dockerfile


def instructions(dockerfile: str) -> list[tuple[str, str]]:
    """(instruction, arguments), continued lines joined, comments left out."""
    lines = [line for line in dockerfile.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in joined.splitlines() if line.strip()]


def test_the_image_is_pinned_and_runs_without_root() -> None:
    parsed = instructions(text("Dockerfile"))
    known = {"ARG", "FROM", "WORKDIR", "RUN", "ENV", "COPY", "USER", "ENTRYPOINT", "CMD"}
    assert {name for name, _ in parsed} <= known
    defaults = dict(given.split("=", 1) for name, given in parsed if name == "ARG" and "=" in given)
    stages: list[str] = []
    for base in (given for name, given in parsed if name == "FROM"):
        image, _, stage = base.partition(" AS ")
        image = image.replace("${PYTHON}", defaults["PYTHON"])
        assert image in stages or re.fullmatch(r"python:3\.\d+\.\d+-slim-\w+", image), image
        stages.append(stage)
    last_user = [given for name, given in parsed if name == "USER"][-1]
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", last_user), "by number, or Kubernetes cannot tell"
    copied_from = re.findall(r"--from=(\w+)", text("Dockerfile"))
    assert set(copied_from) <= set(stages)
    after = [name for name, _ in parsed[[name for name, _ in parsed].index("USER") :]]
    assert "RUN" not in after


def test_the_image_installs_the_tested_versions() -> None:
    installs = re.findall(r"pip install[^&\n\\]*", text("Dockerfile"))
    assert len(installs) == 2
    assert all("-c infra/constraints.txt" in command or "--no-deps" in command for command in installs)
    asked = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    python = re.search(r"ARG PYTHON=3\.(\d+)", text("Dockerfile"))
    assert python is not None
    assert int(python[1]) >= int(asked.removeprefix(">=3.").split(",")[0])


def test_everything_that_the_image_copies_is_there_and_sent_to_the_builder() -> None:
    sent = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = [given for name, given in instructions(text("Dockerfile")) if name == "COPY" and "--from" not in given]
    sources = [source for given in copied for source in given.split()[:-1]]
    assert set(sources) == sent
    assert all((ROOT / source).exists() for source in sources)


# ---------------------------------------------------------------- Kubernetes


def manifests(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(text("kubernetes", name)))


def named(properties: dict[str, Any], *required: str) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


ANY, TEXT, COUNT = {"type": "object"}, {"type": "string"}, {"type": "integer", "minimum": 0}
TEXTS = {"type": "object", "additionalProperties": TEXT}
RAY_JOB = named(
    {
        "apiVersion": {"const": "ray.io/v1"},
        "kind": {"const": "RayJob"},
        "metadata": ANY,
        "spec": named(
            {
                "entrypoint": TEXT,
                "submissionMode": {"enum": ["K8sJobMode", "HTTPMode", "SidecarMode", "InteractiveMode"]},
                "backoffLimit": COUNT,
                "activeDeadlineSeconds": COUNT,
                "shutdownAfterJobFinishes": {"type": "boolean"},
                "ttlSecondsAfterFinished": COUNT,
                "runtimeEnvYAML": TEXT,
                "submitterPodTemplate": ANY,
                "rayClusterSpec": named(
                    {
                        "rayVersion": TEXT,
                        "enableInTreeAutoscaling": {"type": "boolean"},
                        "autoscalerOptions": named(
                            {
                                "version": {"enum": ["v1", "v2"]},
                                "upscalingMode": {"enum": ["Default", "Aggressive", "Conservative"]},
                                "idleTimeoutSeconds": COUNT,
                            }
                        ),
                        "headGroupSpec": named({"rayStartParams": TEXTS, "template": ANY}, "template"),
                        "workerGroupSpecs": {
                            "type": "array",
                            "items": named(
                                {
                                    "groupName": TEXT,
                                    "replicas": COUNT,
                                    "minReplicas": COUNT,
                                    "maxReplicas": COUNT,
                                    "idleTimeoutSeconds": COUNT,
                                    "rayStartParams": TEXTS,
                                    "template": ANY,
                                },
                                "groupName",
                                "maxReplicas",
                                "minReplicas",
                                "template",
                            ),
                        },
                    },
                    "headGroupSpec",
                ),
            },
            "rayClusterSpec",
        ),
    },
    "apiVersion",
    "kind",
    "metadata",
    "spec",
)
"""The part of KubeRay's v1 schema that is used here, kept by hand; pod templates are checked by Kubernetes' own."""


def pods(job: dict[str, Any]) -> list[dict[str, Any]]:
    cluster = job["spec"]["rayClusterSpec"]
    return [group["template"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]


def test_the_ray_job_is_valid() -> None:
    (job,) = manifests("rayjob.yaml")
    jsonschema.validate(job, RAY_JOB)
    for pod in pods(job):
        template = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "x"}, "template": pod}
        kubernetes_validate.validate(template, KUBERNETES, strict=True)


def test_a_wrong_key_in_a_ray_job_is_found() -> None:
    """Else the two tests of manifests would prove nothing."""
    (job,) = manifests("rayjob.yaml")
    pod = pods(job)[0]
    pod["spec"]["containers"][0]["imagee"] = "x"
    template = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "x"}, "template": pod}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(template, KUBERNETES, strict=True)
    job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["maxReplica"] = 3
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(job, RAY_JOB)


def test_the_ray_job_keeps_its_state_in_storage_and_its_driver_off_the_workers() -> None:
    (job,) = manifests("rayjob.yaml")
    words = job["spec"]["entrypoint"].split()
    assert words[:2] == ["cmasd", "run"]
    config = load([ROOT / words[2].removeprefix("/app/")], words[3:])
    assert job["spec"]["backoffLimit"] > 0
    assert config.input.path.startswith("s3://")
    assert config.output.path.startswith("s3://")
    cluster = job["spec"]["rayClusterSpec"]
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert config.actors.max == cluster["workerGroupSpecs"][0]["maxReplicas"]
    assert cluster["rayVersion"] == PINS["ray"]


def test_pods_run_without_root_and_the_tested_image() -> None:
    (job,) = manifests("rayjob.yaml")
    (cron,) = [found for found in manifests("scheduled.yaml") if found["kind"] == "CronJob"]
    templates = [*pods(job), cron["spec"]["jobTemplate"]["spec"]["template"]]
    for pod in templates:
        assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
        for container in pod["spec"]["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            name, _, tag = container["image"].partition(":")
            assert tag not in ("", "latest")
            assert name != "cmasd" or tag == VERSION
            assert {"cpu", "memory"} <= container["resources"]["limits"].keys()


def test_the_schedule_is_valid_and_may_create_what_it_creates() -> None:
    found = manifests("scheduled.yaml")
    for manifest in found:
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)
    by_kind = {manifest["kind"]: manifest for manifest in found}
    (rule,) = by_kind["Role"]["rules"]
    assert (rule["apiGroups"], rule["resources"]) == (["ray.io"], ["rayjobs"])
    assert "create" in rule["verbs"]
    pod = by_kind["CronJob"]["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    assert pod["serviceAccountName"] == by_kind["RoleBinding"]["subjects"][0]["name"]
    accounts = {manifest["metadata"]["name"] for manifest in found if manifest["kind"] == "ServiceAccount"}
    assert {pod["serviceAccountName"], pods(manifests("rayjob.yaml")[0])[0]["spec"]["serviceAccountName"]} == accounts
    assert by_kind["RoleBinding"]["roleRef"]["name"] == by_kind["Role"]["metadata"]["name"]


def test_the_schedule_gives_each_run_a_folder_of_its_own() -> None:
    """The command of the CronJob, with `kubectl` replaced by a reader."""
    (cron,) = [found for found in manifests("scheduled.yaml") if found["kind"] == "CronJob"]
    (command,) = cron["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"][0]["args"]
    command = command.replace("/job/", f"{INFRA}/kubernetes/").replace("kubectl create -f -", "cat")
    made = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True).stdout
    job = yaml.safe_load(made)
    assert re.search(r"output\.path=s3://[\w-]+/runs/20\d\d-\d\d-\d\d\b", job["spec"]["entrypoint"])
    assert "RUN_NAME" not in json.dumps(job)


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
def test_kustomize_puts_the_job_where_the_schedule_reads_it() -> None:
    command = ["kubectl", "kustomize", str(INFRA / "kubernetes")]
    made = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    by_kind = {manifest["kind"]: manifest for manifest in yaml.safe_load_all(made)}
    stored = by_kind["ConfigMap"]
    assert yaml.safe_load(stored["data"]["rayjob.yaml"]) == manifests("rayjob.yaml")[0]
    (volume,) = by_kind["CronJob"]["spec"]["jobTemplate"]["spec"]["template"]["spec"]["volumes"]
    assert volume["configMap"]["name"] == stored["metadata"]["name"]


# ---------------------------------------------------------------- ray up


@cache
def ray_folder() -> Path:
    import ray

    return Path(ray.__file__).parent


@pytest.mark.parametrize("file", sorted((INFRA / "cluster").glob("*.yaml")), ids=lambda file: file.stem)
def test_clusters_satisfy_rays_schema(file: Path) -> None:
    cluster = yaml.safe_load(file.read_text())
    jsonschema.validate(cluster, json.loads((ray_folder() / "autoscaler" / "ray-schema.json").read_text()))
    types = cluster["available_node_types"]
    head = types[cluster["head_node_type"]]
    assert head["resources"]["CPU"] == 0, "no decoder beside the driver"
    assert "InstanceMarketOptions" not in head["node_config"], "the driver's node is not preemptible"
    workers = [kind for name, kind in types.items() if name != cluster["head_node_type"]]
    assert all(kind["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"} for kind in workers)
    assert sum(kind["max_workers"] for kind in workers) <= cluster["max_workers"]
    assert cluster["docker"]["image"] == f"cmasd:{VERSION}"


# ---------------------------------------------------------------- Prometheus and Grafana


def selectors(query: str) -> list[Any]:
    """Every vector selector of a query; raises on a malformed one."""
    found: list[Any] = []

    def keep(node: Any) -> None:
        if isinstance(node, promql_parser.VectorSelector):
            found.append(node)

    promql_parser.walk(promql_parser.parse(query), keep)
    return found


def check(query: str) -> None:
    """The query parses, and names metrics that are exported and labels that they have."""
    used = selectors(query)
    assert used, query
    assert {selector.name for selector in used} <= exported_names(), query
    tags = {name: metric.tags for metric in METRICS for name in metric.exported}
    grouped = {label.strip() for by in re.findall(r"by \(([^)]*)\)", query) for label in by.split(",")}
    matched = {matcher.name for selector in used for matcher in selector.matchers.matchers}
    for label in grouped | matched:
        assert label == "le" or any(label in tags[selector.name] for selector in used), f"{label} in {query}"


def test_a_query_for_what_does_not_exist_is_found() -> None:
    for bad in ("sum(rate(ray_cmasd_tokens_total[5m]))", "sum by (shard) (ray_cmasd_num_rows_running)", "sum(("):
        with pytest.raises((AssertionError, ValueError)):
            check(bad)


def alerts() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load(text("prometheus", "alerts.yaml"))["groups"]
    rules: list[dict[str, Any]] = group["rules"]
    return rules


@pytest.mark.parametrize("rule", alerts(), ids=lambda rule: rule["alert"])
def test_alerts_can_fire_and_are_in_the_run_book(rule: dict[str, Any]) -> None:
    assert rule.keys() == {"alert", "expr", "for", "labels", "annotations"}
    check(rule["expr"])
    assert rule["labels"]["severity"] in ("critical", "warning", "info")
    assert rule["annotations"]["summary"].startswith("{{ $labels.run }}")
    assert f"`{rule['alert']}`" in text("README.md")


def board() -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads(text("grafana", "cmasd.json"))
    return parsed


@pytest.mark.parametrize("panel", board()["panels"], ids=lambda panel: panel["title"])
def test_panels_ask_for_what_there_is(panel: dict[str, Any]) -> None:
    assert panel["targets"]
    for target in panel["targets"]:
        check(target["expr"].replace("$__rate_interval", "1m"))
        shown = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
        assert shown <= set(re.findall(r"\w+", " ".join(re.findall(r"by \(([^)]*)\)", target["expr"]))))


def test_the_board_is_one_that_grafana_can_load() -> None:
    panels = board()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels]
    assert len(set(taken)) == len(taken)
    assert {variable["name"] for variable in board()["templating"]["list"]} == {"datasource", "run"}
    used = {selector.name for panel in panels for target in panel["targets"] for selector in _of(target)}
    assert {"ray_cmasd_generation_tokens_total", "ray_cmasd_spec_decode_num_accepted_tokens_total"} <= used


def _of(target: dict[str, Any]) -> list[Any]:
    return selectors(target["expr"].replace("$__rate_interval", "1m"))


# ---------------------------------------------------------------- records


def test_every_record_is_described_and_every_record_described_is_there() -> None:
    folder = INFRA / "benchmarks"
    said = set(re.findall(r"`(\d{4}-\d\d-\d\d-[\w-]+)`", (folder / "README.md").read_text(encoding="utf-8")))
    there = {path.stem for path in folder.iterdir() if path.name != "README.md"}
    assert said == there == {path.stem for path in folder.glob("*.json")}
    for path in folder.glob("*.json"):
        assert json.loads(path.read_text(encoding="utf-8"))["date"].startswith(path.stem[:10])
