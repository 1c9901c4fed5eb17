"""What a plain `pip install .` leaves out, and how to get it: imports of an extra's packages go through here."""

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
    """Around the import of packages that come with `extra`; modules of our own are imported outside.

    Raises:
        MissingExtra: one of them is not there.
    """
    try:
        yield
    except MissingExtra:
        raise
    except ModuleNotFoundError as error:
        raise MissingExtra((error.name or "a package").split(".")[0], extra) from error
