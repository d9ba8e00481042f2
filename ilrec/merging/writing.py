"""Writes the tensors of a plan with several threads, and hashes the files that were read.

The work is cut into jobs of some ten megabytes. So the threads end at about the same time, whatever
the tensors' sizes, and the progress bar moves evenly.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

from ilrec.files.digests import size_and_digest
from ilrec.merging.adapter import Adapter
from ilrec.merging.adapter_settings import CONFIG
from ilrec.merging.plan import MergePlan
from ilrec.merging.rows import MergedTensor, RowMerger, blocks
from ilrec.weights.tensor_writer import TensorWriter

# One job writes so much of a tensor, in several blocks: enough that starting a job costs nothing.
PORTION_BYTES = 64 * 2**20
# More threads gain nothing: the disk is the limit.
MAX_WORKERS = 8
# A terminal's bar moves all the time; in the log of a job each update is a line.
TERMINAL_SECONDS, LOG_SECONDS = 0.2, 10.0

# Does one part of the work and returns how many bytes it wrote or read.
Job = Callable[[], int]


def write_tensors(
    plan: MergePlan, adapter: Adapter, directory: Path, workers: int
) -> dict[Path, str]:
    """Writes all tensors into safetensors files in `directory`.

    Returns {file that was read: SHA-256}. Raises InputError if a value is not finite, OSError if
    the disk has no space.
    """
    # The files are allocated here at their full size: a full disk is noticed before the work.
    writer = TensorWriter(directory, [tensor.new for tensor in plan.tensors])
    jobs: list[Job] = []
    for tensor in plan.tensors:
        for start, stop in portions(tensor):
            jobs.append(partial(write_portion, writer, tensor, start, stop))

    # Hashing reads each file once more, from the system's cache where that holds it.
    files = [*input_files(plan), *adapter_files(adapter)]
    hashes: dict[Path, str] = {}
    for file in files:
        jobs.append(partial(hash_file, file, hashes))

    total_bytes = sum(tensor.num_bytes for tensor in writer.tensors.values())
    total_bytes += sum(file.stat().st_size for file in files)
    run_jobs(jobs, total_bytes, workers)
    writer.close()
    return hashes


def write_portion(writer: TensorWriter, tensor: MergedTensor, start: int, stop: int) -> int:
    """Job: computes and writes rows `start` to `stop`."""
    merger = RowMerger(tensor)
    for begin, end in blocks(tensor, start, stop):
        writer.write_rows(tensor.name, begin, merger.rows(begin, end))
    return (stop - start) * writer.tensors[tensor.name].row_bytes


def hash_file(file: Path, hashes: dict[Path, str]) -> int:
    """Job: hashes[file] = SHA-256."""
    size, hashes[file] = size_and_digest(file)
    return size


def run_jobs(jobs: list[Job], total_bytes: int, workers: int) -> None:
    """Runs all jobs and shows the progress. The first error is raised, once the jobs that had begun
    have ended; the others do not begin."""
    seconds = TERMINAL_SECONDS if sys.stderr.isatty() else LOG_SECONDS
    progress = tqdm(
        total=total_bytes, unit="B", unit_scale=True, desc="merge and hash", mininterval=seconds
    )
    # The workers are the threads: torch would start as many again within each of them.
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(workers) as pool, progress:
            try:
                futures = [pool.submit(job) for job in jobs]
                for future in as_completed(futures):
                    progress.update(future.result())
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
    finally:
        torch.set_num_threads(num_threads)


def portions(tensor: MergedTensor) -> Iterator[tuple[int, int]]:
    """(start, stop) of the rows of each job, about PORTION_BYTES of them."""
    step = max(1, PORTION_BYTES // max(1, tensor.base.row_bytes))
    for start in range(0, tensor.num_rows, step):
        yield start, min(start + step, tensor.num_rows)


def input_files(plan: MergePlan) -> list[Path]:
    """The base's files that tensors are read from."""
    return sorted({tensor.base.path for tensor in plan.tensors})


def adapter_files(adapter: Adapter) -> list[Path]:
    """adapter_config.json, and the files that the adapter's tensors are read from."""
    paths = {tensor.path for tensor in adapter.tensors.values()}
    return [adapter.directory / CONFIG, *sorted(paths)]
