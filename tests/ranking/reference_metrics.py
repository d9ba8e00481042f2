"""Prints the values of ranx and RecBole for the lists of made_lists.py, as they stand in
reference_metrics.json. Not a test: neither library is among the tests' requirements.

    pip install ranx==0.3.21
    pip download --no-deps recbole==1.2.1 && unzip recbole-1.2.1-py3-none-any.whl -d recbole
    PYTHONPATH=. python tests/ranking/reference_metrics.py recbole > \\
        tests/ranking/reference_metrics.json

Of RecBole only the two files with its metrics are loaded, because the rest needs old libraries.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import types
from pathlib import Path

import numpy as np
import torch
from made_lists import COUNTS_I, CUTOFFS, NUM_ITEMS, made_lists

# RecBole's least popular 40 % of the items seen in training.
TAIL_RATIO = 0.4


def ranx_values() -> dict[str, float]:
    from ranx import Qrels, Run, evaluate

    items_CK, scores_CK, cases = made_lists()
    relevant, run = {}, {}
    for case, targets in enumerate(cases.targets):
        relevant[f"c{case}"] = {f"i{item}": 1 for item in targets}
        listed = zip(items_CK[case], scores_CK[case], strict=True)
        run[f"c{case}"] = {f"i{item}": float(score) for item, score in listed}
    names = {"hit": "hit_rate", "ndcg": "ndcg", "mrr": "mrr", "recall": "recall"}
    values = {}
    for name, theirs in names.items():
        for k in CUTOFFS:
            values[f"{name}@{k}"] = float(evaluate(Qrels(relevant), Run(run), f"{theirs}@{k}"))
    return values


def recbole_metrics(directory: Path) -> types.ModuleType:
    """recbole/evaluator/metrics.py, with stand-ins for what it imports of the rest of RecBole."""
    np.float = float  # The library was written for numpy 1.
    utils = types.ModuleType("recbole.utils")
    utils.EvaluatorType = types.SimpleNamespace(RANKING=1, VALUE=2)
    helpers = types.ModuleType("recbole.evaluator.utils")
    helpers._binary_clf_curve = None
    sys.modules |= {"recbole": types.ModuleType("recbole"), "recbole.utils": utils}
    sys.modules |= {"recbole.evaluator": types.ModuleType("recbole.evaluator")}
    sys.modules["recbole.evaluator.utils"] = helpers
    for name in ("base_metric", "metrics"):
        path = directory / f"recbole/evaluator/{name}.py"
        spec = importlib.util.spec_from_file_location(f"recbole.evaluator.{name}", path)
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
    return module


def recbole_values(directory: Path) -> dict[str, float]:
    metrics = recbole_metrics(directory)
    items_CK, _, cases = made_lists()
    pairs = zip(items_CK, cases.targets, strict=True)
    is_target_CK = [np.isin(items, targets) for items, targets in pairs]
    found = np.column_stack([is_target_CK, cases.targets.lengths]).astype(np.int64)
    seen = {item: int(count) for item, count in enumerate(COUNTS_I) if count}
    data = {
        "rec.topk": torch.from_numpy(found),
        "rec.items": torch.from_numpy(items_CK.astype(np.float64)),
        "data.num_items": NUM_ITEMS,
        "data.count_items": seen,
    }
    config = {"topk": CUTOFFS, "metric_decimal_place": 12, "tail_ratio": TAIL_RATIO}
    names = ("Hit", "NDCG", "MRR", "Recall", "ItemCoverage", "GiniIndex", "AveragePopularity")
    values = {}
    for name in (*names, "TailPercentage"):
        values |= getattr(metrics, name)(config).calculate_metric(data)
    return {name: float(value) for name, value in values.items()}


if __name__ == "__main__":
    values = {"ranx 0.3.21": ranx_values(), "RecBole 1.2.1": recbole_values(Path(sys.argv[1]))}
    print(json.dumps(values, indent=1))
