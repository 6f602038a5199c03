from __future__ import annotations

import pytest

from kvnode.api.http import http1 as http1_module
from kvnode.base import limits


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http1_module, "SWEEP_S", 0.05)
    monkeypatch.setattr("kvnode.api.http.http2._BODY_SWEEP_S", 0.05)
    monkeypatch.setattr("kvnode.api.http.unread._SWEEP_S", 0.05)
    monkeypatch.setattr("kvnode.api.http.http2_direct._SWEEP_S", 0.05)
    for name in ("HTTP_HEADER_TIMEOUT_MS", "HTTP_BODY_TIMEOUT_MS", "HTTP_SEND_TIMEOUT_MS"):
        monkeypatch.setattr(limits, name, 150)
