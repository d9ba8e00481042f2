"""Rank the full catalogue for every user: Hit@K and NDCG@K by trie-constrained beam search.

    # one process
    python ilrec/rank.py --model runs/stage2/final --data DIR --split test --num_beams 20

    # two ranks, which share the users; torchrun starts it, too
    deepspeed --num_gpus 2 ilrec/rank.py --model runs/stage2/final --data DIR

--model is the final/ of a run (adapter or full model) or a merged model. Two files are written
beside the model's weights, or at --output: ranking.json (metrics, and the protocol that they were
measured under) and ranking.npy (the target's rank for each user). Older ones are replaced, both or
neither. Each user, or each of --num_users, is ranked exactly once.
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
from peft import PeftModel
from torch import Tensor
from torch.utils.data import DataLoader, Subset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

# A script's own folder is first on sys.path. The package lies in the folder above.
if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from ilrec.config.command_line import ArgumentParser
from ilrec.config.loading import build_section
from ilrec.config.sasrec import CANDIDATES
from ilrec.config.sections import DTYPES, DataConfig, ModelConfig
from ilrec.errors import InputError
from ilrec.files.reading import read_yaml
from ilrec.items.trie import ItemTrie
from ilrec.model.adapters import add_item_tokens, load_adapter
from ilrec.model.loading import load_base, load_tokenizer
from ilrec.model.source import ModelSource, find_model
from ilrec.processes import joining_ranks, rank, run_entry, world_size
from ilrec.ranking.beam_search import trie_beam_search
from ilrec.ranking.candidates import choose_candidates, drop_history_from_lists
from ilrec.ranking.metrics import ranking_metrics, target_ranks_from_lists
from ilrec.ranking.results import CUTOFFS, check_ranking, format_table, protocol_of, write_ranking
from ilrec.ranking.score_head import score_in_float32
from ilrec.samples.collators import PromptCollator
from ilrec.samples.prefixes import EvaluationSamples
from ilrec.samples.task import ITEM_INDEX, item_trie, load_task
from ilrec.training.recorded_base import check_source

logger = logging.getLogger("ilrec.rank")
SECONDS_BETWEEN_PROGRESS = 10
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


def evenly_spread(num_wanted: int, num_users: int) -> slice:
    """Which users are ranked: num_wanted of them, evenly spread over all; 0: all.

    They are the same for every model, so that two rankings can be compared user by user.
    """
    wanted = min(num_wanted, num_users) or num_users
    step = num_users // wanted
    return slice(0, wanted * step, step)


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
    """The target's rank for each user of `samples`, in their order: int64 [users], on the CPU.

    The processes share the users, and each returns the ranks of all. candidates: all; or unseen: no
    item of a user's history takes a beam.
    """
    # Histories of similar length share a batch, so that little of it is padding. The longest come
    # first: if memory is short, the run ends at its start.
    lengths = np.minimum(samples.histories.lengths, samples.builder.max_history_items)
    order = np.argsort(-lengths, kind="stable")
    mine = order[rank() :: world_size()].tolist()
    loader = DataLoader(
        Subset(samples, mine), batch_size=batch_size, collate_fn=PromptCollator(pad_token_id)
    )

    target_ranks: list[Tensor] = []
    num_done = 0
    started = reported = time.monotonic()
    for batch in loader:
        users = mine[num_done : num_done + batch_size]
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
        # An excluded item comes along if it shares a leaf with one that is not excluded.
        if excluded is not None:
            items_BK = drop_history_from_lists(items_BK, excluded)
        target_ranks.append(
            target_ranks_from_lists(items_BK, scores_BK.cpu(), batch["target_item"])
        )
        num_done += len(users)
        if rank() == 0 and time.monotonic() - reported > SECONDS_BETWEEN_PROGRESS:
            reported = time.monotonic()
            logger.info("%s", progress(num_done, len(mine), len(samples), reported - started))

    # With more processes than users, some have none.
    nothing = torch.empty(0, dtype=torch.int64)
    return _gather(torch.cat([nothing, *target_ranks]), torch.from_numpy(order))


def progress(num_done: int, num_mine: int, num_users: int, seconds: float) -> str:
    """A line of the log about all users, from this process's share of them.

    The shares of two processes differ by one user at most, so this one stands for all.
    """
    share = num_done / num_mine
    num_ranked = int(share * num_users)
    seconds_left = seconds / share - seconds
    return (
        f"{num_ranked} of {num_users} users, {num_ranked / seconds:.1f} users/s, "
        f"{seconds_left:.0f} s left"
    )


def _gather(target_ranks: Tensor, order: Tensor) -> Tensor:
    """The shares of all processes, put back into the order of the users.

    order: users as they were dealt out, one to each process in turn. Each user is in one share.
    """
    shares: list = [target_ranks]
    if world_size() > 1:
        shares = [None] * world_size()
        dist.all_gather_object(shares, target_ranks)
    merged = torch.full((len(order),), -1, dtype=torch.int64)
    for process, share in enumerate(shares):
        merged[order[process :: world_size()]] = share
    return merged


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
    candidates = choose_candidates(arguments.candidates, task.dataset.sequences)
    target_ranks = rank_users(
        model,
        EvaluationSamples(task.dataset, builder, arguments.split, users),
        item_trie(builder).to(device),
        tokenizer.pad_token_id,
        arguments.num_beams,
        arguments.batch_size,
        device,
        candidates,
    )
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
