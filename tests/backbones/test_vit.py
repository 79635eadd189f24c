import pytest
import torch
import torch.nn.functional as F

from allsight.backbones import InternImage, ViT
from allsight.types import CheckpointError

TINY = {"channels": 16, "depth": 2, "heads": 2, "patch_px": 4}


def tiny(**changes):
    torch.manual_seed(0)
    return ViT(ViT.Config(**{**TINY, **changes})).double().eval()


def by_hand(net, images):
    """A vision transformer from its state dict, as the papers write it."""
    state = net.state_dict()

    def linear(x, name):
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def norm(x, name):
        return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], 1e-6)

    patches = F.unfold(images, 4, stride=4).transpose(1, 2)
    x = patches @ state["patch_embed.proj.weight"].flatten(1).T + state["patch_embed.proj.bias"]
    x = x + net._positions(images.shape[2] // 4, images.shape[3] // 4, x)[0]
    x = torch.cat([state["cls_token"].expand(len(x), -1, -1), x], 1)
    for i in range(2):
        q, k, v = linear(norm(x, f"blocks.{i}.norm1"), f"blocks.{i}.attn.qkv").chunk(3, -1)
        heads = []
        for a, b, c in zip(q.chunk(2, -1), k.chunk(2, -1), v.chunk(2, -1), strict=True):
            heads.append((a @ b.transpose(1, 2) / 8**0.5).softmax(-1) @ c)
        x = x + linear(torch.cat(heads, -1), f"blocks.{i}.attn.proj")
        hidden = F.gelu(linear(norm(x, f"blocks.{i}.norm2"), f"blocks.{i}.mlp.fc1"))
        x = x + linear(hidden, f"blocks.{i}.mlp.fc2")
    return norm(x, "norm")


def test_it_computes_what_the_papers_write():
    net, images = tiny(), torch.randn(2, 3, 12, 8, dtype=torch.float64)
    expected = by_hand(net, images)
    found = net.encode(images)
    torch.testing.assert_close(torch.cat([found.summary, found.cells], 1), expected, rtol=0, atol=1e-12)
    (map_,) = net(images)
    assert map_.shape == (2, 16, 3, 2) and net.feature_specs[0].stride == 4
    torch.testing.assert_close(map_[:, :, 2, 1], expected[:, 1 + 5])


def test_cells_that_are_not_shown_change_nothing():
    net, images = tiny(), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    visible = torch.tensor([[3, 0], [1, 2]])
    before = net.encode(images, visible=visible)
    images[0, :, :4, 4:] += 1
    images[1, :, :4, :4] += 1
    after = net.encode(images, visible=visible)
    assert torch.equal(before.cells, after.cells) and torch.equal(before.summary, after.summary)


def test_a_mixed_pass_with_separate_attention_is_two_masked_passes():
    net = tiny()
    a, b = torch.randn(2, 1, 3, 8, 8, dtype=torch.float64)
    owners = torch.tensor([[0, 1, 1, 0]])
    pixels = owners.view(1, 1, 2, 2).repeat_interleave(4, 2).repeat_interleave(4, 3)
    mixed = net.encode(torch.where(pixels == 0, a, b), owners=owners, num_pictures=2)
    alone = net.encode(a, visible=torch.tensor([[0, 3]])), net.encode(b, visible=torch.tensor([[1, 2]]))
    torch.testing.assert_close(mixed.cells[:, [0, 3]], alone[0].cells, rtol=0, atol=1e-12)
    torch.testing.assert_close(mixed.cells[:, [1, 2]], alone[1].cells, rtol=0, atol=1e-12)
    torch.testing.assert_close(mixed.summary[:, :1], alone[0].summary, rtol=0, atol=1e-12)
    together = net.encode(torch.where(pixels == 0, a, b), owners=owners, num_pictures=2, separate=False)
    assert not torch.allclose(together.cells, mixed.cells)


def test_learnt_positions_fit_other_sizes_and_sines_need_no_size():
    net = tiny(positions="learned", size_px=16)
    assert net.pos_embed.shape == (1, 17, 16)
    assert net(torch.randn(1, 3, 24, 8, dtype=torch.float64))[0].shape == (1, 16, 6, 2)


def test_a_frozen_patch_projection_does_not_learn():
    net = tiny(freeze_patches=True).train()
    net(torch.randn(1, 3, 8, 8, dtype=torch.float64))[0].sum().backward()
    assert net.patch_embed.proj.weight.grad is None and net.cls_token.grad is not None


@pytest.mark.parametrize("positions", ["learned", "sincos"])
def test_published_weights_are_recognised(positions):
    net = ViT(ViT.Config(channels=128, depth=1, heads=2, patch_px=4, size_px=16, positions=positions))
    weights = {f"module.{name}": tensor for name, tensor in net.official_state_dict().items()}
    weights["module.head.weight"] = torch.zeros(3, 128)
    if positions == "sincos":
        weights |= {"module.decoder_pred.weight": torch.zeros(3), "module.pos_embed": torch.zeros(1, 17, 128)}
    again = ViT.from_official(weights)
    assert again.config == net.config.model_copy(update={"size_px": again.config.size_px})
    images = torch.randn(1, 3, 16, 16)
    torch.testing.assert_close(again(images)[0], net(images)[0])


def test_other_weights_are_refused():
    with pytest.raises(CheckpointError, match="ViT: no patch_embed"):
        ViT.from_official({"conv1.weight": torch.zeros(1)})


def test_sides_that_are_no_whole_patches_are_refused():
    with pytest.raises(ValueError, match="divisible by the patch of 4 px, got 8 x 10"):
        tiny()(torch.zeros(1, 3, 8, 10, dtype=torch.float64))


@pytest.mark.parametrize("remat", ["block", "selective"])
def test_recomputation_and_layers_in_order(remat):
    net, again = tiny(), tiny(remat=remat)
    images = torch.randn(1, 3, 8, 8, dtype=torch.float64)
    net(images)[0].sum().backward()
    again(images)[0].sum().backward()
    for (name, a), b in zip(net.named_parameters(), again.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None) and torch.equal(a.grad, b.grad), name
    listed = [id(p) for layer in net.layers_in_order() for m in layer.modules for p in m.parameters()]
    assert len(listed) == len(set(listed)) == len(list(net.parameters()))


def test_an_internimage_may_keep_its_size_from_stage_to_stage():
    config = InternImage.Config(
        channels=8, depths=(1, 1, 1, 1), groups=(1, 1, 1, 1), later_strides=(2, 1, 1), stem_stride=4
    )
    net = InternImage(config)
    assert [spec.stride for spec in net.feature_specs] == [4, 8, 8, 8]
    assert [tuple(m.shape[2:]) for m in net(torch.zeros(1, 3, 64, 64))] == [(16, 16), (8, 8), (8, 8), (8, 8)]
