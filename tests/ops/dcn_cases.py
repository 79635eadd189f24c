"""Reading the official DCNv3 cases of the parity folder."""


def official_options(case):
    """Our keyword arguments for one case."""
    return dict(
        groups=case["group"],
        kernel_size=(case["kernel_h"], case["kernel_w"]),
        stride=(case["stride_h"], case["stride_w"]),
        padding=(case["pad_h"], case["pad_w"]),
        dilation=(case["dilation_h"], case["dilation_w"]),
        offset_scale=case["offset_scale"],
        remove_center=bool(case["remove_center"]),
    )
