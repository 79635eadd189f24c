"""Every odd picture file a data set may hold is either read right or refused with its name and the reason."""

import io
import struct
import zlib
from functools import partial

import numpy as np
import pytest
import simplejpeg
import torch
from PIL import Image as PillowImage
from PIL import ImageDraw, ImageOps

from allsight.data.decode import decode_label_map, decode_picture, read_picture
from allsight.data.order import generator
from allsight.data.readers.imagefolder import ImageFolder
from allsight.data.transforms import Compose, RandomResizedCrop
from allsight.types import DataError

HEIGHT, WIDTH = 24, 40


def ramp(height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """A smooth picture without symmetry: red grows to the right, green downwards."""
    y, x = np.mgrid[:height, :width]
    return np.stack((x * 255 // (width - 1), y * 255 // (height - 1), np.full_like(x, 60)), 2).astype(
        np.uint8
    )


def saved(picture: PillowImage.Image, format: str, **options) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format, **options)
    return buffer.getvalue()


def jpeg(pixels: np.ndarray | None = None, **options) -> bytes:
    options = {"quality": 95, "subsampling": 0, **options}
    return saved(PillowImage.fromarray(ramp() if pixels is None else pixels), "JPEG", **options)


def png(pixels: np.ndarray | PillowImage.Image, **options) -> bytes:
    return saved(
        pixels if isinstance(pixels, PillowImage.Image) else PillowImage.fromarray(pixels), "PNG", **options
    )


def decoded(data: bytes, **options) -> np.ndarray:
    image = decode_picture(data, "set/one", **options)
    assert image.pixels.dtype is torch.uint8
    return image.pixels.permute(1, 2, 0).numpy()


def assert_close(found: np.ndarray, expected: np.ndarray, within: int = 6) -> None:
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected.astype(int)).max() <= within


@pytest.mark.parametrize("format", ["PNG", "BMP", "PPM", "TIFF", "JPEG2000"])
def test_lossless_formats_come_out_exactly(format):
    picture = PillowImage.fromarray(ramp())
    options = {"irreversible": False} if format == "JPEG2000" else {}
    np.testing.assert_array_equal(decoded(saved(picture, format, **options)), ramp())


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 2}, {"keep_rgb": True}])
def test_plain_jpegs_are_read(options):
    assert_close(decoded(jpeg(**options)), ramp(), within=16)


def test_pixels_lie_in_memory_row_by_row_and_can_be_written():
    for data in (jpeg(), png(ramp())):
        pixels = decode_picture(data, "one").pixels
        assert pixels.permute(1, 2, 0).is_contiguous()
        pixels += 1


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "CMYK"])
def test_exif_orientation_is_applied(format, orientation):
    exif = PillowImage.Exif()
    exif[0x0112] = orientation
    stored = PillowImage.fromarray(ramp())
    upright = PillowImage.fromarray(ramp())
    upright.getexif()[0x0112] = orientation
    expected = np.asarray(ImageOps.exif_transpose(upright))
    if format == "CMYK":
        data = saved(stored.convert("CMYK"), "JPEG", exif=exif, quality=95)
    elif format in ("JPEG", "WEBP"):
        data = saved(stored, format, exif=exif, quality=95)
    else:
        data = saved(stored, format, exif=exif)
    image = decode_picture(data, "one")
    assert image.original_hw_px == expected.shape[:2]
    assert_close(image.pixels.permute(1, 2, 0).numpy(), expected, within=24)


@pytest.mark.parametrize(
    "exif",
    [b"Exif\0\0II*\0", b"Exif\0\0MM\0*\0\0\xff\xff", b"Exif\0\0nonsense", b"Exif\0\0II*\0\x08\0\0\0\xff\xff"],
)
def test_damaged_exif_is_passed_over(exif):
    assert_close(decoded(jpeg(exif=exif)), ramp())


def test_an_impossible_orientation_is_passed_over():
    exif = PillowImage.Exif()
    exif[0x0112] = 9
    assert_close(decoded(jpeg(exif=exif)), ramp())


def test_greyscale_is_repeated_over_the_channels():
    grey = ramp()[:, :, 0]
    for data in (jpeg(grey), png(grey)):
        found = decoded(data)
        assert_close(found, np.repeat(grey[:, :, None], 3, 2), within=3)


def test_one_bit_pictures_are_black_and_white():
    bits = ramp()[:, :, 0] > 127
    found = decoded(png(PillowImage.fromarray(bits)))
    np.testing.assert_array_equal(found, np.where(bits, 255, 0)[:, :, None].repeat(3, 2))


def test_sixteen_bit_grey_is_scaled_and_not_clipped():
    values = np.linspace(0, 65535, HEIGHT * WIDTH).astype(np.uint16).reshape(HEIGHT, WIDTH)
    expected = np.rint(values / 65535 * 255).astype(np.uint8)
    for format in ("PNG", "TIFF"):
        np.testing.assert_array_equal(
            decoded(saved(PillowImage.fromarray(values), format)), expected[:, :, None].repeat(3, 2)
        )


def test_sixteen_bit_colour_is_scaled_and_not_clipped():
    values = np.stack([np.linspace(0, 65535, 8, dtype=np.uint16)] * 3, 1)[None]

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 1, 16, 2, 0, 0, 0))
    data += chunk(b"IDAT", zlib.compress(b"\0" + values.astype(">u2").tobytes())) + chunk(b"IEND", b"")
    assert_close(decoded(data), (values / 257).astype(np.uint8), within=1)


def test_palettes_are_looked_up():
    picture = PillowImage.fromarray(ramp()).quantize(16)
    np.testing.assert_array_equal(decoded(png(picture)), np.asarray(picture.convert("RGB")))


@pytest.mark.parametrize("background", [(255, 255, 255), (10, 200, 30)])
def test_transparency_is_composed_on_the_background(background):
    layered = np.dstack((ramp(), np.full((HEIGHT, WIDTH), 255, np.uint8)))
    layered[:, : WIDTH // 2, 3] = 0
    layered[0, :, 3] = 128
    found = decoded(png(layered), background=background)
    np.testing.assert_array_equal(
        found[1:, : WIDTH // 2], np.broadcast_to(background, (HEIGHT - 1, WIDTH // 2, 3))
    )
    np.testing.assert_array_equal(found[1:, WIDTH // 2 :], ramp()[1:, WIDTH // 2 :])
    assert_close(
        found[:1], (ramp()[:1] * (128 / 255) + np.array(background) * (127 / 255)).astype(np.uint8), 2
    )


def test_palettes_and_greys_with_transparency_show_the_background():
    picture = PillowImage.fromarray(np.array([[0, 1], [1, 0]], np.uint8), mode="P")
    picture.putpalette([255, 0, 0, 0, 0, 255])
    for options in ({"transparency": 1}, {"transparency": b"\xff\x00"}):
        found = decoded(png(picture, **options))
        np.testing.assert_array_equal(found[0], [[255, 0, 0], [255, 255, 255]])
    grey = PillowImage.fromarray(np.array([[7, 9]], np.uint8))
    np.testing.assert_array_equal(decoded(png(grey, transparency=9))[0], [[7] * 3, [255] * 3])
    np.testing.assert_array_equal(
        decoded(png(PillowImage.fromarray(np.array([[[7, 255], [9, 0]]], np.uint8), mode="LA")))[0],
        [[7] * 3, [255] * 3],
    )


def test_cmyk_of_adobe_and_of_others_is_read_as_each_means_it():
    adobe = saved(PillowImage.fromarray(ramp()).convert("CMYK"), "JPEG", quality=95)
    assert_close(decoded(adobe), ramp(), within=8)
    at = adobe.index(b"\xff\xee")
    size = struct.unpack_from(">H", adobe, at + 2)[0]
    plain = adobe[:at] + adobe[at + 2 + size :]
    # The same stored values, now meant as ink and not as its inverse.
    with PillowImage.open(io.BytesIO(adobe)) as picture:
        ink = 255 - np.asarray(picture).astype(int)
    expected = (255 - ink[:, :, :3]) * (255 - ink[:, :, 3:]) // 255
    assert_close(decoded(plain), expected.astype(np.uint8), within=2)


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_animations_the_first_frame_is_taken(format):
    frames = [PillowImage.new("RGB", (8, 6), colour) for colour in ("red", "blue")]
    options = {"lossless": True} if format == "WEBP" else {}
    data = saved(frames[0], format, save_all=True, append_images=frames[1:], **options)
    np.testing.assert_array_equal(decoded(data), np.broadcast_to([255, 0, 0], (6, 8, 3)))


def test_large_jpegs_are_decoded_smaller_but_never_below_the_asked_size():
    big = np.asarray(PillowImage.fromarray(ramp()).resize((400, 240)))
    image = decode_picture(jpeg(big), "one", min_hw_px=(50, 90))
    assert image.original_hw_px == (240, 400)
    height, width = image.hw_px
    assert 50 <= height < 240 and 90 <= width < 400
    expected = np.asarray(PillowImage.fromarray(big).resize((width, height), PillowImage.Resampling.BOX))
    assert_close(image.pixels.permute(1, 2, 0).numpy(), expected, within=12)
    exif = PillowImage.Exif()
    exif[0x0112] = 6
    turned = decode_picture(jpeg(big, exif=exif), "one", min_hw_px=(90, 50))
    assert turned.hw_px == (width, height) and turned.original_hw_px == (400, 240)
    assert decode_picture(jpeg(big), "one", min_hw_px=(130, 90)).hw_px == (240, 400)


@pytest.mark.parametrize("options", [{}, {"progressive": True}])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_truncated_jpegs_are_refused_wherever_they_end(mode, options):
    noise = np.random.default_rng(0).integers(0, 255, (48, 64, 3)).astype(np.uint8)
    data = saved(PillowImage.fromarray(noise).convert(mode), "JPEG", quality=90, **options)
    for length in [*range(1, len(data) - 1, 97), len(data) - 2, len(data) - 1]:
        with pytest.raises(DataError, match=r"^set/one: [^\n]+$") as caught:
            decode_picture(data[:length], "set/one")
        assert caught.value.sample_id == "set/one"


@pytest.mark.parametrize("format", ["PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "JPEG2000"])
def test_other_truncated_files_are_refused(format):
    noise = np.random.default_rng(0).integers(0, 255, (48, 64, 3)).astype(np.uint8)
    data = saved(PillowImage.fromarray(noise), format)
    for length in (4, 30, len(data) // 3, len(data) // 2, len(data) * 9 // 10):
        with pytest.raises(DataError, match=r"^set/one: [^\n]+$"):
            decode_picture(data[:length], "set/one")


def test_a_jpeg_damaged_in_its_middle_is_refused():
    noise = np.random.default_rng(0).integers(0, 255, (48, 64, 3)).astype(np.uint8)
    data = bytearray(jpeg(noise))
    data[len(data) // 2 : len(data) // 2 + 2] = b"\xff\xd9"
    with pytest.raises(DataError, match=r"set/one: damaged JPEG"):
        decode_picture(bytes(data), "set/one")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", r"empty file \(0 bytes\)"),
        (b"<html><body>404</body></html>", "not a picture; begins with b'<html><body>'"),
        (b"\xff\xd8\xff", "not a picture|cannot be decoded"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a picture"),
    ],
)
def test_files_that_are_no_picture_are_refused_with_the_reason(data, reason):
    with pytest.raises(DataError, match=f"^set/one: ({reason})"):
        decode_picture(data, "set/one")


def test_pictures_of_too_many_pixels_are_refused_before_they_are_decoded():
    for data in (jpeg(), png(ramp())):
        with pytest.raises(DataError, match="40 x 24 = 960 pixels; expected at most 900"):
            decode_picture(data, "set/one", max_pixels=900)
    bomb = png(PillowImage.new("1", (20_000, 20_000)))
    with pytest.raises(DataError, match=r"set/one: .*400000000 pixels"):
        decode_picture(bomb, "set/one")


@pytest.mark.parametrize("mode", ["I", "F"])
def test_pixels_without_a_stated_range_are_refused(mode):
    with pytest.raises(DataError, match="no stated range; save the picture with 8 or 16 bits"):
        decode_picture(saved(PillowImage.new(mode, (4, 4), 3), "TIFF"), "set/one")


def test_label_maps_keep_their_values():
    labels = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH)).astype(np.uint8)
    np.testing.assert_array_equal(decode_label_map(png(labels), "one").numpy(), labels)
    coloured = PillowImage.fromarray(labels, mode="P")
    coloured.putpalette(bytes(range(256))[::-1] * 3)
    np.testing.assert_array_equal(decode_label_map(png(coloured), "one").numpy(), labels)
    few = labels % 4
    wide = PillowImage.fromarray(few.astype(np.uint16))
    np.testing.assert_array_equal(decode_label_map(png(wide), "one").numpy(), few)
    np.testing.assert_array_equal(
        decode_label_map(png(PillowImage.fromarray(few > 1)), "one").numpy(), (few > 1).astype(np.uint8)
    )


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_label_maps_of_few_bits_keep_their_values(bits):
    labels = (np.arange(16).reshape(2, 8) % 2**bits).astype(np.uint8)
    rows = np.unpackbits(labels[:, :, None], axis=2)[:, :, -bits:].reshape(2, -1)
    packed = np.packbits(rows, axis=1)

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    for colour, palette in ((0, b""), (3, chunk(b"PLTE", bytes(range(3 * 2**bits))))):
        data = (
            b"\x89PNG\r\n\x1a\n"
            + chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 2, bits, colour, 0, 0, 0))
            + palette
        )
        data += chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row.tobytes() for row in packed))) + chunk(
            b"IEND", b""
        )
        np.testing.assert_array_equal(decode_label_map(data, "one").numpy(), labels)


def test_label_maps_of_colours_or_large_values_are_refused():
    with pytest.raises(DataError, match="set/one: label map has mode RGB"):
        decode_label_map(png(ramp()), "set/one")
    with pytest.raises(DataError, match="set/one: label map holds the value 300"):
        decode_label_map(png(np.full((2, 2), 300, np.uint16)), "set/one")
    with pytest.raises(DataError, match="set/one: empty label map"):
        decode_label_map(b"", "set/one")


def test_read_picture_takes_all_forms_of_a_picture(tmp_path):
    path = tmp_path / "ramp.png"
    path.write_bytes(png(ramp()))
    expected = torch.from_numpy(ramp()).permute(2, 0, 1)
    for source in (
        path,
        str(path),
        path.read_bytes(),
        PillowImage.fromarray(ramp()),
        ramp(),
        np.dstack((ramp(), np.full((HEIGHT, WIDTH), 255, np.uint8))),
        expected,
    ):
        image = read_picture(source)
        assert torch.equal(image.pixels, expected)
        assert image.original_hw_px == (HEIGHT, WIDTH)
    assert read_picture(ramp()[:, :, 0]).hw_px == (HEIGHT, WIDTH)
    assert read_picture(expected / 255).pixels.dtype is torch.float32
    assert read_picture(ramp() / 255).pixels.dtype is torch.float32


def test_read_picture_does_not_share_memory_with_an_array():
    pixels = ramp()
    image = read_picture(pixels)
    pixels[:] = 0
    assert image.pixels.any()


def test_read_picture_refuses_what_is_none(tmp_path):
    with pytest.raises(DataError, match=r"none\.jpg: no such file"):
        read_picture(tmp_path / "none.jpg")
    with pytest.raises(DataError, match=r"is a folder; expected a picture, such as .*\*\.jpg"):
        read_picture(tmp_path)
    with pytest.raises(DataError, match=r"3 x 5 x 7; expected .* channels come last in arrays"):
        read_picture(np.zeros((3, 5, 7), np.uint8))
    with pytest.raises(DataError, match=r"5 x 7 x 3; expected .* channels come first in tensors"):
        read_picture(torch.zeros(5, 7, 3))
    with pytest.raises(DataError, match="int64"):
        read_picture(torch.zeros(3, 5, 7, dtype=torch.int64))
    with pytest.raises(DataError, match="expected a path"):
        read_picture(3.5)


def test_nan_and_infinite_pixels_are_refused():
    pixels = torch.zeros(3, 4, 5)
    pixels[0, 1, 2] = float("nan")
    pixels[2, 1, 2] = float("inf")
    with pytest.raises(DataError, match="2 of 60 pixel values are NaN or infinite"):
        read_picture(pixels)
    with pytest.raises(DataError, match="2 of 60 pixel values are NaN or infinite"):
        read_picture(pixels.permute(1, 2, 0).double().numpy())


def test_drawings_survive_a_round_trip_through_jpeg():
    """The fast decoder gives the picture Pillow gives."""
    picture = PillowImage.new("RGB", (90, 60), "white")
    ImageDraw.Draw(picture).ellipse((10, 10, 70, 50), fill=(200, 30, 90))
    data = saved(picture, "JPEG", quality=90)
    with PillowImage.open(io.BytesIO(data)) as opened:
        assert_close(decoded(data), np.asarray(opened), within=4)
    assert simplejpeg.is_jpeg(data)


def test_training_pictures_are_decoded_smaller_where_the_crop_of_this_draw_allows(tmp_path):
    place = tmp_path / "p" / "train" / "a"
    place.mkdir(parents=True)
    noise = np.random.default_rng(0).integers(0, 256, (16, 20, 3), dtype=np.uint8)
    PillowImage.fromarray(noise).resize((640, 480), PillowImage.Resampling.BICUBIC).save(place / "0.jpg")
    reader, seen = ImageFolder(tmp_path / "p", "train"), []
    crop = RandomResizedCrop(64)
    for draw in range(40):
        fresh = partial(generator, 0, draw)
        small = reader.reduced(0, lambda h, w, fresh=fresh: Compose(crop).least_hw_px(h, w, fresh)).image
        window = crop.window(480, 640, fresh())
        factor = 480 / small.hw_px[0]
        seen.append(factor)
        # Never so small that the crop must be enlarged; at half its size where it is twice the result.
        assert factor == 1 or min(window.height, window.width) >= 64 * factor
        assert (factor > 1) == (min(window.height, window.width) >= 130)
        assert small.original_hw_px == (480, 640)
    assert len(set(seen)) > 2
