"""One moment of a drive before its pictures are decoded, and the sample that is made from it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64, Int64

from allsight.data.decode import MAX_PIXELS, LeastSize, decode_picture
from allsight.data.readers.tree import Tree
from allsight.types import Boxes3D, BoxNotes, DataError, Rig, Sample


@dataclass(frozen=True)
class Shot:
    """What one camera saw: a picture file, and where its pixels look.

    Args:
        name: Of the camera.
        file: Name below the data set's folder.
        img_from_ref: 3 x 4; includes the motion between exposure and reference time.
        hw_px: Size that the data set states; None where it does not.
    """

    name: str
    file: str
    img_from_ref: Float64[np.ndarray, "3 4"]
    hw_px: tuple[int, int] | None = None


@dataclass(frozen=True)
class BoxArrays:
    """Boxes of one frame, in the reference frame; see `Boxes3D` and `BoxNotes`."""

    centers_m: Float64[np.ndarray, "k 3"]
    sizes_lwh_m: Float64[np.ndarray, "k 3"]
    yaw_rad: Float64[np.ndarray, " k"]
    velocities_mps: Float64[np.ndarray, "k 2"]
    labels: Int64[np.ndarray, " k"]
    num_points: Int64[np.ndarray, " k"]
    attributes: Int64[np.ndarray, " k"]
    instances: Int64[np.ndarray, " k"]

    def __len__(self) -> int:
        return len(self.labels)

    def boxes(self) -> Boxes3D:
        """As the target `boxes`."""
        return Boxes3D(
            torch.from_numpy(self.centers_m).float(),
            torch.from_numpy(self.sizes_lwh_m).float(),
            torch.from_numpy(self.yaw_rad).float(),
            torch.from_numpy(self.velocities_mps).float(),
            torch.from_numpy(self.labels),
        )

    def notes(self) -> BoxNotes:
        """As the target `box_notes`."""
        return BoxNotes(*map(torch.from_numpy, (self.num_points, self.attributes, self.instances)))


@dataclass(frozen=True)
class Frame:
    """One moment of a drive.

    Args:
        token: Its name within the data set.
        scene: Name of the drive it belongs to.
        time_s: Reference time.
        ego_from_ref, world_from_ref: Reference frame to the vehicle's and the world's.
        shots: Of the cameras that delivered a picture.
        boxes: What is annotated.
    """

    token: str
    scene: str
    time_s: float
    ego_from_ref: Float64[np.ndarray, "4 4"]
    world_from_ref: Float64[np.ndarray, "4 4"]
    shots: tuple[Shot, ...]
    boxes: BoxArrays


def check_intrinsics(matrix: Float64[np.ndarray, "3 3"], said_by: str, id: str) -> None:
    """Refuse a camera matrix that no lens has.

    Raises:
        DataError: It is singular, not finite, or has a focal length that is not positive.
    """
    is_good = (
        np.isfinite(matrix).all()
        and min(matrix[0, 0], matrix[1, 1]) > 0
        and abs(np.linalg.det(matrix)) > 1e-9
    )
    if not is_good:
        raise DataError(
            f"{id}: {said_by}: the intrinsics {matrix.round(4).tolist()} are singular or not finite; "
            "expected [[fx, s, cx], [0, fy, cy], [0, 0, 1]] in pixels with fx and fy above 0",
            id,
        )


def to_sample(
    id: str, frame: Frame, tree: Tree, *, max_pixels: int = MAX_PIXELS, least: LeastSize | None = None
) -> Sample:
    """Decode the pictures of a frame.

    The sample has the input `rig` and the targets `boxes` (`Boxes3D`) and `box_notes` (`BoxNotes`).

    Args:
        least: Size that suffices of a picture; those that are decoded smaller bring their matrices along.
    Raises:
        DataError: A picture is missing, unreadable, or of another size than the data set says.
    """
    images, matrices = [], np.zeros((len(frame.shots), 3, 4))
    for number, shot in enumerate(frame.shots):
        try:
            data = tree.read(shot.file)
        except OSError as error:
            said = "no such file" if isinstance(error, FileNotFoundError) else str(error)
            raise DataError(f"{id}: {shot.name}: {tree.where(shot.file)}: {said}", id) from None
        image = decode_picture(data, id, min_hw_px=least, max_pixels=max_pixels)
        height, width = image.original_hw_px or image.hw_px
        if shot.hw_px is not None and (height, width) != shot.hw_px:
            raise DataError(
                f"{id}: {shot.name}: {shot.file} is {width} x {height} px, the data set "
                f"says {shot.hw_px[1]} x {shot.hw_px[0]}; its matrices would not fit",
                id,
            )
        images.append(image)
        # Decoded at 1/2, 1/4 or 1/8, of which the last row and column may lie half outside.
        reduced = max(round(height / image.hw_px[0]), round(width / image.hw_px[1]))
        matrices[number] = shot.img_from_ref / np.array([[reduced], [reduced], [1]])
    rig = Rig(
        tuple(images),
        torch.from_numpy(matrices).float(),
        torch.from_numpy(frame.ego_from_ref).float(),
        # Places in a city have six digits before the point: float32 would shake by centimetres.
        torch.from_numpy(np.array(frame.world_from_ref, dtype=np.float64)),
        frame.time_s,
        tuple(shot.name for shot in frame.shots),
    )
    return Sample(id, {"rig": rig}, {"boxes": frame.boxes.boxes(), "box_notes": frame.boxes.notes()})
