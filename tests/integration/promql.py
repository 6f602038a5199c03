"""Enough of PromQL to tell whether a query asks for what nodes really show.

Not an engine (`make compose-check` has Prometheus itself): it finds the selectors and the labels by which a query
groups, and holds them against scraped series. A query with a misspelt metric, label or value fails.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from prometheus_client.parser import text_string_to_metric_families

Labels = Mapping[str, str]
_SELECTOR = re.compile(r"\b(kvnode_\w+|up)\b(?:\{([^}]*)\})?")
_MATCHER = re.compile(r'(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"')
_GROUPING = re.compile(r"\b(?:by|without|on|ignoring)\s*\(([^)]*)\)")
_RATE = re.compile(r"\b(?:rate|irate|increase)\((\w+)")
_LEGEND = re.compile(r"\{\{\s*(\w+)\s*\}\}")


class Series(NamedTuple):
    """One sample of a scrape, with its target's labels."""

    name: str
    labels: Labels


def scraped(text: str, target: Labels) -> list[Series]:
    """The series of one node's /metrics, labelled as Prometheus would, with `up`."""
    found = [Series("up", {"job": "kvnode", **target})]
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            own = {f"exported_{name}" if name in target else name: value for name, value in sample.labels.items()}
            found.append(Series(sample.name, {"job": "kvnode", **own, **target}))
    return found


def problems(expression: str, series: Iterable[Series], legend: str = "") -> list[str]:
    """What the query asks for and nobody shows; empty when it is good."""
    series = list(series)
    found: list[str] = []
    labels: set[str] = set()
    selectors = _SELECTOR.findall(expression)
    if not selectors:
        found.append("it selects nothing")
    for name, matchers in selectors:
        of_name = [one for one in series if one.name == name]
        if not of_name:
            found.append(f"no node shows {name}")
        elif not any(_matches(one.labels, matchers) for one in of_name):
            found.append(f"no series of {name} has {{{matchers}}}")
        labels |= {label for one in of_name for label in one.labels}
    wanted = [label.strip() for group in _GROUPING.findall(expression) for label in group.split(",")]
    found += [
        f"no series has the label '{label}'" for label in [*wanted, *_LEGEND.findall(legend)] if label not in labels
    ]
    found += [f"a rate of {name}, which is no counter" for name in _RATE.findall(expression) if not _counts(name)]
    return found


def _matches(labels: Labels, matchers: str) -> bool:
    for label, operator, value in _MATCHER.findall(matchers):
        have = labels.get(label, "")
        same = bool(re.fullmatch(value, have)) if "~" in operator else have == value
        if same == operator.startswith("!"):
            return False
    return True


def _counts(name: str) -> bool:
    return name.endswith(("_total", "_bucket", "_sum", "_count"))
