"""`allsight bench`: how fast things are here, against other ways to do the same."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from allsight.cli.words import Counter, Json, check_backend, check_folder, print_json

app = typer.Typer(help="Measure speed.", no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def _before() -> None:
    """Measure speed."""


@app.command("ops")
def ops(
    only: Annotated[
        list[str] | None,
        typer.Option(
            "--only",
            metavar="NAME",
            help="A case or the first words of several, such as dcnv3-224-b1 (may be repeated).",
        ),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A few small cases.")] = False,
    pairs: Annotated[int, typer.Option("--pairs", min=1, help="Samples of each way, taken in turns.")] = 20,
    threads: Annotated[
        int, typer.Option("--threads", min=1, help="1: CPU time of the thread; more: wall time.")
    ] = 1,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Write a page with a picture there.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Time the operators against official fall-backs, the reference and, if installed, torch-ms-deform-attn.

    \b
    allsight bench ops --quick
    allsight bench ops --only msda --only dcnv3-512 --out results
    ALLSIGHT_CPU_ISA=avx2 allsight bench ops

    Outputs and all gradients are compared first; where one differs, no speed-up is printed and the exit
    status is 1. The whole table takes some minutes; leave the machine alone meanwhile.
    """
    from allsight.launch.bench import QUICK, bench_ops
    from allsight.launch.bench.report import Setting, table, to_json, turns, warning, write

    if quick and only:
        raise typer.BadParameter("--quick chooses the cases itself; leave out --only")
    check_backend()
    if out is not None:
        check_folder(out, "--out ")
    results = bench_ops(
        QUICK if quick else only or (), pairs=pairs, threads=threads, on_progress=Counter("steps")
    )
    words = [*(f"--only={name}" for name in only or ()), *(["--quick"] if quick else [])]
    words += [f"--pairs={pairs}", f"--threads={threads}", *(["--json"] if as_json else [])]
    words += [f"--out={out}"] if out is not None else []
    setting = Setting.of_this_process(["allsight", "bench", "ops", *words], method=turns(threads, pairs))
    if as_json:
        print_json(to_json(results, setting))
    if results.differences:
        for difference in results.differences:
            print(difference, file=sys.stderr)
        print("nothing is said about speed, since results differ", file=sys.stderr)
        raise typer.Exit(1)
    if not as_json:
        print("\n".join(f"{name}: {text}" for name, text in setting.facts.items()))
        print(table(results))
        if warning(results):
            print(warning(results), file=sys.stderr)
    if out is not None:
        print(write(results, setting, out), file=sys.stderr if as_json else sys.stdout)
