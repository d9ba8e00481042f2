"""Training: from settings and samples to a run directory with complete checkpoints and final/.

Reading order: setup.py (arguments, model, trainer, in the order in which train.py needs them),
trainer.py (loss terms, logs, saving), nonfinite.py and stop.py (how a run ends early). Then what is
saved and read again: run_directory.py, checkpoints.py, manifest.py, identity.py, recorded_base.py,
metrics_log.py, model_card.py. DeepSpeed: ds_config.py, zero3.py. Between ranks: together.py.

A manifest (checkpoint-2/manifest.json of a small stage1), shortened:

    {"step": 2,
     "identity": {"adapter": "lora", "lora_rank": 16, "beta": 0.1, "seed": 0, ...,
                  "data": {"path": "data", "sha256": "f0ae2e9424d86da2..."}, ...},
     "base": {"name": "base", "weights": "45948651d466378a..."},
     "world_size": 1,
     "files": {"adapter_model.safetensors": {"size": 148864, "sha256": "3e64c7dcf94420d4..."}, ...}}
"""
