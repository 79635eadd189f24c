"""Encoder and head give the official numbers: maps, boxes, gradients, answers, matches, losses."""

import pytest
import torch
from bevformer_numbers import HW_PX, Small, past_of, relative, rig_of_case

from allsight.models.bevformer.detection import answers, best_boxes
from allsight.objectives import boxes_from_bevformer, boxes_to_bevformer, detection_3d_losses, match_boxes

PRECISIONS = [(torch.float64, 1e-9, 1e-8), (torch.float32, 1e-5, 1e-4)]


def run(tensors, about, case, dtype):
    model = Small(about).load(tensors).to(dtype).eval()
    maps = [tensors[f"{case}.feat{level}"].to(dtype).requires_grad_() for level in range(2)]
    rig = rig_of_case(tensors, case)
    state = past_of(model.network.memory, tensors, case, dtype)
    past = model.network.memory.recall(state, rig, None, maps[0])
    if state is None:
        # The first frame of a case still tells the network a motion, which official test code would not do.
        past = type(past)(rig.can_bus.to(dtype), past.shift)
    cells = model.network.encoder(maps, rig, HW_PX, past)
    outputs = model.head(cells.transpose(1, 2).unflatten(2, model.head.grid.hw))
    return model, maps, cells, outputs


@pytest.mark.parametrize(("dtype", "forward", "gradient"), PRECISIONS)
@pytest.mark.parametrize("case", ["first_frame", "with_history"])
def test_map_and_boxes_are_the_official_ones(parity, case, dtype, forward, gradient):
    about, tensors = parity("bevformer/head")
    model, maps, cells, outputs = run(tensors, about, case, dtype)
    assert relative(cells.transpose(0, 1), tensors[f"{case}.f64.bev_embed"].to(dtype)) < forward
    assert relative(outputs.logits, tensors[f"{case}.f64.all_cls_scores"].to(dtype)) < forward
    assert relative(outputs.codes, tensors[f"{case}.f64.all_bbox_preds"].to(dtype)) < forward
    loss = (outputs.logits * tensors[f"{case}.loss_weight_cls"].to(dtype)).sum()
    (loss + (outputs.codes * tensors[f"{case}.loss_weight_bbox"].to(dtype)).sum()).backward()
    for key in about["cases"][case]["gradient_keys"]:
        expected = tensors[f"{case}.f64.grad.{key}"].to(dtype)
        assert relative(model.gradient_of(key), expected) < gradient, key
    for level, features in enumerate(maps):
        assert relative(features.grad, tensors[f"{case}.f64.grad_feat{level}"].to(dtype)) < gradient


def test_rows_of_a_batch_are_as_if_each_were_alone(parity):
    about, tensors = parity("bevformer/head")
    case = "quirk_batch2_no_history"
    *_, cells, outputs = run(tensors, about, case, torch.float64)
    for row in range(2):
        alone = f"{case}.f64.sample_alone.{row}"
        assert relative(cells[row], tensors[f"{alone}.bev_embed"][:, 0]) < 1e-9
        assert relative(outputs.logits[:, row], tensors[f"{alone}.all_cls_scores"][:, 0]) < 1e-9
        assert relative(outputs.codes[:, row], tensors[f"{alone}.all_bbox_preds"][:, 0]) < 1e-9


def same_turn(rows, expected):
    """Angles agree up to whole turns, all else as it is."""
    rows = rows.detach()
    difference = (rows[:, 6] - expected[:, 6] + torch.pi).remainder(2 * torch.pi) - torch.pi
    rest = [0, 1, 2, 3, 4, 5, 7, 8]
    return float(difference.abs().max()) < 1e-9 and relative(rows[:, rest], expected[:, rest]) < 1e-9


@pytest.mark.parametrize("case", ["first_frame", "with_history"])
def test_answers_are_the_official_ones(parity, case):
    about, tensors = parity("bevformer/head")
    *_, outputs = run(tensors, about, case, torch.float64)
    coder = about["head_constructor"]["bbox_coder"]
    (found,) = answers(outputs.boxes, range_m=tuple(coder["post_center_range"]))
    assert torch.equal(found.labels, tensors[f"{case}.f64.decoded.0.labels"])
    assert relative(found.scores, tensors[f"{case}.f64.decoded.0.scores"]) < 1e-9
    assert same_turn(boxes_to_bevformer(found, bottom=False), tensors[f"{case}.f64.decoded.0.bboxes"])
    assert same_turn(boxes_to_bevformer(found), tensors[f"{case}.f64.get_bboxes.0.bboxes_bottom_centre"])


def test_thresholds_and_ranges_sort_out_what_the_official_code_does(parity):
    about, tensors = parity("bevformer/head")
    for name, case in about["cases"]["coder"].items():
        given = case["constructor"]
        logits, codes = (tensors[f"coder.{name}.{key}"][-1] for key in ("all_cls_scores", "all_bbox_preds"))
        best = best_boxes(logits, codes, given["max_num"])
        (found,) = answers(
            best,
            range_m=tuple(given["post_center_range"]),
            score_threshold=given.get("score_threshold"),
        )
        assert len(found.labels) == case["kept"], name
        assert torch.equal(found.labels, tensors[f"coder.{name}.labels"]), name
        assert relative(found.scores, tensors[f"coder.{name}.scores"]) < 1e-9, name
        assert same_turn(boxes_to_bevformer(found, bottom=False), tensors[f"coder.{name}.bboxes"]), name


@pytest.mark.parametrize(("case", "rows"), [("first_frame", 1), ("quirk_batch2_no_history", 2)])
def test_matches_and_losses_are_the_official_ones(parity, case, rows):
    _, tensors = parity("bevformer/head")
    logits, codes = (
        tensors[f"{case}.f64.{key}"].requires_grad_() for key in ("all_cls_scores", "all_bbox_preds")
    )
    truth = [
        boxes_from_bevformer(
            tensors[f"{case}.gt_boxes_bottom_centre.{row}"].double(), tensors[f"{case}.gt_labels.{row}"]
        )
        for row in range(rows)
    ]
    assert bool(truth[0].velocities_ref_mps.isnan().any())
    assigned = match_boxes(logits, codes, truth)
    for layer in range(2):
        for row in range(rows):
            expected = tensors[f"{case}.f64.assigned_gt_plus_one.layer{layer}.{row}"]
            assert torch.equal(assigned[layer, row] + 1, expected)
    losses = detection_3d_losses(logits, codes, truth, keep_boxes_in_part=False)
    for name, ours in (("cls", "classes"), ("bbox", "boxes")):
        expected = torch.cat([tensors[f"{case}.f64.loss.{at}loss_{name}"] for at in ("d0.", "")])
        assert relative(losses[ours], expected) < 1e-9
    sum(loss.sum() for loss in losses.values()).backward()
    for key, tensor in (("all_cls_scores", logits), ("all_bbox_preds", codes)):
        assert relative(tensor.grad, tensors[f"{case}.f64.loss_grad.{key}"]) < 1e-8
