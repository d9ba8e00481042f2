"""The light collaborative filter (SASRec) and the token reward that it gives along the trie."""
