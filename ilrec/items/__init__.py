"""What an item is, in tokens: semantic IDs, the quantizer that makes them, the trie over the
catalogue."""
