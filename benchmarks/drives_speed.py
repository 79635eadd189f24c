"""How fast drives are generated: frames of six cameras a second, JPEG, tables and maps written, and CPU time.

    python benchmarks/drives_speed.py [--scenes 60] [--height 96] [--width 160] [--workers 2]

The rate is that of the whole call, start of the other processes included. `--folder` says on which disk to
write.
"""

from __future__ import annotations

from _generating import options_of, time_generation

from allsight.data.world.drives import Drives, generate_drives


def main() -> None:
    parser = options_of("Speed of generated drives", repeats=3)
    parser.add_argument("--scenes", type=int, default=60)
    parser.add_argument("--height", type=int, default=96)
    parser.add_argument("--width", type=int, default=160)
    options = parser.parse_args()
    config = Drives.Config(train=options.scenes, val=1, hw_px=(options.height, options.width))
    time_generation(
        lambda folder: generate_drives(folder, config, workers=options.workers),
        options,
        script=__file__,
        title="Speed of generated drives",
        pieces=("frames", "frame"),
        count=(options.scenes + 1) * config.frames,
        least=30,
        setting=f"six cameras of {options.height} x {options.width} px, ten classes, truth, tables and maps",
    )


if __name__ == "__main__":
    main()
