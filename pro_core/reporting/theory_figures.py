"""Figures, each from result rows alone. White background and large type, for light and dark pages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from pro_core.evaluation.results import Rows, sweep
from pro_core.metrics import mean_interval
from pro_core.system.extras import needs

# method -> label, colour, marker
STYLES = {
    "uniform": ("uniform weights", "#6b6b6b", "s"),
    "best fixed": ("best fixed weights", "#000000", "D"),
    "random fixed": ("random fixed weights", "#a05195", "^"),
    "paper_z-t0.1": ("adapter: Eq 7 on z, τ = 0.1", "#c92a2a", "v"),
    "paper_z-t1": ("adapter: Eq 7 on z, τ = 1", "#e08a00", "v"),
    "pairwise-t0.3": ("adapter: pairwise", "#1f6fd6", "o"),
    "true w*": ("adapter: true w*", "#2a9d4a", "o"),
    "MORLHF uniform": ("MORLHF, uniform weights", "#6b6b6b", "s"),
    "MORLHF best fixed": ("MORLHF, best fixed weights", "#000000", "D"),
    "adapter's mean, fixed": ("MORLHF, the adapter's mean", "#a05195", "^"),
    "PRO-MORLHF": ("PRO-MORLHF", "#1f6fd6", "o"),
    "shuffled": ("PRO-MORLHF, shuffled", "#c92a2a", "v"),
    "shuffled within source": ("PRO-MORLHF, shuffled within source", "#e08a00", "v"),
}
LEAST, MOST = -1.5, 1.7
"""The scaled leads that the figure of the payoff shows."""
SETTINGS: Any = {
    "font.size": 12, "axes.spines.top": False, "axes.spines.right": False, "figure.facecolor": "white",
    "axes.facecolor": "white", "savefig.facecolor": "white", "svg.hashsalt": "theorem",
}  # fmt: skip


def theorem_figure(rows: Rows, path: str | Path) -> None:
    """Gap against the diversity of w*, and against the adapter's training pairs (:mod:`pro_core.theory.theorem`).

    Means over seeds with 95% t-intervals; real rewards, at the KL weight that the adapters were measured with. The
    format follows the path's suffix.

    Raises:
        ValueError: no rows of adapters on real rewards.
    """
    with needs("train"):
        import matplotlib
        from matplotlib.figure import Figure

    rows = [r for r in rows if r["experiment"] == "theorem"]
    adapters = [r for r in rows if "examples" in r["setting"]]
    if not adapters:
        raise ValueError("got no rows of the experiment 'theorem' with adapters to draw")
    beta, spread = adapters[0]["setting"]["beta"], adapters[0]["setting"]["spread"]
    fixed = [r for r in rows if "examples" not in r["setting"] and r["setting"]["beta"] == beta]

    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=(12, 5.2), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        for method in dict.fromkeys(r["method"] for r in fixed):
            of_method = [r for r in fixed if r["method"] == method]
            _, distance = sweep(of_method, "spread", "squared_distance")
            _draw(left, method, np.mean(distance, axis=0), sweep(of_method, "spread", "gap")[1])
        guide = np.array([0.02, 0.9])
        left.plot(guide, guide * 1.5, color="#9a9a9a", linestyle=":", zorder=0)
        left.set_xlabel("mean squared distance of the weights to w*(x)")
        left.set_ylabel("alignment gap (Eq 13)")
        left.set_title("(a) fixed weights, as w* gets more diverse")

        for method in dict.fromkeys(r["method"] for r in adapters):
            _draw(
                right,
                method,
                *sweep([r for r in adapters if r["method"] == method], "examples", "gap"),
            )
        for method in ("uniform", "best fixed"):
            values = [
                r["metrics"]["gap"]
                for r in fixed
                if r["method"] == method and r["setting"]["spread"] == spread
            ]
            label, colour, _ = STYLES[method]
            right.axhline(np.mean(values), color=colour, linestyle="--", linewidth=1.8, label=label)
        right.set_xlabel("training pairs n")
        right.set_title("(b) the adapter, as its training pairs grow")
        for axes in (left, right):
            axes.set(xscale="log", yscale="log")
            axes.grid(color="#e4e4e4", linewidth=0.8)
            axes.legend(frameon=False, fontsize=11)
        _save(figure, path)


def convergence_figure(rows: Rows, path: str | Path) -> None:
    """Expected human label over the steps, one panel per source, and the final label against its KL at every beta.

    On held-out prompts, means over seeds with 95% t-intervals; the curves under MORLHF uniform's settings.

    Raises:
        ValueError: no rows of the experiment.
    """
    with needs("train"):
        import matplotlib
        from matplotlib.figure import Figure

    rows = [r for r in rows if r["experiment"] == "convergence"]
    if not rows:
        raise ValueError("got no rows of the experiment 'convergence' to draw")
    sources, steps = list(rows[0]["curves"]["label"]), rows[0]["curves"]["steps"]
    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=(6 * (len(sources) + 1), 4.6), layout="constrained")
        *left, right = figure.subplots(1, len(sources) + 1)
        for axes, source in zip(left, sources, strict=True):
            for method in dict.fromkeys(r["method"] for r in rows):
                shared = [r for r in rows if r["method"] == method and r["metrics"]["shared"]]
                values = [r["curves"]["label"][source] for r in shared]
                _draw(axes, method, steps, values, markevery=len(steps))
            axes.set(xlabel="steps", title=source.removesuffix("_responses"))
        left[0].set_ylabel("expected human label, held-out prompts")
        for method in dict.fromkeys(r["method"] for r in rows):
            tuned = [r for r in rows if r["method"] == method and r["metrics"]["tuned"]]
            label = np.mean(sweep(tuned, "beta", "label")[1], axis=0)
            kl = np.mean(sweep(tuned, "beta", "kl")[1], axis=0)
            name, colour, marker = STYLES.get(method, (method, None, "o"))
            right.plot(kl, label, color=colour, marker=marker, linewidth=2, label=name)
        right.set(xlabel="KL to the reference (nats)", title="the end, at each beta")
        right.legend(frameon=False, fontsize=10)
        for axes in (*left, right):
            axes.grid(color="#e4e4e4", linewidth=0.8)
        _save(figure, path)


def payoff_figure(rows: Rows, path: str | Path) -> None:
    """When weights that follow the prompt pay (:mod:`pro_core.theory.payoff`).

    Left: the lead, divided by what the oracle would gain with the same movement, against the slope, for every setting
    of both worlds in which the oracle gains; the legend counts the points that are not drawn. Right: the lead in points
    against the diversity of w*, in the Gaussian world with the middle K and the noisiest panel.

    Raises:
        ValueError: no rows of the experiment.
    """
    with needs("train"):
        import matplotlib
        from matplotlib.figure import Figure

    rows = [r for r in rows if r["experiment"].startswith("payoff")]
    if not rows:
        raise ValueError("got no rows of the experiment 'payoff' to draw")
    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=(12, 5.2), layout="constrained")
        left, right = figure.subplots(1, 2)
        for experiment, label, colour in (
            ("payoff", "Gaussian rewards, K = 2 to 8", "#1f6fd6"),
            ("payoff_real", "a panel's rewards of real answers", "#c92a2a"),
        ):
            of = [r["metrics"] for r in rows if r["experiment"] == experiment]
            every = len(of)
            of = [m for m in of if m["oracle_lead"] > 0 < m["movement"]]
            slopes = [m["slope"] for m in of]
            scaled = [
                m["lead"] / m["oracle_lead"] * (m["diversity"] / m["movement"]) ** 2 for m in of
            ]
            drawn = sum(LEAST <= y <= MOST for y in scaled)
            if drawn < every:
                label += f" ({every - drawn} of {every} outside)"
            left.plot(slopes, scaled, "o", color=colour, markersize=4, alpha=0.5, label=label)
        line = np.array([0, 1.2])
        left.plot(line, 2 * line - 1, color="#000000", linewidth=1.5, label="2 slope - 1")
        left.axhline(0, color="#9a9a9a", linewidth=1)
        left.axvline(0.5, color="#9a9a9a", linestyle="--", linewidth=1)
        left.set(xlabel="slope: how much of the adapter's movement is right", xlim=(0, 1.3))
        left.set(ylabel="lead / lead of w* at this movement", ylim=(LEAST, MOST))
        left.set_title("it pays above a slope of 1/2")
        left.legend(frameon=False, fontsize=11)

        gaussian = [r for r in rows if r["experiment"] == "payoff"]
        sizes = sorted({r["setting"]["K"] for r in gaussian})
        K, noise = sizes[len(sizes) // 2], max(r["setting"]["noise"] for r in gaussian)
        of = [r for r in gaussian if (r["setting"]["K"], r["setting"]["noise"]) == (K, noise)]
        for method, marker, style in (("calibrated", "o", "-"), ("bold", "v", ":")):
            for c in sorted({r["setting"]["correlation"] for r in of}, reverse=True):
                if method == "bold" and c == 1:  # the same as calibrated
                    continue
                here = [r for r in of if (r["method"], r["setting"]["correlation"]) == (method, c)]
                levels, leads = sweep(here, "diversity", "lead")
                shade = matplotlib.colormaps["viridis"](0.9 - 0.8 * c)
                name = "w* itself" if c == 1 else f"{method}, correlation {c:g}"
                right.plot(
                    levels, np.mean(leads, axis=0), style, color=shade, marker=marker, label=name
                )
        right.axhline(0, color="#9a9a9a", linewidth=1)
        right.set(xlabel="diversity of w*, deviation of its logits", xscale="log")
        right.set_xticks(levels, [f"{level:g}" for level in levels], minor=False)
        right.minorticks_off()
        right.set(ylabel="lead over the best fixed weights, points")
        fixed = np.mean([r["metrics"]["accuracy_fixed"] for r in of])
        right.set_title(f"K = {K}, a panel with which fixed weights reach {fixed:.2f}")
        right.legend(frameon=False, fontsize=9)
        for axes in (left, right):
            axes.grid(color="#e4e4e4", linewidth=0.8)
        _save(figure, path)


def _save(figure, path: str | Path) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    metadata = {"Date": None} if str(path).endswith(".svg") else None
    figure.savefig(path, metadata=metadata, dpi=130)


def _draw(axes, method: str, x, values_SL, **style) -> None:
    """A line through the means of each level, with a band over its interval."""
    label, colour, marker = STYLES.get(method, (method, None, "o"))
    points = [mean_interval(level) for level in np.transpose(values_SL)]
    means, intervals = [mean for mean, _ in points], np.array([interval for _, interval in points])
    (line,) = axes.plot(
        x, means, color=colour, marker=marker, markersize=6, linewidth=2, label=label, **style
    )
    low = np.maximum(intervals[:, 0], np.array(means) / 10)  # a log axis has no 0
    axes.fill_between(x, low, intervals[:, 1], color=line.get_color(), alpha=0.15, linewidth=0)
