"""Names that a training run does not take as fields, each with what to give instead.

People bring them from transformers, TRL, LLaMA-Factory, axolotl and the paper. Among them are the
fields of transformers.TrainingArguments that this trainer decides itself. A word in backquotes
begins with the name of a field, or is a flag of ilrec/train.py (checked by a test).
"""

from __future__ import annotations

# {field: what others call it}
RENAMED = {
    "learning_rate": ("lr", "base_lr", "peak_lr"),
    "per_device_train_batch_size": (
        "batch_size",
        "per_device_batch_size",
        "per_gpu_train_batch_size",
        "train_batch_size",
    ),
    "per_device_eval_batch_size": ("eval_batch_size", "per_gpu_eval_batch_size"),
    "gradient_accumulation_steps": ("gradient_accumulation", "grad_accum", "accumulation_steps"),
    "num_train_epochs": ("epochs", "num_epochs", "n_epochs", "max_epochs"),
    "max_steps": ("num_steps", "num_training_steps", "max_train_steps", "total_steps"),
    "max_length": (
        "max_seq_length",
        "max_seq_len",
        "max_len",
        "cutoff_len",
        "sequence_len",
        "model_max_length",
        "block_size",
    ),
    "lora_rank": ("lora_r", "r", "lora_dim"),
    "lora_target_modules": ("lora_target", "target_modules", "lora_targets"),
    "adapter": ("finetuning_type", "use_lora", "use_peft", "peft_type"),
    "dtype": ("torch_dtype", "precision", "mixed_precision"),
    "gradient_checkpointing": ("use_gradient_checkpointing", "activation_checkpointing"),
    "model": ("model_name_or_path", "model_name", "model_path", "pretrained_model_name_or_path"),
    "data": (
        "dataset",
        "datasets",
        "dataset_name",
        "dataset_path",
        "dataset_dir",
        "data_dir",
        "data_path",
        "train_file",
    ),
    "output_dir": ("output", "out_dir", "save_dir", "checkpoint_dir"),
    "resume": ("resume_from_checkpoint",),
    "eval_strategy": ("evaluation_strategy",),
    "eval_steps": ("eval_interval", "eval_every"),
    "save_steps": ("save_interval", "save_every"),
    "logging_steps": ("log_interval", "log_every"),
    "lr_scheduler_type": ("lr_scheduler", "scheduler", "lr_schedule"),
    "optim": ("optimizer",),
    "max_grad_norm": ("gradient_clipping", "grad_clip", "clip_grad", "clip_grad_norm"),
    "seed": ("random_seed",),
    "dataloader_num_workers": ("num_workers", "preprocessing_num_workers"),
    "neftune_noise_alpha": ("neftune_alpha", "noisy_embedding_alpha"),
    # The paper's letters.
    "distillation_weight": ("lambda", "lambda_"),
    "reward_weight": ("mu",),
    "num_readout_layers": ("K", "k"),
    "max_negatives": ("M", "num_negatives"),
}

PREDICTION_NAMES = (
    "prediction_loss_only",
    "include_for_metrics",
    "batch_eval_metrics",
    "eval_do_concat_batches",
    "eval_use_gather_object",
    "eval_accumulation_steps",
)
QUANTISED_NAMES = ("load_in_4bit", "load_in_8bit", "quantization_bit", "quantization")
# {names: what to do instead, or why it is not offered}
REASONS = {
    ("bf16", "fp16", "bf16_full_eval", "fp16_full_eval"): (
        "the precision is `dtype: bfloat16`, `dtype: float16` or `dtype: float32`"
    ),
    ("deepspeed", "ds_config", "deepspeed_config"): (
        "DeepSpeed's configuration is given on the command line: `--ds_config FILE`"
    ),
    ("fsdp", "fsdp_config", "parallelism_config"): (
        "DeepSpeed shards the model, as `--ds_config FILE` says"
    ),
    ("accelerator_config",): (
        "how batches are divided among the ranks decides the objective's mean over tokens"
    ),
    ("use_cpu", "no_cuda"): "a GPU is used where there is one; hide it by CUDA_VISIBLE_DEVICES=''",
    ("local_rank",): "the launcher gives it",
    ("micro_batch_size",): (
        "a micro-step is `per_device_train_batch_size` samples, or `max_tokens_per_batch` tokens"
    ),
    ("global_batch_size",): (
        "a step is `per_device_train_batch_size` x `gradient_accumulation_steps` x ranks"
    ),
    ("auto_find_batch_size",): (
        "a run's batch is part of what it is; set `per_device_train_batch_size` or "
        "`max_tokens_per_batch`"
    ),
    ("packing", "sample_packing", "padding_free", "neat_packing"): (
        "`max_tokens_per_batch: 8192` with `batch_layout: flattened` puts samples into one row "
        "without padding, and keeps attention within each"
    ),
    ("group_by_length", "length_column_name", "train_sampling_strategy"): (
        "`max_tokens_per_batch` puts samples of similar length together; their order is drawn from "
        "`seed`"
    ),
    ("data_seed",): "the order of samples is drawn from `seed`",
    ("ignore_data_skip", "restore_callback_states_from_checkpoint"): (
        "a resumed run goes on exactly where it was (`resume`)"
    ),
    ("overwrite_output_dir",): (
        "`resume: never` starts afresh and moves the earlier run in `output_dir` aside"
    ),
    ("flash_attn", "flash_attention", "use_flash_attention", "use_flash_attention_2"): (
        "it is `attn_implementation: flash_attention_2`, which auto takes where it is installed"
    ),
    QUANTISED_NAMES: "quantised models are not trained, because the loss reads the head's weights",
    ("gradient_checkpointing_kwargs", "activation_checkpointing_kwargs"): (
        "`gradient_checkpointing: true` is all there is to set"
    ),
    ("use_liger_kernel", "enable_liger_kernel", "liger_kernel_config"): (
        "the objective's own operation takes the place of its loss; see `backend`"
    ),
    ("torch_compile", "torch_compile_backend", "torch_compile_mode"): (
        "compiling a model that has the objective in its forward is not proven to give the same "
        "numbers; see `backend`"
    ),
    ("optim_target_modules",): "only optimizers read it that take the model's layers apart",
    ("label_smoothing_factor",): "the loss is that of docs/method.md, computed inside the model",
    ("average_tokens_across_devices",): (
        "the loss is always a mean over the supervised tokens of all ranks"
    ),
    ("use_cache",): "training needs no cache",
    ("remove_unused_columns", "label_names"): (
        "the batches are made by this program, which knows their columns"
    ),
    PREDICTION_NAMES: "evaluation in training measures the loss and keeps no predictions",
    ("logging_nan_inf_filter",): "a NaN or infinite loss ends the run",
    ("logging_dir",): ("TensorBoard's files are in tensorboard/ of `output_dir`; see `report_to`"),
    ("load_best_model_at_end", "metric_for_best_model", "greater_is_better"): (
        "`save_best` keeps the checkpoint with the best `eval_metric` and makes final/ from it"
    ),
    ("save_only_model", "save_on_each_node", "enable_jit_checkpoint"): (
        "a checkpoint holds all that resuming needs, once, and a signal writes one; "
        "`save_total_limit` says how many are kept"
    ),
    ("do_train", "do_eval", "do_predict"): (
        "this program trains, `eval_strategy` says when it evaluates, and ilrec/rank.py ranks"
    ),
    ("hub_strategy", "hub_always_push"): (
        "`push_to_hub` uploads final/, once, when it is written; checkpoints are not uploaded"
    ),
    ("hub_token", "use_auth_token", "token"): (
        "a secret does not belong into a run's config.yaml: set HF_TOKEN, or hf auth login"
    ),
    ("cache_dir",): "the hub's cache is where HF_HOME says",
    ("warmup_ratio",): "`warmup_steps` below 1 is the share of all steps",
    ("base_model", "base_model_name_or_path"): (
        "the model to start from is `model`; `base` says where an adapter's base model is now"
    ),
    ("adapter_name_or_path", "lora_model_dir", "peft_model_id"): (
        "an adapter to go on from is given as `model`"
    ),
    ("tokenizer", "tokenizer_name", "tokenizer_name_or_path"): "the tokenizer is that of `model`",
    ("template", "chat_template", "prompt_template"): (
        "a prompt is `prompt_prefix`, the items with `prompt_separator` between, `prompt_suffix`"
    ),
    ("use_wandb", "wandb", "use_swanlab", "use_mlflow"): (
        "trackers are named by `report_to: [tensorboard, wandb]`"
    ),
    ("wandb_project", "wandb_entity"): (
        "`report_to: wandb` reads WANDB_PROJECT and WANDB_ENTITY from the environment"
    ),
    ("wandb_run_name", "wandb_name", "run"): "a run's name for trackers is `run_name`",
    (
        "num_beams",
        "split",
        "candidates",
    ): "it is a flag of ilrec/rank.py, which ranks the catalogue",
}

# {name: what to do instead}
ANSWERS: dict[str, str] = {}
for _field, _names in RENAMED.items():
    ANSWERS |= dict.fromkeys(_names, f"it is called `{_field}`")
for _names, _reason in REASONS.items():
    ANSWERS |= dict.fromkeys(_names, _reason)
