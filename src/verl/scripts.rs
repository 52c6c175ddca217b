//! verl's scripts that the source documents name, and what they say of them.

/// A script of verl's `examples/` that a source document names.
pub(super) struct Script {
    name: &'static str,
    /// What verl has in its place.
    now: &'static str,
    /// What the document says of it, under verl's names; what it leaves open is verl's default.
    pub(super) says: &'static [&'static str],
}

const SCRIPTS: &[Script] = &[
    Script {
        name: "run_qwen3-8b.sh",
        now: "examples/grpo_trainer/run_qwen3_8b_fsdp.sh",
        says: &[
            "algorithm.adv_estimator=grpo",
            "data.train_batch_size=512",
            "actor_rollout_ref.model.path=Qwen/Qwen3-8B",
            "actor_rollout_ref.rollout.n=8",
            "actor_rollout_ref.actor.use_kl_loss=True",
            "trainer.n_gpus_per_node=8",
            "trainer.total_epochs=30",
        ],
    },
    Script {
        name: "run_qwen2-7b_math.sh",
        now: "examples/grpo_trainer/run_qwen3_8b_fsdp.sh with another model",
        says: &[
            "algorithm.adv_estimator=grpo",
            "data.train_batch_size=512",
            "actor_rollout_ref.model.path=Qwen/Qwen2-7B-Instruct",
            "actor_rollout_ref.rollout.n=4",
            "actor_rollout_ref.rollout.tensor_model_parallel_size=2",
            "actor_rollout_ref.actor.use_kl_loss=True",
            "trainer.n_gpus_per_node=4",
            "trainer.total_epochs=20",
        ],
    },
    Script {
        name: "run_qwen2_5-3b_gsm8k_grpo_lora.sh",
        now: "examples/tuning/lora",
        says: &[
            "algorithm.adv_estimator=grpo",
            "data.train_batch_size=128",
            "actor_rollout_ref.model.path=Qwen/Qwen2.5-3B-Instruct",
            "actor_rollout_ref.model.lora_rank=64",
            "actor_rollout_ref.model.lora_alpha=32",
            "actor_rollout_ref.rollout.n=4",
            "actor_rollout_ref.rollout.load_format=safetensors",
            "actor_rollout_ref.rollout.layered_summon=True",
            "actor_rollout_ref.actor.ppo_mini_batch_size=128",
            "actor_rollout_ref.actor.use_kl_loss=True",
            "trainer.n_gpus_per_node=2",
            "trainer.total_epochs=10",
        ],
    },
    Script {
        name: "run_deepseek671b_math_megatron_96gb.sh",
        now: "examples/grpo_trainer/run_deepseek_v3_671b_megatron.sh",
        says: &[
            "model_engine=megatron",
            "algorithm.adv_estimator=grpo",
            "actor_rollout_ref.model.path=deepseek-ai/DeepSeek-V3",
            "actor_rollout_ref.actor.megatron.tensor_model_parallel_size=8",
            "actor_rollout_ref.actor.megatron.pipeline_model_parallel_size=8",
            "actor_rollout_ref.rollout.tensor_model_parallel_size=8",
            "actor_rollout_ref.rollout.n=8",
            "actor_rollout_ref.actor.use_kl_loss=True",
            "trainer.nnodes=8",
            "trainer.n_gpus_per_node=8",
        ],
    },
    Script {
        name: "run_qwen3-235b_megatron_96gb.sh",
        now: "examples/grpo_trainer/run_qwen3_235b_a22b_megatron.sh",
        says: &[
            "model_engine=megatron",
            "algorithm.adv_estimator=grpo",
            "actor_rollout_ref.model.path=Qwen/Qwen3-235B-A22B",
            "actor_rollout_ref.actor.megatron.tensor_model_parallel_size=8",
            "actor_rollout_ref.actor.megatron.pipeline_model_parallel_size=8",
            "actor_rollout_ref.rollout.tensor_model_parallel_size=8",
            "actor_rollout_ref.rollout.n=8",
            "actor_rollout_ref.actor.use_kl_loss=True",
            "trainer.nnodes=8",
            "trainer.n_gpus_per_node=8",
        ],
    },
    Script {
        name: "run_qwen2_5_vl-7b.sh",
        now: "examples/grpo_trainer/run_qwen2_5_vl_7b_fsdp.sh",
        says: &[
            "algorithm.adv_estimator=grpo",
            "data.train_files=~/data/geo3k/train.parquet",
            "data.val_files=~/data/geo3k/test.parquet",
            "data.image_key=images",
            "actor_rollout_ref.model.path=Qwen/Qwen2.5-VL-7B-Instruct",
            "actor_rollout_ref.rollout.n=5",
            "actor_rollout_ref.actor.use_kl_loss=True",
            "trainer.n_gpus_per_node=8",
        ],
    },
    Script {
        name: "run_qwen3_vl-8b-megatron.sh",
        now: "examples/grpo_trainer/run_qwen3_vl_8b_megatron.sh",
        says: &[
            "model_engine=megatron",
            "algorithm.adv_estimator=grpo",
            "data.train_files=~/data/geo3k/train.parquet",
            "data.val_files=~/data/geo3k/test.parquet",
            "data.image_key=images",
            "actor_rollout_ref.model.path=Qwen/Qwen3-VL-8B-Instruct",
            "actor_rollout_ref.rollout.n=5",
            "actor_rollout_ref.actor.use_kl_loss=True",
            "trainer.n_gpus_per_node=8",
        ],
    },
];

impl Script {
    pub(super) fn words(&self) -> String {
        format!(
            "{} is not here, and verl 0.9.1 has {} in its place; what the GRPO guide says of it is taken, \
             and verl's defaults. Name the file itself to have it read.",
            self.name, self.now
        )
    }
}

/// What is known of the script of this name.
pub(super) fn find(name: &str) -> Option<&'static Script> {
    SCRIPTS.iter().find(|script| script.name == name)
}
