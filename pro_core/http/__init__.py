"""One HTTP client for model servers: language models today; it suits hosted reward models and judges as well."""

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
