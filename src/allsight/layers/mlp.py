"""Two linear layers with an activation between them."""

from jaxtyping import Float
from torch import Tensor, nn

from allsight.layers.activation import ActivationName, activation_name, make_activation
from allsight.layers.inference import PackedLinear, with_prepared_layers


class MLP(nn.Module):
    """Linear -> activation -> dropout -> linear -> dropout over the last dimension.

    Args:
        channels: Width of input and output.
        hidden: Width in between.
        act: Activation.
        drop: Dropout probability after each linear layer's result.
        output_bias: Whether the second linear layer has a bias.
    """

    def __init__(
        self,
        channels: int,
        hidden: int,
        *,
        act: ActivationName = "gelu",
        drop: float = 0.0,
        output_bias: bool = True,
    ) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden)
        self.act = make_activation(act)
        self.fc2 = nn.Linear(hidden, channels, bias=output_bias)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Float[Tensor, "*shape c"]) -> Float[Tensor, "*shape c"]:
        return self.drop(self.fc2(self.drop(self.act(self.fc1(x)))))

    def inference_form(self) -> nn.Module:
        """Return a copy whose activation is part of the product before it."""
        prepared, act = with_prepared_layers(self), activation_name(self.act)
        if act is not None and type(self.fc1) is nn.Linear:
            prepared.fc1, prepared.act = PackedLinear(prepared.fc1, act), nn.Identity()
        return prepared
