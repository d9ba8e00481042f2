"""Rank the full catalogue for every user: Hit@K and NDCG@K by trie-constrained beam search.

    # one process
    python ilrec/rank.py --model runs/stage2/final --data DIR --split test --num_beams 20

    # two ranks, which share the users; torchrun starts it, too
    deepspeed --num_gpus 2 ilrec/rank.py --model runs/stage2/final --data DIR

--model is the final/ of a run (adapter or full model) or a merged model. Two files are written
beside the model's weights, or at --output: ranking.json (metrics, and the protocol that they were
measured under) and ranking.npy (the target's rank for each user). Older ones are replaced, both or
neither. A model card beside the weights gets the metrics, too. Each user, or each of --num_users,
is ranked exactly once.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

# A script's own folder is first on sys.path. The package lies in the folder above.
if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from ilrec.config.command_line import ArgumentParser
from ilrec.config.loading import build_section
from ilrec.config.sasrec import CANDIDATES
from ilrec.config.sections import DTYPES, DataConfig, ModelConfig
from ilrec.errors import InputError
from ilrec.files.reading import read_json, read_yaml
from ilrec.model.adapters import add_item_tokens, load_adapter
from ilrec.model.loading import load_base, load_tokenizer
from ilrec.model.source import ModelSource, find_model
from ilrec.processes import joining_ranks, rank, run_entry, world_size
from ilrec.ranking.candidates import choose_candidates
from ilrec.ranking.case_lists import evenly_spread, rank_cases
from ilrec.ranking.metrics import ranking_metrics, target_ranks_from_lists
from ilrec.ranking.results import CUTOFFS, check_ranking, format_table, protocol_of, write_ranking
from ilrec.ranking.score_head import score_in_float32
from ilrec.samples.prefixes import EvaluationSamples
from ilrec.samples.task import ITEM_INDEX, item_trie, load_task
from ilrec.training.model_card import record_results
from ilrec.training.recorded_base import check_source

# --flag: its smallest value.
AT_LEAST = {"num_beams": 1, "batch_size": 1, "num_users": 0}


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    parser.add_argument(
        "--model", required=True, help="final/ of a run, or a merged model directory"
    )
    parser.add_argument(
        "--data", help="data directory (default: the one that the model was trained on)"
    )
    parser.add_argument("--split", choices=("valid", "test"), default="test")
    parser.add_argument(
        "--candidates",
        choices=CANDIDATES,
        default="auto",
        help="all; unseen: no item of the history; auto: unseen if no user of the data has an item "
        "twice",
    )
    parser.add_argument(
        "--num_beams", type=int, default=20, help="items ranked per user; metrics go up to this K"
    )
    parser.add_argument("--batch_size", type=int, default=64, help="users per batch and rank")
    parser.add_argument(
        "--num_users",
        type=int,
        default=0,
        help="only so many users, evenly spread over the data's; 0: all",
    )
    parser.add_argument("--base", default="", help="the adapter's base model, if it has been moved")
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        default=ModelConfig().dtype,
        help="of the weights; auto: bfloat16 on CUDA, float32 on the CPU. Logits and scores are "
        "float32",
    )
    parser.add_argument(
        "--output", help="where to write; what is there is replaced (default: MODEL/ranking.json)"
    )
    parser.add_argument(
        "--trust_remote_code", action="store_true", help="run code that comes with the base model"
    )
    # The deepspeed launcher gives every rank this flag. The environment has the number, too.
    parser.add_argument("--local_rank", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    for name, least in AT_LEAST.items():
        value = getattr(arguments, name)
        if value < least:
            raise InputError(f"--{name}: expected {least} or more, got {value}")
    return arguments


def data_config(model_directory: str, data: str | None) -> DataConfig:
    """The data settings that the model was trained with.

    data: another place of the same data. It does not change how users and items are rendered.
    """
    path = Path(model_directory) / "ilrec.yaml"
    if not path.exists():
        raise InputError(
            f"{model_directory}: no ilrec.yaml in it, so how it renders users and items is "
            "unknown; give the final/ of a run, or what tools/merge_lora.py wrote"
        )
    known = DataConfig.__dataclass_fields__
    fields = {name: (value, str(path)) for name, value in read_yaml(path).items() if name in known}
    if data:
        fields["data"] = (data, "--data")
    # The model's own semantic IDs, whatever the data directory has now.
    index = Path(model_directory) / ITEM_INDEX
    if index.exists():
        fields["semantic_ids"] = (str(index), str(path))
    config = build_section(DataConfig, fields)
    if not config.data:
        raise InputError(f"{path}: data: not set; give --data DIR")
    return config


def start_processes() -> torch.device:
    """Start the process group, if a launcher started several processes. Returns this one's
    device."""
    has_cuda = torch.cuda.is_available()
    device = torch.device("cpu")
    if has_cuda:
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(device)
    if world_size() > 1:
        with joining_ranks():
            dist.init_process_group("nccl" if has_cuda else "gloo")
    return device


def load_trained(
    config: ModelConfig,
    source: ModelSource,
    tokenizer: PreTrainedTokenizerBase,
    device: torch.device,
) -> torch.nn.Module:
    """The trained model, ready to rank: its logits are float32."""
    base_model = load_base(source, config)
    add_item_tokens(base_model, tokenizer)
    model: PreTrainedModel | PeftModel = base_model
    if source.adapter:
        model = load_adapter(base_model, source.adapter, is_trainable=False)
    torch.nn.Module.to(model, device).eval()
    score_in_float32(model)
    return model


def main(argv: list[str]) -> None:
    # Mistakes of the user are found first, before a model is read.
    arguments = parse_arguments(argv)
    output = Path(arguments.output or Path(arguments.model) / "ranking.json")
    if rank() == 0:  # Only rank 0 writes. The launcher ends the others.
        check_ranking(output)
    config = data_config(arguments.model, arguments.data)
    task = load_task(config)
    device = start_processes()

    # The model. The sample builder comes before it, because it refuses a wrong tokenizer.
    settings = ModelConfig(
        model=arguments.model,
        base=arguments.base,
        dtype=arguments.dtype,
        trust_remote_code=arguments.trust_remote_code,
    )
    source = find_model(settings.model, settings.base)
    check_source(source)
    tokenizer = load_tokenizer(source, settings.trust_remote_code)
    builder = task.sample_builder(tokenizer)
    model = load_trained(settings, source, tokenizer, device)

    # Every chosen user is ranked once.
    users = evenly_spread(arguments.num_users, len(task.dataset.sequences))
    cases = task.dataset.evaluation(arguments.split)[users]
    candidates = choose_candidates(arguments.candidates, task.dataset.sequences)
    items_CK, scores_CK = rank_cases(
        model,
        EvaluationSamples(cases, builder),
        item_trie(builder).to(device),
        tokenizer.pad_token_id,
        arguments.num_beams,
        arguments.batch_size,
        device,
        candidates,
    )
    targets_C = torch.from_numpy(cases.next_items())
    target_ranks = target_ranks_from_lists(items_CK, scores_CK, targets_C)
    if rank() != 0:
        return

    # Numbers of two protocols must not be compared, so the protocol is written beside the metrics.
    protocol = protocol_of(
        arguments.split,
        len(target_ranks),
        candidates,
        task.dataset.num_items,
        num_beams=arguments.num_beams,
        data=config.data,
        checkpoint=str(Path(arguments.model).resolve()),
        dtype=str(model.dtype).split(".")[-1],
        score_dtype="float32",
        **task.dataset.numbering(users),
    )
    name = Path(arguments.model).parent.name or arguments.model
    _report(name, output, protocol, target_ranks)
    if output.parent.resolve() == Path(arguments.model).resolve():
        metrics = read_json(output)["metrics"]
        record_results(output.parent, task.dataset.name, metrics, protocol)


def _report(name: str, output: Path, protocol: dict, target_ranks: Tensor) -> None:
    """Write the files and print the table."""
    # A list of num_beams items says nothing about a larger K.
    cutoffs = tuple(k for k in CUTOFFS if k <= protocol["num_beams"])
    metrics = ranking_metrics(target_ranks, cutoffs)
    try:
        write_ranking(output, metrics, protocol, target_ranks)
    finally:
        # The table is printed even if the files cannot be written: the work must not be lost.
        print(format_table({name: metrics}, tuple(metrics)), flush=True)


if __name__ == "__main__":
    run_entry(main)
