//! Configurations as the documents write them, and what is said of those that are wrong.

use std::collections::BTreeMap;
use std::fs;

use grpo_oracle::config::{AdvEstimator, Config, Read, TargetModules, describe, keys, page, read};
use grpo_oracle::options::{KlPenalty, LossAggMode};
use serde_json::json;
use tempfile::TempDir;

fn arguments(line: &str) -> Vec<String> {
    shlex::split(&line.replace("\\\n", " ")).unwrap()
}

fn of(line: &str) -> Read {
    read(Config::default(), None, &arguments(line)).unwrap()
}

fn refused(line: &str) -> String {
    read(Config::default(), None, &arguments(line)).unwrap_err().to_string()
}

fn from_file(text: &str) -> grpo_oracle::Result<Read> {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("run.yaml");
    fs::write(&path, text).unwrap();
    read(Config::default(), Some(&path), &[])
}

#[test]
fn the_guides_command_lines_are_read_as_written() {
    let quick = of("algorithm.adv_estimator=grpo \
        data.train_files=/data/gsm8k/train.parquet \
        data.val_files=/data/gsm8k/test.parquet \
        data.train_batch_size=256 \
        actor_rollout_ref.model.path=Qwen/Qwen2.5-3B-Instruct \
        actor_rollout_ref.rollout.n=4 \
        actor_rollout_ref.actor.ppo_mini_batch_size=256 \
        actor_rollout_ref.actor.use_kl_loss=True \
        actor_rollout_ref.actor.kl_loss_coef=0.001 \
        trainer.n_gpus_per_node=2 \
        trainer.total_epochs=15");
    let config = &quick.config;
    assert_eq!(config.algorithm.adv_estimator, AdvEstimator::Grpo);
    assert_eq!(config.data.train_files, "/data/gsm8k/train.parquet");
    assert_eq!(config.data.val_files.as_deref(), Some("/data/gsm8k/test.parquet"));
    assert_eq!(config.data.train_batch_size, 256);
    assert_eq!(config.actor_rollout_ref.model.path, "Qwen/Qwen2.5-3B-Instruct");
    assert_eq!(config.actor_rollout_ref.rollout.n, 4);
    assert!(config.actor_rollout_ref.actor.use_kl_loss);
    assert_eq!(config.trainer.total_epochs, 15);
    assert_eq!(quick.notes.len(), 1, "{:?}", quick.notes);
    assert!(quick.notes[0].contains("trainer.n_gpus_per_node"), "{}", quick.notes[0]);

    let lora = of(r#"algorithm.adv_estimator=grpo \
        actor_rollout_ref.actor.lora.enable=True \
        actor_rollout_ref.actor.lora.r=16 \
        actor_rollout_ref.actor.lora.alpha=32 \
        actor_rollout_ref.actor.lora.target_modules='["q_proj","v_proj"]' \
        trainer.n_gpus_per_node=2"#);
    let model = &lora.config.actor_rollout_ref.model;
    assert_eq!((model.lora_rank, model.lora_alpha), (16, 32.0));
    let layers = ["q_proj", "v_proj"].map(str::to_owned).to_vec();
    assert_eq!(model.target_modules, TargetModules::List(layers));

    let whole = of(r#"algorithm.norm_adv_by_std_in_grpo=True
        actor_rollout_ref.rollout.name=vllm actor_rollout_ref.rollout.tensor_model_parallel_size=2
        actor_rollout_ref.actor.optim.lr=1e-6 actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=4
        actor_rollout_ref.actor.clip_ratio=0.2 actor_rollout_ref.actor.loss_agg_mode=token-mean
        actor_rollout_ref.actor.kl_loss_type=kl trainer.save_freq=5
        trainer.logger='["console","wandb"]'"#);
    let actor = &whole.config.actor_rollout_ref.actor;
    assert_eq!(actor.optim.lr, 1e-6);
    assert_eq!(actor.kl_loss_type, KlPenalty::K1);
    assert_eq!(whole.config.trainer.logger, ["console"]);
    assert_eq!(whole.notes.len(), 3, "{:?}", whole.notes);
    assert_eq!(of("trainer.logger=console").config.trainer.logger, ["console"]);

    let dr_grpo = of("algorithm.norm_adv_by_std_in_grpo=False \
        actor_rollout_ref.actor.loss_agg_mode=seq-mean-token-sum-norm \
        actor_rollout_ref.actor.loss_scale_factor=512 actor_rollout_ref.actor.use_kl_loss=False");
    let actor = &dr_grpo.config.actor_rollout_ref.actor;
    assert!(!dr_grpo.config.algorithm.norm_adv_by_std_in_grpo && !actor.use_kl_loss);
    assert_eq!(actor.loss_agg_mode, LossAggMode::SeqMeanTokenSumNorm);
    assert_eq!(actor.loss_scale_factor, Some(512.0));

    let advice = of("actor_rollout_ref.rollout.gpu_memory_utilization=0.3 \
        actor_rollout_ref.actor.fsdp_config.gradient_checkpointing=True trainer.critic_warmup=0");
    assert!(advice.config.actor_rollout_ref.model.enable_gradient_checkpointing);
}

#[test]
fn the_guides_files_are_read_as_written() {
    let filtering = from_file(
        "data:\n  rollout_batch_size: 128\n  max_prompt_length: 2048\n  max_response_length: 2048\n\n\
         algorithm:\n  adv_estimator: grpo\n  gamma: 1.0\n  lam: 1.0\n  disable_kl: false\n  kl_coef: 1.0e-2\n  \
         keep_neg_ratio: 0.5      # the worse half\n  keep_pos_ratio: 0.7\n  compute_new_adv: true\n\n\
         worker:\n  actor:\n    global_batch_size: 64\n    micro_batch_size_per_device_for_update: 8\n    \
         model:\n      model_path: Qwen/Qwen2.5-7B-Instruct\n    optim:\n      lr: 1.0e-6\n    \
         clip_ratio_low: 0.2\n    clip_ratio_high: 0.28\n    clip_ratio_dual: 10.0\n\n  \
         rollout:\n    n: 16\n    temperature: 1.0\n\n\
         trainer:\n  total_episodes: 10\n  logger: [\"console\", \"wandb\"]\n  project_name: grpo-compute-new-adv\n",
    );
    let Config { data, algorithm, actor_rollout_ref, trainer, .. } = filtering.unwrap().config;
    assert_eq!((data.train_batch_size, data.max_response_length), (128, 2048));
    assert_eq!((algorithm.keep_pos_ratio, algorithm.keep_neg_ratio), (0.7, 0.5));
    assert!(algorithm.compute_new_adv);
    // EasyR1 takes the KL off the rewards where it is neither off nor in the loss.
    assert!(algorithm.use_kl_in_reward && !actor_rollout_ref.actor.use_kl_loss);
    assert_eq!(algorithm.kl_ctrl.kl_coef, 0.01);
    let actor = &actor_rollout_ref.actor;
    assert_eq!((actor.ppo_mini_batch_size, actor.ppo_micro_batch_size_per_gpu), (Some(64), Some(8)));
    assert_eq!((actor.clip_ratio_high, actor.clip_ratio_c), (Some(0.28), Some(10.0)));
    assert_eq!((actor_rollout_ref.rollout.n, trainer.total_epochs), (16, 10));

    let group_ppo = from_file(
        "algorithm:\n  adv_estimator: group_ppo\n  group_params:\n    group_variance_threshold: 2.0\n    \
         group_max_size: 16\n    group_epsilon: 1e-6\n    adaptive_threshold: true\n    threshold_lr: 0.01\n    \
         min_threshold: 0.1\n    max_threshold: 10.0\n",
    );
    let algorithm = group_ppo.unwrap().config.algorithm;
    assert_eq!(algorithm.adv_estimator, AdvEstimator::GroupPpo);
    assert_eq!(algorithm.group_params.group_variance_threshold, 2.0);
    assert_eq!(algorithm.group_params.group_epsilon, 1e-6);
}

#[test]
fn a_later_argument_counts_more_and_the_file_least() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("run.yaml");
    fs::write(&path, "algorithm:\n  gamma: 0.5\n  lam: 0.5\n").unwrap();
    let read =
        read(Config::default(), Some(&path), &arguments("algorithm.lam=0.6 +algorithm.lam=0.7")).unwrap();
    assert_eq!((read.config.algorithm.gamma, read.config.algorithm.lam), (0.5, 0.7));
    for line in [
        "actor_rollout_ref.actor.lora.enable=False actor_rollout_ref.actor.lora.r=16",
        "actor_rollout_ref.actor.lora.r=16 actor_rollout_ref.actor.lora.enable=False",
    ] {
        assert_eq!(of(line).config.actor_rollout_ref.model.lora_rank, 0, "{line}");
    }
}

#[test]
fn a_wrong_key_is_named_with_the_nearest_that_there_is() {
    for (line, words) in [
        ("algorithm.adv_estimater=grpo", "did you mean algorithm.adv_estimator?"),
        ("rollout.n=4", "did you mean actor_rollout_ref.rollout.n?"),
        ("actor.clip_ratio_low=0.1", "did you mean actor_rollout_ref.actor.clip_ratio_low?"),
        ("data=4", "is a section; it has the keys filter_overlong_prompts, max_prompt_length"),
        ("xyzzy=1", "there is no such key (--keys lists all)"),
        ("algorithm.adv_estimator", "is not key=value"),
        ("algorithm.adv_estimator=", "has no value after `=`"),
        ("algorithm.adv_estimator=grop", "unknown variant `grop`, expected one of `grpo`"),
        ("data.train_batch_size=four", "invalid type: string \"four\", expected usize"),
        ("data.train_batch_size=-4", "invalid value: integer `-4`, expected usize"),
        ("actor_rollout_ref.actor.optim.betas=[0.9,x]", "invalid type: string \"x\", expected f64"),
        ("data.seed=[1", "cannot be read"),
        ("data.seed={a:1}", "it is no number, text, truth value or list"),
        ("actor_rollout_ref.actor.megatron.pipeline_model_parallel_size=8", "the model is on one device"),
        ("actor_rollout_ref.actor.strategy=megatron", "the model is on one device"),
        ("actor_rollout_ref.actor.lora.enable=True", "say the adapters' rank"),
        ("data.truncation=left", "a prompt is never cut"),
    ] {
        let said = refused(line);
        assert!(said.contains(words), "{line}: {said}");
        assert!(!said.contains('\n'), "{said}");
        let key = line.split('=').next().unwrap();
        assert!(said.contains(key), "{said}");
    }
}

#[test]
fn an_error_in_a_file_says_the_line() {
    let said = |text: &str| from_file(text).unwrap_err().to_string();
    let unknown = said("algorithm:\n  gamma: 1.0\n  lamda: 0.95\n");
    assert!(
        unknown.contains(
            "run.yaml: line 3: `algorithm.lamda`: there is no such key; did you mean algorithm.lam?"
        ),
        "{unknown}"
    );
    let wrong = said("data:\n  seed: first\n");
    assert!(wrong.contains("line 2: `data.seed`: invalid type: string \"first\""), "{wrong}");
    let broken = said("data:\n  seed: [1\n");
    assert!(broken.contains("is not YAML"), "{broken}");
    assert!(said("grpo\n").contains("write sections"));
    assert!(said("data:\n  seed: 1\n  seed: 2\n").contains("line"), "twice");
    assert_eq!(from_file("# nothing\n").unwrap().config, Config::default());
}

#[test]
fn what_a_run_writes_is_read_back() {
    let config = of("algorithm.adv_estimator=gae data.seed=7 trainer.total_training_steps=3").config;
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("config.json");
    fs::write(&path, serde_json::to_string_pretty(&config).unwrap()).unwrap();
    assert_eq!(
        read(Config::default(), Some(&path), &[]).unwrap(),
        Read { config, verl: BTreeMap::new(), notes: Vec::new() }
    );
    assert_eq!(keys(&Config::default())["algorithm.adv_estimator"], json!("grpo"));
}

#[test]
fn the_list_of_keys_is_whole_and_as_published() {
    let described = describe();
    let names: Vec<&str> = described.iter().map(|key| key.name.as_str()).collect();
    let mut sorted = names.clone();
    sorted.sort_unstable();
    let all = keys(&Config::default());
    assert_eq!(sorted, all.keys().map(String::as_str).collect::<Vec<_>>());
    for key in &described {
        assert!(!key.words.is_empty(), "{}", key.name);
    }
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/config.md");
    if std::env::var_os("UPDATE").is_some() {
        fs::write(path, page()).unwrap();
    }
    assert!(fs::read_to_string(path).unwrap() == page(), "docs/config.md is old; UPDATE=1 writes it anew");
}
