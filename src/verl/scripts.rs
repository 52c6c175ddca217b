//! Shell scripts: the command line in one, and what the source documents say of those of verl's that they name.

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
             and verl's defaults. Name \
             the file itself to have it read.",
            self.name, self.now
        )
    }
}

/// What is known of the script of this name.
pub(super) fn find(name: &str) -> Option<&'static Script> {
    SCRIPTS.iter().find(|script| script.name == name)
}

/// The words of a script's command line for verl, with the script's own variables put in.
pub(super) fn command(text: &str) -> Option<Vec<String>> {
    // A line of words alone may have stray comments between the lines that it is broken into.
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim_start().starts_with('#')).collect();
    let text = lines.join("\n").replace("\\\n", " ");
    let begin = text.find("verl.trainer.main")?;
    let variables = variables(&text[..begin]);
    let command = &text[begin..];
    // Blank lines between the parts are as stray as comments are; what else follows is another command.
    let words = shlex::split(&substituted(command, &variables))?;
    let is_word =
        |word: &&String| word.contains('=') || word.starts_with('-') || word.starts_with("verl.trainer");
    Some(words.iter().take_while(|word| is_word(word) || word.starts_with('$')).cloned().collect())
}

/// `name=value` lines, each with those before it put in; `${NAME:-value}` is its value.
fn variables(text: &str) -> Vec<(String, String)> {
    let mut known: Vec<(String, String)> = Vec::new();
    for line in text.lines() {
        let line = line.trim().trim_start_matches("export ");
        let Some((name, value)) = line.split_once('=') else { continue };
        if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
            continue;
        }
        let value = substituted(value, &known);
        let unquoted = shlex::split(&value).and_then(|words| words.into_iter().next()).unwrap_or_default();
        known.push((name.to_owned(), unquoted));
    }
    known
}

/// The longest names first, so that `$TRAIN_FILE` is not `$TRAIN`.
fn substituted(text: &str, variables: &[(String, String)]) -> String {
    let mut text = text.replace("${HOME}", "~").replace("$HOME", "~");
    let mut longest: Vec<&(String, String)> = variables.iter().rev().collect();
    longest.sort_by_key(|(name, _)| std::cmp::Reverse(name.len()));
    for (name, value) in longest {
        text = text.replace(&format!("${{{name}}}"), value).replace(&format!("${name}"), value);
    }
    without_fallbacks(&text)
}

/// `${NAME:-value}` and `${1:-value}` as their value.
fn without_fallbacks(text: &str) -> String {
    let mut rest = text;
    let mut out = String::new();
    while let Some(start) = rest.find("${") {
        let Some(end) = rest[start..].find('}') else { break };
        let inside = &rest[start + 2..start + end];
        out.push_str(&rest[..start]);
        match inside.split_once(":-") {
            Some((_, value)) => out.push_str(value),
            None => out.push_str(&rest[start..=start + end]),
        }
        rest = &rest[start + end + 1..];
    }
    out + rest
}
