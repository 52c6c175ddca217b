//! Whether a step's figures keep to the guide's rules, in words.

use tch::Tensor;

use super::report::StepLine;
use crate::Result;
use crate::options::HealthRules;
use crate::torch::metrics;

/// How far the probabilities of sampling and of training may be apart in the mean, where one model computes both: bf16
/// weights bring a few thousandths.
const MOST_APART: f64 = 0.01;

/// Watches the rules from step to step.
#[derive(Debug, Default)]
pub struct Watch {
    /// The rules that the last step broke.
    broken: Vec<Rule>,
}

/// What can be amiss.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rule {
    Signal,
    Kl,
    Clipped,
    Ratio,
    Rollout,
    AdvantageMean,
    AdvantageStd,
}

impl Watch {
    /// A sentence for each rule that held until this step and holds no more. The advantages are only looked at where the
    /// algorithm normalises them.
    ///
    /// # Errors
    /// None that a caller could bring about.
    pub fn look(&mut self, line: &StepLine, is_normalised: bool) -> Result<Vec<String>> {
        let amiss = amiss(line, is_normalised)?;
        let news = amiss.iter().filter(|(rule, _)| !self.broken.contains(rule));
        let said = news.map(|(_, words)| format!("step {}: {words}", line.step)).collect();
        self.broken = amiss.into_iter().map(|(rule, _)| rule).collect();
        Ok(said)
    }
}

fn amiss(line: &StepLine, is_normalised: bool) -> Result<Vec<(Rule, String)>> {
    let rules = HealthRules::guide();
    let update = &line.update;
    let number = |value: f64| Tensor::from(value);
    let (mean, std) = (line.advantages.advantage_mean, line.advantages.advantage_std);
    let has_signal = line.groups_differing > 0.0;
    let looks_at_advantages = is_normalised && has_signal;
    let found = metrics::health(
        &number(update.kl.unwrap_or(0.0)),
        &number(update.clip_fraction),
        &number(if update.updates > 0 { update.ratio_mean } else { 1.0 }),
        &number(if looks_at_advantages { mean } else { 0.0 }),
        &number(if looks_at_advantages { std } else { 1.0 }),
        &rules,
    )?;
    let holds = |rule: &Tensor| rule.double_value(&[]) != 0.0;
    let mut said = Vec::new();
    let mut say = |rule: Rule, words: String| said.push((rule, words));
    if !has_signal {
        say(Rule::Signal, "in no group do rewards differ, so nothing is learned from them; more responses to a problem, a higher \
             temperature or easier problems help"
            .to_owned());
    }
    if !holds(&found.kl_divergence) {
        let kl = update.kl.unwrap_or(f64::NAN);
        say(
            Rule::Kl,
            format!(
                "the KL to the reference policy is {kl:.3}, not below {}; a smaller learning rate or a larger KL \
             coefficient holds it",
                rules.max_kl_divergence
            ),
        );
    }
    if !holds(&found.ppo_ratio_clipped) {
        say(
            Rule::Clipped,
            format!(
                "{:.0} % of the tokens are clipped, not below {:.0} %; fewer passes, a smaller learning rate or larger \
             mini-batches help",
                100.0 * update.clip_fraction,
                100.0 * rules.max_ppo_ratio_clipped
            ),
        );
    }
    if !holds(&found.ppo_ratio_mean) {
        say(
            Rule::Ratio,
            format!(
                "the mean ratio is {:.3}, not near 1: the policy has moved far in one step",
                update.ratio_mean
            ),
        );
    }
    if update.rollout_probs_diff_mean > MOST_APART {
        say(
            Rule::Rollout,
            format!(
                "the probabilities that tokens were drawn with are {:.3} off those that the update computes, and up to {:.3}: \
                 they may not stand for each other, so leave algorithm.rollout_correction.bypass_mode off",
                update.rollout_probs_diff_mean, update.rollout_probs_diff_max
            ),
        );
    }
    if !holds(&found.advantage_mean) {
        say(
            Rule::AdvantageMean,
            format!("the advantages' mean is {mean:.3}, not near 0: responses of unlike length weigh it"),
        );
    }
    if !holds(&found.advantage_std) {
        say(
            Rule::AdvantageStd,
            format!(
                "the advantages' standard deviation is {std:.3}, not near 1: in {:.0} % of the groups all rewards are equal",
                100.0 * (1.0 - line.groups_differing)
            ),
        );
    }
    Ok(said)
}
