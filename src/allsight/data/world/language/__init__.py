"""The language world: pictures of one to three toys, and what can be said and asked of them.

vocabulary   the words
split        which combinations of name, colour and place are where
options      Language.Config: size, counts
arranging    (seed, split) -> what is in each picture, in words; no two alike
scenes       words -> scene graph
sentences    captions in other words, sentences with words taken out
questions    five types of questions and their answers
words        the tokenizer
export       pictures and texts in the formats real data comes in
generate     all of it into a folder, all or nothing
"""

from allsight.data.world.language.arranging import Thing, caption_of
from allsight.data.world.language.export import read_pictures
from allsight.data.world.language.generate import generate_language, write_language
from allsight.data.world.language.options import Language

__all__ = ["Language", "Thing", "caption_of", "generate_language", "read_pictures", "write_language"]
