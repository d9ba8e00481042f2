"""What the transformers that is first on PYTHONPATH makes of each directory: `python read_models.py
OUTPUT DIR...`.

OUTPUT: torch file of {"version": of transformers, DIR: {"logits": [2, 80, V], "tokens": ids of
texts, "padding": side, "generated": ids}}; of a tokenizer or a model alone, what there is.
"""

import sys
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

TEXTS = [
    "Predict the next item",
    "  two  spaces and\na line ",
    "<a_1><b_2><c_0>",
    "after text <a_1><b_2> and <c_0>, 漢字 äöü",
]


def load(directory: Path):
    """(model or None, tokenizer or None); an adapter on its base, whose vocabulary grows first."""
    tokenizer = (
        AutoTokenizer.from_pretrained(directory)
        if (directory / "tokenizer.json").exists()
        else None
    )
    if (directory / "adapter_config.json").exists():
        from peft import PeftConfig, PeftModel

        model = AutoModelForCausalLM.from_pretrained(
            PeftConfig.from_pretrained(directory).base_model_name_or_path
        )
        model.resize_token_embeddings(
            max(len(tokenizer), model.config.vocab_size), mean_resizing=False
        )
        return PeftModel.from_pretrained(model, directory).eval(), tokenizer
    if not list(directory.glob("*.safetensors")):
        return None, tokenizer
    model, found = AutoModelForCausalLM.from_pretrained(directory, output_loading_info=True)
    assert not any(found.values()), f"{directory}: {found}"
    return model.eval(), tokenizer


@torch.no_grad()
def read(directory: Path) -> dict:
    model, tokenizer = load(directory)
    said = {}
    if model is not None:
        # More tokens than max_position_embeddings of the tiny models, where dynamic rope begins.
        ids = torch.randint(
            3, model.config.vocab_size, (2, 80), generator=torch.Generator().manual_seed(0)
        )
        said["logits"] = model(input_ids=ids).logits.float()
    if tokenizer is not None:
        said["tokens"] = [tokenizer(text)["input_ids"] for text in TEXTS]
        said["padding"] = tokenizer.padding_side
    if model is not None and tokenizer is not None:
        inputs = tokenizer(TEXTS[0], return_tensors="pt")
        said["generated"] = model.generate(**inputs, max_new_tokens=5, do_sample=False).tolist()
    return said


if __name__ == "__main__":
    output, *directories = sys.argv[1:]
    torch.save(
        {"version": transformers.__version__, **{name: read(Path(name)) for name in directories}},
        output,
    )
