"""Runs nuscenes-devkit's detection evaluation: python devkit_run.py ROOT VERSION SPLIT RESULT OUT."""

import importlib.abc
import importlib.machinery
import json
import sys
import time
import types

# What the devkit imports and detection does not use.
UNUSED = ("cv2", "descartes", "matplotlib", "sklearn", "tqdm")


class Empty(types.ModuleType):
    __path__ = ()

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return (lambda rows, **_: rows) if name == "tqdm" else type(name, (), {})


class Stubs(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path=None, target=None):
        is_unused = name.partition(".")[0] in UNUSED
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if is_unused else None

    def create_module(self, spec):
        return Empty(spec.name)

    def exec_module(self, module):
        pass


sys.meta_path.insert(0, Stubs())

from nuscenes import NuScenes  # noqa: E402
from nuscenes.eval.detection.config import config_factory  # noqa: E402
from nuscenes.eval.detection.evaluate import DetectionEval  # noqa: E402

root, version, split, result, out = sys.argv[1:]
tables = NuScenes(version, root, verbose=False)
begun = time.process_time()
evaluation = DetectionEval(tables, config_factory("detection_cvpr_2019"), result, split, out, verbose=False)
loaded = time.process_time()
metrics, _ = evaluation.evaluate()
seconds = time.process_time() - begun
with open(f"{out}/summary.json", "w") as file:
    json.dump({**metrics.serialize(), "seconds": seconds, "scoring_s": begun + seconds - loaded}, file)
