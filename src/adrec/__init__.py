"""adrec: a two-stage ad recommender for one CPU machine.

from adrec import Recommender
Recommender.load("runs/demo").recommend(user="17", k=10)
"""

from typing import TYPE_CHECKING, Any

from adrec.version import __version__

__all__ = ["Recommender", "Request", "__version__", "use_threads"]

if TYPE_CHECKING:
    from adrec.inference.threads import use_threads
    from adrec.recommender import Recommender
    from adrec.slates import Request


def __getattr__(name: str) -> Any:
    """Load the recommender, and torch with it, only when it is asked for."""
    if name == "Recommender":
        from adrec import recommender

        return recommender.Recommender
    if name == "Request":
        from adrec import slates

        return slates.Request
    if name == "use_threads":
        from adrec.inference import threads

        return threads.use_threads
    raise AttributeError(f"module 'adrec' has no attribute '{name}'")
