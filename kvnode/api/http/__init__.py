"""The HTTP server, behind one seam: handlers know requests and responses, nothing of the server."""

from kvnode.api.http.large_body import LargeBody
from kvnode.api.http.messages import (
    INTERNAL_ERROR,
    Body,
    Handle,
    HttpError,
    Request,
    Response,
    Stream,
    Tls,
    Unanswered,
    WholeRequest,
)
from kvnode.api.http.server import HttpServer

__all__ = [
    "INTERNAL_ERROR",
    "Body",
    "Handle",
    "HttpError",
    "HttpServer",
    "LargeBody",
    "Request",
    "Response",
    "Stream",
    "Tls",
    "Unanswered",
    "WholeRequest",
]
