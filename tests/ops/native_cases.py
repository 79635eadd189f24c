"""Calls that the compiled kernels are tried with, also in processes of their own: `python native_cases.py`.

Run as a script it compares every call with the reference and prints the instruction set.
"""

import torch

from allsight.ops import add_layer_norm, dcnv3, depthwise_norm_act, layer_norm_add, ms_deform_attn

ON_PIXELS = (0.0, -1.0)
NOWHERE = (float("nan"), float("inf"), -float("inf"), 1e30, -3e38)


def draw(seed, *shape, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def with_places(tensor, special):
    """Some of the values replaced by these."""
    flat = tensor.view(-1)
    for i, value in enumerate(special):
        flat[i * 5 :: 97] = value
    return tensor


def calls(dtype=torch.float32, special=NOWHERE + ON_PIXELS):
    """name -> (function of the tensors and a backend, tensors)."""
    found = {}
    widths = (1, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96)
    for i, width in enumerate(widths):
        groups = 1 + i % 3
        height, columns = ((7, 5), (1, 9), (6, 1), (1, 1))[i % 4]
        kernel = (3, (2, 4), 5, (1, 3))[i % 4]
        area = {3: 9, 5: 25}.get(kernel) or kernel[0] * kernel[1]
        options = dict(groups=groups, kernel_size=kernel, padding=3, stride=1 + i % 2, softmax=bool(i % 2))
        options |= dict(offset_scale=1.5, remove_center=i % 4 == 0)
        points = groups * (area - int(i % 4 == 0))
        value = draw(i, 2, height, columns, groups * width, dtype=dtype)
        rows = kernel if isinstance(kernel, tuple) else (kernel, kernel)
        sizes = [
            (n + 6 - (k - 1) - 1) // (1 + i % 2) + 1 for n, k in zip((height, columns), rows, strict=True)
        ]
        offset = with_places(draw(i + 50, 2, *sizes, points * 2, dtype=dtype) * 3, special)
        mask = draw(i + 100, 2, *sizes, points, dtype=dtype)

        def run_dcnv3(backend, *tensors, options=options):
            return dcnv3(*tensors, **options, backend=backend)

        found[f"dcnv3 {width}"] = run_dcnv3, (value, offset, mask)
        shapes = ((height, columns), (1, 1), (3, 2))[: 1 + i % 3]
        pixels, levels = sum(h * w for h, w in shapes), len(shapes)
        value = draw(i, 2, pixels, groups, width, dtype=dtype)
        locations = with_places(draw(i + 50, 2, 11, groups, levels, 3, 2, dtype=dtype) + 0.5, special)
        weights = draw(i + 100, 2, 11, groups, levels, 3, dtype=dtype)

        def run_attention(backend, *tensors, shapes=shapes, softmax=bool(i % 2)):
            value, locations, weights = tensors
            return ms_deform_attn(value, shapes, locations, weights, softmax=softmax, backend=backend)

        found[f"ms_deform_attn {width}"] = run_attention, (value, locations, weights)
    return found | fused_calls(dtype)


def fused_calls(dtype=torch.float32):
    """Those of the operators with a layer norm in them, for widths with and without a tail."""
    found = {}
    for i, width in enumerate((8, 12, 20, 32, 37, 48, 64, 5)):
        height, columns = ((7, 5), (1, 9), (6, 1), (1, 1), (3, 14), (5, 20), (4, 12), (2, 8))[i]
        kernel, act = (3, 5, 1, 7)[i % 4], ("gelu", "silu", "relu", "none")[i // 2]
        vectors = [draw(10 * i + j, width, dtype=dtype) for j in range(3)]
        x, weight = (
            draw(i, 2, height, columns, width, dtype=dtype),
            draw(i, width, 1, kernel, kernel, dtype=dtype),
        )

        def run_depthwise(backend, *tensors, act=act):
            return depthwise_norm_act(*tensors, act=act, backend=backend)

        def run_before(backend, residual, branch, scale, weight, bias):
            total, normalised = add_layer_norm(residual, branch, weight, bias, scale=scale, backend=backend)
            return torch.stack([total, normalised])

        def run_after(backend, residual, branch, scale, weight, bias):
            return layer_norm_add(residual, branch, weight, bias, scale=scale, backend=backend)

        branch = draw(i + 9, *x.shape, dtype=dtype)
        found[f"depthwise_norm_act {width}"] = run_depthwise, (x, weight, *vectors)
        found[f"add_layer_norm {width}"] = run_before, (x, branch, *vectors)
        found[f"layer_norm_add {width}"] = run_after, (x, branch, *vectors)
    return found


def outcome(run, tensors, backend):
    """Output and all gradients."""
    tensors = [tensor.clone().requires_grad_() for tensor in tensors]
    output = run(backend, *tensors)
    output.backward(draw(7, *output.shape, dtype=output.dtype))
    return [output.detach(), *(tensor.grad for tensor in tensors)]


def main():
    from allsight.ops import _native

    torch.set_num_threads(2)
    for dtype, limit in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        # On pixels the reference rounds places to one side or the other: compared with places in between.
        for name, (run, tensors) in calls(dtype, special=NOWHERE).items():
            actual, expected = (outcome(run, tensors, backend) for backend in ("cpu", "reference"))
            for a, e in zip(actual, expected, strict=True):
                gap = float((a - e).norm() / e.norm().clamp_min(1e-30))
                assert gap < limit, (name, dtype, gap)
        for _, (run, tensors) in calls(dtype).items():
            assert all(tensor.isfinite().all() for tensor in outcome(run, tensors, "cpu"))
    print(_native._LIBRARY.isa)


if __name__ == "__main__":
    main()
