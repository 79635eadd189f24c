"""`allsight ask`: questions to a generalist."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from allsight.cli.words import Classes, Json, Recipe, Trust, Weights, print_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from allsight.types import Answer


def ask(
    run: Recipe,
    inputs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="INPUT...",
            help="Pictures or clips, each asked about by itself, and at most one text.",
            show_default=False,
        ),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            "--task",
            help="A task of the run, or what to do: classify, caption, answer, retrieve, fill, write.",
            show_default=False,
        ),
    ] = None,
    text: Annotated[
        str | None, typer.Option("--text", metavar="TEXT", help="The question.", show_default=False)
    ] = None,
    candidates: Annotated[
        list[str] | None,
        typer.Option(
            "--candidates",
            metavar="A,B,...",
            help="What may be answered: texts or pictures; one list with commas, a file with one a line, or "
            "repeated.",
            show_default=False,
        ),
    ] = None,
    top: Annotated[int, typer.Option("--top", min=1, metavar="K", help="Candidates to print.")] = 5,
    cut: Annotated[
        bool | None,
        typer.Option(
            "--cut/--no-cut",
            help="Cut a text that is too long and say so, or refuse it; default as the task was set.",
            show_default=False,
        ),
    ] = None,
    weights: Weights = None,
    classes: Classes = None,
    as_json: Json = False,
    trust: Trust = False,
) -> None:
    """Ask a generalist: what is seen, what is said of it, what fits.

    \b
    allsight ask runs/generalist photo.jpg --task caption
    allsight ask runs/generalist photo.jpg --text "how many dogs are there?"
    allsight ask runs/generalist photo.jpg --task classify --candidates "cat, dog, fox"
    allsight ask runs/generalist "a red bus" --task retrieve --candidates a.jpg --candidates b.jpg
    allsight ask runs/generalist "a ___ on the road" --task fill --json

    Candidates need not have occurred in training. Scores are probabilities among the candidates; those of
    texts are log-probabilities.
    """
    import allsight
    from allsight.cli.words import check_backend
    from allsight.engine.asking import is_path

    check_backend()
    predictor = allsight.load(run, weights, classes, trust=trust)
    for note in predictor.notes:
        print(f"note: {note}; taken instead: {predictor.weights}", file=sys.stderr)
    paths = [each for each in inputs or [] if is_path(each)]
    texts = [each for each in inputs or [] if not is_path(each)]
    among = None if candidates is None else _listed(candidates)
    found = []
    for shown in paths or [None]:
        asked = [*([] if shown is None else [shown]), *texts]
        answer = predictor.ask(*asked, task=task, text=text, candidates=among, top=top, cut=cut)
        for note in answer.notes:
            print(f"note: {note}", file=sys.stderr)
        if as_json:
            found.append({"inputs": asked, **_plain(answer)})
        else:
            print(f"{'' if shown is None else f'{shown}: '}{answer.task}: {_in_words(answer)}")
    if as_json:
        print_json(found)


def _listed(given: Sequence[str]) -> list[str]:
    """Candidates of a list with commas or of a file; repeated ones are taken as they are."""
    from allsight.config import ConfigError

    if len(given) > 1:
        return list(given)
    (only,) = given
    if only.endswith(".txt"):
        try:
            return [line for line in Path(only).read_text(encoding="utf-8").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"candidates: {only}: cannot be read: {error}") from error
    return only.split(",")


def _plain(answer: Answer) -> dict[str, Any]:
    from allsight.types import ClassScores

    plain = answer.to_json()
    if isinstance(answer, ClassScores):
        plain["top"] = [[name, round(score, 6)] for name, score in answer.top(len(answer.scores))]
    return plain


def _in_words(answer: Answer) -> str:
    from allsight.types import ClassScores, PairAnswer, TextAnswer, WordsAnswer

    match answer:
        case ClassScores():
            return ", ".join(f"{name} {score:.3f}" for name, score in answer.top(len(answer.scores)))
        case TextAnswer():
            return f"{answer.text}  (log-probability {answer.log_probability:.2f})"
        case WordsAnswer():
            return f"{answer.text.strip()}  ({', '.join(f'{score:.3f}' for score in answer.scores)})"
        case PairAnswer():
            return f"similarity {answer.similarity():.3f}"
        case _:
            return str(answer.to_json())
