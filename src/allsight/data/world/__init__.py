"""The embedded world: a small, complete set of generated pictures with exact truth, without a download.

vocabulary   the words: shapes, colours, sizes, textures, classes
options      World.Config: size, counts, difficulty
sampling     (seed, split, stream, index) -> scene graph
scene        the scene graph: plain data, to and from JSON
rendering    scene graph -> picture, instance map, label map (solids, shapes, backdrop, camera)
export       scene graph -> ImageFolder, COCO json, label maps
generate     all of it into a folder, all or nothing
language     a further world of pictures with captions, questions and masked sentences
"""

from allsight.data.world.export import read_scenes
from allsight.data.world.generate import generate_world
from allsight.data.world.language import Language
from allsight.data.world.options import World
from allsight.data.world.rendering import Rendered, compose, render
from allsight.data.world.scene import Scene

__all__ = ["Language", "Rendered", "Scene", "World", "compose", "generate_world", "read_scenes", "render"]
