"""The web app's page: one custom component, the models behind it, and its handlers."""

import time

_START = time.perf_counter()


def since_start() -> float:
    """Seconds since the app started; app.py imports this before anything slow."""
    return time.perf_counter() - _START
