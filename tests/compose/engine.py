"""podman and podman-compose from Debian's packages, with a store of their own, on a base image made by debootstrap.

No Docker engine and no registry of images are needed, nor touched: what is imported here under the name that the
Dockerfile asks for never meets a real image of that name. What the machine has in the way of certificates and of
pip's settings is given to the base image, since the build must reach PyPI as this machine does.
"""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
WORK = Path("/var/tmp/kvnode-compose-check")
PROJECT = "kvnode-check"
PACKAGES = {
    "podman": "podman",
    "podman-compose": "podman-compose",
    "runc": "runc",
    "/usr/lib/podman/netavark": "netavark",
    "/usr/lib/podman/aardvark-dns": "aardvark-dns",
    "iptables": "iptables",
    "debootstrap": "debootstrap",
    "promtool": "prometheus",
}
_SUITE = "bookworm"
_CERTIFICATES = Path("/usr/local/share/ca-certificates")
_LONG_S = 1_200.0


class CheckFailed(Exception):
    """Something was not as it has to be; the message says what."""


def install() -> list[str]:
    """Install what is missing; returns the names of the packages. Raises CheckFailed."""
    missing = [package for probe, package in PACKAGES.items() if not (shutil.which(probe) or Path(probe).exists())]
    if missing:
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        run("apt-get", "update", "-qq", environment=environment)
        run("apt-get", "install", "-y", "-qq", "--no-install-recommends", *missing, environment=environment)
    return missing


def run(
    *command: str, environment: dict[str, str] | None = None, timeout_s: float = _LONG_S, check: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run a command in the checkout. Raises CheckFailed with the end of its output."""
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout_s, check=False
    )
    if check and done.returncode:
        tail = "\n".join((done.stdout + done.stderr).splitlines()[-25:])
        raise CheckFailed(f"{' '.join(command)} ended with {done.returncode}:\n{tail}")
    return done


class Engine:
    """One podman with its own images, containers, volumes and networks, below WORK."""

    def __init__(self) -> None:
        WORK.mkdir(parents=True, exist_ok=True)
        (WORK / "containers.conf").write_text(_containers_conf())
        storage = f'[storage]\ndriver = "overlay"\ngraphroot = "{WORK}/storage"\nrunroot = "{WORK}/run"\n'
        (WORK / "storage.conf").write_text(storage)
        self.environment = {
            **os.environ,
            "CONTAINERS_CONF": str(WORK / "containers.conf"),
            "CONTAINERS_STORAGE_CONF": str(WORK / "storage.conf"),
            "BUILDAH_FORMAT": "docker",  # the other format has no place for the health check
        }

    def podman(self, *arguments: str, check: bool = True) -> str:
        """What a podman command prints. Raises CheckFailed."""
        return run("podman", *arguments, environment=self.environment, check=check).stdout.strip()

    def compose(self, *arguments: str, check: bool = True) -> str:
        """What a podman-compose command prints, for the real docker-compose.yml. Raises CheckFailed."""
        done = run("podman-compose", "-p", PROJECT, *arguments, environment=self.environment, check=check)
        return done.stdout + done.stderr

    def build(self, service: str, image: str) -> None:
        """Build a service's image. podman-compose calls a failed build a success. Raises CheckFailed."""
        self.podman("untag", image, check=False)
        said = self.compose("build", service)
        if run("podman", "image", "exists", image, environment=self.environment, check=False).returncode:
            raise CheckFailed("the image was not built:\n" + "\n".join(said.splitlines()[-15:]))

    def container(self, service: str) -> str:
        """The name of a service's container."""
        return f"{PROJECT}_{service}_1"

    def logs(self, service: str) -> str:
        """All that a service's container has written."""
        done = run("podman", "logs", self.container(service), environment=self.environment, check=False)
        return done.stdout + done.stderr

    def inspect(self, service: str) -> dict[str, Any]:
        """All that podman knows of a service's container."""
        found: list[dict[str, Any]] = json.loads(self.podman("inspect", self.container(service)))
        return found[0]

    def import_base(self) -> str:
        """Make the image that the Dockerfile begins with, once; returns its name."""
        found = re.search(r"^ARG BASE=(\S+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
        if found is None:
            raise CheckFailed("the Dockerfile does not say ARG BASE=...")
        name = found.group(1)
        if run("podman", "image", "exists", name, environment=self.environment, check=False).returncode:
            folder = WORK / "base"
            shutil.rmtree(folder, ignore_errors=True)
            run("debootstrap", "--variant=minbase", _SUITE, str(folder))
            _as_this_machine(folder)
            archive = WORK / "base.tar"
            run("tar", "-C", str(folder), "-cf", str(archive), ".")
            self.podman("import", str(archive), name)
            archive.unlink()
            shutil.rmtree(folder)
        return name

    def remove_all(self) -> None:
        """Take the project down with its volumes and network; images stay for the next time."""
        self.compose("down", "-v", check=False)
        self.podman("network", "rm", "-f", f"{PROJECT}_default", check=False)

    def left(self) -> str:
        """Containers, volumes and networks of the project that are still there."""
        filters = ("--filter", f"label=io.podman.compose.project={PROJECT}", "--format", "{{.Name}}")
        containers = self.podman("ps", "-a", "--filter", f"name={PROJECT}", "--format", "{{.Names}}")
        return " ".join(
            [containers, self.podman("volume", "ls", *filters), self.podman("network", "ls", *filters)]
        ).strip()


def _containers_conf() -> str:
    """What a container may ask for is what this shell has: a sandbox refuses more. podman itself caps processes."""
    files = resource.getrlimit(resource.RLIMIT_NOFILE)
    pid_max = int(Path("/proc/sys/kernel/pid_max").read_text())
    unlimited = resource.RLIM_INFINITY
    processes = [
        pid_max if limit == unlimited else min(limit, pid_max) for limit in resource.getrlimit(resource.RLIMIT_NPROC)
    ]
    ulimits = [f"nofile={files[0]}:{files[1]}", f"nproc={processes[0]}:{processes[1]}"]
    return (
        f"[containers]\ndefault_ulimits = {json.dumps(ulimits)}\n"
        '[engine]\nruntime = "runc"\ncgroup_manager = "cgroupfs"\nevents_logger = "file"\n'
        '[network]\nnetwork_backend = "netavark"\n'
    )


def _as_this_machine(folder: Path) -> None:
    """Certificates that the administrator added, and where pip looks for packages."""
    target = folder / "usr/local/share/ca-certificates"
    target.mkdir(parents=True, exist_ok=True)
    for certificate in sorted(_CERTIFICATES.glob("*.crt")):
        shutil.copy(certificate, target)
    lines = [f"{key} = {value}" for key, value in _pip_settings().items()]
    if lines:
        (folder / "etc/pip.conf").write_text("\n".join(["[global]", *lines, ""]))


def _pip_settings() -> dict[str, str]:
    listed = run("pip", "config", "list", check=False).stdout if shutil.which("pip") else ""
    pairs = re.findall(r"^(?::env:\.|global\.)(index-url|cert|trusted-host|proxy)='(.*)'$", listed, re.MULTILINE)
    return dict(pairs)
