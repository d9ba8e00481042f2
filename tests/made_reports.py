"""Runs and rankings as files, for the tests of reports."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import yaml

PLAIN = {"beta": 0.0, "distillation_weight": 0.0, "reward_weight": 0.0}


def write_run(directory: Path, lines: list[dict], **settings) -> Path:
    directory.mkdir(parents=True)
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (directory / "metrics.jsonl").write_text(text)
    (directory / "config.yaml").write_text(yaml.safe_dump(PLAIN | settings))
    return directory


def write_ranks(path: Path, ranks: list[int], **protocol) -> Path:
    """A ranking.json with the ranks beside it; Hit@10 and NDCG@10 are those of the ranks."""
    path.parent.mkdir(parents=True, exist_ok=True)
    found = np.array(ranks)
    gains = np.where(found <= 10, 1 / np.log2(found + 1.0), 0.0)
    metrics = {"hit@10": float((found <= 10).mean()), "ndcg@10": float(gains.mean())}
    protocol = {"split": "test", "users_sha256": "u", "items_sha256": "i"} | protocol
    path.write_text(json.dumps({"metrics": metrics, "protocol": protocol}))
    ones, users = np.ones(len(ranks), dtype=np.int64), np.arange(len(ranks))
    np.savez(path.with_suffix(".npz"), ranks=found, targets_per_case=ones, users=users)
    return path


def log_line(step: int, preference: float, negatives: float = 0.0, **more) -> dict:
    return {
        "step": step,
        "loss": preference,
        "loss/preference": preference,
        "loss/distillation": 0.0,
        "loss/reward": 0.0,
        "negatives/per_token": negatives,
        "negatives/rows_without": 0.25 if negatives else 1.0,
        **more,
    }


SFT = [log_line(5, 3.0), log_line(10, 2.0)]
STAGE1 = [log_line(5, 2.5, 4.0), log_line(10, 1.5, 2.0)]
STAGE2 = [
    log_line(5, 1.6, 2.0) | {"loss/distillation": 0.5},
    {"step": 5, "eval_loss": 2.25, "eval_hit@10": 0.5, "eval_ndcg@10": 0.25},
    log_line(10, 1.4, 1.0) | {"loss/distillation": 0.25},
    {"step": 10, "train_loss": 1.5},
]
