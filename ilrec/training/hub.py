"""The upload of final/ to the Hugging Face hub, once, when it is written (`push_to_hub`).

transformers' own upload sends the whole run directory; here only what others can use is sent.
"""

from __future__ import annotations

import logging
from pathlib import Path

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from ilrec.config.sections import TrainConfig
from ilrec.config.training_arguments import HUB_FIELDS
from ilrec.errors import InputError
from ilrec.processes import rank
from ilrec.training.run_directory import FINAL

logger = logging.getLogger("ilrec.train")


def is_published(config: TrainConfig) -> bool:
    """Whether final/ is to be uploaded. Raises InputError if this machine has no token for it."""
    if not config.training_arguments.get("push_to_hub"):
        return False
    if get_token() is None:
        raise InputError(
            "push_to_hub: this machine has no token for the hub; set HF_TOKEN, or run "
            "`hf auth login`"
        )
    return True


def publish_final(config: TrainConfig) -> None:
    """Upload final/. Every rank may call it, and rank 0 does it.

    The repository is hub_model_id, or the run directory's name under the token's user. It is made
    if it is not there. Raises InputError if the upload fails; final/ stays as it is.
    """
    if rank() != 0:
        return
    _, name, private, revision = (config.training_arguments.get(field) for field in HUB_FIELDS)
    final = Path(config.training.output_dir) / FINAL
    name = name or final.resolve().parent.name
    api = HfApi()
    try:
        repository = api.create_repo(name, private=private, exist_ok=True).repo_id
        api.upload_folder(repo_id=repository, folder_path=final, revision=revision)
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"push_to_hub: {final} is complete, but was not uploaded ({reason}); afterwards: "
            f"hf upload {name} {final}"
        ) from None
    logger.info("uploaded to %s", repository)
