"""Which target a place is: a folder or an object store."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from shufflestore.errors import OptionError
from shufflestore.storage.target import FolderTarget, Target
from shufflestore.storage.uri import is_remote, local_path

__all__ = ["target_at"]


def target_at(
    place: str | os.PathLike[str] | Target,
    storage_options: Mapping[str, Any] | None = None,
    staging_folder: str | os.PathLike[str] | None = None,
) -> Target:
    """Return the target at a path or URI; a target itself comes back as it is. Nothing is opened.

    Args:
        place: A folder, or a URI of an object store.
        storage_options: Of the object store; see `storage.remote_client`.
        staging_folder: Where files for an object store are written first; None for the system's temporary folder.

    Raises:
        OptionError: No store answers to such a URI, or none that can be written to.
        MissingDependency: The package that object stores need is not installed.
    """
    if isinstance(place, (str, os.PathLike)):
        if not is_remote(place):
            if storage_options:
                raise OptionError(f"{place}: storage_options are for object stores; leave them out for a folder")
            return FolderTarget(local_path(place))
        from shufflestore.storage.remote_target import RemoteTarget  # only where it is used: it needs obstore

        return RemoteTarget(os.fspath(place), storage_options, staging_folder)
    return place
