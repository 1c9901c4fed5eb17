"""Tables of the exact experiments: Theorem 5.1, a planted truth, convergence."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from pro_core.evaluation.results import Row, Rows, sweep
from pro_core.metrics import linear_slope, log_slope, mean_interval
from pro_core.reporting.markdown import markdown_table

WORLDS = {"theorem": "real", "theorem_synthetic": "synthetic"}


def theorem_table(rows: Rows) -> str:
    """Both claims of Theorem 5.1: exponents and constants over seeds, with 95% t-intervals."""
    if not any(r["experiment"] in WORLDS for r in rows):
        return ""
    betas = sorted({r["setting"]["beta"] for r in rows if "beta" in r["setting"]})
    fixed = [
        [method, world, f"{beta:g}", *_growth(_theorem(rows, experiment, method, beta))]
        for experiment, world in WORLDS.items()
        for beta in betas
        for method in ("uniform", "best fixed", "random fixed")
    ]
    first = [
        "fixed weights", "rewards", "beta", "gap at the least diversity", "at the largest",
        "exponent of the squared distance", "gap / squared distance",
    ]  # fmt: skip
    sizes = sorted({r["setting"]["examples"] for r in rows if "examples" in r["setting"]})
    shown = [sizes[0], sizes[len(sizes) // 2], sizes[-1]]
    learned = []
    for experiment, world in WORLDS.items():
        of_world = [r for r in rows if r["experiment"] == experiment]
        adapters = [r for r in of_world if "examples" in r["setting"]]
        for method in dict.fromkeys(r["method"] for r in adapters):
            levels, gaps = sweep([r for r in adapters if r["method"] == method], "examples", "gap")
            cells = [_over_seeds([g[levels.index(n)] for g in gaps]) for n in shown]
            exponents = [
                _slope(*log_slope([levels[-last:]] * len(gaps), [g[-last:] for g in gaps]))
                for last in (len(levels), 3)
            ]
            learned.append([f"adapter, {method}", world, *cells, *exponents])
        for method in ("uniform", "best fixed"):
            setting = adapters[0]["setting"]
            same = [
                r["metrics"]["gap"]
                for r in _theorem(of_world, experiment, method, setting["beta"])
                if r["setting"]["spread"] == setting["spread"]
            ]
            learned.append([method, world, *[_over_seeds(same)] * 3, "", ""])
    second = [
        "weights", "rewards", *(f"gap at n = {n:,}" for n in shown), "exponent of n", "over the last three n",
    ]  # fmt: skip
    return f"{markdown_table(first, fixed)}\n\n{markdown_table(second, learned)}"


def planted_table(rows: Rows) -> str:
    """Adapters against a planted truth: accuracy on held-out pairs and correlation with w*, over seeds."""
    return _recovery_table(rows, "theorem_planted")


def withheld_table(rows: Rows) -> str:
    """What weighs an objective without pairs, against a planted truth: means over the four objectives, over seeds."""
    return _recovery_table(rows, "withheld")


def _recovery_table(rows: Rows, experiment: str) -> str:
    rows = [r for r in rows if r["experiment"] == experiment]
    if not rows:
        return ""
    table = []
    for method in dict.fromkeys(r["method"] for r in rows):
        seeds = [r["metrics"] for r in rows if r["method"] == method]
        table.append(
            [method, *(_over_seeds([m[k] for m in seeds]) for k in ("accuracy", "correlation"))]
        )
    return markdown_table(["weights", "accuracy on held-out pairs", "correlation with w*"], table)


def payoff_table(rows: Rows) -> str:
    """Leads over the best fixed weights in points, means over seeds, and the slope at which a bold adapter breaks even.

    At the middle diversity; the slope over all diversities, with its least and greatest value.
    """
    rows = [r for r in rows if r["experiment"].startswith("payoff")]
    if not rows:
        return ""
    table = []

    def world(row: Row) -> tuple[str, int, float]:
        return row["experiment"], row["setting"].get("K", 0), row["setting"]["noise"]

    diversities = sorted({r["setting"]["diversity"] for r in rows})
    middle = diversities[len(diversities) // 2]
    correlations = sorted({r["setting"]["correlation"] for r in rows})
    shown = [c for c in correlations if c < 1]
    for experiment, K, noise in sorted({world(r) for r in rows}):
        here = [r for r in rows if world(r) == (experiment, K, noise)]
        at = [r for r in here if r["setting"]["diversity"] == middle]

        def mean(metric: str, method: str, correlation: float, at: Rows = at) -> float:
            of = [
                r for r in at if (r["method"], r["setting"]["correlation"]) == (method, correlation)
            ]
            return float(np.mean([r["metrics"][metric] for r in of]))

        even = [
            _break_even([r for r in here if r["setting"]["diversity"] == d]) for d in diversities
        ]
        known = [e for e in even if e is not None]
        table.append(
            [
                "real" if experiment.endswith("real") else "Gaussian",
                str(K or "the panel's"),
                f"{noise:g}",
                f"{mean('accuracy_fixed', 'bold', shown[0]):.3f}",
                f"{mean('oracle_lead', 'bold', shown[0]):+.1f}",
                *(
                    f"{mean('lead', 'calibrated', c):+.1f} / {mean('lead', 'bold', c):+.1f}"
                    for c in shown
                ),
                f"{np.mean(known):.2f} ({min(known):.2f} to {max(known):.2f})" if known else "",
            ]
        )
    header = ["rewards", "K", "noise", "accuracy of the best fixed weights", "lead of w*"]
    header += [f"calibrated / bold, correlation {c:g}" for c in shown]
    return markdown_table([*header, "slope where bold breaks even"], table)


def _break_even(rows: Rows) -> float | None:
    """The slope at which the bold adapter's lead is 0, by interpolation over its correlations; None: it never is."""
    bold = [r["metrics"] for r in rows if r["method"] == "bold"]
    points = sorted((m["slope"], m["lead"]) for m in bold)
    for (a, low), (b, high) in itertools.pairwise(points):
        if low <= 0 < high:
            return a + (b - a) * -low / (high - low)
    return None


def convergence_table(rows: Rows) -> str:
    """All arms under MORLHF uniform's settings, then each under its own; means over seeds with 95% t-intervals."""
    rows = [r for r in rows if r["experiment"] == "convergence"]
    if not rows:
        return ""
    sources = list(rows[0]["curves"]["label"])
    columns = {"held-out label": "label", **{s.removesuffix("_responses"): s for s in sources}}
    columns |= {"training label": "train_label", "KL": "kl", "without limits": "optimum_label"}
    steps = {"steps to MORLHF's end": "steps", "on training prompts": "train_steps"}
    last = ["PRO-MORLHF's lead", *(title for s in steps for title in (s, "half of its or less"))]
    tables = []
    for kind, title in (("shared", "under MORLHF uniform's settings"), ("own", "under its own")):
        arms: dict[str, dict[int, dict[str, float]]] = {}
        settings: dict[str, dict[str, float]] = {}
        for r in (r for r in rows if r["metrics"][kind]):
            arms.setdefault(r["method"], {})[r["seed"]] = r["metrics"]
            settings[r["method"]] = r["setting"]
        table = []
        for arm, seeds in arms.items():
            chosen = settings[arm]
            name = f"{arm} (β {chosen['beta']:g}, rate {chosen['learning_rate']:g})"
            cells = [_over_seeds([m[c] for m in seeds.values()]) for c in columns.values()]
            lead = [arms["PRO-MORLHF"][seed]["label"] - m["label"] for seed, m in seeds.items()]
            cells.append("" if arm == "PRO-MORLHF" else _over_seeds(lead))
            for key in steps.values():
                cells += _speed(arms["MORLHF uniform"], seeds, key)
            table.append([name, *cells])
        tables.append(markdown_table([title, *columns, *last], table))
    return "\n\n".join(tables)


def _speed(
    uniform: dict[int, dict[str, float]], arm: dict[int, dict[str, float]], key: str
) -> list[str]:
    """An arm's median steps to MORLHF uniform's final label, and in how many seeds it took at most half of uniform's.

    Seeds that never reach it count as infinite.
    """
    pairs = [(m.get(key, np.inf), uniform[seed].get(key, np.inf)) for seed, m in arm.items()]
    median = float(np.median([steps for steps, _ in pairs]))
    half = sum(steps <= of_uniform / 2 for steps, of_uniform in pairs)
    return [f"{median:.0f}" if np.isfinite(median) else "never", f"{half} of {len(pairs)} seeds"]


def _theorem(rows: Rows, experiment: str, method: str, beta: float) -> Rows:
    return [
        r
        for r in rows
        if (r["experiment"], r["method"]) == (experiment, method) and r["setting"]["beta"] == beta
    ]


def _growth(rows: Rows) -> list[str]:
    """How a fixed method's gap grows with the squared distance of its weights to w*."""
    _, distances = sweep(rows, "spread", "squared_distance")
    _, gaps = sweep(rows, "spread", "gap")
    return [
        _over_seeds([g[0] for g in gaps]),
        _over_seeds([g[-1] for g in gaps]),
        _slope(*log_slope(distances, gaps)),
        _slope(*linear_slope(distances, gaps)),
    ]


def _over_seeds(values: Sequence[float]) -> str:
    mean, (lo, hi) = mean_interval(values)
    return f"{mean:.3f} ({lo:.3f} to {hi:.3f})"


def _slope(mean: float, interval: Sequence[float]) -> str:
    return f"{mean:.2f} ({interval[0]:.2f} to {interval[1]:.2f})"
