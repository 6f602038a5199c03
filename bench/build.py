"""Build the load generator from bench/go, offline, from Debian's Go packages alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from bench import tools

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "bench" / "go"
BUILD = ROOT / "bench" / ".build"
PROTOS = ROOT / "protos"
COMPILED = ("kv/v1/kv.proto", "kv/v1/queue.proto")
LOADGEN = BUILD / "loadgen"


def build() -> Path:
    """Build it when a source is newer, and return its path."""
    tools.require()
    sources = [*SOURCE.glob("*.go"), *(PROTOS / name for name in COMPILED)]
    if LOADGEN.exists() and LOADGEN.stat().st_mtime > max(path.stat().st_mtime for path in sources):
        return LOADGEN
    package = BUILD / "gopath" / "src" / "kvbench"
    messages = package / "kvpb"
    messages.mkdir(parents=True, exist_ok=True)
    for stale in package.glob("*.go"):
        stale.unlink()
    for path in SOURCE.glob("*.go"):
        (package / path.name).symlink_to(path)
    # Side by side in one package, so that one may use the other's messages.
    options = ",".join(["plugins=grpc", "paths=source_relative", *(f"M{name}=kvbench/kvpb;kvpb" for name in COMPILED)])
    _run(["protoc", f"-I{PROTOS}", f"--go_out={options}:{package}", *COMPILED])
    for name in COMPILED:
        generated = package / Path(name).with_suffix(".pb.go")
        generated.replace(messages / generated.name)
    environment = {
        **os.environ,
        "GO111MODULE": "off",
        "GOPATH": f"{BUILD / 'gopath'}:/usr/share/gocode",
        "GOPROXY": "off",
        "GOCACHE": str(BUILD / "cache"),
        "GOFLAGS": "",
    }
    _run(["go", "build", "-o", str(LOADGEN), "kvbench"], environment)
    return LOADGEN


def _run(command: list[str], environment: dict[str, str] | None = None) -> None:
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"bench: {' '.join(command)} failed:\n{done.stdout}{done.stderr}")


if __name__ == "__main__":
    print(build())
