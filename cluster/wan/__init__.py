"""The wide area network on one machine: a proxy that delays, cuts and heals what travels between sites.

A *site* is whoever dials or is dialled: a node, or the clients of a region. Every site dials through a port of its own,
so that the proxy knows where a connection comes from, and is known by its address, so that the proxy knows where it
goes: each node has a loopback address to itself (127.x.y.z), whatever its ports. Nodes dial by HTTP's CONNECT
(`egress_proxy`); a client that cannot is given a *forward*, a port that leads to one address.

    node a ── CONNECT b:4510 ──► proxy, a's port ══ link a→b: 0.7 ms ══► node b
                                                 ◄═ link b→a: 0.7 ms ═══

links.py has the delays, connections.py what travels, server.py the ports, control.py the orders (cut, heal, ...),
process.py runs it all as a process of its own, and wan.py is the caller's end of it.
"""
