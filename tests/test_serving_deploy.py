"""Generated deployments: the same bytes each time, read by the programs they are for, and refused when a letter is wrong."""
import copy
import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from mlnb.errors import ServingError
from mlnb.files import write_json
from mlnb.serving.alerts import Limits, alert_rules, prometheus_files
from mlnb.serving.compose import compose_document, compose_files
from mlnb.serving.deploy import Asked, deploy, pick_versions, plan_for, write_deployment, write_manifests
from mlnb.serving.envoy import whole
from mlnb.serving.kserve import kserve_documents, kserve_files
from mlnb.serving.kubernetes import kubernetes_documents, kubernetes_files
from mlnb.serving.nginx import nginx_config
from mlnb.serving.promotion import promote
from mlnb.serving.registry import register
from mlnb.serving.release import (
    STRATEGIES,
    Endpoint,
    Release,
    endpoints_of,
    models_config,
    monitoring_config,
    split_of,
    versions_of,
)
from mlnb.serving.validate import validate_files

RELEASE = Release("High.use_2", 6, 7, share=0.05)
PROGRAMS = {"envoy": importlib.util.find_spec("envoy"), "check-jsonschema": importlib.util.find_spec("check_jsonschema"),
            "kubernetes-validate": importlib.util.find_spec("kubernetes_validate"), "nginx": shutil.which("nginx"), "promtool": shutil.which("promtool"), "mlnb": True}


def needs(program):
    """Skip, saying why, where a program is missing."""
    return pytest.mark.skipif(not PROGRAMS[program], reason=f"{program} is not installed")


def written(folder, files):
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def everything(release):
    """All files of all targets that know the strategy."""
    files = {f"compose/{name}": text for name, text in (compose_files(release) | prometheus_files(release)).items()}
    files["compose/nginx/nginx.conf"] = nginx_config(release, endpoints_of(release))
    files |= {f"kubernetes/{name}": text for name, text in kubernetes_files(release).items()}
    if release.strategy in ("canary", "blue-green"): files |= {f"kserve/{name}": text for name, text in kserve_files(release).items()}
    return files


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_equal_releases_give_equal_files_that_say_where_they_come_from(strategy, tmp_path):
    release = RELEASE._replace(strategy=strategy)
    files = everything(release)
    assert files == everything(release) and len(files) > 15
    for name, text in files.items():
        assert text.startswith("# ") and "mlnb deploy High.use_2" in text and text.endswith("\n") and "\t" not in text, name
        assert str(Path.home()) not in text and "/tmp/" not in text, name
        if name.endswith(".yaml"): assert all(document for document in yaml.safe_load_all(text)), name
    assert everything(release._replace(share=0.25)) != files


@pytest.mark.parametrize(("strategy", "change"), [
    ("canary", {}), ("canary", {"new": 0, "share": 0.0}), ("blue-green", {"share": 1.0}), ("shadow", {"share": 1 / 3}), ("shadow", {"share": 1.0, "batching": False}),
    ("ab", {"share": 1 / 3}), ("bandit", {"share": 0.0})])
def test_every_program_that_is_here_accepts_every_release(strategy, change, tmp_path):
    release = RELEASE._replace(strategy=strategy)._replace(**change)
    folder = written(tmp_path, everything(release))
    checks = [*validate_files(folder / "compose"), *validate_files(folder / "kubernetes"), *(validate_files(folder / "kserve") if (folder / "kserve").is_dir() else [])]
    assert [one for one in checks if one.good is False] == []
    for one in checks:
        assert (one.good is None) == (not PROGRAMS[one.tool.split()[0]]) and (one.good or "not here" in one.message), one


@needs("envoy")
@pytest.mark.parametrize(("right", "wrong"), [
    ("codec_type", "codec_typ"), ("cluster_name", "cluster_nam"), ("use_hash_policy: true", "use_hash_policy: perhaps"), ("weight: 500", "weight: -500"),
    ("name: high-use-2-v6-rest\n  type", "nme: high-use-2-v6-rest\n  type"), ("port_value: 8501", "port_value: 850100"), ("retry_on", "retry_onn")])
def test_envoy_refuses_a_planted_mistake(right, wrong, tmp_path):
    written(tmp_path, compose_files(RELEASE))
    hits = [path for path in (tmp_path / "envoy").iterdir() if right in path.read_text()]
    assert hits
    for path in hits: path.write_text(path.read_text().replace(right, wrong))
    found = validate_files(tmp_path, ["envoy/envoy.yaml"])[0]
    assert found.good is False and found.message and str(tmp_path) not in found.message


@needs("check-jsonschema")
@pytest.mark.parametrize(("right", "wrong"), [("ports:", "port:"), ("cap_drop:", "cap_drop_all:"), ("condition: service_healthy", "condition: [healthy]")])
def test_compose_schema_refuses_a_planted_mistake(right, wrong, tmp_path):
    text = compose_files(RELEASE)["compose.yaml"]
    assert right in text
    written(tmp_path, {"compose.yaml": text.replace(right, wrong)})
    assert validate_files(tmp_path)[0].good is False


@needs("kubernetes-validate")
@pytest.mark.parametrize(("file", "right", "wrong"), [
    ("kubernetes.yaml", "preStop:", "prestop:"), ("kubernetes.yaml", "containerPort: 8501", "containerPort: rest"), ("kubernetes.yaml", "minReplicas: 2", "minReplicas: two"),
    ("kubernetes.yaml", "maxUnavailable: 1\n", "maxUnavailble: 1\n"), ("kubernetes.yaml", "kind: NetworkPolicy", "kind: NetworkPolice"),
    ("steps/025.00.yaml", "data:", "dato:"), ("kubernetes.yaml", "runAsNonRoot: true", "runAsNonRoot: yes please")])
def test_kubernetes_schemas_refuse_a_planted_mistake(file, right, wrong, tmp_path):
    text = kubernetes_files(RELEASE)[file]
    assert right in text
    written(tmp_path, {file: text.replace(right, wrong)})
    assert validate_files(tmp_path)[0].good is False


@needs("kubernetes-validate")
@pytest.mark.parametrize(("right", "wrong"), [
    ("canaryTrafficPercent: 5", "canaryTrafficPercent: 105"), ("canaryTrafficPercent: 5", "canaryPercent: 5"), ("serving.kserve.io/v1beta1", "serving.kserve.io/v1"),
    ("minReplicas: 2", "minReplicas: two"), ("containerPort: 8501", "containerPrt: 8501"), ("containers:", "container:")])
def test_kserve_schema_refuses_a_planted_mistake(right, wrong, tmp_path):
    text = kserve_files(RELEASE)["steps/005.00.yaml"]
    assert right in text
    written(tmp_path, {"steps/005.00.yaml": text.replace(right, wrong)})
    assert validate_files(tmp_path)[0].good is False


@pytest.mark.parametrize(("file", "right", "wrong"), [
    ("models.config", "base_path", "base_pth"), ("models.config", "versions: 7", "versions: seven"), ("monitoring.config", "enable: true", "enable: yes"),
    ("batching.config", "max_batch_size", "max_batch_sise"), ("batching.config", "value: 64", "value: 6.4")])
def test_the_embedded_server_refuses_a_planted_mistake(file, right, wrong, tmp_path):
    text = compose_files(RELEASE)[f"servers/v7/{file}"]
    assert right in text
    written(tmp_path, {f"servers/v7/{file}": text.replace(right, wrong)})
    assert validate_files(tmp_path)[0].good is False


@needs("nginx")
@pytest.mark.parametrize(("right", "wrong"), [("proxy_pass http", "proxy_pas http"), ("5.00% 7;", "105.00% 7;"), ("keepalive 64;", "keepalive 64")])
def test_nginx_refuses_a_planted_mistake(right, wrong, tmp_path):
    text = nginx_config(RELEASE, endpoints_of(RELEASE))
    assert right in text
    written(tmp_path, {"nginx.conf": text.replace(right, wrong)})
    assert validate_files(tmp_path)[0].good is False


@needs("promtool")
@pytest.mark.parametrize(("file", "right", "wrong"), [
    ("prometheus/alerts.yaml", "for: 5m", "for: soon"), ("prometheus/alerts.yaml", "histogram_quantile(0.95,", "histogram_quantil(0.95,"),
    ("prometheus/prometheus.yaml", "scrape_interval", "scrape_intervall")])
def test_promtool_refuses_a_planted_mistake(file, right, wrong, tmp_path):
    files = prometheus_files(RELEASE)
    assert right in files[file]
    written(tmp_path, files | {file: files[file].replace(right, wrong)})
    assert [one for one in validate_files(tmp_path) if one.file == file][0].good is False


def series(name, values, **labels):
    inside = ",".join(f'{key}="{value}"' for key, value in labels.items())
    return {"series": f"{name}{{{inside}}}", "values": values}


@needs("promtool")
def test_alerts_fire_for_what_they_are_for_and_for_nothing_else(tmp_path):
    """Prometheus computes them over counters as Envoy gives them: the new version fails, refuses and is slow; the champion is well."""
    release = Release("m", 6, 7, share=0.05)
    written(tmp_path, {"alerts.yaml": prometheus_files(release, Limits(errors=0.01, refusals=0.05, p95_ms=250))["prometheus/alerts.yaml"]})
    good, bad = "m-v6-rest", "m-v7-rest"
    counters = [series("envoy_cluster_upstream_rq_completed", "0+1000x30", envoy_cluster_name=good), series("envoy_cluster_upstream_rq_completed", "0+100x30", envoy_cluster_name=bad),
                series("envoy_cluster_upstream_rq_completed", "0+100x30", envoy_cluster_name="m-v7-grpc"),
                series("envoy_cluster_grpc", "0+30x30", envoy_cluster_name="m-v7-grpc", grpc_status="14"),
                series("envoy_cluster_grpc", "0+40x30", envoy_cluster_name="m-v7-grpc", grpc_status="3"),
                series("envoy_cluster_upstream_rq_xx", "0+1x30", envoy_cluster_name=good, envoy_response_code_class="5"),
                series("envoy_cluster_membership_healthy", "1x30", envoy_cluster_name=good), series("envoy_cluster_membership_healthy", "0x30", envoy_cluster_name=bad)]
    for cluster, slow in ((good, 10), (bad, 90)):
        counters += [series("envoy_cluster_upstream_rq_time_bucket", f"0+{100 - slow}x30", envoy_cluster_name=cluster, le="100"),
                     series("envoy_cluster_upstream_rq_time_bucket", f"0+{100 - slow * (slow > 50)}x30", envoy_cluster_name=cluster, le="200"),
                     series("envoy_cluster_upstream_rq_time_bucket", "0+100x30", envoy_cluster_name=cluster, le="400"),
                     series("envoy_cluster_upstream_rq_time_bucket", "0+100x30", envoy_cluster_name=cluster, le="+Inf")]
    expected = {"ModelErrorsV7", "ModelSlowV7", "ModelGoneV7", "NewVersionFailsMore", "NewVersionRefusesMore"}
    rules = {rule["alert"]: rule for rule in alert_rules(release, Limits(0.01, 0.05, 250))["groups"][0]["rules"]}
    checks = [{"eval_time": "20m", "alertname": name, "exp_alerts": [{"exp_labels": rule["labels"], "exp_annotations": rule["annotations"]}] if name in expected else []}
              for name, rule in rules.items()]
    (tmp_path / "test.yaml").write_text(json.dumps({"rule_files": ["alerts.yaml"], "evaluation_interval": "1m", "tests": [
        {"interval": "1m", "input_series": counters, "alert_rule_test": checks}]}))
    done = subprocess.run(["promtool", "test", "rules", str(tmp_path / "test.yaml")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@needs("nginx")
def test_a_live_nginx_splits_and_copies(tmp_path):
    """Two servers that only pretend; nginx in front, with the file that was generated."""
    import http.client
    import socket
    import time
    from collections import Counter
    release = Release("m", 1, 2, share=0.25, rest_port=28741, grpc_port=28742)
    processes, endpoints = [], []
    try:
        for version in (1, 2):
            (tmp_path / f"{version}.config").write_text(models_config(release, version, "/models/m"))
            process = subprocess.Popen([sys.executable, str(Path(__file__).with_name("stand_in.py")), f"--model_config_file={tmp_path}/{version}.config"], stdout=subprocess.PIPE, text=True)
            processes.append(process)
            said = json.loads(process.stdout.readline())
            endpoints.append(Endpoint(version, "127.0.0.1", said["rest"], said["grpc"]))

        def met(release, count, **headers):
            places = "".join(f" {one}_temp_path {tmp_path}/{one};" for one in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
            (tmp_path / "nginx.conf").write_text(nginx_config(release, tuple(endpoints)).replace("\nhttp {", "\nhttp {" + places).replace("/dev/stdout", "off"))
            nginx = subprocess.Popen(["nginx", "-e", "stderr", "-p", str(tmp_path), "-g", f"daemon off; pid {tmp_path}/pid;", "-c", str(tmp_path / "nginx.conf")], stderr=subprocess.PIPE)
            processes.append(nginx)
            until = time.monotonic() + 10
            while time.monotonic() < until:
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", release.rest_port)) == 0: break
                time.sleep(0.05)
            connection, found = http.client.HTTPConnection("127.0.0.1", release.rest_port), Counter()
            for _ in range(count):
                connection.request("POST", "/v1/models/m:predict", '{"instances": [[1, 2]]}', headers)
                answer = connection.getresponse()
                assert answer.status == 200 and json.loads(answer.read())["predictions"] == [3]
                found[answer.headers["x-mlnb-model-version"]] += 1
            nginx.terminate()
            nginx.wait(10)
            return found
        some = met(release, 400)
        assert abs(some["2"] / 400 - 0.25) < 0.1
        assert len(met(release, 40, **{"x-user-id": "somebody"})) == 1
        assert met(release._replace(strategy="shadow", share=1.0), 50) == {"1": 50}
    finally:
        for process in processes:
            process.kill()
            process.wait()


def test_envoy_and_nginx_and_kubernetes_say_the_same():
    for share in (0.0, 0.0001, 0.05, 0.5, 1.0):
        release = RELEASE._replace(share=share)
        weights = whole(release, endpoints_of(release))["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]["route_config"][
            "virtual_hosts"][0]["routes"][-1]["route"]["weighted_clusters"]["clusters"]
        assert {int(re.search(r"-v(\d+)-", one["name"])[1]): one["weight"] for one in weights} == split_of(release)
        line = re.search(r"([\d.]+)% 7;", nginx_config(release, endpoints_of(release)))
        assert float(line[1] if line else 0) * 100 == split_of(release)[7]


def test_each_server_is_told_its_own_version_in_every_target():
    release = RELEASE
    for version in versions_of(release):
        assert f"versions: {version}\n" in compose_files(release)[f"servers/v{version}/models.config"]
    maps = {one["metadata"]["name"]: one["data"] for one in kubernetes_documents(release) if one["kind"] == "ConfigMap"}
    assert [re.search(r"versions: (\d+)", maps[f"high-use-2-v{version}"]["models.config"])[1] for version in (6, 7)] == ["6", "7"]
    assert "versions: 7" in kserve_documents(release)[0]["data"]["models.config"] and 'base_path: "/mnt/models"' in kserve_documents(release)[0]["data"]["models.config"]


def test_servers_run_without_root_and_are_asked_whether_they_are_ready():
    pods = [one["spec"]["template"]["spec"] for one in kubernetes_documents(RELEASE) if one["kind"] == "Deployment"]
    assert len(pods) == 3
    for pod in pods:
        container = pod["containers"][0]
        assert pod["securityContext"]["runAsNonRoot"] and container["securityContext"]["readOnlyRootFilesystem"] and not pod["automountServiceAccountToken"]
        assert container["lifecycle"]["preStop"] and container["readinessProbe"] and container["livenessProbe"] and container["resources"]["requests"]
        waits = int(re.search(r"(\d+)$", container["lifecycle"]["preStop"]["exec"]["command"][-1])[1])
        assert RELEASE.timeout_seconds + 5 <= waits < pod["terminationGracePeriodSeconds"], "the slowest request that was let in is answered"
    assert pods[0]["containers"][0]["readinessProbe"]["httpGet"]["path"] == "/v1/models/High.use_2"
    services = compose_document(RELEASE, "x")["services"]
    assert all(one["user"] != "0:0" and one["read_only"] and one["cap_drop"] == ["ALL"] for one in services.values())
    assert all(port.startswith("127.0.0.1:") for one in services.values() for port in one.get("ports", []))
    kinds = [one["kind"] for one in kubernetes_documents(RELEASE)]
    assert kinds.count("HorizontalPodAutoscaler") == kinds.count("PodDisruptionBudget") == 3


def test_the_servers_files_are_tensorflow_servings():
    stubs = pytest.importorskip("tensorflow_serving.config.model_server_config_pb2", reason="TensorFlow Serving's stubs are not installed")
    from google.protobuf import text_format
    config = text_format.Parse(models_config(RELEASE, 7), stubs.ModelServerConfig()).model_config_list.config[0]
    assert (config.name, config.base_path, list(config.model_version_policy.specific.versions), dict(config.version_labels)) == (
        "High.use_2", "/models/High.use_2", [7], {"challenger": 7})
    assert "prometheus_config { enable: true" in monitoring_config(RELEASE)


DNS_LABEL = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")


@pytest.mark.parametrize("name", ["7days", "2024.tips_v2", "A" * 80, "a", "x--y..z", "Ends.", "0", "under_score", "_".join("ab" * 30)])
def test_any_name_of_a_model_gives_names_that_a_cluster_takes(name, tmp_path):
    """Services are DNS labels that begin with a letter; the model's own name stays in addresses and paths."""
    release = Release(name, 6, 7, share=0.05)
    documents = kubernetes_documents(release) + kserve_documents(release)
    for one in documents: assert DNS_LABEL.fullmatch(one["metadata"]["name"]), one["metadata"]["name"]
    assert all(DNS_LABEL.fullmatch(service) for service in compose_document(release, "../r")["services"])
    assert f"/v1/models/{name}" in json.dumps(documents)
    folder = written(tmp_path, everything(release))
    if name in ("7days", "x--y..z"):
        checks = [*validate_files(folder / "compose"), *validate_files(folder / "kubernetes"), *validate_files(folder / "kserve")]
        assert [one for one in checks if one.good is False] == []


def test_nobody_but_what_looks_after_the_pod_reaches_the_proxys_administration():
    """It could stop the proxy."""
    policies = {one["metadata"]["name"]: one["spec"] for one in kubernetes_documents(RELEASE) if one["kind"] == "NetworkPolicy"}
    assert set(policies) == {"high-use-2-versions", "high-use-2-envoy"}
    admin = [rule for rule in policies["high-use-2-envoy"]["ingress"] if {"port": "admin"} in rule.get("ports", [{"port": "admin"}])]
    assert len(admin) == 1 and [one["podSelector"]["matchLabels"] for one in admin[0]["from"]] == [{"app.kubernetes.io/name": "prometheus"}]
    ports = {one["name"] for one in next(
        one for one in kubernetes_documents(RELEASE) if one["kind"] == "Deployment" and one["metadata"]["name"] == "high-use-2")["spec"]["template"]["spec"]["containers"][0]["ports"]}
    assert ports == {"rest", "grpc", "admin"}


def test_a_slow_model_is_not_killed_while_it_loads_or_answers():
    """Probes wait five minutes in both kinds of cluster; a pod that ends waits for the slowest request that is allowed."""
    slow = RELEASE._replace(timeout_seconds=90.0)
    pods = [one["spec"]["template"]["spec"] for one in kubernetes_documents(slow) if one["kind"] == "Deployment"]
    assert all(pod["terminationGracePeriodSeconds"] > 100 for pod in pods)
    startup = pods[0]["containers"][0]["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] >= 300
    live = kserve_documents(RELEASE)[1]["spec"]["predictor"]["containers"][0]["livenessProbe"]
    assert live["periodSeconds"] * live["failureThreshold"] >= 300


def test_every_image_is_pinned_and_every_model_is_mounted_to_be_read():
    for one in compose_document(RELEASE, "../r")["services"].values():
        assert re.fullmatch(r"[\w./-]+:v?\d+(\.\d+)+", one["image"]) and all(volume["read_only"] and not volume["bind"]["create_host_path"] for volume in one["volumes"])
    for one in kubernetes_documents(RELEASE):
        if one["kind"] != "Deployment": continue
        (container,) = one["spec"]["template"]["spec"]["containers"]
        assert re.fullmatch(r"[\w./-]+:v?\d+(\.\d+)+", container["image"])
        assert all(mount.get("readOnly") for mount in container["volumeMounts"] if mount["name"] != "tmp")


def registered(folder, name, value, inputs=("age",), blessed=True):
    exported = folder / "exports" / name
    (exported / "variables").mkdir(parents=True)
    (exported / "saved_model.pb").write_text("graph " + name)
    tensors = {one: {"dtype": "float32", "shape": [None]} for one in inputs}
    write_json(exported / "assets.extra" / "mlnb_export.json", {"signatures": {"serving_default": {"inputs": tensors, "outputs": {}}}, "classes": []})
    return register(folder / "registry", "m", exported, {"evaluation": {"metric": "auc", "value": value, "blessed": blessed}})


@pytest.mark.parametrize("to", ["compose", "kubernetes", "kserve"])
def test_deploying_elsewhere_writes_files_that_were_checked(to, tmp_path):
    registered(tmp_path, "a", 0.7)
    registered(tmp_path, "b", 0.8)
    found = deploy(tmp_path / "runs", tmp_path / "registry", "m", Asked(to))
    assert (found["champion"]["number"], found["new"]["number"]) == (1, 2) and "README.md" in found["files"] and found["checks"]
    assert all(one["good"] is not False for one in found["checks"]) and json.dumps(found)
    folder = Path(found["folder"])
    first = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "rollout.json"}
    deploy(tmp_path / "runs", tmp_path / "registry", "m", Asked(to))
    assert first == {path: path.read_bytes() for path in first}
    if to == "compose":
        mounted = yaml.safe_load((folder / "compose.yaml").read_text())["services"]["m-v1"]["volumes"][0]["source"]
        assert (folder / mounted).resolve() == (tmp_path / "registry" / "m").resolve()
        assert json.loads((folder / "rollout.json").read_text())["target"] == "compose"


def test_what_a_pair_cannot_be_is_said_before_anything_is_written(tmp_path):
    with pytest.raises(ServingError, match="a model that was registered"): deploy(tmp_path / "runs", tmp_path / "registry", "m", Asked("compose"))
    registered(tmp_path, "a", 0.7, blessed=False)
    with pytest.raises(ServingError, match="no champion"): deploy(tmp_path / "runs", tmp_path / "registry", "m", Asked("compose"))
    promote(tmp_path / "registry", "m", 1, force=True, reason="the first one")
    registered(tmp_path, "b", 0.8, inputs=("age", "fare"))
    registered(tmp_path, "c", 0.8, inputs=("age", "fare"), blessed=False)
    for version, words in (("2", "breaks the champion's clients"), ("3", "not blessed"), ("9", "no version '9'"), ("1", "the champion already")):
        with pytest.raises(ServingError, match=words): deploy(tmp_path / "runs", tmp_path / "registry", "m", Asked("kubernetes", version=version))
    assert not (tmp_path / "runs").exists()
    assert pick_versions(tmp_path / "registry", "m", version="2", force=True)[1]["number"] == 2


def test_what_breaks_is_asked_of_the_two_versions_and_not_of_those_between(tmp_path):
    """The second needs another input and the third does not any more; by their numbers both would break the first one's clients."""
    versions = [registered(tmp_path, name, value, inputs)["version"] for name, value, inputs in (
        ("a", 0.7, ("age",)), ("b", 0.8, ("age", "fare")), ("c", 0.9, ("age",)))]
    assert versions == ["1.0.0", "2.0.0", "3.0.0"]
    with pytest.raises(ServingError, match="input fare is new"): pick_versions(tmp_path / "registry", "m", version="2")
    assert pick_versions(tmp_path / "registry", "m", version="3")[1]["number"] == 3
    promote(tmp_path / "registry", "m", 2)
    with pytest.raises(ServingError, match="input fare is gone"): pick_versions(tmp_path / "registry", "m", version="1")


def test_models_that_would_share_their_names_in_a_cluster_are_refused(tmp_path):
    for name in ("my.model", "My_Model", "other"):
        exported = tmp_path / "exports" / name
        (exported / "variables").mkdir(parents=True)
        (exported / "saved_model.pb").write_text("graph " + name)
        register(tmp_path / "registry", name, exported, {"evaluation": {"metric": "auc", "value": 0.7, "blessed": True}})
    for to in ("compose", "kubernetes", "kserve"):
        with pytest.raises(ServingError, match="'my.model' and 'My_Model' would have the same names"): deploy(tmp_path / "runs", tmp_path / "registry", "my.model", Asked(to))
    assert deploy(tmp_path / "runs", tmp_path / "registry", "other", Asked("kubernetes"))["new"] is None


def test_a_folder_with_a_dollar_sign_is_no_variable_of_compose(tmp_path):
    registered(tmp_path / "a $HOME:b", "a", 0.7)
    found = deploy(tmp_path / "a $HOME:b" / "runs", tmp_path / "a $HOME:b" / "registry", "m", Asked("compose"))
    other = deploy(tmp_path / "runs", tmp_path / "a $HOME:b" / "registry", "m", Asked("compose"))
    for one in (found, other):
        source = yaml.safe_load((Path(one["folder"]) / "compose.yaml").read_text())["services"]["m-v1"]["volumes"][0]["source"]
        assert (Path(one["folder"]) / source.replace("$$", "$")).resolve() == (tmp_path / "a $HOME:b" / "registry" / "m").resolve() and source.replace("$$", "").count("$") == 0


def test_a_file_that_its_reader_refuses_is_an_error_that_names_it(tmp_path, monkeypatch):
    if not PROGRAMS["kubernetes-validate"]: pytest.skip("kubernetes-validate is not installed")
    monkeypatch.setattr("mlnb.serving.deploy.kubernetes_files", lambda *given: {"kubernetes.yaml": kubernetes_files(*given)["kubernetes.yaml"].replace("preStop", "prestop")})
    with pytest.raises(ServingError, match=r"(?s)kubernetes.yaml: a generated file is refused.*'prestop' was unexpected"):
        write_deployment(tmp_path, "kubernetes", Release("m", 6, 7), plan_for("canary"), "r")


def test_manifests_hold_no_place_of_this_machine(tmp_path):
    write_manifests(tmp_path, Release("m", 6, 7), plan_for("canary"))
    for path in tmp_path.rglob("*"):
        if path.is_file(): assert str(tmp_path) not in path.read_text() and str(Path.home()) + "/" not in path.read_text()
    assert "${MLNB_REGISTRY" in (tmp_path / "compose" / "compose.yaml").read_text()


def test_the_same_document_is_not_changed_by_being_checked():
    documents = kubernetes_documents(RELEASE)
    before = copy.deepcopy(documents)
    kubernetes_files(RELEASE)
    assert documents == before
