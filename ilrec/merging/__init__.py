"""Merges a LoRA adapter into its base, block by block of rows, whatever the model's size.

In reading order: sources.py finds adapter and base; adapter.py (with adapter_settings.py and
adapter_names.py) reads what the adapter does to each tensor; plan.py (with completeness.py) fits
both together from headers alone; rows.py is the arithmetic; writing.py runs it in threads, which
write through ilrec/weights/tensor_writer.py; merge.py tells the whole, and model_files.py writes
what lies beside the tensors. verification.py and inspection.py are --verify and --inspect.

One tensor of the small Llama of tests/merging, with rank 4, alpha 8 and so a scaling of 2:

    base     model.layers.0.self_attn.q_proj.weight   F32 [16, 16]   1,024 bytes from byte 14,408
             first row:  0.0683   0.0934  -0.0370 ...
    adapter  base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight   F32 [4, 16]
             base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight   F32 [16, 4]
    merged   model.layers.0.self_attn.q_proj.weight   F32 [16, 16]   1,024 bytes from byte 14,408
             first row:  0.0058   0.1091  -0.4959 ...     W + 2 B A

The merge imports neither transformers nor peft, which would cost 200 MB; verification.py alone
does.
"""
