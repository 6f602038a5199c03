"""What the benchmark needs from the machine: what is there, what is missing, and how to get it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

GOCODE = Path("/usr/share/gocode/src")


class Tool(NamedTuple):
    """Something needed, how to see that it is there, and the Debian package that has it."""

    package: str
    probe: str
    why: str


REQUIRED = [
    Tool("golang-go", "go", "builds the load generator"),
    Tool("protobuf-compiler", "protoc", "generates its messages"),
    Tool("golang-goprotobuf-dev", "protoc-gen-go", "generates its messages"),
    Tool("golang-google-grpc-dev", str(GOCODE / "google.golang.org/grpc"), "has the generator's gRPC"),
    Tool("golang-etcd-server-dev", str(GOCODE / "go.etcd.io/etcd/etcdserver/etcdserverpb"), "has etcd's messages"),
    Tool("etcd-server", "etcd", "is the store that kvnode is measured against"),
]
OPTIONAL = [Tool("postgresql", "/usr/lib/postgresql/*/bin/initdb", "a third row of the table")]


def present(tool: Tool) -> bool:
    """Whether the tool is installed."""
    if "/" not in tool.probe:
        return shutil.which(tool.probe) is not None
    path = Path(tool.probe)
    return any(True for _ in Path("/").glob(str(path.relative_to("/"))))


def missing(tools: list[Tool]) -> list[Tool]:
    """Those that are not installed."""
    return [tool for tool in tools if not present(tool)]


def require() -> None:
    """Exit with the names of what is missing and the command that installs it."""
    absent = missing(REQUIRED)
    if absent:
        for tool in absent:
            print(f"bench: '{tool.package}' is missing: it {tool.why}", file=sys.stderr)
        sys.exit("bench: install them with 'make bench-setup' or\n  apt-get install " + _packages(absent))


def _packages(tools: list[Tool]) -> str:
    return " ".join(tool.package for tool in tools)


def install() -> int:
    """Install with apt-get what is missing; returns its exit status."""
    absent = missing(REQUIRED)
    for tool in missing(OPTIONAL):
        print(f"bench: '{tool.package}' is not installed; without it the table has no row of it")
    if not absent:
        print("bench: everything needed is installed")
        return 0
    print("bench: installing", _packages(absent))
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        print("bench: not possible here (apt-get as root is needed); install by hand:", _packages(absent))
        return 1
    command = ["apt-get", "install", "--yes", "--no-install-recommends", *(tool.package for tool in absent)]
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    status = subprocess.run(command, env=environment, check=False).returncode
    if "etcd-server" in {tool.package for tool in absent} and shutil.which("systemctl"):
        # Debian starts a server of its own at once, on the default ports.
        subprocess.run(["systemctl", "disable", "--now", "etcd"], check=False, capture_output=True)
    return status or len(missing(REQUIRED))


if __name__ == "__main__":
    sys.exit(install())
