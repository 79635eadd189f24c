"""Settings of M3I whose result must not depend on the number of ranks, and the half of a batch."""

from tiny_m3i import VIT, batch_of

from allsight.config import replace
from allsight.models.m3i import cases

DECODER = {"channels": 16, "heads": 2, "projector_blocks": 1, "predictor_blocks": 1}
TEXT = {"channels": 8, "depth": 1, "heads": 2, "max_tokens": 8}

CASES = {
    "clip": replace(cases.clip(VIT, channels=8), {"targets.caption.net.encoder": TEXT}),
    "siglip": replace(cases.siglip(VIT, channels=8), {"targets.caption.net.encoder": TEXT}),
    "barlow_twins": cases.barlow_twins(VIT, channels=4),
    "vicreg": cases.vicreg(VIT, channels=4),
    "m3i": cases.m3i(VIT, block_px=4, decoder=DECODER),
    "m3i_centred": cases.m3i(VIT, block_px=4, decoder=DECODER, centre=True),
}


def half_of(batch, rank):
    rows = slice(4 * rank, 4 * rank + 4)
    inputs = {
        name: tuple(v[rows] for v in value) if isinstance(value, tuple) else value[rows]
        for name, value in batch.inputs.items()
    }
    return inputs, {name: value[rows] for name, value in batch.targets.items()}


UNEVEN = replace(
    cases.m3i(VIT, block_px=4, decoder=DECODER, captions=True),
    {"targets.text.net.encoder": TEXT, "watch.every_steps": 1, "momentum.start": 0.5},
)
"""M3I with labels and captions, for batches whose second half has neither."""


def uneven_batch(step):
    batch = batch_of(rows=8, seed=step)
    batch.targets["label"][4:] = -100
    batch.targets["label"][1] = -100
    batch.targets["captioned"][4:] = False
    batch.targets["is_token"][4:] = False
    return batch
