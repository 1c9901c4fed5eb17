"""Talking with servers: one client for language models today, and for hosted reward models and judges alike."""

from pro_core.http.client import Answer, Client, Patience, Reply, Session, persist
from pro_core.http.failures import Explainer, Failure, Settings

__all__ = [
    "Answer",
    "Client",
    "Explainer",
    "Failure",
    "Patience",
    "Reply",
    "Session",
    "Settings",
    "persist",
]
