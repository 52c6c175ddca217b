//! Every algorithm learns, and a broken one does not: whole runs of the example on the tiny model. The rise of a run is
//! the mean reward of the last tenth of its steps less that of the first tenth.
//!
//! An ordinary test run asks a few algorithms with one seed. `GRPO_ORACLE_LEARN=2 cargo test --features torch --test it
//! learn::all` asks all of them with five seeds and writes `docs/learning.md`; the number is that of runs at a time;
//! `2:PPO` asks only those whose name contains `PPO`, and writes nothing.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use grpo_oracle::config::{preset, read};
use grpo_oracle::train::algorithm::{Algorithm, Spoilt};
use tempfile::TempDir;

use crate::train::gsm8k::{self, stop::Stop};

/// A run rises if its rise is above this.
const MARGIN: f64 = 0.2;
const SEEDS: u64 = 5;

/// A run of the tiny preset with something changed.
struct Row {
    name: &'static str,
    /// What is changed, as on a command line.
    arguments: &'static str,
    spoilt: Option<Spoilt>,
    /// Whether an ordinary test run asks it, too.
    quick: bool,
}

impl Row {
    const fn new(name: &'static str, arguments: &'static str) -> Self {
        Self { name, arguments, spoilt: None, quick: false }
    }

    const fn quick(self) -> Self {
        Self { quick: true, ..self }
    }

    const fn spoilt(self, how: Spoilt) -> Self {
        Self { spoilt: Some(how), ..self }
    }

    /// How its line of the table begins.
    fn heading(&self) -> String {
        let arguments =
            if self.arguments.is_empty() { String::new() } else { format!("`{}`", self.arguments) };
        format!("| {} | {arguments} |", self.name)
    }
}

/// The objectives with a ratio of their own take two optimiser steps a rollout: the second is off-policy.
const ROWS: &[Row] = &[
    Row::new("GRPO", "").quick(),
    Row::new(
        "Dr. GRPO",
        "algorithm.norm_adv_by_std_in_grpo=False \
         actor_rollout_ref.actor.loss_agg_mode=seq-mean-token-sum-norm",
    ),
    Row::new(
        "DAPO",
        "algorithm.filter_groups.enable=True actor_rollout_ref.actor.clip_ratio_high=0.28 \
         reward.overlong_buffer.enable=True reward.overlong_buffer.len=3",
    ),
    Row::new(
        "compute_new_adv",
        "algorithm.keep_pos_ratio=0.7 algorithm.keep_neg_ratio=0.5 \
         algorithm.compute_new_adv=True",
    ),
    Row::new("RLOO", "algorithm.adv_estimator=rloo").quick(),
    Row::new("REINFORCE++", "algorithm.adv_estimator=reinforce_plus_plus"),
    Row::new("REINFORCE++ baseline", "algorithm.adv_estimator=reinforce_plus_plus_baseline"),
    Row::new("ReMax", "algorithm.adv_estimator=remax"),
    Row::new("OPO", "algorithm.adv_estimator=opo"),
    Row::new("GPG", "algorithm.adv_estimator=gpg actor_rollout_ref.actor.policy_loss.loss_mode=gpg"),
    Row::new(
        "PPO",
        "algorithm.adv_estimator=gae actor_rollout_ref.actor.ppo_epochs=2 \
         actor_rollout_ref.actor.optim.lr=5e-4 trainer.critic_warmup=5",
    ),
    Row::new(
        "GROUP-PPO",
        "algorithm.adv_estimator=group_ppo actor_rollout_ref.actor.ppo_epochs=2 \
         actor_rollout_ref.actor.optim.lr=5e-4 trainer.critic_warmup=5 \
         trainer.total_training_steps=200",
    ),
    Row::new(
        "GSPO",
        "actor_rollout_ref.actor.policy_loss.loss_mode=gspo \
         actor_rollout_ref.actor.clip_ratio=0.05 \
         actor_rollout_ref.actor.loss_agg_mode=seq-mean-token-mean \
         actor_rollout_ref.actor.ppo_mini_batch_size=4 actor_rollout_ref.actor.optim.lr=5e-4",
    ),
    Row::new(
        "CISPO",
        "actor_rollout_ref.actor.policy_loss.loss_mode=cispo \
         actor_rollout_ref.actor.ppo_mini_batch_size=4 actor_rollout_ref.actor.optim.lr=5e-4",
    ),
    Row::new(
        "GMPO",
        "actor_rollout_ref.actor.policy_loss.loss_mode=geo_mean \
         actor_rollout_ref.actor.clip_ratio=0.4 actor_rollout_ref.actor.ppo_mini_batch_size=4 \
         actor_rollout_ref.actor.optim.lr=5e-4",
    ),
    Row::new(
        "SAPO",
        "actor_rollout_ref.actor.policy_loss.loss_mode=sapo \
         actor_rollout_ref.actor.ppo_mini_batch_size=4 actor_rollout_ref.actor.optim.lr=5e-4",
    ),
    Row::new(
        "GRPO, KL in the loss",
        "actor_rollout_ref.actor.use_kl_loss=True actor_rollout_ref.actor.kl_loss_coef=0.01 \
         actor_rollout_ref.actor.entropy_coeff=0.001",
    ),
    Row::new(
        "GRPO, KL in the reward",
        "algorithm.use_kl_in_reward=True algorithm.kl_ctrl.type=adaptive \
         algorithm.kl_ctrl.kl_coef=0.01",
    ),
    Row::new("broken: advantages flipped", "").spoilt(Spoilt::FlippedAdvantages).quick(),
    Row::new("broken: mask shifted", "").spoilt(Spoilt::ShiftedMask),
];

/// Mean rewards of the first and of the last tenth of a run's steps.
fn run(row: &Row, seed: u64, steps: Option<usize>) -> (f64, f64) {
    let folder = TempDir::new().unwrap();
    let arguments: Vec<String> = row.arguments.split_whitespace().map(str::to_owned).collect();
    let mut config = read(preset::tiny(), None, &arguments).unwrap().config;
    config.trainer.total_training_steps = steps.or(config.trainer.total_training_steps);
    config.data.seed = seed;
    config.trainer.default_local_dir = Some(folder.path().to_owned());
    config.trainer.device = Some("cpu".to_owned());
    (config.trainer.val_before_train, config.trainer.test_freq) = (false, -1);
    let mut algorithm = Algorithm::resolve(&config).unwrap();
    if let Some(how) = row.spoilt {
        algorithm = algorithm.spoilt(how);
    }
    let run = gsm8k::train(&config, algorithm, None, &Stop::default()).unwrap();
    // With dynamic sampling, of all responses that were sampled and not of those kept.
    let accuracy: Vec<f64> =
        run.steps().iter().map(|line| line.sampled_reward.unwrap_or(line.accuracy)).collect();
    let tenth = accuracy.len() / 10;
    let mean = |part: &[f64]| part.iter().sum::<f64>() / part.len() as f64;
    (mean(&accuracy[..tenth]), mean(&accuracy[accuracy.len() - tenth..]))
}

#[test]
fn a_few_algorithms_learn() {
    for row in ROWS.iter().filter(|row| row.quick) {
        // Half a run rises half as far.
        let (first, last) = run(row, 0, Some(60));
        let rises = last - first > MARGIN / 2.0;
        assert_eq!(rises, row.spoilt.is_none(), "{}: from {first:.2} to {last:.2}", row.name);
    }
}

#[test]
fn the_page_has_a_line_for_every_row() {
    let page = std::fs::read_to_string(page()).unwrap();
    let headings: Vec<&str> = page.lines().filter(|line| line.starts_with("| ")).skip(1).collect();
    assert_eq!(headings.len(), ROWS.len());
    for (row, line) in ROWS.iter().zip(headings) {
        assert!(line.starts_with(&row.heading()), "{}", row.name);
        let arguments: Vec<String> = row.arguments.split_whitespace().map(str::to_owned).collect();
        assert!(read(preset::tiny(), None, &arguments).unwrap().notes.is_empty(), "{}", row.name);
    }
}

fn page() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/learning.md")
}

#[test]
fn all_algorithms_learn_with_five_seeds() {
    let Ok(asked) = std::env::var("GRPO_ORACLE_LEARN") else { return };
    let (at_a_time, wanted) = asked.split_once(':').unwrap_or((&asked, ""));
    let rows: Vec<&Row> = ROWS.iter().filter(|row| row.name.contains(wanted)).collect();
    let jobs: Vec<(usize, u64)> =
        (0..rows.len()).flat_map(|row| (0..SEEDS).map(move |seed| (row, seed))).collect();
    let (next, done) = (AtomicUsize::new(0), Mutex::new(BTreeMap::new()));
    thread::scope(|scope| {
        for _ in 0..at_a_time.parse().unwrap_or(1) {
            scope.spawn(|| {
                while let Some(&(row, seed)) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let (first, last) = run(rows[row], seed, None);
                    eprintln!("{}, seed {seed}: from {first:.3} to {last:.3}", rows[row].name);
                    done.lock().unwrap().insert((row, seed), (first, last));
                }
            });
        }
    });
    let done = done.into_inner().unwrap();
    let (mut table, mut wrong) = (String::new(), Vec::new());
    for (index, row) in rows.iter().enumerate() {
        let runs: Vec<(f64, f64)> = (0..SEEDS).map(|seed| done[&(index, seed)]).collect();
        let rises: Vec<f64> = runs.iter().map(|(first, last)| last - first).collect();
        let mean = |of: fn(&(f64, f64)) -> f64| runs.iter().map(of).sum::<f64>() / SEEDS as f64;
        let (least, most) = rises.iter().fold((f64::MAX, f64::MIN), |(a, b), &r| (a.min(r), b.max(r)));
        writeln!(
            table,
            "{} {:.2} | {:.2} | {least:+.2} | {most:+.2} |",
            row.heading(),
            mean(|run| run.0),
            mean(|run| run.1)
        )
        .unwrap();
        let is_right = if row.spoilt.is_none() { least > MARGIN } else { most < MARGIN };
        if !is_right {
            wrong.push(format!("{}: {rises:.2?}", row.name));
        }
    }
    let text = format!(
        "# Every algorithm learns, and a broken one does not\n\n\
         Whole runs of `examples/gsm8k` on the preset `tiny` (a model of a hundred thousand weights, sums and differences of\n\
         digits), {SEEDS} seeds each. Shares of right answers among all sampled responses: the mean of the first and of the last tenth\n\
         of the steps, then the smallest and the largest rise of the {SEEDS} runs. A run rises if it does so by more than {MARGIN}: every run\n\
         of an algorithm must, and none of a broken one. A shifted mask leaves the answer's first token, which decides, out of the\n\
         loss; what rises all the same is the repetition of the result behind the mark.\n\n\
         Written by `GRPO_ORACLE_LEARN=2 cargo test --features torch --test it learn::all`.\n\n\
         | algorithm | beside `--preset tiny` | first | last | least rise | largest rise |\n|---|---|---|---|---|---|\n\
         {table}"
    );
    if wanted.is_empty() {
        std::fs::write(self::page(), text).unwrap();
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
