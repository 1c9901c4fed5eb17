"""Measuring: accuracies with intervals, adapters and their controls, policies and their fronts."""
