"""Rank the full catalogue for every user: Hit@K and NDCG@K by trie-constrained beam search.

    python ilrec/rank.py --model runs/stage2/final --data DIR --split test --num_beams 20
    deepspeed --num_gpus 2 ilrec/rank.py --model runs/stage2/final --data DIR         # or torchrun:
    users split over the ranks

--model is the final/ of a run (adapter or full model) or a merged model. Writes ranking.json beside
the model's weights, or where --output says: metrics, and the protocol that they were measured
under; and ranking.npy, the target's rank for each user. Older ones are replaced, both or neither.
Each user, or each of --num_users, is ranked exactly once.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import DataLoader, Subset
from transformers import PreTrainedTokenizerBase

if __package__ in (
    None,
    "",
):  # started as a file: ilrec/ itself is first on sys.path, its parent must be
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from ilrec.config.command_line import ArgumentParser
from ilrec.config.loading import build_section
from ilrec.config.sections import CANDIDATES, DTYPES, DataConfig, ModelConfig
from ilrec.errors import InputError
from ilrec.files.reading import read_yaml
from ilrec.items.trie import ItemTrie
from ilrec.model.adapters import add_item_tokens, load_adapter
from ilrec.model.loading import load_base, load_tokenizer
from ilrec.model.source import ModelSource, find_model
from ilrec.processes import joining_ranks, rank, run_entry, world_size
from ilrec.ranking.beam_search import trie_beam_search
from ilrec.ranking.candidates import choose_candidates, drop_history_from_lists
from ilrec.ranking.metrics import ranking_metrics, ranks_from_lists
from ilrec.ranking.results import CUTOFFS, check_ranking, format_table, protocol_of, write_ranking
from ilrec.ranking.score_head import score_in_float32
from ilrec.samples.collators import PromptCollator
from ilrec.samples.prefixes import EvaluationSamples
from ilrec.samples.task import ITEM_INDEX, item_trie, load_task
from ilrec.training.recorded_base import check_source

logger = logging.getLogger("ilrec.rank")
SECONDS_BETWEEN_PROGRESS = 10


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
        help="all; unseen: no item of the history; auto: unseen if no user of the data has an item twice",
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
    parser.add_argument("--base", default="", help="the adapter's base model, where it has moved")
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        default=ModelConfig().dtype,
        help="of the weights; auto: bfloat16 on CUDA, float32 on the CPU. Logits and scores are float32",
    )
    parser.add_argument(
        "--output", help="where to write; what is there is replaced (default: MODEL/ranking.json)"
    )
    parser.add_argument(
        "--trust_remote_code", action="store_true", help="run code that comes with the base model"
    )
    parser.add_argument("--local_rank", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    for name, least in (("num_beams", 1), ("batch_size", 1), ("num_users", 0)):
        if getattr(arguments, name) < least:
            raise InputError(f"--{name}: expected {least} or more, got {getattr(arguments, name)}")
    return arguments


def load_trained(
    config: ModelConfig,
    source: ModelSource,
    tokenizer: PreTrainedTokenizerBase,
    device: torch.device,
) -> torch.nn.Module:
    """The model, ready to rank: its logits are float32."""
    base_model = load_base(source, config)
    add_item_tokens(base_model, tokenizer)
    model = (
        load_adapter(base_model, source.adapter, is_trainable=False)
        if source.adapter
        else base_model
    )
    torch.nn.Module.to(model, device).eval()
    score_in_float32(model)
    return model


def data_config(model_directory: str, data: str | None) -> DataConfig:
    """The data settings that the model was trained with; `data` overrides the place, not the
    rendering."""
    path = Path(model_directory) / "ilrec.yaml"
    if not path.exists():
        raise InputError(
            f"{model_directory}: no ilrec.yaml in it, so how it renders users and items is unknown; "
            "give the final/ of a run, or what tools/merge_lora.py wrote"
        )
    known = DataConfig.__dataclass_fields__
    fields = {name: (value, str(path)) for name, value in read_yaml(path).items() if name in known}
    if data:
        fields["data"] = (data, "--data")
    index = Path(model_directory) / ITEM_INDEX
    if index.exists():
        fields["semantic_ids"] = (str(index), str(path))
    config = build_section(DataConfig, fields)
    if not config.data:
        raise InputError(f"{path}: data: not set; give --data DIR")
    return config


@torch.inference_mode()
def rank_users(
    model: torch.nn.Module,
    samples: EvaluationSamples,
    trie: ItemTrie,
    pad_token_id: int,
    num_beams: int,
    batch_size: int,
    device: torch.device,
    candidates: str,
) -> Tensor:
    """The target's rank for each user of `samples`, in order: int64 [users], on the CPU. Users are
    split over the ranks.

    candidates: all, or unseen: items of a user's history take no beam.

    Users with histories of like length share a batch, so that little of it is padding, the longest
    first.
    """
    order = np.argsort(
        -np.minimum(samples.histories.lengths, samples.builder.max_history_items), kind="stable"
    )
    mine = order[rank() :: world_size()].tolist()
    loader = DataLoader(
        Subset(samples, mine), batch_size=batch_size, collate_fn=PromptCollator(pad_token_id)
    )
    ranks, started, spoke = [], time.monotonic(), time.monotonic()
    for number, batch in enumerate(loader):
        users = mine[number * batch_size : (number + 1) * batch_size]
        excluded = [samples.histories[user] for user in users] if candidates == "unseen" else None
        items_BK, scores_BK = trie_beam_search(
            model,
            batch["input_ids"].to(device),
            batch["attention_mask"].to(device),
            trie,
            num_beams,
            excluded,
        )
        items_BK = items_BK.cpu()
        if (
            excluded is not None
        ):  # what shares a leaf with an item that is not excluded was found with it
            items_BK = drop_history_from_lists(items_BK, excluded)
        ranks.append(ranks_from_lists(items_BK, scores_BK.cpu(), batch["target_item"]))
        if rank() == 0 and time.monotonic() - spoke > SECONDS_BETWEEN_PROGRESS:
            spoke = time.monotonic()
            logger.info(
                "%s", progress(sum(len(r) for r in ranks), len(mine), len(samples), spoke - started)
            )
    return _gather(
        torch.cat(ranks) if ranks else torch.empty(0, dtype=torch.int64), torch.from_numpy(order)
    )


def progress(num_done: int, num_mine: int, num_users: int, seconds: float) -> str:
    """A line of the log. Shares of the ranks differ by a user, so that this one's share that is
    done stands for all."""
    share = num_done / num_mine
    num_ranked = int(share * num_users)
    return f"{num_ranked} of {num_users} users, {num_ranked / seconds:.1f} users/s, {seconds / share - seconds:.0f} s left"


def _gather(ranks: Tensor, order: Tensor) -> Tensor:
    """Every process's share, put back in user order. Each user is there once, whatever the number
    of processes."""
    shares: list = [ranks]
    if world_size() > 1:
        shares = [None] * world_size()
        dist.all_gather_object(shares, ranks)
    merged = torch.full((len(order),), -1, dtype=torch.int64)
    for process, share in enumerate(shares):
        merged[order[process :: world_size()]] = share
    return merged


def evenly_spread(num_wanted: int, num_users: int) -> slice:
    """The same users for every model, so that two rankings can be compared in pairs. num_wanted 0:
    all."""
    wanted = min(num_wanted, num_users) or num_users
    step = num_users // wanted
    return slice(0, wanted * step, step)


def start_processes() -> torch.device:
    """The device of this process; a process group where a launcher started several."""
    cuda = torch.cuda.is_available()
    device = (
        torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if cuda else torch.device("cpu")
    )
    if cuda:
        torch.cuda.set_device(device)
    if world_size() > 1:
        with joining_ranks():
            dist.init_process_group("nccl" if cuda else "gloo")
    return device


def main(argv: list[str]) -> None:
    arguments = parse_arguments(argv)
    output = Path(arguments.output or Path(arguments.model) / "ranking.json")
    if rank() == 0:  # it alone writes, and the launcher ends the others
        check_ranking(output)
    config = data_config(arguments.model, arguments.data)
    task = load_task(config)
    device = start_processes()
    settings = ModelConfig(
        model=arguments.model,
        base=arguments.base,
        dtype=arguments.dtype,
        trust_remote_code=arguments.trust_remote_code,
    )
    source = find_model(settings.model, settings.base)
    check_source(source)
    tokenizer = load_tokenizer(source, settings.trust_remote_code)
    builder = task.sample_builder(tokenizer)  # refuses a wrong tokenizer before the model is read
    model = load_trained(settings, source, tokenizer, device)
    trie = item_trie(builder).to(device)
    users = evenly_spread(arguments.num_users, len(task.dataset.sequences))
    samples = EvaluationSamples(task.dataset, builder, arguments.split, users)
    candidates = choose_candidates(arguments.candidates, task.dataset.sequences)
    ranks = rank_users(
        model,
        samples,
        trie,
        tokenizer.pad_token_id,
        arguments.num_beams,
        arguments.batch_size,
        device,
        candidates,
    )
    metrics = ranking_metrics(ranks, tuple(k for k in CUTOFFS if k <= arguments.num_beams))
    protocol = protocol_of(
        arguments.split,
        len(ranks),
        candidates,
        task.dataset.num_items,
        num_beams=arguments.num_beams,
        data=config.data,
        checkpoint=str(Path(arguments.model).resolve()),
        dtype=str(model.dtype).split(".")[-1],
        score_dtype="float32",
        **task.dataset.numbering(users),
    )
    if rank() == 0:
        try:
            write_ranking(output, metrics, protocol, ranks)
        finally:  # also what cannot be written is said
            print(
                format_table(
                    {Path(arguments.model).parent.name or arguments.model: metrics}, tuple(metrics)
                ),
                flush=True,
            )


if __name__ == "__main__":
    run_entry(main)
