"""Tables of judged benchmarks in the papers' form, with the papers' printed figures beside ours.

PRO's Table 5 (arXiv 2511.10656) and MOSLIM's Tables 2 to 4. The papers' figures are a reference: other judges, other
baselines, other policies. Each table says which ours are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pro_core.evaluation.results import Row, Rows
from pro_core.reporting.markdown import markdown_table

TABLE_5: dict[str, tuple[float, ...]] = {
    "SFT": (34.03, 34.08, 48.5, 44.3, 7.71),
    "DPO": (37.24, 36.84, 49.0, 47.2, 7.83),
    "IPO": (37.95, 36.43, 54.6, 48.3, 7.64),
    "KTO": (38.12, 36.51, 43.9, 44.1, 7.63),
    "SimPO": (40.03, 40.78, 54.6, 48.8, 7.58),
    "WPO": (44.11, 40.06, 62.0, 53.0, 7.81),
    "Selective DPO": (38.02, 39.21, 51.7, 48.2, 7.74),
    "PPO": (39.52, 39.79, 55.3, 48.9, 7.81),
    "ADPO": (44.04, 38.90, 61.9, 53.2, 7.97),
    "MORLHF uniform": (41.38, 44.83, 44.2, 34.1, 7.20),
    "PRO-MORLHF": (47.30, 50.35, 63.5, 54.2, 7.93),
}
"""PRO's Table 5, under our names: AlpacaEval 2 WR and LC, Arena-Hard WR and SC, MT-Bench."""
MOSLIM_TABLES: dict[str, tuple[str, tuple[tuple[float, float, float], ...]]] = {
    "MORLHF uniform": ("2", ((2.22, 2.65, 0.72),) * 4),
    "Rewarded Soups": ("2", ((2.84, 3.01, 0.77),) * 4),
    "MOSLIM": (
        "2, 3, 4",
        ((3.54, 3.16, 0.79), (3.36, 3.25, 0.81), (3.36, 3.13, 0.78), (3.14, 3.11, 0.81)),
    ),
    "MOSLIM, reward model 57B": (
        "3",
        ((3.59, 3.35, 0.83), (3.42, 3.33, 0.84), (3.35, 3.01, 0.77), (3.22, 3.12, 0.87)),
    ),
    "MOSLIM, reward model 72B": (
        "3",
        ((3.63, 3.40, 0.85), (3.51, 3.41, 0.92), (3.40, 3.11, 0.89), (3.29, 3.14, 0.85)),
    ),
    "MOSLIM, RLOO": (
        "4",
        ((3.49, 3.37, 0.88), (3.39, 3.35, 0.87), (3.37, 3.10, 0.83), (3.37, 3.21, 0.82)),
    ),
    "MOSLIM, online DPO": (
        "4",
        ((3.82, 3.51, 0.91), (3.74, 3.52, 0.88), (3.47, 3.14, 0.86), (3.32, 3.25, 0.86)),
    ),
}
"""MOSLIM's Tables 2 to 4, under our names: the tables, and helpful, honesty, harmless on data types 1 to 4."""
COLUMNS_5 = (
    ("AlpacaEval 2 WR", "alpaca_eval", "win_rate"),
    ("AlpacaEval 2 LC", "alpaca_eval", "length_controlled_win_rate"),
    ("Arena-Hard WR", "arena_hard", "win_rate"),
    ("Arena-Hard SC", "arena_hard", "style_controlled_win_rate"),
    ("MT-Bench", "mt_bench", "score"),
)
COLUMNS_MOSLIM = (
    ("MT-Bench, 1 to 10", "mt_bench", "score"),
    ("HaluEval 2.0 MiHR, lower is better", "halueval", "mihr"),
    ("HaluEval 2.0 MaHR, lower is better", "halueval", "mahr"),
)
PAPER_5 = (
    "The paper's judge is GPT-4o; its AlpacaEval reference is GPT-4o-05-13, and its Arena-Hard baseline "
    "GPT-4-Preview-1106, which is neither v0.1's nor v2.0's. Its policies are Qwen2.5-7B trained on UltraFeedback."
)
PAPER_MOSLIM = (
    "The paper's figures are helpful / honesty / harmless on another scale: GPT-4 with changed templates of MT-Bench, "
    "HaluEval 2.0 and HackaPrompt, which are not published. So harmless cannot be repeated, and only the order of the "
    "methods can be compared."
)


def judged_table_5(rows: Rows) -> str:
    """Ours beside PRO's Table 5, one table per judge; empty without rows of its benchmarks."""
    header = ["", *(f"{name}, ours" for name, _, _ in COLUMNS_5)]
    header += [f"{name}, paper" for name, _, _ in COLUMNS_5]
    printed = (2, 2, 1, 1, 2)  # decimals
    paper = {
        name: [f"{x:.{digits}f}" for x, digits in zip(figures, printed, strict=True)]
        for name, figures in TABLE_5.items()
    }
    return _per_judge(rows, header, COLUMNS_5, paper, PAPER_5)


def judged_moslim_table(rows: Rows) -> str:
    """Ours beside MOSLIM's Tables 2 to 4, one table per judge; empty without rows of HaluEval 2.0."""
    if not any(row["setting"].get("benchmark") == "halueval" for row in rows):
        return ""
    header = ["", *(name for name, _, _ in COLUMNS_MOSLIM), "paper's table"]
    header += [f"paper, data type {n}" for n in range(1, 5)]
    paper = {
        name: [number, *(" / ".join(f"{x:.2f}" for x in figures) for figures in types)]
        for name, (number, types) in MOSLIM_TABLES.items()
    }
    return _per_judge(rows, header, COLUMNS_MOSLIM, paper, PAPER_MOSLIM)


def trust_table(rows: Rows) -> str:
    """How far each judge is to be trusted: its agreement with people, beside longer-wins."""
    rows = [r for r in rows if r["setting"].get("benchmark") == "trust"]
    if not rows:
        return ""
    measures = ("agreement", "agreement_chosen_shorter", "first_preferred", "orders_agree")
    header = [
        "",
        "agreement, %",
        "where people chose the shorter",
        "first preferred",
        "orders agree",
    ]
    table = []
    for row in rows:
        says = row["metrics"].get("beats_longer_wins")
        verdict = "" if says is None else "yes" if says else "no: it is no judge"
        cells = [_cell(row, measure) for measure in measures]
        table.append([f"{row['method']}, {row['n']} pairs", *cells, verdict])
    return markdown_table([*header, "beats longer-wins"], table)


def _per_judge(
    rows: Rows,
    header: Sequence[str],
    columns: Sequence[tuple[str, str, str]],
    paper: Mapping[str, Sequence[str]],
    note: str,
) -> str:
    benchmarks = {benchmark for _, benchmark, _ in columns}
    ours = [r for r in rows if r["setting"].get("benchmark") in benchmarks]
    parts = []
    for judge in dict.fromkeys(r["setting"]["judge"] for r in ours):
        judged = [r for r in ours if r["setting"]["judge"] == judge]
        methods = list(dict.fromkeys(r["method"] for r in judged))
        table = []
        for method in [*methods, *(name for name in paper if name not in methods)]:
            cells = [_of(judged, method, benchmark, metric) for _, benchmark, metric in columns]
            table.append(
                [method, *cells, *paper.get(method, [""] * (len(header) - 1 - len(cells)))]
            )
        parts.append(f"{markdown_table(header, table)}\n\n{_made_by(judge, judged)} {note}")
    return "\n\n".join(parts)


def _of(rows: Rows, method: str, benchmark: str, metric: str) -> str:
    """The cell of a method's newest row of a benchmark."""
    fitting = [r for r in rows if r["method"] == method and r["setting"]["benchmark"] == benchmark]
    return _cell(fitting[-1], metric) if fitting else ""


def _cell(row: Row, metric: str) -> str:
    if metric not in row["metrics"]:
        return ""
    digits = 2 if metric == "score" else 1
    low, high = row["ci95"][metric]
    return f"{row['metrics'][metric]:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def _made_by(judge: str, rows: Rows) -> str:
    """The judge, and of each benchmark its baselines, templates and numbers of prompts, in sentences."""
    sentences = [f"Ours: judge {judge}, 95% intervals over prompts."]
    for benchmark in dict.fromkeys(r["setting"]["benchmark"] for r in rows):
        of_it = [r for r in rows if r["setting"]["benchmark"] == benchmark]
        said = []
        for name in ("baseline", "template", "read_as", "difficulty"):
            values = dict.fromkeys(r["setting"][name] for r in of_it if r["setting"].get(name))
            said += [f"{name.replace('_', ' ')} {' and '.join(values)}"] if values else []
        counts = sorted({r["n"] for r in of_it})
        said.append(f"{' or '.join(map(str, counts))} prompts")
        sentences.append(f"{benchmark}: {'; '.join(said)}.")
    return " ".join(sentences)
