"""One check after loading, for bases and adapters alike: did every parameter come from the
files?"""

from __future__ import annotations

from collections.abc import Iterable

import torch.distributed as dist


def loading_fault(
    missing: Iterable[str], unexpected: Iterable[str] = (), misfits: Iterable[str] = ()
) -> str:
    """What is wrong with a load, or "".

    missing: parameters that are in no file.
    unexpected: tensors in the files that the model does not have. They are reported beside what is
        missing, because often they are the missing parameters under another name.
    misfits: "name: shape in the file, shape expected".
    """
    missing, unexpected, misfits = sorted(missing), sorted(unexpected), sorted(misfits)
    if misfits:
        return (
            f"{len(misfits)} tensors have another shape than the configuration says; first: "
            f"{misfits[0]}"
        )
    if not missing:
        return ""
    fault = f"{len(missing)} parameters are in no file, first: {missing[0]}"
    if unexpected:
        fault += (
            f"; the files have {len(unexpected)} tensors that the model does not have, first: "
            f"{unexpected[0]}"
        )
    if any("_orig_mod." in name for name in unexpected):
        fault += "; it was saved from torch.compile: save the model that this wraps"
    return fault


def reported_by_any_rank(fault: str) -> str:
    """The first fault that a rank has, on every rank, so that all of them stop together.

    Under ZeRO-3 only rank 0 sees the values. Without ranks: what was given.
    """
    if not dist.is_initialized():
        return fault
    faults: list[str] = [""] * dist.get_world_size()
    dist.all_gather_object(faults, fault)
    return next(filter(None, faults), "")
