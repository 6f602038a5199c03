"""docs/reference/failure-table.md, from a run."""

from __future__ import annotations

from collections.abc import Sequence

from cluster.drill.report import FAILURE_COLUMNS, Findings, failure_rows, spread_rows

_INTRODUCTION = """# The failure table, measured

<!-- Written by `make drill ARGS=--write`; run it again instead of changing this page. -->

`make drill` breaks seven real nodes in three regions, row by row, under an open loop of writes and reads from clients
in every region: the Python client over gRPC, and KV Connect through a gateway that lives beside the client. A proxy
gives the delays (`cluster/topologies/default.toml`). After each repetition every acknowledged write is read back from
every node, by strong and by eventual reads, the order of all calls is checked for strict serializability, and the
nodes' digests are compared. The command fails when a promise is broken.

**writes** is the longest time that a client of the primary region waited for an acknowledgement, of the client for
which it was longest, clients that had preferred the lost data center included: where replicas are lost, no more than
100 ms are aimed at. **gap** is the longest time in which none of these clients' writes was acknowledged while one
waited. **reads away** is the longest wait for an eventual read of a client in the replica regions, **home** in the
primary one. **caught up** is how long after the return all nodes had applied the same. Milliseconds. In the first row
nothing happens: compare the others with it.
"""


def page(findings: Findings) -> str:
    """The whole page."""
    machine = findings.machine
    lines = [
        _INTRODUCTION,
        f"Measured on {machine['cores']} cores of a {machine['processor']}, which all processes shared, the clients' "
        f"too (load {machine['load']:.1f} at the end; their host took {machine['stolen_s']:.0f} s of their time); "
        f"{machine['repetitions']} repetitions.\n",
        *_table(
            FAILURE_COLUMNS,
            failure_rows(findings.verdicts),
        ),
        "",
        "## Latency and lag",
        "",
        "Latency is that of a client beside the node; of eventual reads also what they take from their arrival at",
        "the node to their answer (`kvnode_eventual_read_latency_ms`, whose buckets end at 0.1, 0.2, 0.5, 1, 2, 5).",
        "A round trip is that of eight bytes over TCP from the region to the primary one and back, beside the calls:",
        "what the proxy and the drill itself cost is in it, as in theirs.",
        "Lag is how long the oldest acknowledged write that an eventual read did not show had been acknowledged,",
        "counted from its client's answer, so it may be below the way there.",
        "A write is seen so long after its start as the first eventual read in the region that shows it takes to end:",
        "never less than the one-way delay.",
        "",
        *_table(("what", "region", "aim", "min", "p50", "p99", "max", "calls"), spread_rows(findings.spreads)),
        "",
    ]
    for title, texts in (("Promises broken", findings.broken), ("Aims missed", findings.missed)):
        lines += [f"## {title}", "", *([f"- {text}" for text in texts] or ["None."]), ""]
    return "\n".join(lines)


def _table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [
        f"| {' | '.join(names)} |",
        f"|{'---|' * len(names)}",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]
