"""Imports of optional packages: what a plain `pip install .` leaves out, and how to install it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class MissingExtra(ModuleNotFoundError):
    """A package that comes with an extra is not installed. ``name`` is the module, ``extra`` the extra."""

    def __init__(self, module: str, extra: str):
        super().__init__(
            f"{module} is not installed; it comes with the extra {extra!r}: "
            f"pip install 'pro-core[{extra}]' (in a checkout: pip install '.[{extra}]')",
            name=module,
        )
        self.extra = extra


@contextmanager
def needs(extra: str) -> Iterator[None]:
    """Wrap the import of packages that come with `extra`; import our own modules outside of it.

    Raises:
        MissingExtra: one of them is not installed.
    """
    try:
        yield
    except MissingExtra:
        raise
    except ModuleNotFoundError as error:
        raise MissingExtra((error.name or "a package").split(".")[0], extra) from error
