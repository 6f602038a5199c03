"""Queues that are pushed: the leader POSTs their messages to a URL.

- pushers.py: which queues this node pushes: those that say so, while it leads
- pusher.py: one queue: an ordinary consumer whose handler is a request
- request.py: what is sent, and its signature
- client.py: HTTP/1.1, one request at a time on a connection that is kept for the next
- addresses.py: which addresses may be called
"""
