"""What the benchmark needs from the machine: what is there, what is missing, and how to get it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
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
CONNECT = [
    Tool("wrk", "wrk", "loads KV Connect over HTTP/1.1"),
    Tool("nghttp2-client", "h2load", "loads KV Connect over h2c"),
]
OPTIONAL = [Tool("postgresql", "/usr/lib/postgresql/*/bin/initdb", "a third row of the table")]


def present(tool: Tool) -> bool:
    """Whether the tool is installed."""
    if "/" not in tool.probe:
        return shutil.which(tool.probe) is not None
    path = Path(tool.probe)
    return any(True for _ in Path("/").glob(str(path.relative_to("/"))))


def missing(tools: Sequence[Tool]) -> list[Tool]:
    """Those that are not installed."""
    return [tool for tool in tools if not present(tool)]


def require(tools: Sequence[Tool] = REQUIRED) -> None:
    """Exit with the names of those that are missing and the command that installs them."""
    absent = missing(tools)
    if absent:
        for tool in absent:
            print(f"bench: '{tool.package}' is missing: it {tool.why}", file=sys.stderr)
        sys.exit("bench: install them with 'make bench-setup' or\n  apt-get install " + _packages(absent))


def _packages(tools: Sequence[Tool]) -> str:
    return " ".join(tool.package for tool in tools)


def install() -> int:
    """Install with apt-get what is missing; returns its exit status."""
    needed = [*REQUIRED, *CONNECT]
    absent = missing(needed)
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
    return status or len(missing(needed))


if __name__ == "__main__":
    sys.exit(install())
