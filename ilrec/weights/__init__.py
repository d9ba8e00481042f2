"""Weights as they lie in safetensors files: read, compared and written without loading a model.

In reading order: tensor_files.py reads headers and blocks of rows, tensor_writer.py writes a
model's files, fingerprint.py tells whether two directories hold the same weights.

A safetensors file is 8 bytes with the length of a header, the header in JSON, then the data. From
the small Llama of tests/merging (29 tensors, 24,040 bytes, a header of 2,848 bytes), one entry:

    {"model.layers.0.self_attn.q_proj.weight":
        {"dtype": "F32", "shape": [16, 16], "data_offsets": [11552, 12576]}}

read_header makes of it a StoredTensor whose data begins at byte 8 + 2848 + 11552 = 14408 and has
16 rows of 64 bytes. weights_fingerprint of this model, a SHA-256 over names, shapes and samples:

    b66d82d2ba443819e2c71d690638b51bc266259898277d50c49f941db1e68405
"""
