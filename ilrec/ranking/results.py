"""The files of a ranking, and its table for people.

ranking.json holds the metrics, those of the groups, and the protocol that they were measured under.
ranking.npz lies beside it with the rank of every target, for tests between two methods (a paired
bootstrap) and for a closer look. docs/metrics.md describes both.

Shapes: C cases, T targets of all cases.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ilrec.errors import InputError
from ilrec.files.digests import blocks_digest
from ilrec.files.outputs import check_file, whole_file
from ilrec.files.reading import read_json
from ilrec.interactions.cases import Cases
from ilrec.interactions.dataset import InteractionDataset
from ilrec.ranking.measuring import Measured
from ilrec.ranking.metrics import TargetRanks

CUTOFFS = (1, 5, 10, 20)
# The metrics of the tables that compare models.
COMPARED = ("hit", "ndcg")
# The names of metrics as a table shows them.
TITLES = {"hit": "Hit", "ndcg": "NDCG", "mrr": "MRR"}


@dataclass(frozen=True)
class Ranking:
    """What read_ranking found. path: of the metrics."""

    path: Path
    measured: Measured
    protocol: Mapping[str, Any]
    target_ranks: TargetRanks


def write_ranking(
    path: str | Path,
    measured: Measured,
    protocol: Mapping[str, Any],
    target_ranks: TargetRanks,
) -> None:
    """Write both files. Older ones are replaced, both or neither.

    Raises InputError if the files cannot be written; check_ranking finds that out before the work.
    """
    num_targets_C = np.bincount(target_ranks.cases, minlength=len(target_ranks.users))
    arrays = {
        "ranks": smallest(target_ranks.ranks),
        "targets_per_case": smallest(num_targets_C),
        "users": smallest(target_ranks.users),
    }
    # Both get their names at the end of the block, so that numbers and ranks always fit together.
    with whole_file(path) as metrics_file, whole_file(ranks_file(path)) as beside:
        np.savez_compressed(beside, allow_pickle=False, **arrays)
        content = {**measured._asdict(), "protocol": dict(protocol)}
        metrics_file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read_ranking(path: str | Path) -> Ranking:
    """What write_ranking wrote. Raises InputError if a file is missing, damaged, or of an older
    version."""
    path = Path(path)
    content = read_json(path, "expected the ranking.json of a model; ilrec/rank.py writes it")
    if not isinstance(content, dict) or not {"metrics", "protocol"} <= content.keys():
        raise InputError(f"{path}: expected what ilrec/rank.py writes, with metrics and protocol")
    if "groups" not in content:
        raise InputError(
            f"{path}: an older version wrote it, without the metrics of groups; rank the model "
            "again with ilrec/rank.py"
        )
    measured = Measured(content["metrics"], content["groups"])
    return Ranking(path, measured, content["protocol"], read_ranks(path))


def read_ranks(path: Path) -> TargetRanks:
    """The ranks that write_ranking wrote beside the metrics at `path`. Raises InputError if they
    are missing or damaged."""
    file = ranks_file(path)
    try:
        with np.load(file) as arrays:
            ranks, num_targets_C, users = (
                arrays[name].astype(np.int64) for name in ("ranks", "targets_per_case", "users")
            )
        if len(num_targets_C) != len(users) or num_targets_C.sum() != len(ranks):
            raise ValueError("its arrays do not fit together")
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(
            f"{file}: the ranks beside {path.name} cannot be read ({error}); copy both files "
            "again, or rank the model again with ilrec/rank.py"
        ) from None
    return TargetRanks(ranks, np.repeat(np.arange(len(users)), num_targets_C), users)


# Fields of a protocol that must agree, and what they say in words.
SAME = {
    "split": "split",
    "users_sha256": "users",
    "candidates": "candidates",
    "items_sha256": "items of the catalogue",
    "targets_sha256": "targets",
}


def require_comparable(rankings: Sequence[Ranking]) -> None:
    """Raises InputError, naming the field and two files, if the rankings are not of the same cases
    and candidates."""
    first = rankings[0]
    for field, meaning in SAME.items():
        for ranking in rankings:
            value, expected = ranking.protocol.get(field), first.protocol.get(field)
            if value is None:
                raise InputError(
                    f"{ranking.path}: its protocol has no {field}, so that its {meaning} are "
                    "unknown; rank the model again with ilrec/rank.py"
                )
            if value != expected:
                raise InputError(
                    f"{ranking.path}: other {meaning} than {first.path} ({field}: "
                    f"{value!s:.20} and {expected!s:.20}); rank both models in the same way"
                )


def smallest(numbers: np.ndarray) -> np.ndarray:
    """Numbers from 0 on, in the smallest unsigned type that holds them."""
    return numbers.astype(np.min_scalar_type(int(numbers.max(initial=0))))


def protocol_of(
    dataset: InteractionDataset, cases: Cases, split: str, candidates: str, **more: Any
) -> dict[str, Any]:
    """What a ranking of these cases was measured under, for write_ranking.

    split: valid or test; candidates: all or unseen (ilrec/ranking/candidates.py). more: what is
    particular to a method, for example num_beams.
    """
    return {
        "catalogue": "full ranking",
        "split": split,
        "num_users": len(np.unique(cases.users)),
        "candidates": candidates,
        "num_items": dataset.num_items,
        **more,
        "targets_sha256": targets_digest(cases),
        **dataset.ranking_facts(split, cases),
    }


def targets_digest(cases: Cases) -> str:
    """SHA-256 of the cases: their users and their targets, by number."""
    items = np.concatenate([np.empty(0, dtype=np.int64), *cases.targets])
    arrays = (cases.users, cases.targets.lengths, items)
    return blocks_digest(array.astype("<i8").tobytes() for array in arrays)


def check_ranking(path: str | Path) -> None:
    """Raises InputError if write_ranking could not write. Leaves nothing behind."""
    if ranks_file(path) == Path(path):
        raise InputError(
            f"{path}: this name is for the ranks beside the metrics; expected one such as "
            "ranking.json"
        )
    for file in (path, ranks_file(path)):
        check_file(file)


def ranks_file(path: str | Path) -> Path:
    """The file with the ranks that belong to the metrics at `path`."""
    return Path(path).with_suffix(".npz")


def compared_columns(metrics: Mapping[str, float]) -> list[str]:
    """The metrics that a table of several models shows: Hit and NDCG at each cutoff."""
    return [name for name in metrics if name.partition("@")[0] in COMPARED]


def format_cutoffs(metrics: Mapping[str, float]) -> str:
    """One model's other metrics: one line for each, one column for each K."""
    rows: dict[str, dict[str, float]] = {}
    for metric, value in metrics.items():
        name, _, cutoff = metric.partition("@")
        if name not in COMPARED:
            rows.setdefault(TITLES.get(name, name), {})[f"@{cutoff}"] = value
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    return format_table(rows, sorted(columns, key=lambda column: int(column[1:])))


def format_groups(groups: Mapping[str, Mapping[str, float]], columns: Sequence[str]) -> str:
    """One line for each group, with the number of its cases or targets."""
    rows = {}
    for name, metrics in groups.items():
        kind = "cases" if "num_cases" in metrics else "targets"
        rows[f"{name} ({metrics[f'num_{kind}']:,} {kind})"] = metrics
    return format_table(rows, columns)


def format_table(rows: Mapping[str, Mapping[str, float]], columns: Sequence[str]) -> str:
    """One line for each row's name, one column for each metric. A missing metric is a dash."""
    width = max(len(name) for name in rows)
    lines = [" " * width + "".join(f"  {title_of(column):>8}" for column in columns)]
    for name, metrics in rows.items():
        line = f"{name:<{width}}"
        for column in columns:
            line += f"  {metrics[column]:8.4f}" if column in metrics else f"  {'-':>8}"
        lines.append(line)
    return "\n".join(lines)


def title_of(metric: str) -> str:
    """hit@5 -> Hit@5"""
    name, at, cutoff = metric.partition("@")
    return f"{TITLES.get(name, name)}{at}{cutoff}"
