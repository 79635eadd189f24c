"""The pages under docs/ keep their word: what they name exists, and their commands are accepted."""

import re
import shlex
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import pytest
from typer.main import get_command

from allsight.cli.app import app
from allsight.config import ConfigError, apply_overrides
from allsight.recipes import RECIPES, find_config

DOCS = Path(__file__).parents[1] / "docs"
PAGES = sorted(DOCS.glob("*.md"))
TEXTS = [*PAGES, DOCS.parent / "README.md"]


def commands(text: str) -> list[list[str]]:
    """The words of each `allsight` command in blocks of shell."""
    blocks = re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL)
    lines = [line.partition("  #")[0] for block in blocks for line in block.splitlines()]
    return [shlex.split(line)[1:] for line in lines if line.startswith("allsight ")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
        assert target.startswith("https://") or (page.parent / target).exists(), target


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: page.name)
def test_recipes_and_settings_in_commands_are_accepted(page):
    for verb, *words in commands(page.read_text(encoding="utf-8")):
        if verb in ("config", "train") and words[0] in RECIPES:
            # What follows --slurm are options of sbatch.
            typed = [word for before, word in pairwise(words) if "=" in word and before != "--slurm"]
            apply_overrides(find_config(words[0])[0], typed)


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: page.name)
def test_options_in_commands_exist(page):
    for words in commands(page.read_text(encoding="utf-8")):
        command: Any = get_command(app)
        name = "allsight"
        while hasattr(command, "commands") and words[0] in command.commands:
            name, *words = words
            command = command.commands[name]
        if not hasattr(command, "commands"):
            # Raises where an option is unknown, lacks its value, or has one of another type.
            command.make_context(name, words)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_compiles_and_its_imports_exist(page):
    for code in re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL):
        compile(code, page.name, "exec")
        exec("\n".join(line for line in code.splitlines() if line.startswith(("import ", "from "))), {})


def test_the_first_page_leads_to_all_others():
    linked = re.findall(r"\]\((\w+\.md)\)", (DOCS / "index.md").read_text(encoding="utf-8"))
    assert {page.name for page in PAGES} - {"index.md"} <= set(linked)


def test_the_fault_shown_is_the_fault_said():
    said = "config.optm: no such field; did you mean 'optim'?"
    assert said in (DOCS / "configuration.md").read_text(encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        apply_overrides(find_config("internimage_micro_tiny20")[0], ["optm.lr=2e-4"])
    assert str(caught.value) == said


def test_every_kind_of_event_is_explained():
    from allsight.engine.events import Kind

    text = (DOCS / "run_folder.md").read_text(encoding="utf-8")
    assert set(get_args(Kind)) == set(
        re.findall(r"^\| `(\w+)`", text.split("## Events")[1], flags=re.MULTILINE)
    )


def test_what_a_resumed_run_may_change_is_listed_wherever_it_is_said():
    from allsight.cli.running import train
    from allsight.engine.resuming import MAY_CHANGE

    for text in ((DOCS / "configuration.md").read_text(encoding="utf-8"), train.__doc__ or ""):
        assert all(path in text for path in MAY_CHANGE)
