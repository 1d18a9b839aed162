"""Loading of a checkpoint into the fragments of any number of ranks."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path

import torch

from swinv2_train.checkpoint.errors import CheckpointError
from swinv2_train.checkpoint.fragment import Fragment
from swinv2_train.checkpoint.layout import Manifest, read_manifest
from swinv2_train.checkpoint.pieces import Pieces
from swinv2_train.config.errors import ConfigError


def check_parameters(manifest: Manifest, shapes: dict[str, tuple[int, ...]]) -> None:
    """Check that a checkpoint contains exactly the parameters and persistent buffers of a model.

    Raises:
        CheckpointError: naming the difference.
    """
    missing = sorted(shapes.keys() - manifest.shapes.keys())
    unknown = sorted(manifest.shapes.keys() - shapes.keys())
    other = [name for name in shapes if name in manifest.shapes and list(shapes[name]) != manifest.shapes[name]]
    for names, what in ((missing, "lacks"), (unknown, "has the unknown"), (other, "has another shape for")):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise CheckpointError(f"the checkpoint {what} parameter {names[0]}{more}")


def check_trained(manifest: Manifest, trained: Collection[str]) -> list[str]:
    """Check that a checkpoint has the moments of every trained parameter; return a line if it has more than those.

    Starting from zero moments would be wrong: AdamW's step count, which corrects their bias, is shared by all
    parameters, so the first updates would be several times too large.

    Args:
        trained: names of the trained parameters.

    Raises:
        ConfigError: naming a parameter that was frozen.
    """
    if thawed := [name for name in trained if name in manifest.fixed]:
        more = f" and {len(thawed) - 1} more" if len(thawed) > 1 else ""
        raise ConfigError(
            "",
            thawed[0],
            f"optim.freeze no longer covers {thawed[0]}{more}, frozen in the checkpoint of step {manifest.step} and "
            "therefore without AdamW's moments; set optim.freeze back (resolved.yaml of the run has it), or start a "
            "new run from the checkpoint with init_from",
        )
    dropped = sorted(manifest.shapes.keys() - manifest.fixed - set(trained))
    if not dropped:
        return []
    more = f" and {len(dropped) - 1} more" if len(dropped) > 1 else ""
    return [f"{dropped[0]}{more} trained before and is frozen now (optim.freeze): its AdamW moments are dropped"]


@torch.no_grad()
def load_fragments(path: Path, fragments: Iterable[Fragment]) -> None:
    """Fill the fragments of the current ranks from a checkpoint of any number of ranks.

    Each rank reads only what its fragments need. The files must be verified already. If a fragment needs a moving
    average and the checkpoint has none, the average starts from the loaded weight.

    Raises:
        CheckpointError: if an element of a fragment is not in the checkpoint, or a file cannot be read.
    """
    manifest = read_manifest(path)
    with Pieces(path, manifest) as pieces:
        for fragment in fragments:
            for part in ("weight", "exp_avg", "exp_avg_sq"):
                if (target := getattr(fragment, part)) is not None:
                    _fill(pieces, fragment, part, target)
            if fragment.ema is None:
                continue
            if manifest.has_ema:
                _fill(pieces, fragment, "ema", fragment.ema)
            else:
                fragment.ema.copy_(fragment.weight)


def _fill(pieces: Pieces, fragment: Fragment, part: str, target: torch.Tensor) -> None:
    """Read the elements of a fragment's tensor, shape (count,), into it."""
    done = 0
    for data in pieces.slices(fragment.name, part, fragment.start, fragment.start + target.numel()):
        values = torch.frombuffer(data, dtype=torch.float32)
        target[done : done + values.numel()].copy_(values)
        done += values.numel()
