"""The barrier under its former name."""

from .scheduler import Barrier as Gathering

__all__ = ["Gathering"]
