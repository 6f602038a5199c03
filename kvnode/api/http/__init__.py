"""The HTTP server, behind one seam: handlers know requests and responses, nothing of the server."""

from kvnode.api.http.messages import HttpError, Request, Response, Stream, Tls, Unanswered
from kvnode.api.http.server import HttpServer

__all__ = ["HttpError", "HttpServer", "Request", "Response", "Stream", "Tls", "Unanswered"]
