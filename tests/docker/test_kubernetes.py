"""docker/kubernetes as it renders: valid, consistent in itself, and true to the code that it runs."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from diptych_serving import healthcheck
from diptych_serving.container import parser
from diptych_serving.server import drain, ports, server
from diptych_serving.server.tracing import Tracing
from tests.helpers.kubernetes_manifests import (
    KUBERNETES,
    OVERLAYS,
    Manifest,
    containers_of,
    kinds,
    pod_of,
    render,
    render_overlay,
    serving_of,
    the,
    walk,
)

# The oldest that knows all that is used (preStop.sleep), and the newest that kubernetes-validate knows.
VERSIONS = ("1.30", "1.37")
# Their schemas are not Kubernetes' own: `make lint-kubernetes`.
CUSTOM = {"ScaledObject", "PodMonitor", "PrometheusRule", "InferenceService", "ServingRuntime"}
# With what components change: a bucket in place of a volume, TLS, traces.
VARIANTS = (*OVERLAYS, "everything", "everything on kserve")
COMPONENTS = ["object-storage", "tls", "tracing"]


@pytest.fixture(scope="module", params=VARIANTS)
def manifests(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Manifest]:
    if request.param in OVERLAYS:
        return render_overlay(request.param)
    directory = tmp_path_factory.mktemp("overlay")
    if request.param == "everything":
        return render(KUBERNETES / "lint/everything")
    return render(write_kserve_overlay(directory))


def write_kserve_overlay(directory: Path) -> Path:
    """The components have to see the Deployment, so that they go into a copy of overlays/kserve/pods."""
    shutil.copytree(KUBERNETES, directory / "kubernetes")
    path = directory / "kubernetes/overlays/kserve/pods/kustomization.yaml"
    kustomization = yaml.safe_load(path.read_text())
    kustomization["components"] += [f"../../../components/{each}" for each in COMPONENTS]
    path.write_text(yaml.safe_dump(kustomization))
    return directory / "kubernetes/overlays/kserve"


def write_overlay(directory: Path, *, on: str = "gpu", components: list[str] | None = None, **more) -> Path:
    """An operator's own overlay, as README.md shows it."""
    kustomization = {
        "resources": [os.path.relpath(KUBERNETES / "overlays" / on, directory)],
        "components": [
            os.path.relpath(KUBERNETES / "components" / each, directory) for each in components or []
        ],
        "namespace": "diptych",
        **more,
    }
    (directory / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    return directory


@pytest.mark.parametrize("version", VERSIONS)
def test_every_object_is_what_the_api_server_expects(manifests, version):
    for manifest in [*manifests, pod_of(manifests)]:
        if manifest["kind"] not in CUSTOM:
            kubernetes_validate.validate(manifest, version, strict=True)


def test_an_object_without_a_schema_of_kubernetes_is_one_that_we_know(manifests):
    unknown = set()
    for manifest in manifests:
        try:
            kubernetes_validate.validate(manifest, VERSIONS[-1])
        except kubernetes_validate.SchemaNotFoundError:
            unknown.add(manifest["kind"])
    assert unknown <= CUSTOM


def test_everything_lies_in_one_namespace_that_refuses_privileges(manifests):
    namespace = the(manifests, "Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    assert {each["metadata"].get("namespace") for each in manifests if each is not namespace} == {"diptych"}


def test_the_pod_is_within_the_restricted_profile_and_writes_to_no_image(manifests):
    pod = pod_of(manifests)
    security = pod["spec"]["securityContext"]
    assert security["runAsNonRoot"] is True
    assert security["runAsUser"] >= 10_000  # a number, so that the kubelet can tell; no user of the node
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in containers_of(pod):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
    allowed = {"configMap", "csi", "emptyDir", "persistentVolumeClaim", "projected", "secret"}
    assert {kind for volume in pod["spec"]["volumes"] for kind in volume if kind != "name"} <= allowed


def test_the_pod_gets_no_token_for_the_api_server(manifests):
    assert pod_of(manifests)["spec"]["automountServiceAccountToken"] is False
    assert the(manifests, "ServiceAccount")["automountServiceAccountToken"] is False


def test_every_container_requests_and_limits_cpu_and_memory(manifests):
    for container in containers_of(pod_of(manifests)):
        for side in ("requests", "limits"):
            assert {"cpu", "memory"} <= set(container["resources"][side]), container["name"]


def test_every_image_has_a_tag_that_means_one_thing(manifests):
    for container in containers_of(pod_of(manifests)):
        _, _, tag = container["image"].partition(":")
        assert tag, f"{container['image']}: no tag"
        assert tag != "latest"


def test_shared_memory_is_memory_and_fits_the_limit_with_room_for_the_models(manifests):
    pod = pod_of(manifests)
    serving = serving_of(pod)
    mounts = {mount["mountPath"]: mount["name"] for mount in serving["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
    shm = volumes[mounts["/dev/shm"]]["emptyDir"]
    assert shm["medium"] == "Memory"
    assert _gib(shm["sizeLimit"]) <= _gib(serving["resources"]["limits"]["memory"]) / 2


def _gib(quantity: str) -> float:
    match = re.fullmatch(r"(\d+)Gi", quantity)
    assert match, f"{quantity}: not in Gi"
    return float(match[1])


def test_a_probe_waits_longer_for_the_models_than_the_entry_point_itself(manifests):
    # Else the pod is killed before it says why its models do not load.
    probe = serving_of(pod_of(manifests))["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] > server.READY_TIMEOUT_S
    assert probe["exec"]["command"][-1] == "--ready"


def test_the_grace_period_holds_the_pause_the_drain_and_tritonservers_own_exit(manifests):
    pod = pod_of(manifests)
    pause_s = serving_of(pod)["lifecycle"]["preStop"]["sleep"]["seconds"]
    longest_s = pause_s + drain.DRAIN_TIMEOUT_S + server.EXIT_TIMEOUT_S + server.UNLOAD_TIMEOUT_S
    assert pod["spec"]["terminationGracePeriodSeconds"] > longest_s


def test_every_probe_asks_from_inside_the_pod_where_http_is_with_tls_too(manifests):
    serving = serving_of(pod_of(manifests))
    for name in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert serving[name]["exec"]["command"][:3] == ["python3", "-m", "diptych_serving.healthcheck"]
        assert "httpGet" not in serving[name]
    assert "--loaded" in serving["readinessProbe"]["exec"]["command"]


def test_the_kubelet_waits_for_each_probes_own_verdict(manifests):
    serving = serving_of(pod_of(manifests))
    for name in ("startupProbe", "readinessProbe", "livenessProbe"):
        command = serving[name]["exec"]["command"]
        own_s = (
            float(command[command.index("--timeout") + 1])
            if "--timeout" in command
            else healthcheck.TIMEOUT_S
        )
        assert serving[name]["timeoutSeconds"] > own_s


def test_the_ports_are_those_that_the_server_listens_on_by_default(manifests):
    named = {port["name"]: port["containerPort"] for port in serving_of(pod_of(manifests))["ports"]}
    assert named == {"http": ports.HTTP_PORT, "grpc": ports.GRPC_PORT, "metrics": ports.METRICS_PORT}


def test_every_python_module_that_a_container_runs_exists(manifests):
    run = [
        command
        for command in (each.get("command", []) for each in walk(pod_of(manifests)))
        if command[:2] == ["python3", "-m"]
    ]
    assert len(run) == 4  # fetch, and three probes
    for _, _, module, *_ in run:
        assert importlib.util.find_spec(module), module


def test_the_container_that_serves_keeps_the_images_entry_point(manifests):
    # A `command` would replace it, and with it what lets an older driver run the image's CUDA.
    assert "command" not in serving_of(pod_of(manifests))


def test_fetching_is_one_container_since_only_the_one_that_failed_is_repeated(manifests):
    (fetch,) = pod_of(manifests)["spec"]["initContainers"]
    assert fetch["command"] == ["python3", "-m", "diptych_serving.fetch"]
    assert fetch["image"] == serving_of(pod_of(manifests))["image"]


def test_services_budget_policy_monitor_and_spreading_all_mean_the_pods_that_serve(manifests):
    labels = pod_of(manifests)["metadata"]["labels"].items()
    for manifest in manifests:
        spec = manifest.get("spec", {})
        selector = spec.get("podSelector") or spec.get("selector")
        if selector:
            assert selector.get("matchLabels", selector).items() <= labels, manifest["kind"]
    for spread in pod_of(manifests)["spec"]["topologySpreadConstraints"]:
        assert spread["labelSelector"]["matchLabels"].items() <= labels


def test_every_name_that_the_pod_refers_to_is_there(manifests):
    # Generated ConfigMaps end in a hash, which Kustomize knows how to follow in its own kinds only.
    held = {(each["kind"], each["metadata"]["name"]) for each in manifests}
    spec = pod_of(manifests)["spec"]
    wanted = {("ServiceAccount", spec["serviceAccountName"])}
    for each in walk(spec):
        for key in ("configMapKeyRef", "configMapRef"):
            if key in each:
                wanted.add(("ConfigMap", each[key]["name"]))
                assert re.search(r"-[a-z0-9]{10}$", each[key]["name"]), each[key]
        if "persistentVolumeClaim" in each:
            wanted.add(("PersistentVolumeClaim", each["persistentVolumeClaim"]["claimName"]))
    assert wanted <= held
    volumes = {volume["name"] for volume in spec["volumes"]}
    mounted = {mount["name"] for each in containers_of(pod_of(manifests)) for mount in each["volumeMounts"]}
    assert mounted == volumes


def test_the_headless_service_names_every_pod_for_the_clients_own_balancing(manifests):
    service = the(manifests, "Service", "diptych-pods")["spec"]
    assert service["clusterIP"] == "None"
    expected = {"http": ports.HTTP_PORT, "grpc": ports.GRPC_PORT}
    if any(argument.startswith("--tls") for argument in serving_of(pod_of(manifests))["args"]):
        expected.pop("http")  # on the pod's loopback
    assert {port["name"]: port["port"] for port in service["ports"]} == expected
    assert not service.get("publishNotReadyAddresses", False)


def test_the_autoscaler_alone_owns_the_number_of_pods(manifests):
    scaled = the(manifests, "ScaledObject")["spec"]
    assert scaled["minReplicaCount"] >= 2
    if "Deployment" in kinds(manifests):
        assert "replicas" not in the(manifests, "Deployment")["spec"]
        assert scaled["scaleTargetRef"]["name"] == "diptych"
    else:
        annotations = the(manifests, "InferenceService", "classifier")["metadata"]["annotations"]
        assert annotations["serving.kserve.io/autoscalerClass"] == "external"
        assert scaled["scaleTargetRef"]["name"] == "classifier-predictor"


def test_kserve_replaces_pods_as_the_deployment_does():
    predictor = the(render_overlay("kserve"), "InferenceService", "classifier")["spec"]["predictor"]
    assert predictor["deploymentStrategy"] == the(render_overlay("gpu"), "Deployment")["spec"]["strategy"]
    assert predictor["deploymentStrategy"]["rollingUpdate"]["maxUnavailable"] == 0


def test_the_serving_runtime_starts_the_container_of_the_gpu_overlay_as_far_as_knative_lets_it():
    rendered = render(KUBERNETES / "overlays/kserve-runtime")
    runtime = the(rendered, "ServingRuntime")["spec"]
    ours = pod_of(render_overlay("gpu"))
    (theirs,) = runtime["containers"]
    serving = serving_of(ours)
    for key in ("image", "resources", "readinessProbe"):
        assert theirs[key] == serving[key], key
    assert serving["securityContext"].items() <= theirs["securityContext"].items()
    assert theirs["args"] == ["--repository", "/mnt/models", "--gpu=required"]
    volumes = {volume["name"]: volume for volume in ours["spec"]["volumes"]}
    assert runtime["volumes"] == [volumes["shm"], volumes["tmp"]]
    # No revision of Knative's takes the first two; the last would replace the image's entry point.
    assert not {"lifecycle", "startupProbe", "command"} & set(theirs)
    predictor = the(rendered, "InferenceService", "classifier")["spec"]["predictor"]
    assert predictor["model"]["runtime"] == the(rendered, "ServingRuntime")["metadata"]["name"]
    assert predictor["model"]["modelFormat"]["name"] == runtime["supportedModelFormats"][0]["name"]
    assert kinds(rendered) == {
        "Namespace",
        "ServiceAccount",
        "ConfigMap",
        "ServingRuntime",
        "InferenceService",
    }


def test_the_entry_point_understands_the_arguments_that_the_components_add_up_to(manifests):
    arguments = serving_of(pod_of(manifests))["args"]
    options = parser().parse_args(arguments)
    assert str(options.repository) == "/models"
    if options.trace_url:
        (variable,) = serving_of(pod_of(manifests))["env"]
        assert variable["name"] == "TRACE_URL"
        url = the(manifests, "ConfigMap", variable["valueFrom"]["configMapKeyRef"]["name"])["data"][
            "TRACE_URL"
        ]
        assert Tracing.from_options(url, options.trace_one_in)
    if options.tls_cert:
        mounted = {
            mount["name"]: mount["mountPath"] for mount in serving_of(pod_of(manifests))["volumeMounts"]
        }
        assert {str(options.tls_cert.parent), str(options.tls_key.parent)} == {mounted["tls"]}


def test_kserve_runs_the_very_pod_of_the_gpu_overlay():
    ours, theirs = pod_of(render_overlay("gpu")), pod_of(render_overlay("kserve"))
    serving_of(theirs)["name"] = serving_of(ours)["name"]
    assert theirs == ours


def test_callers_reach_two_ports_prometheus_one_and_the_pod_itself_only_names(manifests):
    policy = the(manifests, "NetworkPolicy")["spec"]
    assert sorted(policy["policyTypes"]) == ["Egress", "Ingress"]
    assert [[port["port"] for port in rule["ports"]] for rule in policy["ingress"]] == [
        ["http", "grpc"],
        ["metrics"],
    ]
    out = [port["port"] for rule in policy["egress"] for port in rule["ports"]]
    assert out == ([53, 53] if "PersistentVolumeClaim" in kinds(manifests) else [53, 53, 443, 4318])


@pytest.mark.parametrize("on", OVERLAYS)
def test_an_operators_overlay_sets_image_and_release_everywhere(tmp_path, on):
    rendered = render(
        write_overlay(
            tmp_path,
            on=on,
            images=[{"name": "diptych-serving", "newName": "example.test/serving", "newTag": "7"}],
            configMapGenerator=[{"name": "release", "behavior": "merge", "literals": ["RELEASE=2"]}],
        )
    )
    pod = pod_of(rendered)
    assert {container["image"] for container in containers_of(pod)} == {"example.test/serving:7"}
    fetch = pod["spec"]["initContainers"][0]
    release = fetch["env"][0]["valueFrom"]["configMapKeyRef"]["name"]
    assert the(rendered, "ConfigMap", release)["data"] == {"RELEASE": "2"}
    # Another name in the template: another revision, which `kubectl rollout undo` can leave again.
    before = pod_of(render_overlay(on))["spec"]["initContainers"][0]["env"][0]
    assert before["valueFrom"]["configMapKeyRef"]["name"] != release


def test_the_loader_is_a_pod_that_the_namespace_admits_and_mounts_the_same_volume():
    loader = yaml.safe_load((KUBERNETES / "loader.yaml").read_text())
    kubernetes_validate.validate(loader, VERSIONS[0], strict=True)
    (container,) = loader["spec"]["containers"]
    ours = pod_of(render_overlay("cpu"))["spec"]
    assert loader["spec"]["securityContext"] == ours["securityContext"]
    assert container["securityContext"] == ours["containers"][0]["securityContext"]
    (volume,) = loader["spec"]["volumes"]
    claims = {each.get("persistentVolumeClaim", {}).get("claimName") for each in ours["volumes"]}
    assert volume["persistentVolumeClaim"]["claimName"] in claims
