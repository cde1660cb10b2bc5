"""Attributes computed when first asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

__all__ = ["lazy"]

T = TypeVar("T")


class lazy(Generic[T]):
    """A method that becomes an attribute of its value, as `functools.cached_property` but without a lock.

    Up to Python 3.11 that one holds one lock for all instances while it computes, and a child forked
    meanwhile waits for it for ever. Here two threads may both compute; so the value must follow from
    the instance alone.

    >>> class Circle:
    ...     radius = 2
    ...     @lazy
    ...     def area(self) -> float:
    ...         return 3 * self.radius**2
    >>> Circle().area
    12
    """

    def __init__(self, compute: Callable[[Any], T]) -> None:
        self._compute = compute
        self.__doc__ = compute.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, instance: Any, owner: type | None = None) -> T:
        # Not a data descriptor: once the instance has the attribute, it is found without coming here.
        value = instance.__dict__[self._name] = self._compute(instance)
        return value
