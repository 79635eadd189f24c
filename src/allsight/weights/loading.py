"""Putting published weights into a module, all or none."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor, nn

from allsight.types.errors import CheckpointError
from allsight.weights.names import in_words
from allsight.weights.report import LoadReport
from allsight.weights.survey import is_finite

Weights = Mapping[str, Tensor]
Shapes = tuple[tuple[int, ...], tuple[int, ...]]


class Mismatch(CheckpointError):
    """Weights that do not fit a model. The message is short; the attributes and `full` name every tensor.

    Attributes:
        missing: Names the model wants and the weights lack.
        unexpected: Names the weights have and the model does not want.
        reshaped: Name -> (shape in the file, shape in the model).
    """

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    reshaped: Mapping[str, Shapes]

    @classmethod
    def of(
        cls,
        what: str,
        missing: Sequence[str],
        unexpected: Sequence[str],
        reshaped: Mapping[str, Shapes],
        hint: str = "",
    ) -> Mismatch:
        """Make the error; `hint` says the likely cause, which stands before the names."""
        shapes = [_in_words(name, shapes) for name, shapes in reshaped.items()]
        kinds = [("missing", missing), ("unexpected", unexpected), ("of another shape", shapes)]
        text = "; ".join(f"{len(found)} {kind}: {in_words(found)}" for kind, found in kinds if found)
        error = cls(f"{what}: weights do not fit the model: {f'{hint}; ' if hint else ''}{text}")
        error.missing, error.unexpected = tuple(missing), tuple(unexpected)
        error.reshaped = dict(reshaped)
        return error

    def full(self) -> str:
        """Every tensor that does not fit, a line each."""
        lines = [f"missing     {name}" for name in self.missing]
        lines += [f"unexpected  {name}" for name in self.unexpected]
        lines += [f"reshaped    {_in_words(name, shapes)}" for name, shapes in self.reshaped.items()]
        return "\n".join(lines)


def load_mapped(
    module: nn.Module,
    weights: Weights,
    names: Mapping[str, str],
    *,
    what: str,
    skip: Callable[[str], bool] = lambda name: False,
    neutral: Weights | None = None,
    hint: str = "",
) -> LoadReport:
    """Put published weights into a module (which may be on the meta device).

    Args:
        module: Receives copies of the tensors, converted to its own types.
        weights: Published name -> tensor.
        names: Own name -> published name, for every entry of the module's state dict.
        what: What is being loaded, for messages.
        skip: Whether a published name is left out by rule when the module does not want it.
        neutral: Values that change nothing, for published names that the weights may lack.
        hint: The likely cause of weights that do not fit, for the message.

    Raises:
        Mismatch: Tensors are missing, unexpected or of another shape; nothing was loaded then.
        CheckpointError: Tensors hold infinities or NaN.
    """
    state = module.state_dict()
    own = {published: name for name, published in names.items()}
    given = {**(neutral or {}), **weights}
    others = [name for name in weights if name not in own]
    skipped = [name for name in others if skip(name)]
    check_fit(
        {published: state[name].shape for published, name in own.items()},
        {
            name: tensor.shape
            for name, tensor in given.items()
            if name in own or (name in weights and not skip(name))
        },
        what=what,
        hint=lambda: hint,
    )
    tensors = {
        name: given[published].to(dtype=state[name].dtype, copy=True).contiguous()
        for published, name in own.items()
    }
    check_finite({published: tensors[name] for published, name in own.items()}, weights, what=what)
    module.load_state_dict(tensors, assign=any(tensor.is_meta for tensor in state.values()))
    matched = tuple(name for name in own if name in weights)
    return LoadReport(
        matched, missing=tuple(name for name in own if name not in weights), skipped=tuple(skipped)
    )


def check_fit(
    own: Mapping[str, Sequence[int]],
    given: Mapping[str, Sequence[int]],
    *,
    what: str,
    hint: Callable[[], str] = lambda: "",
) -> None:
    """Refuse weights whose names or shapes are not those of a model.

    Args:
        own: Name -> shape of what the model wants.
        given: Name -> shape of what there is.
        what: What is being loaded, for messages.
        hint: Finds the likely cause, for the message; "" where it is not known.

    Raises:
        Mismatch: Tensors are missing, unexpected or of another shape.
    """
    missing = [name for name in own if name not in given]
    unexpected = [name for name in given if name not in own]
    shapes = {name: (tuple(given[name]), tuple(own[name])) for name in own if name in given}
    reshaped = {name: pair for name, pair in shapes.items() if pair[0] != pair[1]}
    if missing or unexpected or reshaped:
        raise Mismatch.of(what, missing, unexpected, reshaped, hint())


def check_finite(tensors: Weights, stored: Weights, *, what: str) -> None:
    """Refuse infinities and NaN.

    Args:
        tensors: As the model is to have them.
        stored: As they lie in the file, whose type the message names.
        what: What is being loaded, for messages.

    Raises:
        CheckpointError: There are some; names the tensors.
    """
    bad = [name for name, tensor in tensors.items() if not is_finite(tensor)]
    if bad:
        dtype = str(stored[bad[0]].dtype).removeprefix("torch.") if bad[0] in stored else "?"
        remedy = "; values over 65504 do not fit into it, take the file in float32" * (dtype == "float16")
        raise CheckpointError(
            f"{what}: {len(bad)} tensors ({dtype}) hold infinities or NaN: {in_words(bad)}{remedy}"
        )


def _in_words(name: str, shapes: Shapes) -> str:
    return f"{name}: {shapes[0]} in the file, {shapes[1]} in the model"
