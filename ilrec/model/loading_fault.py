"""One check after loading, for bases and adapters alike: every parameter came from the files."""

from __future__ import annotations

from collections.abc import Iterable

import torch.distributed as dist


def loading_fault(
    missing: Iterable[str], unexpected: Iterable[str] = (), misfits: Iterable[str] = ()
) -> str:
    """What a load left undone, or "". missing: parameters in no file. misfits: "name: shape in the
    file, shape expected".

    Names in the file that nothing has are said beside what is missing, because they often are the
    missing ones under another name.
    """
    missing, unexpected, misfits = sorted(missing), sorted(unexpected), sorted(misfits)
    if misfits:
        return f"{len(misfits)} tensors have another shape than the configuration says; first: {misfits[0]}"
    if not missing:
        return ""
    also = (
        f"; instead {len(unexpected)} that the model has not, first: {unexpected[0]}"
        if unexpected
        else ""
    )
    hint = (
        "; saved from torch.compile: save the model it wraps"
        if any("_orig_mod." in name for name in unexpected)
        else ""
    )
    return f"{len(missing)} parameters are in no file, first: {missing[0]}{also}{hint}"


def said_by_any_rank(fault: str) -> str:
    """The first fault that a rank has, on every rank: under ZeRO-3 only rank 0 sees the values.
    Alone: what was given."""
    if not dist.is_initialized():
        return fault
    faults: list[str] = [""] * dist.get_world_size()
    dist.all_gather_object(faults, fault)
    return next(filter(None, faults), "")
