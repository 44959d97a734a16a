"""Nothing phones home: neither importing OpenVINO nor converting a model tells anybody."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("openvino")

_SCRIPT = """
import socket, sys

def refuse(*address):
    print("asked for", address)
    raise OSError("no network")

socket.getaddrinfo = socket.socket.connect = refuse
import torch
from adrec.inference import openvino_backend
from adrec.inference.silent_openvino import openvino

openvino.convert_model(torch.nn.Linear(3, 4).eval(), example_input=(torch.zeros(1, 3),))
telling = sorted(name for name in sys.modules if name.startswith("openvino_telemetry"))
print("loaded", telling)
"""


def test_openvino_runs_without_its_telemetry(tmp_path: Path) -> None:
    """Its package is not loaded, no address is asked for, and nothing is left in the home."""
    environment = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _SCRIPT],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "loaded []", done.stdout
    assert "asked for" not in done.stdout
    assert not (tmp_path / "intel").exists()
