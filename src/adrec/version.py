"""The installed version of adrec."""

from importlib.metadata import version

__version__ = version("adrec")
