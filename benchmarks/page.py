"""The report as one HTML page that needs nothing from elsewhere: tables, and plots by plotly.

Cost: 5 MB a page, nearly all of it plotly's script.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Final, final

import plotly.graph_objects as go  # type: ignore[import-untyped]
from jinja2 import Environment, PackageLoader
from markupsafe import Markup
from plotly.colors import qualitative  # type: ignore[import-untyped]
from plotly.offline import get_plotlyjs  # type: ignore[import-untyped]

from benchmarks import words
from benchmarks.peers import KERNEL, PEERS
from benchmarks.results import BASELINES, Report, Row
from benchmarks.workloads import WORKLOADS, Workload

_COLOURS: Final = dict(zip(PEERS, qualitative.Safe, strict=False))
_FAST: Final = (46, 160, 67)
_SLOW: Final = (248, 81, 73)


@final
@dataclass(frozen=True, slots=True)
class Group:
    """The rows of one workload in one number of layers."""

    workload: Workload
    layers: int
    rows: Sequence[Row]

    @property
    def by_peer(self) -> Mapping[str, Row]:
        """The rows by peer."""
        return {row.peer: row for row in self.rows}


def render(report: Report) -> str:
    """The page."""
    groups = [
        Group(WORKLOADS[name], layers, list(rows))
        for (name, layers), rows in groupby(report.rows, lambda row: (row.workload, row.layers))
    ]
    environment = Environment(loader=PackageLoader("benchmarks", "."), autoescape=True)
    return environment.get_template("page.html.j2").render(
        report=report,
        groups=groups,
        peers=[PEERS[name] for name in report.peers],
        titles={name: peer.title for name, peer in PEERS.items()},
        baselines=BASELINES,
        kernel=KERNEL,
        bars=[_bars(next(same)) for _, same in groupby(groups, lambda group: group.workload)],
        depths=list(_depths(groups)),
        words=words,
        shade=_shade,
        # markup because plotly's own script is no text to be escaped
        script=Markup(get_plotlyjs()),
    )


def _shade(ratio: float) -> str:
    """A colour for a ratio: green below 1, red above, full at a factor of 8."""
    weight = min(abs(math.log2(ratio)) / 3, 1)
    red, green, blue = _SLOW if ratio > 1 else _FAST
    return f"rgba({red}, {green}, {blue}, {0.6 * weight:.2f})"


def _html(figure: Any) -> Markup:
    figure.update_layout(
        template="plotly_white",
        margin={"l": 8, "r": 8, "t": 40, "b": 40},
        font={"family": "system-ui, sans-serif", "size": 12},
    )
    config = {"displayModeBar": False, "responsive": True}
    return Markup(figure.to_html(full_html=False, include_plotlyjs=False, config=config))


def _bars(group: Group) -> Markup:
    """The medians, with the range of the rounds."""
    rows = [row for row in reversed(group.rows) if row.median is not None]
    medians = [row.median or 0 for row in rows]
    spread = {
        "type": "data",
        "array": [(row.high or 0) - (row.median or 0) for row in rows],
        "arrayminus": [(row.median or 0) - (row.low or 0) for row in rows],
        "color": "#555",
    }
    bar = go.Bar(
        x=medians,
        y=[f"{PEERS[row.peer].title}, {words.duration(row.median or 0)}" for row in rows],
        marker_color=[_COLOURS[row.peer] for row in rows],
        error_x=spread,
        orientation="h",
        hoverinfo="y",
    )
    figure = go.Figure(bar)
    figure.update_layout(
        title=f"{group.workload.title}<br><sub>{group.layers} layers</sub>",
        height=110 + 26 * len(rows),
        showlegend=False,
    )
    figure.update_xaxes(title="seconds", rangemode="tozero")
    figure.update_yaxes(automargin=True)
    return _html(figure)


def _depths(groups: Iterable[Group]) -> Iterable[Markup]:
    """How each workload that was run in several numbers of layers grows with them."""
    for workload, same in groupby(groups, lambda group: group.workload):
        found = list(same)
        if len(found) == 1:
            continue
        figure = go.Figure()
        for name in PEERS:
            rows = [group.by_peer[name] for group in found if name in group.by_peer]
            points = [(row.layers, row.median) for row in rows if row.median is not None]
            if points:
                layers, medians = zip(*points, strict=True)
                figure.add_scatter(
                    x=layers, y=medians, name=PEERS[name].title, line_color=_COLOURS[name]
                )
        figure.update_layout(title=workload.title, height=360)
        figure.update_xaxes(title="layers", type="log", tickvals=[g.layers for g in found])
        figure.update_yaxes(title="seconds", type="log", automargin=True)
        yield _html(figure)
