"""The command line: the composition root. Each command reads settings and calls the package.

Exit codes: 0 done; 1 problems found (`validate`, `doctor`); 2 wrong usage or settings; 3 wrong
data; 4 a damaged or missing checkpoint or bundle; 5 a request that cannot be answered; 130 stopped
by Ctrl-C, to be resumed by the same command.
"""

import os
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

from adrec.cli import index, log, run, serve, tune, use
from adrec.console import Commands
from adrec.version import __version__

# Every command with an example of it, in the order of the help.
_COMMANDS: dict[Callable[..., Any], str] = {
    run.demo: "adrec demo --out runs/demo",
    log.synth: "adrec synth --preset demo --out data/world",
    log.validate: "adrec validate --data data/world",
    log.prepare: "adrec prepare --data data/world --out runs/mine",
    run.train: "adrec train --data data/world --out runs/mine --ranker-epochs 2",
    tune.tune: "adrec tune --data data/world --out runs/tune --stage ranker --trials 20",
    index.index: "adrec index --bundle runs/mine --recall 0.98",
    run.evaluate: "adrec evaluate runs/mine --slice device",
    run.crossvalidate: "adrec crossvalidate --data data/world --out runs/folds --folds 3",
    use.recommend: "adrec recommend runs/mine --user 17 -k 5",
    serve.serve: "adrec serve runs/mine --port 8000",
    serve.loadtest: "adrec loadtest http://127.0.0.1:8000 --rate 50",
    use.bench: "adrec bench runs/mine --requests 500",
    use.export: "adrec export runs/mine --out runs/mine/onnx",
    use.doctor: "adrec doctor",
}

app = typer.Typer(
    name="adrec",
    cls=Commands,
    help="A two-stage ad recommender: train on an impression log, prove it offline, recommend.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    epilog="Start with: adrec demo",
)


def main() -> None:
    """Run the command line."""
    # Idle OpenMP threads must sleep where requests are answered: torch and FAISS each have a pool,
    # and spinning starves both. In training they wait for each other so briefly that sleep costs.
    if not {"demo", "train", "tune", "crossvalidate"} & set(sys.argv[1:2]):
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    app()


@app.callback(invoke_without_command=True)
def version(
    show: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False,
) -> None:
    """A two-stage ad recommender: train on an impression log, prove it offline, recommend."""
    if show:
        typer.echo(f"adrec {__version__}")
        raise typer.Exit


for _command, _example in _COMMANDS.items():
    app.command(epilog=f"Example: {_example}")(_command)
app.add_typer(serve.log, name="log")
