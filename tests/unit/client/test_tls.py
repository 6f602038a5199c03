"""Files that gRPC would take without a word."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import grpc
import pytest

from kvnode.base.errors import InvalidRequest
from kvnode.client.tls import tls_credentials


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is missing")
    made = tmp_path_factory.mktemp("tls")
    for name in ("one", "two"):
        command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        command += ["-keyout", str(made / f"{name}.key"), "-out", str(made / f"{name}.pem"), "-days", "2"]
        subprocess.run([*command, "-subj", f"/CN={name}"], check=True, capture_output=True)
    (made / "nonsense.pem").write_text("nonsense")
    return made


def test_good_files(folder: Path) -> None:
    for files in ((), ("one.pem",), ("one.pem", "two.pem", "two.key")):
        assert isinstance(tls_credentials(*(folder / name for name in files)), grpc.ChannelCredentials)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (("none.pem", "", ""), "none.pem as the authority: .*No such file"),
        (("nonsense.pem", "", ""), "nonsense.pem as the authority"),
        (("one.pem", "one.pem", "two.key"), "one.pem with the key .*two.key: .*mismatch"),
        (("one.pem", "one.pem", "nonsense.pem"), "one.pem with the key"),
        (("one.pem", "one.pem", ""), "given together"),
    ],
)
def test_what_is_wrong_is_named(folder: Path, files: tuple[str, str, str], said: str) -> None:
    with pytest.raises(InvalidRequest, match=said) as caught:
        tls_credentials(*(folder / name if name else "" for name in files))
    assert (caught.value.code, caught.value.phase) == ("TLS_FILE_UNUSABLE", "tls")
