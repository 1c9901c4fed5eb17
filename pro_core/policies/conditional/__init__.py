"""Weights in the prompt: PRO-WIC and RiC."""
