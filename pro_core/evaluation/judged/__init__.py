"""Judged benchmarks: AlpacaEval 2, Arena-Hard, MT-Bench and HaluEval 2.0, and how far to trust their judge."""

from pro_core.evaluation.judged.alpaca import length_controlled_win_rate, win_rate

__all__ = ["length_controlled_win_rate", "win_rate"]
