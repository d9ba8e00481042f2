"""What an item is: a semantic ID, that is a few codes, coarse to fine, each of them one token.

Reading order: embeddings.py (vectors of items on disk), quantizer.py (vectors to codes),
semantic_ids.py (codes as tokens, unique for each item), trie.py (which token may follow which);
numbering.py is the digest by which all of them check whose item numbers they have.

A sample, three items and the trie of their tokens; 1 is the end token:

    item 0    <a_0><b_1>    tokens 320 323 1    nodes 0 1 3 6
    item 1    <a_0><b_2>    tokens 320 324 1    nodes 0 1 4 7
    item 2    <a_3><b_0>    tokens 321 322 1    nodes 0 2 5 8

Node 0 is the root. Node 1 is the prefix <a_0>: below it are items 0 and 1, and only <b_1> and <b_2>
may follow.
"""
