"""The settings of a run: where each is declared, how a value is read, and which value wins.

Reading order: sections.py and evaluation.py (every setting with its default, help text and
limits), settings.py (what a setting is, and how a value is read), loading.py (defaults < recipe <
command line), command_line.py (the rules of every command line in the project).

    load_config("ilrec/recipes/stage1.yaml", {"model": "M", "data": "D", "beta": "2e-1"}).objective

    ObjectiveConfig(beta=0.2, distillation_weight=0.0, reward_weight=0.0, num_readout_layers=4,
        threshold='probability', alpha=0.5, max_negatives=0, negative_tokens='all', ...)

`beta` comes from the command line, `alpha` from the recipe, `max_negatives` is a default.
"""
