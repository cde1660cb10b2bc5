"""Other people's formats in.

The package is also the function `shufflestore.convert`: Python binds a sub-package to its name in
the parent whenever it is first imported, so the one must be able to stand for the other.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class _CallablePackage(ModuleType):
    """Calls `shufflestore.convert.run.convert`; see there for arguments and errors."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from shufflestore.convert.run import convert  # only here: importing the package loads nothing

        return convert(*args, **kwargs)


sys.modules[__name__].__class__ = _CallablePackage
