//! Configurations as jobs for verl and back: nothing is lost on the way, the documents' command lines are read, and the installed
//! verl takes what is written.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use grpo_oracle::config::{AdvEstimator, Config, LossMode, Read, as_written, keys, preset, read};
use grpo_oracle::verl::export::{Export, export};
use grpo_oracle::verl::import::{import, to_yaml};
use grpo_oracle::verl::keys::{Engine, ROWS};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::laws::aggregate::MODES;
use crate::laws::kl::PENALTIES;
use crate::python;

fn words(line: &str) -> Vec<String> {
    shlex::split(&line.replace("\\\n", " ")).unwrap()
}

fn imported(line: &str) -> Read {
    import(&words(line)).unwrap_or_else(|error| panic!("{line}: {error}"))
}

fn of(config: Config) -> Read {
    Read { config, verl: BTreeMap::new(), notes: Vec::new() }
}

fn demo(line: &str) -> Read {
    as_written(preset::demo(), None, &words(line)).unwrap()
}

fn job(read: &Read) -> Export {
    export(read).unwrap()
}

/// The document's command lines, by name.
const DOCUMENTS: &[(&str, &str)] = &[
    (
        "quick start",
        "python3 -m verl.trainer.main_ppo \
         algorithm.adv_estimator=grpo \
         data.train_files=$HOME/data/gsm8k/train.parquet \
         data.val_files=$HOME/data/gsm8k/test.parquet \
         data.train_batch_size=256 \
         actor_rollout_ref.model.path=Qwen/Qwen2.5-3B-Instruct \
         actor_rollout_ref.rollout.n=4 \
         actor_rollout_ref.actor.ppo_mini_batch_size=256 \
         actor_rollout_ref.actor.use_kl_loss=True \
         actor_rollout_ref.actor.kl_loss_coef=0.001 \
         trainer.n_gpus_per_node=2 \
         trainer.total_epochs=15",
    ),
    (
        "8B by its script",
        "bash examples/grpo_trainer/run_qwen3-8b.sh data.train_batch_size=512 \
         actor_rollout_ref.rollout.n=8 \
         trainer.total_epochs=20",
    ),
    ("LoRA by its script", "bash examples/grpo_trainer/run_qwen2_5-3b_gsm8k_grpo_lora.sh"),
    (
        "LoRA",
        r#"python3 -m verl.trainer.main_ppo \
         algorithm.adv_estimator=grpo \
         data.train_files=$HOME/data/gsm8k/train.parquet \
         actor_rollout_ref.model.path=Qwen/Qwen2.5-7B-Instruct \
         actor_rollout_ref.actor.lora.enable=True \
         actor_rollout_ref.actor.lora.r=16 \
         actor_rollout_ref.actor.lora.alpha=32 \
         actor_rollout_ref.actor.lora.target_modules='["q_proj","v_proj"]' \
         actor_rollout_ref.rollout.n=4 \
         trainer.n_gpus_per_node=2"#,
    ),
    (
        "whole",
        r#"python3 -m verl.trainer.main_ppo \
         algorithm.adv_estimator=grpo \
         algorithm.norm_adv_by_std_in_grpo=True \
         data.train_files=$HOME/data/gsm8k/train.parquet \
         data.val_files=$HOME/data/gsm8k/test.parquet \
         data.train_batch_size=256 \
         data.max_prompt_length=1024 \
         data.max_response_length=512 \
         actor_rollout_ref.model.path=Qwen/Qwen2.5-7B-Instruct \
         actor_rollout_ref.rollout.n=4 \
         actor_rollout_ref.rollout.name=vllm \
         actor_rollout_ref.rollout.tensor_model_parallel_size=2 \
         actor_rollout_ref.actor.optim.lr=1e-6 \
         actor_rollout_ref.actor.ppo_mini_batch_size=256 \
         actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=4 \
         actor_rollout_ref.actor.clip_ratio=0.2 \
         actor_rollout_ref.actor.loss_agg_mode=token-mean \
         actor_rollout_ref.actor.use_kl_loss=True \
         actor_rollout_ref.actor.kl_loss_coef=0.001 \
         actor_rollout_ref.actor.kl_loss_type=kl \
         trainer.n_gpus_per_node=4 \
         trainer.total_epochs=20 \
         trainer.save_freq=5 \
         trainer.logger='["console","wandb"]'"#,
    ),
    (
        "7B",
        "python3 -m verl.trainer.main_ppo \
         algorithm.adv_estimator=grpo \
         data.train_files=$HOME/data/gsm8k/train.parquet \
         data.train_batch_size=512 \
         actor_rollout_ref.model.path=Qwen/Qwen2-7B-Instruct \
         actor_rollout_ref.rollout.n=4 \
         actor_rollout_ref.rollout.tensor_model_parallel_size=2 \
         actor_rollout_ref.actor.ppo_mini_batch_size=512 \
         actor_rollout_ref.actor.use_kl_loss=True \
         trainer.n_gpus_per_node=4 \
         trainer.total_epochs=20",
    ),
    ("7B by its script", "bash examples/grpo_trainer/run_qwen2-7b_math.sh"),
    (
        "Dr. GRPO",
        "python3 -m verl.trainer.main_ppo \
         algorithm.adv_estimator=grpo \
         algorithm.norm_adv_by_std_in_grpo=False \
         actor_rollout_ref.actor.loss_agg_mode=seq-mean-token-sum-norm \
         actor_rollout_ref.actor.loss_scale_factor=512 \
         actor_rollout_ref.actor.use_kl_loss=False \
         data.train_files=$HOME/data/gsm8k/train.parquet \
         actor_rollout_ref.model.path=Qwen/Qwen2.5-7B-Instruct \
         actor_rollout_ref.rollout.n=4 \
         trainer.n_gpus_per_node=4",
    ),
    ("671B", "bash examples/grpo_trainer/run_deepseek671b_math_megatron_96gb.sh"),
    ("235B", "bash examples/grpo_trainer/run_qwen3-235b_megatron_96gb.sh"),
    ("VL 7B", "bash examples/grpo_trainer/run_qwen2_5_vl-7b.sh"),
    ("VL 8B", "bash examples/grpo_trainer/run_qwen3_vl-8b-megatron.sh"),
    (
        "advice",
        "actor_rollout_ref.rollout.n=8 actor_rollout_ref.rollout.temperature=1.0 \
         actor_rollout_ref.rollout.top_p=0.95 \
         actor_rollout_ref.actor.optim.lr=5e-7 actor_rollout_ref.actor.kl_loss_coef=0.01 \
         actor_rollout_ref.actor.clip_ratio=0.1 data.train_batch_size=256 algorithm.norm_adv_by_std_in_grpo=False \
         actor_rollout_ref.actor.loss_agg_mode=seq-mean-token-sum-norm \
         actor_rollout_ref.rollout.gpu_memory_utilization=0.3 \
         actor_rollout_ref.actor.fsdp_config.gradient_checkpointing=True actor_rollout_ref.actor.lora.enable=True \
         actor_rollout_ref.actor.lora.r=16 actor_rollout_ref.rollout.tensor_model_parallel_size=4 \
         trainer.critic_warmup=0 actor_rollout_ref.model.path=./checkpoints/sft_qwen2.5_7b/ algorithm.adv_estimator=grpo",
    ),
    (
        "compute_new_adv",
        "python3 -m verl.trainer.main config=examples/config_agiqa3k.yaml algorithm.keep_pos_ratio=0.7 \
         algorithm.keep_neg_ratio=0.5 algorithm.compute_new_adv=true algorithm.adv_estimator=grpo \
         actor_rollout_ref.rollout.n=16",
    ),
];

/// The documents' files, by name.
const FILES: &[(&str, &str)] = &[
    (
        "compute_new_adv",
        "data:\n  train_files: your/dataset\n  rollout_batch_size: 128\n  max_prompt_length: 2048\n  \
         max_response_length: 2048\n\n\
         algorithm:\n  adv_estimator: grpo\n  gamma: 1.0\n  lam: 1.0\n  disable_kl: false\n  kl_coef: 1.0e-2\n  \
         keep_neg_ratio: 0.5\n  keep_pos_ratio: 0.7\n  compute_new_adv: true\n\n\
         worker:\n  actor:\n    global_batch_size: 64\n    micro_batch_size_per_device_for_update: 8\n    \
         model:\n      model_path: Qwen/Qwen2.5-7B-Instruct\n    optim:\n      lr: 1.0e-6\n  \
         rollout:\n    n: 16\n    temperature: 1.0\n\n\
         trainer:\n  total_episodes: 10\n  logger: [\"console\", \"wandb\"]\n  project_name: \
         grpo-compute-new-adv\n  \
         experiment_name: test\n",
    ),
    (
        "DAPO",
        "algorithm:\n  adv_estimator: grpo\n  keep_neg_ratio: 0.5\n  keep_pos_ratio: 0.7\n  \
         compute_new_adv: true\n\
         worker:\n  actor:\n    clip_ratio_low: 0.2\n    clip_ratio_high: 0.28\n    clip_ratio_dual: 10.0\n",
    ),
    (
        "GROUP-PPO",
        "algorithm:\n  adv_estimator: group_ppo\n  group_params:\n    group_variance_threshold: 1.0\n    \
         group_max_size: 16\n    group_epsilon: 1e-6\n    adaptive_threshold: true\n    threshold_lr: 0.01\n    \
         min_threshold: 0.1\n    max_threshold: 10.0\n",
    ),
    (
        "GRPO",
        "algorithm:\n  adv_estimator: grpo\n  norm_adv_by_std_in_grpo: True\n  use_kl_in_reward: False\n\
         actor_rollout_ref:\n  rollout:\n    n: 4\n  actor:\n    optim:\n      lr: 1e-6\n    ppo_mini_batch_size: 256\n    \
         ppo_epochs: 1\n    clip_ratio: 0.2\n    loss_agg_mode: token-mean\n    use_kl_loss: True\n    \
         kl_loss_coef: 0.001\n    kl_loss_type: kl\n\
         data:\n  train_files: ~/data/gsm8k/train.parquet\n  val_files: ~/data/gsm8k/test.parquet\n  \
         train_batch_size: 256\n  max_prompt_length: 1024\n  max_response_length: 512\n",
    ),
];

/// Jobs with what this crate's trainer does not have.
const BEYOND: &[(&str, &str)] = &[
    (
        "nodes",
        "algorithm.adv_estimator=rloo trainer.nnodes=4 trainer.n_gpus_per_node=8 \
         actor_rollout_ref.actor.strategy=fsdp2 \
         actor_rollout_ref.actor.fsdp_config.param_offload=True actor_rollout_ref.ref.fsdp_config.param_offload=True \
         actor_rollout_ref.rollout.name=sglang ++data.custom_cls.path=my.py \
         +actor_rollout_ref.rollout.engine_kwargs.sglang.attention_backend=fa3 actor_rollout_ref.actor.use_dynamic_bsz=True",
    ),
    (
        "Megatron",
        "--config-path=config --config-name='ppo_megatron_trainer.yaml' algorithm.adv_estimator=grpo \
         data.truncation=left actor_rollout_ref.actor.megatron.tensor_model_parallel_size=8 \
         actor_rollout_ref.actor.megatron.pipeline_model_parallel_size=12 \
         actor_rollout_ref.actor.megatron.expert_model_parallel_size=8 \
         actor_rollout_ref.actor.megatron.grad_offload=True actor_rollout_ref.actor.megatron.param_offload=True \
         +actor_rollout_ref.actor.megatron.override_transformer_config.moe_router_dtype=fp32 \
         +actor_rollout_ref.actor.megatron.override_transformer_config.recompute_method=uniform \
         +actor_rollout_ref.actor.optim.override_optimizer_config.optimizer_offload_fraction=1.0 \
         actor_rollout_ref.actor.optim.clip_grad=0.5 actor_rollout_ref.actor.optim.lr_warmup_steps=10 \
         actor_rollout_ref.actor.optim.lr_decay_style=linear actor_rollout_ref.actor.clip_ratio_high=0.28 \
         actor_rollout_ref.actor.use_dynamic_bsz=True actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=2 \
         actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=4 actor_rollout_ref.nccl_timeout=1200 \
         reward_model.reward_manager=dapo +reward_model.reward_kwargs.overlong_buffer_cfg.enable=True \
         +reward_model.reward_kwargs.overlong_buffer_cfg.len=4096 \
         +reward_model.reward_kwargs.overlong_buffer_cfg.penalty_factor=1.0 \
         +reward_model.reward_kwargs.overlong_buffer_cfg.log=False +reward_model.reward_kwargs.max_resp_len=512 \
         trainer.nnodes=12 trainer.n_gpus_per_node=8 actor_rollout_ref.model.lora.rank=16 \
         actor_rollout_ref.model.lora.target_modules=[linear_qkv]",
    ),
    (
        "vision",
        "algorithm.adv_estimator=grpo data.image_key=images \
         actor_rollout_ref.actor.freeze_vision_tower=True \
         actor_rollout_ref.rollout.engine_kwargs.vllm.disable_mm_preprocessor_cache=True \
         actor_rollout_ref.model.path=Qwen/Qwen2.5-VL-7B-Instruct data.filter_overlong_prompts=True \
         data.train_files=\"['~/data/geo3k/train.parquet', '~/data/other/train.parquet']\" \
         trainer.nnodes=2",
    ),
    (
        "critic",
        "algorithm.adv_estimator=gae critic.model.path=Qwen/Qwen2.5-0.5B critic.optim.lr=1e-5 \
         critic.fsdp.param_offload=True critic.model.use_remove_padding=True actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=4",
    ),
    (
        "own module",
        "algorithm.adv_estimator=group_ppo critic.enable=True \
         actor_rollout_ref.actor.policy_loss.loss_mode=group_ppo \
         actor_rollout_ref.model.external_lib=my_own +algorithm.group_params.group_max_size=8",
    ),
];

/// Everything that the trainer can be configured with, one thing after the other, and the losses with every estimator.
fn walk() -> Vec<(String, Read)> {
    let mut all: Vec<(String, Read)> =
        preset::NAMES.iter().map(|name| ((*name).to_owned(), of(preset::preset(name).unwrap()))).collect();
    let mut add = |line: String| all.push((line.clone(), demo(&line)));
    let named = |value: &Value| value.as_str().unwrap().to_owned();
    let estimators = ESTIMATORS.map(|estimator| named(&json!(estimator)));
    let losses = LOSSES.map(|loss| named(&json!(loss)));
    for (at, estimator) in estimators.iter().enumerate() {
        for (also, loss) in losses.iter().enumerate() {
            let aggregation = named(&json!(MODES[(at + also) % MODES.len()]));
            add(format!(
                "algorithm.adv_estimator={estimator} actor_rollout_ref.actor.policy_loss.loss_mode={loss} \
                 actor_rollout_ref.actor.loss_agg_mode={aggregation}"
            ));
        }
    }
    for penalty in PENALTIES.map(|penalty| named(&json!(penalty))) {
        add(format!("actor_rollout_ref.actor.kl_loss_type={penalty}"));
        add(format!(
            "algorithm.use_kl_in_reward=True algorithm.kl_penalty={penalty} \
             algorithm.kl_ctrl.type=adaptive \
             actor_rollout_ref.actor.use_kl_loss=False"
        ));
    }
    for line in [
        "actor_rollout_ref.actor.loss_agg_mode=seq-mean-token-sum-norm \
         algorithm.norm_adv_by_std_in_grpo=False",
        "actor_rollout_ref.actor.clip_ratio=0.1 actor_rollout_ref.actor.grad_clip=0.5",
        "actor_rollout_ref.actor.clip_ratio_low=0.2 actor_rollout_ref.actor.clip_ratio_high=0.28 \
         actor_rollout_ref.actor.clip_ratio_c=10.0",
        "algorithm.filter_groups.enable=True reward.overlong_buffer.enable=True \
         reward.overlong_buffer.len=16",
        "algorithm.keep_pos_ratio=0.7 algorithm.keep_neg_ratio=0.5 algorithm.compute_new_adv=true",
        "algorithm.adv_estimator=gae critic.cliprange_value=null critic.ppo_epochs=2 critic.grad_clip=0.5 \
         critic.loss_agg_mode=token-sum actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=null",
        "algorithm.adv_estimator=group_ppo algorithm.group_params.group_max_size=null \
         algorithm.group_params.sparse_below=0.25",
        "actor_rollout_ref.model.lora_rank=16 actor_rollout_ref.model.lora_alpha=32 \
         actor_rollout_ref.model.target_modules=[q_proj,v_proj] actor_rollout_ref.model.use_fused_kernels=True",
        "actor_rollout_ref.actor.optim.lr_scheduler_type=linear critic.optim.lr_scheduler_type=linear \
         actor_rollout_ref.actor.optim.min_lr_ratio=0.1 actor_rollout_ref.actor.optim.betas=[0.9,0.95]",
        "actor_rollout_ref.rollout.val_kwargs.do_sample=True \
         actor_rollout_ref.rollout.val_kwargs.temperature=0.6 \
         actor_rollout_ref.rollout.val_kwargs.n=8 actor_rollout_ref.rollout.top_k=50 actor_rollout_ref.rollout.top_p=0.9",
        "algorithm.rollout_correction.bypass_mode=True actor_rollout_ref.actor.entropy_coeff=0.01 \
         actor_rollout_ref.actor.dtype=bfloat16 reward.method=flexible trainer.device=cpu",
        "trainer.project_name='it is 1 e-6, \"so\"' trainer.experiment_name=\"'100'\" \
         trainer.default_local_dir=/tmp/a=b \
         data.train_files=some/where",
        "trainer.n_gpus_per_node=4 verl.trainer.nnodes=2 \
         verl.actor_rollout_ref.rollout.tensor_model_parallel_size=2 \
         verl.actor_rollout_ref.rollout.gpu_memory_utilization=0.5",
        "verl.model_engine=megatron verl.actor_rollout_ref.actor.megatron.tensor_model_parallel_size=2 \
         verl.trainer.n_gpus_per_node=8 actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=null \
         actor_rollout_ref.model.lora_rank=8 actor_rollout_ref.actor.optim.min_lr_ratio=0.1 \
         actor_rollout_ref.actor.optim.lr_scheduler_type=linear",
    ] {
        add(line.to_owned());
    }
    let documents = DOCUMENTS.iter().chain(BEYOND).map(|(name, line)| ((*name).to_owned(), imported(line)));
    all.extend(documents);
    all.extend(FILES.iter().map(|(name, text)| (format!("{name}.yaml"), imported_file(text))));
    all
}

const ESTIMATORS: [AdvEstimator; 9] = [
    AdvEstimator::Grpo,
    AdvEstimator::Rloo,
    AdvEstimator::ReinforcePlusPlus,
    AdvEstimator::ReinforcePlusPlusBaseline,
    AdvEstimator::Remax,
    AdvEstimator::Opo,
    AdvEstimator::Gpg,
    AdvEstimator::Gae,
    AdvEstimator::GroupPpo,
];
const LOSSES: [LossMode; 6] =
    [LossMode::Vanilla, LossMode::Gpg, LossMode::Gspo, LossMode::Cispo, LossMode::GeoMean, LossMode::Sapo];
fn imported_file(text: &str) -> Read {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("run.yaml");
    fs::write(&path, text).unwrap();
    imported(path.to_str().unwrap())
}

#[test]
fn every_key_of_ours_has_a_row_and_every_row_a_key_of_verls() {
    let ours: Vec<&str> = ROWS.iter().map(|row| row.ours).collect();
    let once: BTreeSet<&str> = ours.iter().copied().collect();
    assert_eq!(ours.len(), once.len(), "a key twice");
    let all = keys(&Config::default());
    assert_eq!(once, all.keys().map(String::as_str).collect::<BTreeSet<_>>());
    let added =
        ["algorithm.keep_", "algorithm.compute_new_adv", "algorithm.group_params.", "reward.reward_kwargs."];
    for engine in [Engine::Fsdp, Engine::Megatron] {
        let letter = if engine == Engine::Fsdp { 'd' } else { 'm' };
        let known = |key: &str| {
            include_str!("../../src/verl/tree.txt").lines().any(|line| {
                let mut parts = line.split(' ');
                parts.next() == Some(key) && parts.next().unwrap().contains(letter)
            })
        };
        for name in ROWS.iter().filter_map(|row| row.verl(engine)) {
            assert!(known(name) || added.iter().any(|added| name.starts_with(added)), "{engine:?}: {name}");
        }
    }
}

#[test]
fn what_is_exported_and_imported_is_exported_the_same() {
    let folder = TempDir::new().unwrap();
    for (name, read) in walk() {
        let first = job(&read);
        let back = import(&first.arguments()).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(job(&back).arguments(), first.arguments(), "{name}");
        // The line as a shell would see it, and the file.
        let line = words(&first.command_line());
        assert_eq!(job(&import(&line).unwrap()), job(&back), "{name}");
        let path = folder.path().join("job.yaml");
        fs::write(&path, first.yaml()).unwrap();
        let of_file = imported(path.to_str().unwrap());
        assert_eq!(job(&of_file).arguments(), first.arguments(), "{name}");
        // What an import wrote is what the trainer and an export read.
        fs::write(&path, to_yaml(&back)).unwrap();
        let ours = as_written(preset::tiny(), Some(&path), &[]).unwrap();
        assert_eq!((&ours.config, &ours.verl), (&back.config, &back.verl), "{name}");
        assert_eq!(job(&ours).arguments(), first.arguments(), "{name}");
    }
}

#[test]
fn the_documents_jobs_are_whole_on_the_way_back() {
    let of = |name: &str| job(&imported(DOCUMENTS.iter().find(|(known, _)| *known == name).unwrap().1));
    let says = |job: &Export, key: &str, value: Value| assert_eq!(job.get(key), Some(&value), "{key}");
    let quick = of("quick start");
    says(&quick, "trainer.n_gpus_per_node", json!(2));
    // verl's default, where this crate's trainer has one GPU.
    says(&quick, "actor_rollout_ref.rollout.tensor_model_parallel_size", json!(2));
    says(&quick, "actor_rollout_ref.actor.use_dynamic_bsz", json!(true));
    let lora = of("LoRA");
    says(&lora, "actor_rollout_ref.model.lora_rank", json!(16));
    says(&lora, "actor_rollout_ref.model.lora_alpha", json!(32));
    says(&lora, "actor_rollout_ref.model.target_modules", json!(["q_proj", "v_proj"]));
    let whole = of("whole");
    says(&whole, "trainer.logger", json!(["console", "wandb"]));
    says(&whole, "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu", json!(4));
    says(&whole, "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu", json!(4));
    says(&whole, "actor_rollout_ref.actor.kl_loss_type", json!("k1"));
    let dr_grpo = of("Dr. GRPO");
    says(&dr_grpo, "actor_rollout_ref.actor.loss_scale_factor", json!(512));
    says(&dr_grpo, "algorithm.norm_adv_by_std_in_grpo", json!(false));
    says(&of("8B by its script"), "trainer.total_epochs", json!(20));
    let large = of("671B");
    assert_eq!(large.engine, Engine::Megatron);
    says(&large, "actor_rollout_ref.actor.megatron.pipeline_model_parallel_size", json!(8));
    says(&large, "trainer.nnodes", json!(8));
    says(&of("VL 7B"), "data.image_key", json!("images"));
    let filtered = of("compute_new_adv");
    says(&filtered, "algorithm.adv_estimator", json!("compute_new_adv"));
    says(&filtered, "actor_rollout_ref.model.external_lib", json!("grpo_oracle_verl"));
    assert!(filtered.arguments().contains(&"+algorithm.keep_pos_ratio=0.7".to_owned()));
}

/// What has another name, form or default there.
#[test]
fn a_job_says_what_is_computed_here() {
    const ACTOR: &str = "actor_rollout_ref.actor";
    let gae = "algorithm.adv_estimator=gae";
    let group_ppo = "algorithm.adv_estimator=group_ppo";
    let linear = "actor_rollout_ref.actor.optim.lr_scheduler_type=linear";
    let sampled = "actor_rollout_ref.rollout.val_kwargs.do_sample=True \
                   actor_rollout_ref.rollout.val_kwargs.temperature=0.6";
    for (line, key, value) in [
        ("", "actor_rollout_ref.actor.clip_ratio_c", json!(1_000_000_000)),
        ("", "actor_rollout_ref.actor.clip_ratio_high", json!(0.2)),
        ("", "actor_rollout_ref.actor.ppo_mini_batch_size", json!(4)),
        ("", "actor_rollout_ref.actor.use_kl_loss", json!(true)),
        ("", "actor_rollout_ref.model.enable_gradient_checkpointing", json!(false)),
        ("", "trainer.n_gpus_per_node", json!(1)),
        ("actor_rollout_ref.actor.clip_ratio=0.1", "actor_rollout_ref.actor.clip_ratio_low", json!(0.1)),
        ("actor_rollout_ref.actor.grad_clip=0.5", "actor_rollout_ref.actor.optim.clip_grad", json!(0.5)),
        ("critic.grad_clip=0.5", "critic.optim.clip_grad", json!(0.5)),
        ("critic.cliprange_value=null", "critic.cliprange_value", json!(1_000_000_000)),
        (gae, "critic.ppo_micro_batch_size_per_gpu", json!(16)),
        (gae, "critic.model.path", json!(preset::demo().actor_rollout_ref.model.path)),
        (group_ppo, "critic.enable", json!(true)),
        (group_ppo, "actor_rollout_ref.actor.policy_loss.loss_mode", json!("group_ppo")),
        (group_ppo, "algorithm.group_params.threshold_lr", json!(0.01)),
        ("algorithm.adv_estimator=remax", "trainer.use_v1", json!(false)),
        ("actor_rollout_ref.actor.kl_loss_type=k3+", "actor_rollout_ref.actor.kl_loss_type", json!("k3+")),
        (linear, "actor_rollout_ref.actor.optim.lr_scheduler_type", json!("cosine")),
        ("reward.overlong_buffer.enable=True", "reward.reward_kwargs.max_resp_len", json!(32)),
        ("reward.overlong_buffer.enable=True", "reward.reward_manager.name", json!("dapo")),
        (
            "actor_rollout_ref.actor.loss_agg_mode=seq-mean-token-sum-norm",
            "actor_rollout_ref.actor.loss_scale_factor",
            json!(32),
        ),
        (sampled, "actor_rollout_ref.rollout.val_kwargs.temperature", json!(0.6)),
        ("data.train_files=some/train.jsonl", "data.train_files", json!("some/train.parquet")),
        ("data.train_files=folder", "data.val_files", json!("folder/test.parquet")),
        ("data.train_files=a/b.parquet", "data.val_files", json!("a/test.parquet")),
    ] {
        let job = job(&demo(line));
        assert_eq!(job.get(key), Some(&value), "{line}: {key} in {:#?}", job.arguments());
    }
    let megatron =
        job(&demo(&format!("verl.model_engine=megatron {linear} actor_rollout_ref.model.lora_rank=4")));
    assert_eq!(megatron.get("actor_rollout_ref.actor.optim.lr_decay_style"), Some(&json!("linear")));
    assert_eq!(megatron.get("actor_rollout_ref.model.lora.rank"), Some(&json!(4)));
    // verl's defaults: greedy validation, the mean over tokens, and no bound where nothing is clipped.
    let gpg = job(&demo("actor_rollout_ref.actor.policy_loss.loss_mode=gpg"));
    for key in [
        "rollout.val_kwargs.temperature",
        "actor.loss_agg_mode",
        "actor.clip_ratio_c",
        "actor.clip_ratio_low",
    ] {
        assert_eq!(gpg.get(&format!("actor_rollout_ref.{key}")), None, "{key}");
    }
    // At this temperature verl would sample, whatever do_sample says.
    let greedy = job(&demo("actor_rollout_ref.rollout.val_kwargs.temperature=0.6"));
    assert_eq!(greedy.get("actor_rollout_ref.rollout.val_kwargs.temperature"), None);
    let narrow = job(&demo("actor_rollout_ref.actor.clip_ratio=0.3"));
    assert_eq!(narrow.get(&format!("{ACTOR}.clip_ratio")), None);
}

#[test]
fn jobs_beyond_this_crates_trainer_are_read_by_it_and_lose_nothing() {
    for (name, line) in BEYOND {
        let first = imported(line);
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("run.yaml");
        fs::write(&path, to_yaml(&first)).unwrap();
        let trained = read(Config::default(), Some(&path), &[]).unwrap();
        assert!(
            trained.notes.iter().any(|note| note.contains("under `verl:` are passed over")),
            "{:?}",
            trained.notes
        );
        let job = job(&trained);
        for word in words(line).iter().filter(|word| word.contains('=') && !word.starts_with("--")) {
            let (key, value) = word.trim_start_matches('+').split_once('=').unwrap();
            let is_elsewhere =
                ["reward_model.", ".grad_offload", "external_lib"].iter().any(|part| key.contains(part));
            let said = job.arguments().iter().any(|argument| {
                let (name, written) = argument.trim_start_matches('+').split_once('=').unwrap();
                let bare = |text: &str| text.replace(['\'', ' '], "").to_lowercase();
                let same_number =
                    written.parse::<f64>().ok().zip(value.parse::<f64>().ok()).is_some_and(|(a, b)| a == b);
                name == key && (same_number || bare(written) == bare(&value.replace("$HOME", "~")))
            });
            assert!(
                said || is_elsewhere || is_default(key, value),
                "{name}: {word} in {:#?}",
                job.arguments()
            );
        }
    }
    let own = job(&imported(BEYOND.iter().find(|(name, _)| *name == "own module").unwrap().1));
    assert_eq!(own.get("actor_rollout_ref.model.external_lib"), Some(&json!(["my_own", "grpo_oracle_verl"])));
}

/// Whether verl takes this value where nothing is said.
fn is_default(key: &str, value: &str) -> bool {
    let line =
        include_str!("../../src/verl/tree.txt").lines().find(|line| line.split(' ').next() == Some(key));
    let default: Option<Value> = line.and_then(|line| serde_json::from_str(line.splitn(3, ' ').nth(2)?).ok());
    default.is_some_and(|default| match default.as_f64() {
        Some(number) => value.parse() == Ok(number),
        None => default.to_string().trim_matches('"') == value.to_lowercase(),
    })
}

#[test]
fn what_has_no_counterpart_is_named() {
    for (line, words) in [
        ("algorithm.adv_estimator=group_ppo", "algorithm.adv_estimator is not in verl 0.9.1; the plug-in"),
        ("algorithm.adv_estimator=group_ppo", "critic.enable has to be said"),
        ("algorithm.adv_estimator=remax", "trainer.use_v1 is off for remax"),
        ("algorithm.keep_pos_ratio=0.5", "the plug-in grpo_oracle_verl"),
        ("actor_rollout_ref.actor.clip_ratio=0.1", "clip_ratio alone is ignored by verl 0.9.1"),
        ("data.seed=1", "clip_ratio_c cannot be off"),
        (
            "actor_rollout_ref.actor.loss_agg_mode=seq-mean-token-sum-norm",
            "up to 0.7.0 it divided their \
          sum",
        ),
        ("actor_rollout_ref.actor.policy_loss.loss_mode=geo_mean", "plain mean over each micro-batch"),
        ("actor_rollout_ref.actor.policy_loss.loss_mode=sapo", "always seq-mean-token-mean there"),
        (
            "algorithm.use_kl_in_reward=True algorithm.kl_penalty=k3",
            "keeps k3 within 10 of 0 in the \
          rewards",
        ),
        ("algorithm.filter_groups.enable=True", "max_num_gen_batches is ignored by verl 0.9.1"),
        ("actor_rollout_ref.actor.optim.lr_scheduler_type=linear", "cosine is written"),
        ("reward.method=flexible", "verl.reward.custom_reward_function"),
        ("sft.total_epochs=1", "verl.trainer.sft_trainer"),
        ("algorithm.adv_estimator=gae critic.cliprange_value=null", "critic.cliprange_value cannot be off"),
        ("data.seed=1", "actor_rollout_ref.model.path is no Hugging Face directory"),
        ("data.seed=1", "data.train_files is no Parquet file"),
        (
            "verl.trainer.nodes=2",
            "trainer.nodes is not in verl 0.9.1's configuration for FSDP; it is \
          added",
        ),
        (
            "algorithm.adv_estimator=group_ppo actor_rollout_ref.actor.policy_loss.loss_mode=gspo",
            "sparse_below decides nothing there with this loss_mode",
        ),
        ("worker.actor.offload.x=1", "worker.actor.offload.x is not in verl 0.9.1 and is left out"),
    ] {
        let notes = job(&demo(line)).notes;
        assert!(notes.iter().any(|note| note.contains(words)), "{line}: {notes:#?}");
        assert!(notes.iter().all(|note| note.ends_with('.') && !note.contains('\n')), "{notes:#?}");
    }
    // Nothing is said of what is the same.
    let plain = imported(
        "algorithm.adv_estimator=grpo actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=4 \
         actor_rollout_ref.rollout.name=vllm algorithm.rollout_correction.bypass_mode=True",
    );
    let notes = job(&plain).notes;
    assert_eq!(notes.len(), 1, "{notes:#?}");
    assert!(notes[0].starts_with("data.seed"));
}

#[test]
fn what_verl_takes_otherwise_is_named_on_the_way_in() {
    for (line, words) in [
        ("actor_rollout_ref.actor.clip_ratio=0.1", "clip_ratio decides nothing in verl 0.9.1 unless"),
        ("actor_rollout_ref.actor.grad_clip=0.5", "optim.clip_grad is in its place"),
        ("actor_rollout_ref.rollout.val_kwargs.do_sample=True", "do_sample decides nothing in verl 0.9.1"),
        (
            "actor_rollout_ref.actor.loss_agg_mode=seq-mean-token-sum-norm",
            "the length that the batch is padded to",
        ),
        (
            "actor_rollout_ref.actor.use_kl_loss=True actor_rollout_ref.actor.kl_loss_type=kl",
            "the expected gradient of that estimator is 0",
        ),
        ("actor_rollout_ref.actor.lora.r=16", "actor_rollout_ref.model.lora_rank is in its place"),
        (
            "actor_rollout_ref.actor.fsdp_config.gradient_checkpointing=True",
            "actor_rollout_ref.model.enable_gradient_checkpointing is in its place",
        ),
        ("reward_model.reward_manager=dapo", "reward.reward_manager.name is in its place"),
        (
            "actor_rollout_ref.actor.megatron.grad_offload=True",
            "is no longer in verl 0.9.1 and is left \
          out",
        ),
        ("actor_rollout_ref.actor.strategy=megatron", "model_engine=megatron takes its place"),
        ("bash examples/grpo_trainer/run_qwen3-8b.sh", "run_qwen3_8b_fsdp.sh in its place"),
        ("config=examples/config_agiqa3k.yaml", "config_agiqa3k.yaml is not here"),
        ("trainer.nnodes=2", "4 key(s) are for verl alone"),
        ("algorithm.adv_estimator=grpo", "a lone response's reward itself"),
    ] {
        let notes = imported(line).notes;
        assert!(notes.iter().any(|note| note.contains(words)), "{line}: {notes:#?}");
        assert!(notes.iter().all(|note| !note.contains('\n')), "{notes:#?}");
    }
    // verl computes with its own bounds, so these stay; with null they are what clip_ratio says.
    let actor = |line: &str| imported(line).config.actor_rollout_ref.actor;
    assert_eq!(actor("actor_rollout_ref.actor.clip_ratio=0.1").clip_ratio_high, Some(0.2));
    let open = actor(
        "actor_rollout_ref.actor.clip_ratio=0.1 actor_rollout_ref.actor.clip_ratio_low=null \
         actor_rollout_ref.actor.clip_ratio_high=null",
    );
    assert_eq!((open.clip_ratio, open.clip_ratio_high), (0.1, None));
    assert_eq!(actor("actor_rollout_ref.actor.grad_clip=0.5").grad_clip, 0.5);
    let config = imported("data.seed=3").config;
    assert_eq!(config.algorithm.adv_estimator, AdvEstimator::Gae);
    assert_eq!(config.actor_rollout_ref.actor.clip_ratio_c, Some(3.0));
    assert_eq!((config.data.train_batch_size, config.actor_rollout_ref.rollout.n), (1024, 1));
    assert!(!config.actor_rollout_ref.rollout.val_kwargs.do_sample);
}

#[test]
fn what_cannot_be_imported_is_said_in_a_sentence() {
    for (line, words) in [
        ("actor_rollout_ref.rollout.nn=4", "did you mean actor_rollout_ref.rollout.n?"),
        ("algorithm.adv_estimator=gdpo", "unknown variant `gdpo`"),
        ("actor_rollout_ref.actor.policy_loss.loss_mode=clip_cov", "unknown variant `clip_cov`"),
        ("data.train_batch_size=four", "invalid type: string \"four\""),
        ("model_engine=veomni", "use dp or megatron"),
        ("algorithm.adv_estimator", "is not key=value"),
        ("nothing/here.yaml", "nothing/here.yaml"),
        ("xyzzy=1", "verl 0.9.1 has no such key"),
    ] {
        let said = import(&words_of(line)).unwrap_err().to_string();
        assert!(said.contains(words) && !said.contains('\n'), "{line}: {said}");
    }
}

fn words_of(line: &str) -> Vec<String> {
    words(line)
}

#[test]
fn a_script_is_read_with_its_variables() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("run.sh");
    let script = "set -x\nTRAIN=${1:-4}\nexport MODEL=Qwen/Qwen3-8B\nTRAIN_FILE=\"$HOME/x\"\n\
                  # a comment with = in it\nlong=$((1024 * 2))\nboth=$(((long + 24) * 10 / 10))\nFOLDER=${FOLDER:-\"${HOME}/data\"}\nnodes=${NNODES:-\"2\"}\n\
                  ALSO=(\n    data.max_prompt_length=${long}\n    data.seed=7\n)\n\n\
                  python3 -m verl.trainer.main_ppo \\\n    # ===== what =====\n    algorithm.adv_estimator=grpo \\\n\n    \
                  data.train_files=\"$FOLDER/train.parquet\" \\\n    actor_rollout_ref.rollout.n=$TRAIN \\\n    \
                  \"${ALSO[@]}\" data.max_response_length=${both} \\\n    \
                  actor_rollout_ref.model.path=${MODEL} \\\n    trainer.nnodes=\"${nodes}\" $@\n\necho done=1\n";
    fs::write(&path, script).unwrap();
    let read = imported(path.to_str().unwrap());
    assert_eq!(read.config.actor_rollout_ref.rollout.n, 4);
    assert_eq!(read.config.actor_rollout_ref.model.path, "Qwen/Qwen3-8B");
    assert_eq!(read.config.data.train_files, "~/data/train.parquet");
    assert_eq!(read.verl["trainer.nnodes"], json!(2));
    let data = read.config.data;
    assert_eq!((data.max_prompt_length, data.max_response_length, data.seed), (2048, 2072, 7));
}

#[test]
fn the_command_goes_both_ways() {
    let folder = TempDir::new().unwrap();
    let (config, yaml) = (folder.path().join("run.yaml"), folder.path().join("job.yaml"));
    let run = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_grpo-oracle")).args(arguments).output().unwrap();
        (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap(), output.status)
    };
    let (config, yaml) = (config.to_str().unwrap(), yaml.to_str().unwrap());
    let line = words(DOCUMENTS[0].1);
    let mut arguments = vec!["import-verl", "--out", config];
    arguments.extend(line.iter().map(String::as_str));
    let (_, said, status) = run(&arguments);
    assert!(status.success() && said.contains("note: "), "{said}");
    let (job, said, status) = run(&["export-verl", config, "data.seed=5", "--yaml", yaml]);
    assert!(status.success() && said.contains("note: data.seed"), "{said}");
    assert!(
        job.starts_with("python3 -m verl.trainer.main_ppo \\\n    algorithm.adv_estimator=grpo \\\n"),
        "{job}"
    );
    assert!(job.contains("data.seed=5") && fs::read_to_string(yaml).unwrap().contains("\n  seed: 5\n"));
    let (_, said, status) = run(&["export-verl", "nothing.yaml"]);
    assert!(!status.success() && said.starts_with("error: nothing.yaml"), "{said}");
}

/// Every job, by the installed verl: composed by Hydra from its own configuration tree, checked by its own checks. One
/// in 23 of the rows is enough where time is dear, with all of the documents'; with `EVERY_JOB=1` it is every one.
#[test]
fn verl_takes_every_job() {
    let Some(python) = python::with("hydra") else { return };
    let folder = TempDir::new().unwrap();
    let mut questions = String::new();
    let mut asked = BTreeMap::new();
    let every = std::env::var_os("EVERY_JOB").is_some();
    for (at, (name, read)) in walk().into_iter().enumerate() {
        // Those that are asked anyway: the presets, and what stands alone.
        let in_rows =
            name.contains("loss_mode=") || name.contains("kl_loss_type=") || name.contains("kl_penalty=");
        if !every && in_rows && at % 23 != 0 {
            continue;
        }
        let job = job(&read);
        let path = folder.path().join(format!("job_{at}.yaml"));
        fs::write(&path, job.yaml()).unwrap();
        let keys: Vec<&String> = job.overrides.iter().map(|(key, _)| key).collect();
        let question = json!({ "name": name, "overrides": job.arguments(), "yaml": path, "keys": keys });
        // Composing takes half a second; the files' trees are the lines' trees by construction.
        let question = match every || at % 8 == 0 || job.engine == Engine::Megatron {
            true => question,
            false => json!({ "name": name, "overrides": job.arguments(), "keys": keys }),
        };
        questions += &format!("{question}\n");
        asked.insert(name, job);
    }
    questions +=
        &json!({ "name": "no such key", "overrides": ["actor_rollout_ref.rollout.nn=4"] }).to_string();
    let answers = ask(&python, &questions);
    assert_eq!(answers.len(), asked.len() + 1);
    let mut wrong = Vec::new();
    for answer in &answers {
        let name = answer["name"].as_str().unwrap();
        let Some(job) = asked.get(name) else {
            assert!(answer["problem"].as_str().unwrap().contains("nn"), "{answer}");
            continue;
        };
        if !answer["problem"].is_null() {
            wrong.push(format!("{name}: {}", answer["problem"]));
        }
        for (key, value) in job.overrides.iter().filter(|_| answer["problem"].is_null()) {
            let there = &answer["config"][key];
            let same = there == value || there.as_f64().is_some_and(|number| Some(number) == value.as_f64());
            if !same {
                wrong.push(format!("{name}: {key} is {there} there and {value} here"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn ask(python: &Path, questions: &str) -> Vec<Value> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/python/check_verl_config.py");
    let mut child =
        Command::new(python).arg(script).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let questions = questions.to_owned();
    let writing = std::thread::spawn(move || stdin.write_all(questions.as_bytes()).unwrap());
    let output = child.wait_with_output().unwrap();
    writing.join().unwrap();
    assert!(output.status.success());
    let lines = String::from_utf8(output.stdout).unwrap();
    lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The list of verl's keys is the installed verl's.
#[test]
fn the_list_of_verls_keys_is_verls() {
    let Some(python) = python::with("hydra") else { return };
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/python/check_verl_config.py");
    let output = Command::new(python).args([script, "--tree"]).stderr(Stdio::null()).output().unwrap();
    let now = String::from_utf8(output.stdout).unwrap();
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/verl/tree.txt");
    if std::env::var_os("UPDATE").is_some() {
        fs::write(path, &now).unwrap();
    }
    assert!(now == fs::read_to_string(path).unwrap(), "src/verl/tree.txt is old; UPDATE=1 writes it anew");
}
