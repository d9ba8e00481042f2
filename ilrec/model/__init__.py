"""The causal LM that is trained: what it starts from, what training adds, and its loss.

In reading order:

- source.py, what `model:` names: a full model, or an adapter and its base
- loading.py, loads that base, from GGUF or from scratch too; loading_fault.py, whether it is whole
- families.py, what models with experts or linear attention cannot do
- adapters.py, rows for new tokens, and LoRA
- head.py, which module makes the logits, and lets the vocabulary operation run inside its call
- objective.py, a forward that returns the loss
- portable.py, makes what is written readable for transformers 4

For example, a tiny Llama with random weights (4 layers, a vocabulary of 64) under beta = 0.5 and
num_readout_layers = 2 returns, for 4 rows of 12 tokens of which 18 have a label:

    loss          4.4954, which is 80.9167 / 18
    stats_5       [80.9167, 0, 0, 999, 0]: the preference, and 999 hard negatives
    nonfinite_K2  [0, 0, 0, 0]: no NaN in the last layer, in two readout layers, in the loss
"""
