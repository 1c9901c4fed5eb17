"""The doctor: can a preference adapter help on this data? Asked before a GPU hour is spent.

``python -m pro_core.doctor --panel P --data D`` prints one page and writes an HTML report. :func:`examine` in
:mod:`pro_core.doctor.verdict` does the same for an existing table of scores.
"""
