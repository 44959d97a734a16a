"""OpenVINO without its telemetry.

Merely importing OpenVINO tells Google Analytics of it, and so does each conversion, wherever the
package `openvino_telemetry` can be imported, which OpenVINO itself installs; only a file in the
user's home directory or CI=true would stop it. Where that package is missing OpenVINO goes
without. So it is kept from being found while OpenVINO is imported: adrec tells nobody anything. A
program that imports OpenVINO itself before adrec does has decided otherwise.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

_TELEMETRY = "openvino_telemetry"


@contextmanager
def _hidden(module: str) -> Iterator[None]:
    """Make importing a module fail, as if it were not installed."""
    before = sys.modules.get(module)
    sys.modules[module] = None  # type: ignore[assignment]  # the documented way to bar an import
    try:
        yield
    finally:
        del sys.modules[module]
        if before is not None:
            sys.modules[module] = before


with _hidden(_TELEMETRY):
    import openvino
    from openvino import opset13 as ops
    from openvino.preprocess import PrePostProcessor

__all__ = ["PrePostProcessor", "openvino", "ops"]
