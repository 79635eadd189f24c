"""The page that a benchmark writes: what ran on what, and its tables."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from allsight.launch.bench.report import Setting

RESULTS = Path(__file__).parent / "results"


def setting_of(script: str, method: str) -> Setting:
    """The setting of this process, with the command that was typed."""
    return Setting.of_this_process(
        ["python", f"benchmarks/{Path(script).name}", *sys.argv[1:]], method=method
    )


def write_page(name: str, title: str, setting: Setting, parts: Sequence[str], folder: Path) -> None:
    """Print the page, and write it as `DATE_NAME_ISA.md`."""
    facts = "\n".join(f"- {key}: {text}" for key, text in setting.facts.items())
    text = "\n\n".join([f"# {title}, {setting.day}", f"Command: `{setting.command}`", facts, *parts]) + "\n"
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{setting.day}_{name}_{setting.isa or 'reference'}.md"
    file.write_text(text)
    print(text, f"\nwritten to {file}", sep="")
