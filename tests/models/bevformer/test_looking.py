"""Where in the cameras a network looked for a box."""

import torch
from rigs import frame_of, turned

from allsight.models import BEVFormer
from allsight.models.bevformer.looking import looks_for


def test_a_box_is_looked_for_where_it_would_be_seen():
    """With untrained offsets of pixels, points lie around the projection of the query's place."""
    torch.manual_seed(0)
    config = BEVFormer.Config.variant("micro")
    model = BEVFormer(config).eval()
    frame = frame_of([turned(0.0), turned(0.4)], cameras=6, height=64, width=96)
    with torch.no_grad():
        out, _ = model(frame)
        query = out.detection.logits[-1, 1].sigmoid().flatten().argmax() // 10
        # The last layer looks around where the one before put the box.
        place = out.detection.codes[-2, 1, query][[0, 1, 4]]
    looks = looks_for(model.network, model.head, frame, row=1)
    total = sum(float(look.weights.sum()) for look in looks)
    assert looks and 0 < total <= 1 + 1e-5
    pixels, depth = frame.rig.project(place.double().expand(2, 1, 3))
    for look in looks:
        assert look.points_px.shape == (len(look.weights), 2)
        assert (look.points_px >= 0).all() and (look.points_px <= [96, 64]).all()
    most = max(looks, key=lambda look: float(look.weights.sum()))
    assert float(depth[1, most.camera, 0]) > 0
    middle = (most.points_px * most.weights[:, None]).sum(0) / most.weights.sum()
    assert abs(middle[0] - float(pixels[1, most.camera, 0, 0])) < 48
