"""What a `model:` names: a full model, or an adapter and the base that it belongs to.

Does not import transformers, so that a wrong name is reported at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import snapshot_download

from ilrec.errors import InputError
from ilrec.files.reading import read_json

# The files of a hub repository that a causal LM in safetensors consists of. Other formats of the
# same weights are not downloaded.
MODEL_FILES = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.py")
# A clone without git-lfs has a small text file in place of each large one, which begins like this
# (https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md).
LFS_POINTER = b"version https://git-lfs"
MAX_POINTER_BYTES = 1024


@dataclass(frozen=True)
class ModelSource:
    """base: directory or hub name of the full model.
    adapter: directory of a peft adapter on it, or None.
    """

    base: str
    adapter: str | None = None

    @property
    def tokenizer(self) -> str:
        return self.adapter or self.base


def find_model(name: str, base: str = "") -> ModelSource:
    """What `model:` means. An adapter's configuration records its base; `base` overrides that.

    Raises InputError if something is missing, or if `base` is given without an adapter.
    """
    path = Path(name)
    if path.is_dir():
        refuse_pointers(path)
    if (path / "adapter_config.json").exists():
        return _find_adapter(path, base)
    if path.is_dir() and not (path / "config.json").exists():
        raise InputError(
            f"{path}: incomplete: neither config.json nor adapter_config.json; "
            "expected a Hugging Face model directory or the final/ of a finished run"
        )
    if not path.exists() and looks_local(name):
        raise InputError(
            f"model: no such directory: {name}; train the earlier stage first, or name a model "
            "directory"
        )
    if base:
        raise InputError(
            f"--base: {base!r} is for an adapter, and {name} is a full model; leave --base out, or "
            "name the adapter"
        )
    return ModelSource(base=name)


def _find_adapter(path: Path, base: str) -> ModelSource:
    recorded = find_base(path / "adapter_config.json", base)
    weights = (path / "adapter_model.safetensors", path / "adapter_model.bin")
    if not any(file.exists() for file in weights):
        raise InputError(
            f"{path}: incomplete: adapter_config.json is there, adapter_model.safetensors is not; "
            "use the final/ directory of a finished run"
        )
    return ModelSource(base=recorded, adapter=str(path))


def find_base(adapter_config: Path, base: str = "") -> str:
    """The base that an adapter's configuration records, or `base` if that is given.

    Raises InputError if it is a path, and no model is there.
    """
    name = base or read_json(adapter_config).get("base_model_name_or_path") or ""
    if not name:
        raise InputError(
            f"{adapter_config}: base_model_name_or_path: expected the base model's directory or "
            "hub name, got nothing; write it there, or name it with --base"
        )
    if looks_local(name) and not (Path(name) / "config.json").exists():
        where = "--base" if base else f"{adapter_config}: base_model_name_or_path"
        raise InputError(
            f"{where}: no model directory at {name!r}; put it back there, write its new place into "
            "that field, or name it with --base"
        )
    if Path(name).is_dir():
        refuse_pointers(Path(name))
    return name


def refuse_pointers(directory: Path) -> None:
    """Raises InputError for a model directory that was cloned without git-lfs, which has small text
    files in place of its weights."""
    for path in sorted(directory.iterdir()):
        if not path.is_file() or path.stat().st_size > MAX_POINTER_BYTES:
            continue
        if path.read_bytes().startswith(LFS_POINTER):
            raise InputError(
                f"{path}: a git-lfs pointer, not the file itself; run `git lfs pull` in "
                f"{directory}, or download it again"
            )


def looks_local(name: str) -> bool:
    """Whether a name is a path. Hub names are `name` or `owner/name`; anything else, and whatever
    exists, is a path."""
    if not name:
        return False
    if Path(name).exists():
        return True
    return name.count("/") > 1 or name.startswith((".", "/", "~", "runs/"))


def local_directory(name: str) -> Path:
    """A model's directory: `name` itself, or the hub's cache, into which its files are downloaded
    if they are not there.

    Raises InputError if it is neither.
    """
    if Path(name).is_dir():
        return Path(name)
    try:
        return Path(snapshot_download(name, allow_patterns=list(MODEL_FILES)))
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"base model {name}: it is no directory, and the hub does not give it: {reason}; name "
            "its directory with --base"
        ) from None
