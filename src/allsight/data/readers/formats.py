"""The formats data sets may have, and the class that reads each."""

from __future__ import annotations

from importlib import import_module
from typing import Any

FORMATS = {
    "ade20k": "allsight.data.readers.ade20k:Ade20k",
    "cityscapes": "allsight.data.readers.cityscapes:Cityscapes",
    "coco": "allsight.data.readers.coco:Coco",
    "coco_captions": "allsight.data.readers.coco_captions:CocoCaptions",
    "coco_panoptic": "allsight.data.readers.coco_panoptic:CocoPanoptic",
    "coco_vqa": "allsight.data.readers.coco_vqa:CocoVqa",
    "hf_datasets": "allsight.data.readers.hf_datasets:HfDatasets",
    "imagefolder": "allsight.data.readers.imagefolder:ImageFolder",
    "infos": "allsight.data.readers.infos:Infos",
    "label_maps": "allsight.data.readers.label_maps:LabelMaps",
    "manifest": "allsight.data.readers.manifest:Manifest",
    "nuscenes": "allsight.data.readers.nuscenes:NuScenes",
    "parquet": "allsight.data.readers.parquet:Parquet",
    "text": "allsight.data.readers.text:PlainText",
    "video": "allsight.data.readers.video:VideoFolder",
    "voc": "allsight.data.readers.voc:Voc",
    "voc_label_maps": "allsight.data.readers.voc_label_maps:VocLabelMaps",
    "webdataset": "allsight.data.readers.webdataset:WebDataset",
    "yolo": "allsight.data.readers.yolo:Yolo",
}
"""Format -> class that reads it: `Class(path, split, **options)`.

`Class.found_in(path, tree)` says whether a folder or file looks like this format: a `Found`, or None."""


def format_class(format: str) -> Any:
    """The class of a format."""
    module, name = FORMATS[format].split(":")
    return getattr(import_module(module), name)
