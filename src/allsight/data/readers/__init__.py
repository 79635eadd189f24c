"""Random access to the samples of data sets as people have them. `open_reader("imagefolder:pets", root)`."""

from allsight.data.readers.opening import FORMATS, NamedReader, open_reader

__all__ = ["FORMATS", "NamedReader", "open_reader"]
