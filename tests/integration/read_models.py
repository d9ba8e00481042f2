"""How the version of transformers that is first on PYTHONPATH reads each directory:

    python read_models.py OUTPUT DIR...

OUTPUT is a torch file of {"version": of transformers, DIR: {"logits": [2, 80, V], "tokens": ids of
texts, "padding": side, "generated": ids}}. A directory may hold a tokenizer or a model alone; then
some of these are missing.
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
    """(model or None, tokenizer or None). An adapter is loaded on its base, whose vocabulary grows
    first."""
    tokenizer = None
    if (directory / "tokenizer.json").exists():
        tokenizer = AutoTokenizer.from_pretrained(directory)
    if (directory / "adapter_config.json").exists():
        from peft import PeftConfig, PeftModel

        base = PeftConfig.from_pretrained(directory).base_model_name_or_path
        model = AutoModelForCausalLM.from_pretrained(base)
        num_rows = max(len(tokenizer), model.config.vocab_size)
        model.resize_token_embeddings(num_rows, mean_resizing=False)
        return PeftModel.from_pretrained(model, directory).eval(), tokenizer
    if not list(directory.glob("*.safetensors")):
        return None, tokenizer
    model, found = AutoModelForCausalLM.from_pretrained(directory, output_loading_info=True)
    assert not any(found.values()), f"{directory}: {found}"
    return model.eval(), tokenizer


@torch.no_grad()
def read(directory: Path) -> dict:
    model, tokenizer = load(directory)
    found = {}
    if model is not None:
        # More tokens than max_position_embeddings of the tiny models: there dynamic rope begins.
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(3, model.config.vocab_size, (2, 80), generator=generator)
        found["logits"] = model(input_ids=ids).logits.float()
    if tokenizer is not None:
        found["tokens"] = [tokenizer(text)["input_ids"] for text in TEXTS]
        found["padding"] = tokenizer.padding_side
    if model is not None and tokenizer is not None:
        inputs = tokenizer(TEXTS[0], return_tensors="pt")
        generated = model.generate(**inputs, max_new_tokens=5, do_sample=False)
        found["generated"] = generated.tolist()
    return found


if __name__ == "__main__":
    output, *directories = sys.argv[1:]
    found = {name: read(Path(name)) for name in directories}
    torch.save({"version": transformers.__version__, **found}, output)
