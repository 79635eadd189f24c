"""How fast the embedded world is generated: pictures a second, JPEG and truth written, and CPU time a
picture.

    python benchmarks/world_speed.py [--size 96] [--pictures 1000] [--workers 2] [--variant normal]
                                     [--folder FOLDER]

A portrait writes one file, a scene two (a JPEG with two names and the label map); half of the pictures are
of each kind. The rate is that of the whole call, start of the worker processes included. New files can cost
as much as a quarter of it: `--folder` says on which disk (or RAM disk) to write.
"""

from __future__ import annotations

from _generating import options_of, time_generation

from allsight.data.world import World, generate_world


def main() -> None:
    parser = options_of("Speed of the embedded world", repeats=5)
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--pictures", type=int, default=1000)
    parser.add_argument("--variant", default="normal")
    options = parser.parse_args()
    each = max(12, options.pictures // 4)
    config = World.Config.variant(options.variant, size_px=options.size, train=each, val=each)
    time_generation(
        lambda folder: generate_world(folder, config, workers=options.workers),
        options,
        script=__file__,
        title="Speed of the embedded world",
        pieces=("pictures", "picture"),
        count=4 * each,
        least=200,
        setting=f"{options.variant}, {options.size} px",
    )


if __name__ == "__main__":
    main()
