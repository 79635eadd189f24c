"""The README keeps its word: its Python runs, and what it names exists."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
# Blocks with these need a trained run or a file of weights.
NEEDS_FILES = ("photo.jpg", ".pth", "trainer")


@pytest.mark.parametrize("code", [code for code in PYTHON if not any(word in code for word in NEEDS_FILES)])
def test_example_runs(code):
    exec(compile(code, "README.md", "exec"), {})


@pytest.mark.parametrize("code", PYTHON)
def test_example_imports_names_that_exist(code):
    imports = [line for line in code.splitlines() if line.startswith(("import ", "from "))]
    assert imports
    exec("\n".join(imports), {})


def test_data_formats_in_examples_can_be_read():
    from allsight.data.readers.opening import FORMATS

    named = set(re.findall(r'data="(\w+):', README))
    assert named and named <= set(FORMATS)


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_between_documents_lead_somewhere(document):
    text = (ROOT / document).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        assert target.startswith("https://") or (ROOT / target).exists(), target


def test_targets_named_in_the_documents_are_in_the_makefile():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    contributing = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([\w-]+):", makefile, flags=re.MULTILINE))
    named = set(re.findall(r"^make ([\w-]+)", README + contributing, flags=re.MULTILINE))
    assert {"demo", "test"} <= named <= targets
