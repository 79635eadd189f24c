import io

import numpy as np
import pytest
from PIL import Image

from allsight.draw import (
    Bar,
    captioned,
    color_bar,
    contact_sheet,
    draw_bars,
    draw_boxes,
    draw_cross,
    draw_dots,
    draw_heat,
    draw_label_map,
    draw_masks,
    draw_points,
    draw_text,
    encode_jpeg,
    encode_png,
    enlarge,
    heat_colors,
    legend,
    line_width_px,
    palette,
)
from allsight.draw.palette import _DEUTERANOPE, _lab


def grey(height: int = 120, width: int = 160) -> np.ndarray:
    return np.full((height, width, 3), 90, dtype=np.uint8)


def changed(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    return (before != after).any(axis=-1)


def test_a_box_is_drawn_on_its_rim_and_nowhere_else():
    image = grey()
    out = draw_boxes(image, [[20, 30, 60, 80]], colors=[(255, 0, 0)])
    expected = np.zeros((120, 160), dtype=bool)
    expected[30:80, 20:60] = True
    expected[31:79, 21:59] = False
    assert (changed(image, out) == expected).all()
    assert (out[expected] == (255, 0, 0)).all()
    assert (image == 90).all(), "the input was drawn on"


def test_fractions_of_pixels_are_inside_the_rim():
    out = draw_boxes(grey(), np.array([[20.6, 30.2, 59.3, 79.9]]), colors=[(255, 0, 0)])
    rows, columns = np.nonzero(changed(grey(), out))
    assert (columns.min(), rows.min(), columns.max(), rows.max()) == (20, 30, 59, 79)


@pytest.mark.parametrize(
    "box", [[-50, -50, 30, 30], [100, 60, 900, 900], [-5, -5, 500, 500], [500, 500, 600, 600]]
)
@pytest.mark.parametrize("size", [(1, 1), (32, 32), (33, 700), (120, 160)])
def test_boxes_over_the_edge_are_cut_off(box: list[int], size: tuple[int, int]):
    image = grey(*size)
    out = draw_boxes(image, [box], labels=["a long label over the edge"], scores=[0.5])
    assert out.shape == image.shape


def test_no_boxes_change_nothing():
    assert (draw_boxes(grey(), []) == grey()).all()
    assert (draw_boxes(grey(), np.zeros((0, 4)), labels=[], scores=[]) == grey()).all()


def test_labels_stand_above_their_box_and_equal_labels_share_a_color():
    image = grey(200, 300)
    out = draw_boxes(
        image, [[50, 60, 120, 120], [150, 60, 220, 120]], labels=["cat", "cat"], scores=[0.9, 0.8]
    )
    above = changed(image, out)[:60]
    assert above[:, 50:120].any() and above[:, 150:220].any()
    assert (out[119, 60] == out[119, 160]).all()
    other = draw_boxes(image, [[50, 60, 120, 120], [150, 60, 220, 120]], labels=["cat", "dog"])
    assert (other[119, 60] != other[119, 160]).any()


@pytest.mark.parametrize(
    ("boxes", "options", "message"),
    [
        ([[0, 0, float("nan"), 1]], {}, "four finite numbers"),
        ([[0, 0, 1]], {}, "four finite numbers"),
        ([[0, 0, 1, 1]], {"labels": []}, "expected 1 labels"),
        ([[0, 0, 1, 1]], {"scores": [1.0, 2.0]}, "expected 1 scores"),
    ],
)
def test_wrong_boxes_are_refused(boxes: list, options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        draw_boxes(grey(), boxes, **options)


def test_lines_grow_with_the_picture():
    assert line_width_px(32, 32) == 1
    assert line_width_px(480, 640) == 2
    assert line_width_px(2160, 3840) == 9
    out = draw_boxes(grey(2160, 3840), [[100, 100, 2000, 2000]], colors=[(255, 0, 0)])
    assert (out[100:109, 500] == (255, 0, 0)).all() and (out[109, 500] == 90).all()


def test_masks_change_only_what_they_cover():
    image = grey()
    masks = np.zeros((2, 120, 160), dtype=bool)
    masks[0, 20:60, 20:60] = True
    masks[1, 40:80, 40:80] = True
    out = draw_masks(image, masks, alpha=0.5, colors=[(255, 0, 0), (0, 0, 255)])
    assert (changed(image, out) == masks.any(axis=0)).all()
    assert (out[30, 30] == (172, 45, 45)).all()
    assert (out[20, 20:60] == (255, 0, 0)).all(), "the rim is not in full colour"
    assert (image == 90).all()
    assert (draw_masks(image, masks, alpha=0.0, outline=False) == image).all()


def test_a_mask_that_fills_the_picture_has_a_rim():
    out = draw_masks(grey(), np.ones((1, 120, 160), dtype=bool), alpha=0.0, colors=[(255, 0, 0)])
    assert (out[0] == (255, 0, 0)).all() and (out[1:-1, 1:-1] == 90).all()


def test_label_maps_tint_classes_and_spare_what_is_ignored():
    labels = np.zeros((120, 160), dtype=np.uint8)
    labels[:, 80:] = 1
    labels[:10] = 255
    out = draw_label_map(grey(), labels, [(255, 0, 0), (0, 255, 0)], alpha=1.0)
    assert (out[:10] == 90).all()
    assert (out[10:, :80] == (255, 0, 0)).all() and (out[10:, 80:] == (0, 255, 0)).all()
    alone = draw_label_map(None, labels, [(255, 0, 0), (0, 255, 0)])
    assert (alone[10:] == out[10:]).all() and (alone[:10] == 128).all()


def test_label_values_without_a_color_are_named():
    labels = np.zeros((4, 5), dtype=np.int64)
    labels[2, 3] = 7
    with pytest.raises(ValueError, match="value 7 at row 2, column 3; expected 0 to 1"):
        draw_label_map(None, labels, palette(2))
    with pytest.raises(ValueError, match="value 7"):
        draw_label_map(None, labels, palette(2), ignore=None)


def test_palettes_begin_alike_and_repeat_no_color():
    full = palette(256)
    assert len(set(full)) == 256
    for count in (0, 1, 7, 8, 40):
        assert palette(count) == full[:count]
    with pytest.raises(ValueError, match="0 to 256"):
        palette(257)


def test_the_first_twelve_colors_differ_for_red_green_blind_eyes_too():
    for eye, least in ((np.eye(3), 0.12), (_DEUTERANOPE, 0.05)):
        seen = _lab(np.array(palette(12), dtype=np.float64), eye)
        apart = np.sqrt(((seen[:, None] - seen[None]) ** 2).sum(-1)) + np.eye(12)
        assert apart.min() > least, apart.min()


def test_text_is_legible_and_stays_in_the_picture():
    for height, width in ((32, 32), (96, 96), (2160, 3840)):
        image = grey(height, width)
        out = draw_text(
            image, ["a first line that may be far too long for a small picture", "second"], left=2, top=3
        )
        drawn = changed(image, out)
        assert drawn.any() and not drawn[:3].any() and not drawn[:, :2].any()
        assert (out > 180).all(axis=-1).any() and (out == 0).all(axis=-1).any()


def test_letters_the_font_lacks_are_replaced():
    assert (draw_text(grey(), "caf\u00e9 \u732b") == draw_text(grey(), "cafe ?")).all()


def test_captions_are_below_the_picture():
    image = grey(100, 100)
    out = captioned(image, "a caption that needs more than one line to be read")
    assert out.shape[1] == 100 and (out[:100] == image).all()
    assert (out[100:] < 100).any(), "nothing written"
    assert captioned(image, "x", lines=3).shape == captioned(image, "a b c d", lines=3).shape


def test_a_contact_sheet_holds_every_picture_once_in_order():
    images = [np.full((20, 30, 3), value, dtype=np.uint8) for value in (10, 20, 30, 40, 50)]
    sheet = contact_sheet(images, columns=3, gap_px=4)
    assert sheet.shape == (2 * 30 + 3 * 4, 3 * 30 + 4 * 4, 3)
    for number, value in enumerate((10, 20, 30, 40, 50)):
        row, column = divmod(number, 3)
        assert (sheet == value).all(axis=-1).sum() == 600
        assert (sheet[4 + row * 34 + 15, 4 + column * 34 + 15] == value).all()


def test_small_pictures_are_enlarged_by_whole_factors_and_large_ones_reduced():
    noise = np.random.default_rng(0).integers(0, 255, (10, 10, 3), dtype=np.uint8)
    sheet = contact_sheet([noise, grey(200, 100)], columns=2, tile_px=40, gap_px=0)
    assert (sheet[:40, :40] == enlarge(noise, 4)).all()
    assert (sheet[:, 50:70] == 90).all() and (sheet[:, 40:49] == 255).all()


def test_contact_sheets_say_what_is_wrong():
    with pytest.raises(ValueError, match="at least one picture"):
        contact_sheet([])
    with pytest.raises(ValueError, match="picture 1: expected uint8"):
        contact_sheet([grey(), np.zeros((3, 4), dtype=np.uint8)])
    with pytest.raises(ValueError, match="expected 2 captions, got 1"):
        contact_sheet([grey(), grey()], ["one"])


def test_a_legend_shows_every_color():
    colors = palette(16)
    out = legend([f"class {n}" for n in range(16)], colors, width_px=200)
    assert out.shape[1] == 200
    for color in colors:
        assert (out == color).all(axis=-1).sum() >= 13 * 13 - 1


def test_encoded_pictures_come_back():
    image = np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8)
    assert (np.array(Image.open(io.BytesIO(encode_png(image)))) == image).all()
    assert Image.open(io.BytesIO(encode_png(image[..., 0]))).mode == "L"
    smooth = enlarge(image[:5, :5], 8)
    again = np.array(Image.open(io.BytesIO(encode_jpeg(smooth[:, ::-1], quality=95)))).astype(int)
    assert abs(again - smooth[:, ::-1]).mean() < 8


def test_bars_are_as_long_as_their_values() -> None:
    red, blue = (200, 0, 0), (0, 0, 200)
    groups = [
        ("first", [Bar("r", 10.0, "10x", (5.0,)), Bar("b", 5.0, "5x")]),
        ("second", [Bar("r", 2.5, "")]),
    ]
    image = draw_bars(groups, {"r": red, "b": blue}, title="Title", note="Note " * 50, base=1.0)
    assert image.shape[1] == 900 and image.dtype == np.uint8
    # The legend has squares of the same colours, so only long runs count.
    lengths = {
        color: sorted({int(n) for n in (image == color).all(-1).sum(axis=1) if n > 30})
        for color in (red, blue)
    }
    (short, long), (middle,) = lengths[red], lengths[blue]
    assert long == pytest.approx(4 * short, abs=8) and middle == pytest.approx(2 * short, abs=8)


@pytest.mark.parametrize("bar", [Bar("r", float("nan"), ""), Bar("r", -1.0, ""), Bar("none", 1.0, "")])
def test_a_bar_that_cannot_be_drawn_is_refused(bar: Bar) -> None:
    with pytest.raises(ValueError, match="draw_bars"):
        draw_bars([("a", [bar])], {"r": (0, 0, 0)}, title="")


def test_points_are_dots_with_a_white_rim_and_may_lie_outside():
    image = np.zeros((20, 30, 3), np.uint8)
    drawn = draw_points(image, np.array([[8.0, 10.0], [-50.0, 3.0]]), (200, 10, 20))
    assert drawn[10, 8].tolist() == [200, 10, 20] and (drawn[:, 8] == 255).all(-1).any()
    assert not drawn[:, 15:].any() and not image.any()
    with pytest.raises(ValueError, match="finite points"):
        draw_points(image, np.array([[np.nan, 1.0]]), (0, 0, 0))


def test_heat_grows_lighter_from_end_to_end():
    colors = heat_colors(np.linspace(-0.5, 1.5, 60)[None])[0].astype(float)
    light = colors @ [0.299, 0.587, 0.114]
    assert (np.diff(light) >= 0).all() and light[0] < 10 and light[-1] > 240
    with pytest.raises(ValueError, match="finite"):
        heat_colors(np.array([[np.nan]]))


def test_heat_lies_over_the_grey_picture():
    image = np.zeros((4, 6, 3), dtype=np.uint8)
    image[..., 0] = 90
    assert (draw_heat(image, np.zeros((4, 6)), alpha=0) == 30).all()
    assert (draw_heat(image, np.ones((4, 6)), alpha=1) == heat_colors(np.ones((1, 1)))[0, 0]).all()
    with pytest.raises(ValueError, match=r"picture is \(4, 6\), strength is \(6, 4\)"):
        draw_heat(image, np.ones((6, 4)))


def test_dots_have_their_places_and_sizes_and_grow_denser_where_they_meet():
    image, place = grey(40, 60), np.array([[30.0, 10.0]])
    one = draw_dots(image, place, np.array([4.0]), (255, 0, 0), alpha=0.5)
    rows, columns = np.nonzero(changed(image, one))
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (6, 14, 26, 34)
    two = draw_dots(image, place.repeat(2, axis=0), np.array([4.0, 4.0]), (255, 0, 0), alpha=0.5)
    assert two[10, 30, 0] > one[10, 30, 0] > image[10, 30, 0]
    beyond = draw_dots(image, np.array([[-50.0, 5.0], [900.0, 900.0]]), np.array([4.0, 4.0]), (255, 0, 0))
    assert not changed(image, beyond).any()
    with pytest.raises(ValueError, match="finite"):
        draw_dots(image, np.array([[np.inf, 0.0]]), np.array([1.0]), (0, 0, 0))


def test_a_cross_is_centered_on_its_place():
    image = grey(41, 41)
    rows, columns = np.nonzero(changed(image, draw_cross(image, (20, 20), (0, 255, 0), reach_px=8)))
    assert rows.mean() == columns.mean() == 20
    assert rows.max() - rows.min() == 2 * 9


def test_a_bar_of_colours_goes_from_dark_to_light_above_its_labels():
    bar = color_bar(["0", "1"], width_px=80, height_px=6, size_px=12)
    assert (bar[:6] == heat_colors(np.linspace(0, 1, 80)[None])[0]).all()
    below = bar[6:]
    assert (below[:, :15] < 100).any() and (below[:, -15:] < 100).any() and (below[:, 20:60] == 255).all()
