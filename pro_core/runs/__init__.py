"""Runs: typed recipes, the command line of training scripts, and training that resumes."""
