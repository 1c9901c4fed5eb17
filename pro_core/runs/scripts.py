"""How a training script is called: ``python train/x.py RECIPE [key=value ...]``."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TypeVar

from pro_core.data.schema import DataError
from pro_core.runs.recipes import ConfigError, Recipe, described
from pro_core.system.processes import send_no_telemetry
from pro_core.system.storage import StorageError

R = TypeVar("R", bound=Recipe)


def run_script(main: Callable[[R], None], kind: type[R], usage: str | None) -> None:
    """Call ``main`` with the recipe named on the command line. Errors that a user can fix end in one line.

    Args:
        usage: printed by ``--help``, before the recipe's settings, and when no recipe is named.
    """
    path, *changes = sys.argv[1:] or [""]
    if {"-h", "--help"} & {path, *changes}:
        print("\n".join([(usage or "").strip(), "", "Settings of a recipe:", *described(kind)]))
        return
    if not path:
        sys.exit(usage)
    send_no_telemetry()
    try:
        main(kind.read(path, changes))
    except (ConfigError, DataError, StorageError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
