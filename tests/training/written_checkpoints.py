"""A small checkpoint, as a trainer leaves it, and ways to damage one."""

from pathlib import Path

from ilrec.training.checkpoints import publish, staging

IDENTITY = {"data": {"path": "d", "sha256": "ab12" * 16}, "seed": 0, "beta": 0.1, "gguf": None}


def checkpoint(output_dir: Path, step: int) -> Path:
    """Two files, one of them in a folder: 5 bytes a step, and 7 bytes."""
    directory = staging(output_dir) / f"checkpoint-{step}"
    shards = directory / f"global_step{step}"
    shards.mkdir(parents=True)
    (shards / "optimizer.pt").write_bytes(b"state" * step)
    (directory / "weights.safetensors").write_bytes(b"weights")
    publish(output_dir, f"checkpoint-{step}", {"step": step, "identity": IDENTITY})
    return output_dir / f"checkpoint-{step}"


def cut(path: Path) -> None:
    """As if the disk had lost the last byte."""
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    """One bit is another one: the size does not tell."""
    content = bytearray(path.read_bytes())
    content[0] ^= 1
    path.write_bytes(content)
