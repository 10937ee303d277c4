"""A run as a picture: what was broken at each node, and how long operations took meanwhile."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from xml.etree import ElementTree as ET

from raftkv.chaos.report import Summary, latencies_over_time, percentile
from raftkv.chaos.schedule import Fault
from raftkv.types import NodeId
from raftkv.verification.history import Outcome

_WIDTH = 1200
_LEFT, _RIGHT = 90, 20
_PLOT = _WIDTH - _LEFT - _RIGHT
_LANE = 22
_TOP = 64
_LATENCY_HEIGHT = 260
_LEGEND_HEIGHT = 40
_BUCKETS = 550
_FASTEST, _SLOWEST = 0.0005, 10.0
_SHORTEST_BAR = 2.0

_COLOURS = {
    Fault.KILL: "#d62728",
    Fault.KILL_ALL: "#8c1515",
    Fault.PAUSE: "#ff9f1c",
    Fault.PARTITION: "#7b4fb5",
    Fault.DELAY: "#3a86c8",
    Fault.THROTTLE: "#2a9d8f",
    Fault.BREAK: "#6c757d",
}
_OUTCOMES = {Outcome.UNKNOWN: "#d62728", Outcome.REFUSED: "#ff9f1c"}


def draw(summary: Summary, nodes: Sequence[NodeId], title: str) -> bytes:
    """Return the picture as an SVG document.

    Args:
        summary: The run.
        nodes: A lane each.
        title: The line above.
    """
    latency_top = _TOP + _LANE * len(nodes) + 30
    height = latency_top + _LATENCY_HEIGHT + 40 + _LEGEND_HEIGHT
    picture = ET.Element(
        "svg",
        {
            "xmlns": "http://www.w3.org/2000/svg",
            "viewBox": f"0 0 {_WIDTH} {height}",
            "font-family": "sans-serif",
            "font-size": "12",
        },
    )
    _add(picture, "rect", x=0, y=0, width=_WIDTH, height=height, fill="white")
    _text(picture, _LEFT, 26, title, size=17)
    canvas = _Canvas(picture, max(summary.seconds, 0.001), latency_top)
    canvas.unavailability(summary, height - _LEGEND_HEIGHT - 40)
    canvas.lanes(summary, nodes)
    canvas.grid()
    canvas.latencies(summary)
    canvas.failures(summary)
    _legend(picture, height - 14)
    document: bytes = ET.tostring(picture, encoding="utf-8", xml_declaration=True)
    return document


class _Canvas:
    """The parts of the picture that share the axis of time."""

    def __init__(self, picture: ET.Element, seconds: float, latency_top: int) -> None:
        self._picture = picture
        self._seconds = seconds
        self._latency_top = latency_top

    def _x(self, seconds: float) -> float:
        return _LEFT + _PLOT * min(max(seconds / self._seconds, 0.0), 1.0)

    def _y(self, latency: float) -> float:
        bounded = min(max(latency, _FASTEST), _SLOWEST)
        share = math.log(bounded / _FASTEST) / math.log(_SLOWEST / _FASTEST)
        return self._latency_top + _LATENCY_HEIGHT * (1 - share)

    def unavailability(self, summary: Summary, bottom: int) -> None:
        """Shade the longest time without a write."""
        gap = summary.longest_unavailability()
        left = self._x(gap.started)
        shade = _add(
            self._picture,
            "rect",
            x=left,
            y=_TOP - 14,
            width=max(self._x(gap.ended) - left, 1),
            height=bottom - _TOP + 14,
            fill="#fde8e8",
        )
        _add(shade, "title").text = f"no write for {gap.seconds:.2f} s"
        _text(self._picture, left, _TOP - 18, f"no write for {gap.seconds:.2f} s", colour="#a33", size=11)

    def lanes(self, summary: Summary, nodes: Sequence[NodeId]) -> None:
        """Draw what was done to each node."""
        for number, node in enumerate(nodes):
            top = _TOP + _LANE * number
            _text(self._picture, _LEFT - 8, top + 14, node, anchor="end")
            _add(self._picture, "line", x1=_LEFT, x2=_LEFT + _PLOT, y1=top + 9, y2=top + 9, stroke="#ddd")
            for span in summary.spans:
                if node not in span.nodes:
                    continue
                is_of_process = span.fault in (Fault.KILL, Fault.KILL_ALL, Fault.PAUSE)
                bar = _add(
                    self._picture,
                    "rect",
                    x=self._x(span.started),
                    y=top + (1 if is_of_process else 10),
                    width=max(self._x(span.ended) - self._x(span.started), _SHORTEST_BAR),
                    height=8,
                    fill=_COLOURS[span.fault],
                )
                _add(bar, "title").text = f"{span.started:.1f} s to {span.ended:.1f} s: {span.text}"

    def grid(self) -> None:
        """Draw both axes of the latencies."""
        for latency, label in ((0.001, "1 ms"), (0.01, "10 ms"), (0.1, "100 ms"), (1.0, "1 s"), (10.0, "10 s")):
            y = self._y(latency)
            _add(self._picture, "line", x1=_LEFT, x2=_LEFT + _PLOT, y1=y, y2=y, stroke="#eee")
            _text(self._picture, _LEFT - 8, y + 4, label, anchor="end")
        step = max(1, round(self._seconds / 12))
        for second in range(0, math.floor(self._seconds) + 1, step):
            _text(
                self._picture, self._x(second), self._latency_top + _LATENCY_HEIGHT + 18, f"{second} s", anchor="middle"
            )

    def latencies(self, summary: Summary) -> None:
        """Draw, for each slice of time, the range of latencies and their median."""
        slices: dict[int, list[float]] = defaultdict(list)
        for started, latency in latencies_over_time(summary.history):
            slices[min(int(_BUCKETS * started / self._seconds), _BUCKETS - 1)].append(latency)
        for number, unsorted in sorted(slices.items()):
            latencies = sorted(unsorted)
            x = self._x((number + 0.5) * self._seconds / _BUCKETS)
            low, high = self._y(latencies[0]), self._y(latencies[-1])
            _add(self._picture, "line", x1=x, x2=x, y1=low, y2=high, stroke="#9ecae1", stroke_width=1.5)
            _add(self._picture, "circle", cx=x, cy=self._y(percentile(latencies, 50)), r=1.4, fill="#08519c")

    def failures(self, summary: Summary) -> None:
        """Mark operations that were refused or are unknown, one mark for each slice of time."""
        marks = {
            (operation.outcome, int(_BUCKETS * operation.started / self._seconds))
            for operation in summary.history
            if operation.outcome in _OUTCOMES and operation.started <= self._seconds
        }
        for outcome, number in sorted(marks, key=lambda mark: (mark[0].value, mark[1])):
            y = self._latency_top - (12 if outcome is Outcome.UNKNOWN else 6)
            x = self._x((number + 0.5) * self._seconds / _BUCKETS)
            _add(self._picture, "circle", cx=x, cy=y, r=1.8, fill=_OUTCOMES[outcome])


def _legend(picture: ET.Element, y: int) -> None:
    x = _LEFT
    entries = [(fault.value, colour) for fault, colour in _COLOURS.items()]
    entries += [(f"{outcome.value} operations", colour) for outcome, colour in _OUTCOMES.items()]
    entries += [("latency: median", "#08519c"), ("range", "#9ecae1")]
    for label, colour in entries:
        _add(picture, "rect", x=x, y=y - 9, width=10, height=10, fill=colour)
        _text(picture, x + 14, y, label)
        x += 30 + 7 * len(label)


def _text(
    parent: ET.Element, x: float, y: float, text: str, *, anchor: str = "start", colour: str = "#333", size: int = 12
) -> None:
    _add(parent, "text", x=x, y=y, text_anchor=anchor, fill=colour, font_size=size).text = text


def _add(parent: ET.Element, tag: str, **attributes: float | str) -> ET.Element:
    written = {
        name.replace("_", "-"): f"{value:.2f}" if isinstance(value, float) else str(value)
        for name, value in attributes.items()
    }
    return ET.SubElement(parent, tag, written)
