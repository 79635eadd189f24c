"""`allsight data pack`, `allsight data index` and `allsight data verify`: shards, made and checked."""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from typing import Annotated

import typer

from allsight.cli.words import Counter, DataSet, FormatOptions, Processes, Quiet, parsed_options


def pack(
    source: DataSet,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder of the shards.", show_default=False)],
    options: FormatOptions = None,
    root: Annotated[
        Path | None,
        typer.Option(
            "--root", help="Where a relative path starts; default $ALLSIGHT_DATA.", show_default=False
        ),
    ] = None,
    split: Annotated[list[str] | None, typer.Option("--split", help="Repeatable; default train.")] = None,
    shard_mb: Annotated[
        float, typer.Option("--shard-mb", min=0.001, help="About how large a tar gets.")
    ] = 256,
    processes: Processes = None,
    shuffle: Annotated[
        int | None, typer.Option("--shuffle", min=0, metavar="SEED", help="Write in a random order.")
    ] = None,
    leave_out_broken: Annotated[
        bool,
        typer.Option("--leave-out-broken", help="Pass over samples that cannot be read, and count them."),
    ] = False,
    verify: Annotated[bool, typer.Option("--verify", help="Read everything back.")] = False,
    quiet: Quiet = False,
) -> None:
    """Write a data set as tars with an index each, which are read fast from disks and from servers.

    The command can be stopped at any moment and run again: whole shards are kept.

    \b
    allsight data pack imagefolder:pets shards/pets --split train --split val
    allsight data pack label_maps:camvid shards/camvid classes=[sky,building] ignore=11
    """
    from allsight.data.readers import format_and_place
    from allsight.data.shards.checking import verify_place
    from allsight.data.shards.pack import pack as pack_split
    from allsight.launch.run import usable_cores

    if root is None and Path(format_and_place(source)[1]).exists():
        root = Path.cwd()
    given = parsed_options(options)
    workers = processes or usable_cores()
    for name in split or ["train"]:
        begun = time.perf_counter()
        packed = pack_split(
            source,
            out,
            root=root,
            split=name,
            shard_bytes=int(shard_mb * 2**20),
            processes=workers,
            shuffle=shuffle,
            leave_out_broken=leave_out_broken,
            options=given,
            progress=None if quiet else Counter(f"shards of {name}"),
        )
        catalogue = packed.catalogue
        print(
            f"{out}: {int(catalogue.samples.sum())} samples of {name} in {len(catalogue.names)} shards, "
            f"{int(catalogue.tar_bytes.sum()) / 2**20:.1f} MB, {time.perf_counter() - begun:.1f} s"
            + (f"; {packed.kept} shards were there already" if packed.kept else "")
        )
        for note in packed.notes:
            print(f"  note: {note}")
        if packed.left_out:
            print(f"  note: {packed.left_out} samples left out; reasons of this run's first ones:")
        for reason in packed.reasons[:5]:
            print(f"    {reason}")
    if verify:
        samples = verify_place(out, processes=workers, progress=None if quiet else Counter("shards verified"))
        print(f"{out}: {samples} samples read back, all as they were written")
    print(f"use it with {shlex.quote(f'data=webdataset:{out.absolute()}')}")


def index(
    path: Annotated[
        Path, typer.Argument(metavar="PATH", help="Folder of tars, or one tar.", show_default=False)
    ],
    processes: Processes = None,
    quiet: Quiet = False,
) -> None:
    """Write the index of each tar beside it and the list of each split, so that servers can offer them.

    \b
    allsight data index laion
    """
    from allsight.data.shards.checking import index_place
    from allsight.launch.run import usable_cores

    found = index_place(
        path, processes=processes or usable_cores(), progress=None if quiet else Counter("tars indexed")
    )
    for name, catalogue in found.items():
        print(f"{name}: {int(catalogue.samples.sum())} samples in {len(catalogue.names)} tars")


def verify(
    path: Annotated[
        Path, typer.Argument(metavar="PATH", help="Folder of tars, or one tar.", show_default=False)
    ],
    processes: Processes = None,
    quiet: Quiet = False,
) -> None:
    """Read tars through and compare every byte with the checksums in their indexes.

    \b
    allsight data verify shards/pets
    """
    from allsight.data.shards.checking import verify_place
    from allsight.launch.run import usable_cores

    samples = verify_place(
        path, processes=processes or usable_cores(), progress=None if quiet else Counter("tars verified")
    )
    print(f"{path}: {samples} samples, all as they were written")
