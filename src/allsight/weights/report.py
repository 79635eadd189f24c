"""What became of every tensor of a file of weights."""

from __future__ import annotations

from dataclasses import dataclass, replace

from allsight.weights.names import in_words


@dataclass(frozen=True)
class LoadReport:
    """What became of every tensor, by published name.

    Attributes:
        matched: Loaded.
        missing: Wanted by the model, not in the weights; they have the value that changes nothing, and a note
            says so. Any other missing tensor is an error.
        unexpected: In the weights, not wanted by the model and not skipped by a rule.
        skipped: In the weights and left out by rule, such as heads when a backbone is loaded.
        notes: What was chosen or changed on the way, a sentence each.
        source: Where the weights came from.
        layout: Container and naming of the weights, in words.
        variant: Name of the published size, or "" where it is none of them.
    """

    matched: tuple[str, ...]
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    source: str = ""
    layout: str = ""
    variant: str = ""

    def with_skipped(self, names: tuple[str, ...]) -> LoadReport:
        """Return this report with further names that were left out by rule."""
        return replace(self, skipped=self.skipped + names)

    def __str__(self) -> str:
        text = f"{len(self.matched)} tensors matched, {len(self.missing)} missing"
        text += f", {len(self.unexpected)} unexpected, {len(self.skipped)} skipped by rule"
        text += f": {in_words(self.skipped)}" if self.skipped else ""
        if self.layout:
            text = f"{self.source}: {self.layout}{f', {self.variant}' if self.variant else ''}\n{text}"
        return "\n".join([text, *(f"note: {note}" for note in self.notes)])
