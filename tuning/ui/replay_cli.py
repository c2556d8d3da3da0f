"""``griffin tune replay``: strategies on recorded measurements, without the hardware."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from roofline.console import StatusLine, output, plain_errors


def replay(
    journals: Annotated[
        list[Path] | None,
        typer.Argument(help="Packed journals or folders of them. The shipped ones by default."),
    ] = None,
    pack: Annotated[
        bool,
        typer.Option(
            "--pack", help="Take JOURNAL OUT: pack an exhaustive journal into a file per case, in folder OUT."
        ),
    ] = False,
    strategies: Annotated[str | None, typer.Option(help="Strategies, comma-separated. All by default.")] = None,
    seeds: Annotated[int, typer.Option(min=0, help="Searches with other random choices and noisy measurements.")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON in place of the table.")] = False,
) -> None:
    """Judge search strategies on recorded exhaustive journals: % of the optimum after 10, 25, 50 evaluations, cost."""
    stderr = Console(stderr=True)
    with plain_errors(stderr):
        from griffin_kernels import errors

        paths = [path.expanduser() for path in journals or ()]
        if pack:
            if len(paths) != 2:
                raise errors.ArgumentError(
                    f"--pack takes a journal and a folder, it was given {len(paths)} paths: "
                    "griffin tune replay --pack JOURNAL OUT"
                )
            _pack(paths[0], paths[1])
            return
        import msgspec

        from tuning.replay import packed, strategy_table
        from tuning.search.strategies import STRATEGIES, named

        found = packed.read_all(paths) if paths else packed.shipped()
        names = [name.strip() for name in (strategies or "").split(",") if name.strip()] or list(STRATEGIES)
        chosen = {name: named(name) for name in names}
        line = StatusLine(stderr)
        rows = strategy_table.rows(found, chosen, seeds, line)
        line.clear()
        if as_json:
            typer.echo(msgspec.json.format(msgspec.json.encode(rows), indent=1).decode())
            return
        strategy_table.show(output(), rows)


def _pack(journal: Path, folder: Path) -> None:
    from tuning.replay import convert, packed

    for found in convert.pack(journal):
        path = packed.write(folder, found)
        output().print(f"{path}  {len(found.points)} points", highlight=False, markup=False, soft_wrap=True)
