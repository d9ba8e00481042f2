"""Who had what: users, items and times, from any file to numbers. Nothing here knows a tokenizer.

Reading order: reading.py opens a data directory of any kind: prepared.py (Arrow, memory-mapped),
lcrec.py and recbole.py. Each gives the InteractionDataset of dataset.py, whose sequences are rows
of one flat array (ragged.py, arrow_files.py); splits.py says which items are for training and which
are targets (cases.py). Raw files become a prepared directory by raw_files.py (their lines:
text_lines.py; what is wrong with them: findings.py), fields.py (exact names and numbers),
importers.py, and preparation.py with k_core.py.

A sample, three lines of a CSV file with the columns user, item and time:

    ana,B07,1700000300
    ana,B02,1700000100
    ana,B11,1700000200

Items get numbers by their names, B02 is 0, B07 is 1, B11 is 2, and times give the order:

    item_ids            ['B02', 'B07', 'B11']
    sequences[0]        [0 2 1]
    evaluation('valid') history [0],   target 2
    evaluation('test')  history [0 2], target 1
"""
