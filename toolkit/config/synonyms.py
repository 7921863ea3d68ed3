"""Names that other programs give to the keys of a configuration, for the message about an unknown key.

Most names are those of timm's training script, Lightning's Trainer and Hugging Face's TrainingArguments. A synonym is
only suggested and never accepted, so a command line means the same in every version.
"""

from __future__ import annotations

from collections.abc import Collection

#: Key or option of `posters train` → names that people use for it.
_NAMES = {
    "shards": "data_dir data_path dataset dataset_dir dataset_path train_dir train_data train_path images image_dir "
    "image_folder input",
    "out": "output output_dir outdir save_dir log_dir logdir default_root_dir experiment workdir work_dir run_dir "
    "checkpoint_dir ckpt_dir project",
    "config": "cfg yaml recipe preset",
    "resume": "resume_from resume_from_checkpoint ckpt_path continue restart auto_resume",
    "find_lr": "lr_find lr_finder auto_lr_find lr_range_test",
    "data.image_size": "img_size imgsz image_size input_size size resolution side crop_size",
    "data.crop_scale": "scale rrc_scale",
    "data.crop_ratio": "ratio aspect_ratio rrc_ratio",
    "data.flip": "hflip horizontal_flip flip_prob fliplr",
    "data.fit": "crop_mode resize_mode",
    "data.sampling": "sampler class_balanced oversample balanced",
    "data.workers": "num_workers n_workers dataloader_num_workers threads loader_workers",
    "data.prefetch": "prefetch_factor dataloader_prefetch_factor",
    "data.order": "shuffle",
    "augment.brightness": "color_jitter colour_jitter jitter",
    "augment.randaugment": "aa auto_augment autoaugment rand_augment randaug ra",
    "augment.erase": "reprob random_erasing random_erase cutout",
    "augment.mixup": "mixup_alpha mix_up",
    "augment.cutmix": "cutmix_alpha cut_mix",
    "model.name": "model_name model_name_or_path arch architecture backbone network net encoder timm_model",
    "model.pretrained": "use_pretrained imagenet",
    "model.weights": "initial_checkpoint checkpoint pretrained_path pretrained_weights init_from load_from ckpt "
    "finetune_from",
    "model.head": "classifier head_type",
    "model.hidden": "hidden_dim hidden_size hidden_dims head_hidden_size",
    "model.members": "ensemble num_members n_members",
    "model.dropout": "drop drop_rate dropout_rate",
    "model.drop_path": "drop_path_rate stochastic_depth droppath",
    "model.freeze": "freeze_backbone frozen freeze_layers trainable unfreeze linear_probe",
    "model.checkpointing": "grad_checkpointing gradient_checkpointing activation_checkpointing use_checkpoint",
    "loss.name": "loss loss_fn loss_function criterion loss_type bce_loss asl_loss focal_loss",
    "loss.smoothing": "label_smoothing label_smoothing_factor",
    "optim.name": "opt optim optimizer optimiser optimizer_name",
    "optim.lr": "learning_rate learningrate base_lr lr_base max_lr init_lr blr",
    "optim.weight_decay": "wd decay l2 weightdecay",
    "optim.momentum": "adam_beta1 beta1 betas opt_betas",
    "optim.layer_decay": "llrd layerwise_lr_decay layer_wise_lr_decay lr_decay",
    "optim.head_lr": "classifier_lr lr_head head_lr_mult",
    "optim.schedule": "sched scheduler lr_scheduler lr_schedule lr_scheduler_type lr_policy",
    "optim.warmup_steps": "warmup warmup_epochs warmup_ratio warmup_iters num_warmup_steps",
    "optim.min_lr": "eta_min lr_min final_lr",
    "optim.clip_norm": "clip_grad grad_clip gradient_clip gradient_clip_val gradient_clipping max_grad_norm clip "
    "max_norm",
    "train.epochs": "epoch max_epochs num_epochs n_epochs num_train_epochs nb_epochs",
    "train.batch_size": "batch bs batchsize per_device_train_batch_size train_batch_size global_batch_size",
    "train.accumulation": "grad_accum grad_accum_steps gradient_accumulation gradient_accumulation_steps accum_steps "
    "accumulate_grad_batches accum_iter",
    "train.eval_batch_size": "validation_batch_size val_batch_size per_device_eval_batch_size test_batch_size",
    "train.precision": "amp fp16 bf16 half mixed_precision amp_dtype dtype use_amp",
    "train.seed": "random_seed random_state manual_seed",
    "train.monitor": "metric_for_best_model eval_metric best_metric",
    "train.patience": "early_stopping early_stopping_patience early_stop es_patience",
    "train.ema": "model_ema model_ema_decay ema_decay use_ema",
    "train.auto_batch": "auto_find_batch_size auto_scale_batch_size auto_batch_size",
    "train.feature_views": "cache_features views",
    "train.feature_cache": "feature_dir features",
    "train.sync_batchnorm": "sync_bn syncbn",
    "train.compile": "torchcompile torch_compile use_compile",
    "train.checkpoint_steps": "save_steps checkpoint_every save_interval save_every val_check_interval",
    "train.keep_checkpoints": "save_total_limit checkpoint_hist save_top_k",
    "train.log_steps": "logging_steps log_interval log_every_n_steps log_every print_freq",
    "train.trackers": "report_to logger loggers log_wandb wandb tracker tensorboard mlflow use_wandb log_with",
    "decide.thresholds": "threshold thr",
    "decide.calibration": "calibrate temperature",
}
#: Name in another program → key or option of `posters train`.
SYNONYMS = {name: key for key, names in _NAMES.items() for name in names.split()}

#: Names of other programs for which there is no key → what to do instead.
REMARKS = {
    **dict.fromkeys(
        ("num_classes", "n_classes", "num_labels", "classes", "labels", "nb_classes", "class_names", "genres"),
        "the genres are those of the shard set",
    ),
    **dict.fromkeys(
        ("devices", "gpus", "num_gpus", "n_gpus", "gpu", "nproc_per_node", "num_nodes", "world_size", "strategy"),
        "for several GPUs, start `accelerate launch launch/train.py`",
    ),
    **dict.fromkeys(
        ("device", "accelerator", "cuda", "no_cuda", "use_cpu", "cpu"),
        "the GPU is used if torch finds one; set CUDA_VISIBLE_DEVICES= to use the CPU",
    ),
    **dict.fromkeys(("mean", "std"), "the weights of the backbone decide it"),
    **dict.fromkeys(
        ("train_split", "val_split", "test_split", "val_size", "val_ratio", "splits", "test_size"),
        "`posters shards build --splits` makes the splits",
    ),
    **dict.fromkeys(
        ("sample_weight", "sample_weights", "weight_column", "weights_column"),
        "`posters shards build --weight-column` takes sample weights from the table",
    ),
    **dict.fromkeys(
        ("pos_weight", "class_weight", "class_weights", "label_weights"),
        "the losses weighted and balanced (loss.name) compute weights of the genres",
    ),
    **dict.fromkeys(("metadata", "csv", "train_csv"), "`posters shards build --metadata` reads it"),
    **dict.fromkeys(("max_steps", "num_steps", "max_iters", "iterations"), "train.epochs is the length of a run"),
    **dict.fromkeys(("overwrite", "overwrite_output_dir", "force"), "choose another --out, or delete the old folder"),
}

#: Section → the key that is probably meant if the section has a single value, as in ``--model resnet18``.
MAIN_KEYS = {
    "data": "shards", "model": "model.name", "loss": "loss.name", "optim": "optim.name",
    "augment": "augment.randaugment", "decide": "decide.aim",
}  # fmt: skip


def meant(key: str, known: Collection[str]) -> str:
    """Return the end of the message about the unknown ``key``. Empty if no name in this module is similar.

    known: all dotted keys.

    >>> meant("optim.learning_rate", ["optim.lr"]), meant("num-classes", [])
    ("; did you mean 'optim.lr'?", '; the genres are those of the shard set')
    """
    whole = key.lower().replace("-", "_")
    last = whole.rpartition(".")[2]
    same = {name.rpartition(".")[2]: name for name in known}
    for found in (SYNONYMS.get(whole), same.get(last), SYNONYMS.get(last)):
        if found:
            return f"; did you mean {found.replace('find_lr', 'find-lr')!r}?"
    return f"; {REMARKS[last]}" if last in REMARKS else ""
