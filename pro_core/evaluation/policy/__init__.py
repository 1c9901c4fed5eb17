"""Policies under a grid of weights: their answers, the measures of these, and the result rows."""
