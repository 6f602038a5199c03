"""The failure table, measured: `make drill` breaks seven real nodes in three regions, row by row, under load.

clients.py    how a client of a region reads and writes: gRPC, or KV Connect through a gateway beside it
traffic.py    an open loop of calls from every region, and what came of each (record.py)
faults.py     what befalls the cluster; each heals itself
rows.py       the table: what happens, what is promised, what is aimed at
measures.py   from calls to figures
judge.py      from figures to a verdict
drill.py      runs rows; latency.py and lag.py the two tables of figures without a fault
report.py     prints
"""
