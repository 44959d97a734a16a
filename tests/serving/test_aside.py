"""Beginning aside: others have the processor first, from the imports on."""

import subprocess
import sys
from multiprocessing import get_context

import pytest

from adrec.serving.aside import begin
from serving.asides import niceness, prepare

PATIENCE_S = 60.0
STDLIB = sys.stdlib_module_names


@pytest.mark.skipif(sys.platform != "linux", reason="threads have no priority of their own")
def test_only_what_comes_before_the_answers_leaves_the_processor_to_others():
    context = get_context("spawn")
    connection, theirs = context.Pipe()
    connection.send(prepare)
    process = context.Process(target=begin, args=(theirs,))
    process.start()
    theirs.close()
    assert connection.poll(PATIENCE_S)
    assert connection.recv() == (19, niceness(), True)
    process.join()
    assert process.exitcode == 0
    connection.close()


def test_beginning_imports_nothing_that_takes_long():
    code = "import sys; before = {*sys.modules}; import adrec.serving.aside; "
    code += "print(*{*sys.modules} - before)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    new = {name for name in found.stdout.split() if name.split(".")[0] not in STDLIB}
    assert new - {"__mp_main__"} == {
        "adrec",
        "adrec.version",
        "adrec.serving",
        "adrec.serving.aside",
    }
