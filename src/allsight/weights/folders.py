"""Which files of a folder are its weights: Hugging Face (one file or several), DeepSpeed."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

from allsight.types.errors import CheckpointError

WHOLE = (
    "make a whole file with the script that DeepSpeed puts into its checkpoints, `python zero_to_fp32.py . "
    "whole`, and give that"
)
_STATES = re.compile(r"mp_rank_\d+_model_states\.pt")
_SHARD = re.compile(r"(bf16_)?zero_pp_rank_\d+_mp_rank_\d+_(model|optim)_states\.pt")


def files_of_weights(folder: Path) -> list[Path]:
    """The files to read, one or several that add up.

    Raises:
        CheckpointError: None, or only parts of weights.
    """
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        return _listed(index)
    if (folder / "resolved.yaml").is_file():
        raise CheckpointError(
            f"{folder}: a run folder of allsight; `allsight weights export {shlex.quote(str(folder))} OUT` "
            "makes a file of it"
        )
    found = _deepspeed(folder)
    if found is not None:
        return [found]
    for name in ("pytorch_model.bin", "pytorch_model.pt"):
        if (folder / name).is_file():
            return [folder / name]
    several = sorted(file for suffix in ("safetensors", "pth", "pt") for file in folder.glob(f"*.{suffix}"))
    if len(several) == 1:
        return several
    which = f"several: {', '.join(file.name for file in several[:4])}; name one" if several else "none"
    raise CheckpointError(
        f"{folder}: expected model.safetensors, pytorch_model.bin, a DeepSpeed checkpoint or one file of "
        f"weights, found {which}"
    )


def refuse_shard(file: Path) -> None:
    """Refuse a file that holds one rank's part.

    Raises:
        CheckpointError: It does.
    """
    if _SHARD.fullmatch(file.name):
        raise CheckpointError(f"{file}: holds one rank's part of the weights (DeepSpeed ZeRO); {WHOLE}")


def _listed(index: Path) -> list[Path]:
    """The files that an index of Hugging Face names; they must lie beside it."""
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index}: expected a weight_map of names to files ({error!r})") from error
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
            raise CheckpointError(f"{index}: expected names of .safetensors files beside it, got {name!r}")
        if not (index.parent / name).is_file():
            raise CheckpointError(f"{index.parent / name}: no such file, but {index.name} lists it")
    return [index.parent / name for name in names]


def _deepspeed(folder: Path) -> Path | None:
    latest = folder / "latest"
    if latest.is_file():
        tag = latest.read_text(encoding="utf-8", errors="replace").strip()
        if Path(tag).name != tag or not (folder / tag).is_dir():
            raise CheckpointError(f"{latest}: names the checkpoint '{tag}', which is not there")
        folder = folder / tag
    names = sorted(file.name for file in folder.iterdir())
    states = [name for name in names if _STATES.fullmatch(name)]
    if len(states) > 1:
        raise CheckpointError(
            f"{folder}: weights split over {len(states)} ranks (model parallel), which is not supported; "
            f"merge them with the code that made them"
        )
    if any(_SHARD.fullmatch(name) and "model_states" in name for name in names):
        raise CheckpointError(f"{folder}: weights split over ranks (DeepSpeed ZeRO stage 3); {WHOLE}")
    return folder / states[0] if states else None
