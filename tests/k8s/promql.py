"""PromQL in the small: what the alerts of the manifests mean, evaluated over series that a test gives.

It knows what those rules need: selectors with equality matchers, ranges, aggregations with ``by``, arithmetic,
comparisons, ``or``, ``unless`` and ``absent``. Anything else is refused, so no rule passes by a gap here.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import promql_parser

_LOOKBACK_SECONDS = 300.0
"""How old the last sample of an instant vector may be: Prometheus' default."""

Labels = frozenset[tuple[str, str]]
Vector = dict[Labels, float]

_ARITHMETIC: dict[str, Callable[[float, float], float]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
}
_COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    "==": operator.eq,
    "<": operator.lt,
    ">": operator.gt,
    ">=": operator.ge,
    "<=": operator.le,
}
_AGGREGATIONS: dict[str, Callable[[list[float]], float]] = {"sum": sum, "max": max, "min": min, "count": len}


@dataclass(frozen=True)
class Sample:
    """A value of a series, and how long ago it was scraped."""

    value: float
    age: float = 0.0


@dataclass(frozen=True)
class Series:
    """A series: its name, its labels and its samples."""

    name: str
    labels: dict[str, str]
    samples: list[Sample]


def evaluate(text: str, series: list[Series]) -> Vector:
    """Return the instant vector that an expression is now."""
    result = _evaluate(promql_parser.parse(text), series)
    assert isinstance(result, dict), f"{text} is a number"
    return result


def with_rules(rules: list[dict[str, Any]], series: list[Series]) -> list[Series]:
    """Return the series with those of the recording rules added."""
    recorded = list(series)
    for rule in rules:
        if "record" in rule:
            for labels, value in evaluate(rule["expr"], recorded).items():
                recorded.append(Series(rule["record"], dict(labels), [Sample(value)]))
    return recorded


def _evaluate(node: Any, series: list[Series]) -> Vector | float:
    match node:
        case promql_parser.ParenExpr():
            return _evaluate(node.expr, series)
        case promql_parser.NumberLiteral():
            return float(node.val)
        case promql_parser.VectorSelector():
            return _newest(_select(node, series, _LOOKBACK_SECONDS))
        case promql_parser.AggregateExpr():
            return _aggregate(node, _evaluate(node.expr, series))
        case promql_parser.Call():
            return _call(node, series)
        case promql_parser.BinaryExpr():
            return _binary(node, _evaluate(node.lhs, series), _evaluate(node.rhs, series))
    raise NotImplementedError(str(node))


def _select(node: Any, series: list[Series], seconds: float) -> dict[Labels, list[Sample]]:
    assert node.offset is None
    matchers = {matcher.name: matcher.value for matcher in node.matchers.matchers}
    assert all(matcher.op == promql_parser.MatchOp.Equal for matcher in node.matchers.matchers)
    return {
        frozenset(each.labels.items()): young
        for each in series
        if each.name == node.name and matchers.items() <= each.labels.items()
        if (young := [sample for sample in each.samples if sample.age <= seconds])
    }


def _newest(samples: dict[Labels, list[Sample]]) -> Vector:
    return {labels: min(each, key=lambda sample: sample.age).value for labels, each in samples.items()}


def _call(node: Any, series: list[Series]) -> Vector:
    (argument,) = node.args
    if node.func.name == "last_over_time":
        return _newest(_select(argument.vector_selector, series, argument.range.total_seconds()))
    if node.func.name == "absent":
        found = _evaluate(argument, series)
        equal = {(matcher.name, matcher.value) for matcher in argument.matchers.matchers}
        return {} if found else {frozenset(equal): 1.0}
    raise NotImplementedError(node.func.name)


def _aggregate(node: Any, vector: Vector | float) -> Vector:
    assert isinstance(vector, dict)
    assert node.modifier.type == promql_parser.AggModifierType.By
    groups: dict[Labels, list[float]] = {}
    for labels, value in vector.items():
        kept = frozenset(pair for pair in labels if pair[0] in node.modifier.labels)
        groups.setdefault(kept, []).append(value)
    return {labels: float(_AGGREGATIONS[str(node.op)](values)) for labels, values in groups.items()}


def _binary(node: Any, left: Vector | float, right: Vector | float) -> Vector | float:
    assert node.modifier is None or (node.modifier.matching is None and not node.modifier.return_bool)
    name = str(node.op)
    if name in ("or", "unless"):
        assert isinstance(left, dict)
        assert isinstance(right, dict)
        if name == "unless":
            return {labels: value for labels, value in left.items() if labels not in right}
        return left | {labels: value for labels, value in right.items() if labels not in left}
    if isinstance(left, float) and isinstance(right, float):
        return _ARITHMETIC[name](left, right)
    if isinstance(left, dict):
        pairs = {
            labels: (value, right if isinstance(right, float) else right[labels])
            for labels, value in left.items()
            if isinstance(right, float) or labels in right
        }
    else:
        assert isinstance(right, dict)
        pairs = {labels: (left, value) for labels, value in right.items()}
    if name in _COMPARISONS:
        kept = 0 if isinstance(left, dict) else 1
        return {labels: pair[kept] for labels, pair in pairs.items() if _COMPARISONS[name](*pair)}
    return {labels: _ARITHMETIC[name](*pair) for labels, pair in pairs.items()}
