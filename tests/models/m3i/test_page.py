"""The table of methods in docs/m3i.md is that of the code."""

from pathlib import Path

from allsight.backbones import ViT
from allsight.config import dump
from allsight.models.m3i import cases

PAGE = Path(__file__).parents[3] / "docs" / "m3i.md"


def rows():
    vit = ViT.Config.variant("base")
    for name, make in cases.CASES.items():
        config = make(vit, teacher=vit) if name == "feature_distillation" else make(vit)
        for target, settings in config.targets.items():
            tree = dump(settings)
            regularisers = " ".join(each["kind"] for each in tree["regularisers"])
            kinds = [tree[part]["kind"] for part in ("net", "decoder", "posterior")]
            pairs = " ".join(f"{a}>{b}" for a, b in settings.pairs)
            yield [name, target, *kinds, regularisers, pairs, settings.cells, f"{config.mask.ratio:g}"]


def test_the_table_of_methods_is_that_of_the_code():
    text = PAGE.read_text(encoding="utf-8").split("## Known methods")[1].split("```")[0]
    printed = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if "|" in line]
    assert printed[2:] == list(rows())
