"""Faster ways through layers that hold where no gradient is wanted.

`fuses` says whether a layer may take several of its steps as one operator of `allsight.ops` in this call;
layers do so by themselves. `prepare_for_inference` also changes how weights are kept, which only pays if it
is done once; whole networks offer it as `for_inference`.
"""

from __future__ import annotations

import copy
from functools import cache
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from allsight import ops
from allsight.layers.activation import ActivationName, make_activation

_Model = TypeVar("_Model", bound=nn.Module)
_Net = TypeVar("_Net", bound="ForInference")

# oneDNN's names of activations. PyTorch's operators for it are those its compiler makes of a frozen network;
# they are not public, so that `_is_usable` asks whether they are there.
_ATTRIBUTES = {None: ("none", ""), "gelu": ("gelu", "none"), "silu": ("swish", ""), "relu": ("relu", "")}


def fuses(x: Tensor, *steps: nn.Module) -> bool:
    """Whether these steps may be taken as one operator: on a CPU with compiled kernels, and nobody notices.

    Not where gradients are recorded (the operators' own gradients bring nothing), under autocast, when a
    program is traced or looked at (it then consists of PyTorch's operators), or where a hook waits for a
    step.
    """
    return (
        not torch.compiler.is_compiling()
        and x.is_cpu
        and not torch.is_autocast_enabled("cpu")
        and ops.current_backend() in ("auto", "cpu")
        and ops.is_compiled()
        and not ops.is_watched((x,))
        and not torch.jit.is_tracing()
        and not any(step._forward_hooks or step._forward_pre_hooks for step in steps)
        and not (torch.is_grad_enabled() and (x.requires_grad or _any_needs_gradient(steps)))
    )


def _any_needs_gradient(modules: tuple[nn.Module, ...]) -> bool:
    return any(parameter.requires_grad for module in modules for parameter in module.parameters())


@runtime_checkable
class Preparable(Protocol):
    """A layer that has a faster form for inference."""

    def inference_form(self) -> nn.Module:
        """Return a layer for evaluation only, with the outputs of this one; this one stays as it is."""
        ...


class CompiledAlone(nn.Module):
    """Marks the block that a network repeats, which `prepare_for_inference` may hand to `torch.compile`.

    Compiled one by one, all blocks of a stage share one program; a network compiled whole is as many.
    """


class InferenceOnly(nn.Module):
    """Base of layers that `prepare_for_inference` puts in: they have no training mode and no gradients."""

    def train(self, mode: bool = True) -> InferenceOnly:
        """Refuse training; `eval()` is fine.

        Raises:
            RuntimeError: `mode` is true.
        """
        if mode:
            raise _cannot_train(self)
        return super().train(False)


class PackedLinear(InferenceOnly, nn.Linear):
    """A linear layer and an activation as one product of oneDNN in float32 on a CPU, else as they are.

    `torch.nn.Linear` has its weight put in order by every call. Here that is done by the first call, and
    again after the weight has changed; the result stands beside the weight, so that it takes twice the
    memory. It is no part of state dicts, copies and files.

    Args:
        linear: Whose weight and bias this layer takes.
        act: Activation of the result.
    """

    _packed: tuple[Tensor, int, Tensor] | None = None
    """The weight as it was packed, its version then, and what came of it."""

    def __init__(self, linear: nn.Linear, act: ActivationName | None = None) -> None:
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self.act = nn.Identity() if act is None else make_activation(act)
        self.act_name: ActivationName | None = act
        self.eval()

    def forward(self, input: Float[Tensor, "*shape c"]) -> Float[Tensor, "*shape d"]:
        x, weight = input, self.weight
        packs = x.dtype is weight.dtype is torch.float32 and x.dim() > 1 and x.numel() and weight.numel()
        # Changes of a tensor that was made in inference mode cannot be noticed.
        if packs and not weight.is_inference() and fuses(x, self, self.act) and _is_usable():
            attribute, algorithm = _ATTRIBUTES[self.act_name]
            product: Any = torch.ops.mkldnn._linear_pointwise
            return product(x, self._order(), self.bias, attribute, [], algorithm)
        return self.act(F.linear(x, weight, self.bias))

    def _order(self) -> Tensor:
        """The weight in oneDNN's order."""
        weight, known = self.weight, self._packed
        if known is None or known[0].data_ptr() != weight.data_ptr() or known[1] != weight._version:
            # What is made in inference mode could not be used outside of it. The weight that was packed is
            # kept, so that no other one can come to lie in its place.
            with torch.inference_mode(False):
                kept = weight.detach()
                known = kept, weight._version, torch.ops.mkldnn._reorder_linear_weight(kept)
            self._packed = known
        return known[2]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_packed"}


@cache
def _is_usable() -> bool:
    """Whether this PyTorch has the product and can run it here."""
    try:
        # Whatever the default device and type are.
        ones = torch.ones(16, 16, device="cpu", dtype=torch.float32)
        packed = torch.ops.mkldnn._reorder_linear_weight(ones)
        product: Any = torch.ops.mkldnn._linear_pointwise
        given = product(ones, packed, None, "gelu", [], "none")
    except (AttributeError, RuntimeError):
        return False
    return bool(torch.allclose(given, 16 * ones))


class ForInference(nn.Module):
    """Base of whole networks, which can give a prepared copy of themselves."""

    is_prepared: bool = False
    """Whether this is such a copy."""

    def for_inference(self: _Net, *, compile: bool | str = False) -> _Net:
        """Return a copy for evaluation only, with the same outputs and faster; see `prepare_for_inference`.

        Args:
            compile: Also hand every block to `torch.compile`; a name is that of its backend.

        Example:
            >>> from allsight.models import Classifier
            >>> model = Classifier(Classifier.Config.variant("nano", num_classes=10))
            >>> fast = model.for_inference()
            >>> fast.train()
            Traceback (most recent call last):
            RuntimeError: Classifier: was prepared for inference and cannot be trained; train the model it ...
        """
        return prepare_for_inference(self, compile=compile)

    def train(self: _Net, mode: bool = True) -> _Net:
        """Set the mode, as every module does.

        Raises:
            RuntimeError: Training a copy that was prepared for inference; nothing has been changed then.
        """
        if mode and self.is_prepared:
            raise _cannot_train(self)
        return super().train(mode)


def _cannot_train(module: nn.Module) -> RuntimeError:
    return RuntimeError(
        f"{type(module).__name__}: was prepared for inference and cannot be trained; "
        "train the model it was prepared from"
    )


def prepare_for_inference(model: _Model, *, compile: bool | str = False) -> _Model:
    """Return a copy of a model that is in evaluation mode for good and faster, with the same outputs.

    Every layer that knows a faster form of itself gives it (`inference_form`): deformable layers predict
    offsets and weights by one matrix product, factors on residual branches become part of the weights before
    them, batch norms part of the convolution before them. Linear layers keep a second copy of their weight
    in the order in which a CPU's products read it (`PackedLinear`). Weights are copied and laid out anew, so
    the copy's state dict is not that of the model; the model itself is left as it is. Outputs differ by
    rounding only. The copy takes any size that the model takes; preparing it again gives a further copy.

    Args:
        model: Any module, such as an `InternImage` or a classifier with one.
        compile: Also hand every block to `torch.compile`, with sizes left open; a name is that of its
            backend, True is PyTorch's default one. Pays on GPUs; the first calls take minutes. Copies and
            files of the result are not compiled.

    Returns:
        The copy; `train()` on it is an error, and its parameters take no gradients.

    Example:
        >>> import torch
        >>> from allsight.layers import DCNv3
        >>> layer, x = DCNv3(8, groups=2), torch.ones(1, 4, 4, 8)
        >>> torch.allclose(prepare_for_inference(layer)(x), layer(x), atol=1e-6)
        True
    """
    prepared: Any = model.inference_form() if isinstance(model, Preparable) else with_prepared_layers(model)
    prepared = _pack(prepared)
    prepared.eval().requires_grad_(False)
    if isinstance(model, ForInference):
        prepared.is_prepared = True
    if compile:
        backend = "inductor" if compile is True else compile
        for module in prepared.modules():
            if isinstance(module, CompiledAlone):
                module.compile(dynamic=True, backend=backend)
    return prepared


def with_prepared_layers(module: _Model) -> _Model:
    """A copy of a module whose inner layers have their forms for inference."""
    copied = copy.deepcopy(module)
    _replace_children(copied)
    return copied


def _replace_children(module: nn.Module) -> None:
    for name, child in list(module.named_children()):
        if isinstance(child, Preparable):
            setattr(module, name, child.inference_form())
        else:
            if isinstance(child, ForInference):
                child.is_prepared = True
            _replace_children(child)


def _pack(module: nn.Module) -> nn.Module:
    """Put packed layers in the place of plain linear ones; a plain linear layer alone gives a packed one."""
    known: dict[nn.Linear, PackedLinear] = {}

    def packed(linear: nn.Linear) -> PackedLinear:
        if linear not in known:
            known[linear] = PackedLinear(linear)
        return known[linear]

    if type(module) is nn.Linear:
        return packed(module)
    for parent in list(module.modules()):
        for name, child in list(parent._modules.items()):
            if type(child) is nn.Linear:
                setattr(parent, name, packed(child))
    return module


@torch.no_grad()
def scale_output(layer: nn.Linear | nn.LayerNorm | nn.Conv2d, factor: Float[Tensor, " c"]) -> None:
    """Make a layer give `factor` times what it gave."""
    rows = factor.view(-1, *(1 for _ in layer.weight.shape[1:]))
    layer.weight = nn.Parameter(layer.weight * rows)
    if layer.bias is not None:
        layer.bias = nn.Parameter(layer.bias * factor)


@torch.no_grad()
def take_in_batch_norm(conv: nn.Conv2d, norm: nn.modules.batchnorm._BatchNorm) -> None:
    """Make a convolution do what a batch norm in evaluation mode does after it. Computed in float64."""
    assert norm.running_mean is not None and norm.running_var is not None
    factor = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        factor = factor * norm.weight
    shift = -norm.running_mean * factor + (0 if norm.bias is None else norm.bias)
    if conv.bias is not None:
        shift = shift + conv.bias * factor
    weight = conv.weight * factor.view(-1, 1, 1, 1)
    conv.weight = nn.Parameter(weight.to(conv.weight))
    conv.bias = nn.Parameter(shift.to(conv.weight))
