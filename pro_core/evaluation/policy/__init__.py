"""Policies under a grid of weights: their answers, what these are worth, and the result rows."""
