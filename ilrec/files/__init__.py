"""Reading and writing of small files, the same way everywhere: whole, in UTF-8, with clear faults.

Reading order: reading.py (a JSON or YAML file, or one clear message), plain_json.py and
plain_yaml.py (parsers that lose nothing silently), outputs.py (places that are tried before the
work, files that are replaced whole), digests.py (SHA-256 of files and texts).

One YAML text, read here and by plain PyYAML:

    learning_rate: 1e-4         {'learning_rate': 0.0001,        {'learning_rate': '1e-4',
    eval_strategy: no            'eval_strategy': 'no',           'eval_strategy': False,
    prompt_prefix: 12:30         'prompt_prefix': '12:30'}        'prompt_prefix': 750}
"""
