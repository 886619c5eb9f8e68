"""How all figures of the benchmarks look: colours, and the style in which they are drawn (`mpl.rc_context(STYLE)`)."""

from __future__ import annotations

import matplotlib as mpl

INK, MUTED, GRID = "#1f2933", "#66788a", "#e4e9ee"
COLOURS = (
    *("#3b6fb6", "#c8791b", "#128a7e", "#8a3b6f", "#5b7f1f", "#b33a3a", "#6a5acd", "#7a5a3a", "#2aa1c0", "#999933"),
    *("#d9679a", "#444444"),
)
STYLE = mpl.RcParams(
    {
        "font.size": 10,
        "axes.edgecolor": MUTED,
        "axes.labelcolor": INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": GRID,
        "text.color": INK,
        "legend.frameon": False,
    }
)
