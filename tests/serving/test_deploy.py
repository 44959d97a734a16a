"""What deploy/ says of a server is so: its ports, paths, settings, variables and times."""

import json
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import typer
import yaml
from typer.core import TyperGroup

from adrec import __version__, cli
from adrec.config import load_settings, parse_overrides
from adrec.errors import ConfigError
from adrec.serving.config import TOKENS, ServerConfig

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
PORT = ServerConfig.model_fields["port"].default
ADMIN_PORT = ServerConfig.model_fields["admin_port"].default
DRAIN_S = ServerConfig.model_fields["drain_s"].default


def instructions(kind):
    """What follows each instruction of a kind, in the Dockerfile."""
    text = (DEPLOY / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    return re.findall(rf"^{kind} (.*)$", text, re.MULTILINE)


COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))["services"]
DEPLOYMENT, SERVICE = yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text(encoding="utf-8"))
POD = DEPLOYMENT["spec"]["template"]["spec"]
CONTAINER = POD["containers"][0]
PROMETHEUS = yaml.safe_load((DEPLOY / "prometheus.yaml").read_text(encoding="utf-8"))
_, _, *ENTRYPOINT = json.loads(instructions("ENTRYPOINT")[0])  # behind `tini --`

STARTED = {
    "compose": (COMPOSE["adrec"]["command"], COMPOSE["adrec"]["environment"]),
    "kubernetes": (CONTAINER["args"], {one["name"]: one for one in CONTAINER["env"]}),
}


def given(arguments):
    """What the image's entry point and arguments come to, as settings."""
    name, *rest = [*ENTRYPOINT, *arguments][1:]
    group = typer.main.get_command(cli.app)
    assert isinstance(group, TyperGroup)
    found = group.commands[name].make_context(name, rest).params
    names = found.keys() & ServerConfig.model_fields.keys()
    flags = {key: found[key] for key in names if found[key] is not None}
    return flags | parse_overrides(found["settings"] or [])


@pytest.mark.parametrize(("arguments", "variables"), STARTED.values(), ids=STARTED)
def test_it_starts_a_server_that_strangers_cannot_change(arguments, variables):
    names = {name for name in variables if name.startswith("ADREC_")}
    assert names == set(TOKENS.values())
    settings = given(arguments)
    with pytest.raises(ConfigError, match="ADREC_EVENTS_TOKEN"):
        load_settings(ServerConfig, None, settings)
    config = load_settings(ServerConfig, None, settings | dict.fromkeys(TOKENS, "x" * 16))
    assert (config.port, config.admin_port) == (PORT, ADMIN_PORT)


def test_the_image_by_itself():
    assert {int(port) for port in instructions("EXPOSE")[0].split()} == {PORT, ADMIN_PORT}
    assert int(instructions("USER")[0]) == POD["securityContext"]["runAsUser"] > 0
    assert given([])["host"] == "0.0.0.0"


def test_ports():
    assert {one["name"]: one["containerPort"] for one in CONTAINER["ports"]} == {
        "requests": PORT, "admin": ADMIN_PORT,
    }  # fmt: skip
    assert [one["targetPort"] for one in SERVICE["spec"]["ports"]] == ["requests"]
    for published in COMPOSE["adrec"]["ports"]:
        address, _, inside = published.rpartition(":")
        assert address == f"127.0.0.1:{inside}"
        assert int(inside) in (PORT, ADMIN_PORT)
    scraped = DEPLOYMENT["spec"]["template"]["metadata"]["annotations"]["prometheus.io/port"]
    assert int(scraped) == PORT
    targets = PROMETHEUS["scrape_configs"][0]["static_configs"][0]["targets"]
    assert targets == [f"{name}:{PORT}" for name in COMPOSE if name == "adrec"]


def test_what_is_asked_is_answered(server):
    probes = [one["httpGet"] for name, one in CONTAINER.items() if name.endswith("Probe")]
    assert len(probes) == 3
    assert {one["port"] for one in probes} == {"requests"}
    health = json.loads(instructions("HEALTHCHECK")[0].partition("CMD ")[2])
    url = urlsplit(re.search(r"http://[^']+", health[-1])[0])
    assert url.port == PORT
    for path in {*(one["path"] for one in probes), url.path, "/metrics"}:
        assert server.http.get(path).status_code == 200


def test_labels_and_names_agree():
    labels = DEPLOYMENT["spec"]["template"]["metadata"]["labels"]
    assert DEPLOYMENT["spec"]["selector"]["matchLabels"] == SERVICE["spec"]["selector"] == labels
    assert CONTAINER["image"] == f"adrec:{__version__}"
    volumes = {one["name"] for one in POD["volumes"]}
    assert {one["name"] for one in CONTAINER["volumeMounts"]} == volumes
    assert {one["mountPath"] for one in CONTAINER["volumeMounts"]} >= {ENTRYPOINT[2], "/tmp"}
    assert COMPOSE["adrec"]["depends_on"].keys() <= COMPOSE.keys()


def test_there_is_time_to_end():
    """A pod is out of the routes before it stops, and has `drain_s` and some seconds after that."""
    (command,) = CONTAINER["lifecycle"]["preStop"].values()
    word, seconds = command["command"]
    assert (word, int(seconds) >= 5) == ("sleep", True)
    assert POD["terminationGracePeriodSeconds"] >= int(seconds) + DRAIN_S + 10
    assert int(COMPOSE["adrec"]["stop_grace_period"].removesuffix("s")) >= DRAIN_S + 10


def test_nobody_is_root():
    assert POD["securityContext"]["runAsNonRoot"]
    inside = CONTAINER["securityContext"]
    assert inside["readOnlyRootFilesystem"]
    assert not inside["allowPrivilegeEscalation"]
    assert inside["capabilities"]["drop"] == ["ALL"]


def test_the_dockerfile_has_nothing_that_hadolint_finds():
    program = Path(sys.executable).with_name("hadolint")
    command = [program, "--no-color", DEPLOY / "Dockerfile"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "")
