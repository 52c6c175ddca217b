//! The certificate on one page of Markdown.

use std::fmt::Write;

use serde_json::{Map, Value};

use super::{Certificate, Judged, Part};
use crate::conformance::diagnosis::of_formula;
use crate::conformance::{Dtype, Outcome, Status, Verdict};
use crate::formula::Formula;

/// How many failing cases of a formula are shown.
const SHOWN: usize = 3;

/// What no question is about.
const NOT_ASKED: &str = "Prompts and tokens, the scoring of responses, sampling, the optimiser and its schedule, the number \
of updates to a step, the model, and everything that several devices do with each other. Each loss is that of a mini-batch \
that is one micro-batch on one device, with the counts that verl's engines give: all tokens of the response mask, and all \
responses.";

impl Certificate {
    /// The page.
    pub fn page(&self) -> String {
        let mut text = format!("# {}\n\n", self.headline());
        self.who(&mut text);
        self.table(&mut text);
        self.differences(&mut text);
        self.beyond(&mut text);
        self.configuration(&mut text);
        _ = write!(text, "\n## What no question is about\n\n{NOT_ASKED}\n");
        text
    }

    /// The verdict in one line.
    pub fn headline(&self) -> String {
        let who = format!("{} {}", self.hello.name, self.hello.version);
        match self.verdict() {
            Verdict::Passed => format!("PASSED: {who} computes what this configuration computes"),
            Verdict::Failed => {
                let failed = self.judged.iter().filter(|judged| judged.verdict() == Verdict::Failed);
                let titles: Vec<&str> = failed.map(|judged| judged.part.title).collect();
                format!("FAILED: {who} computes something else: {}", titles.join(", "))
            }
            Verdict::Incomplete => format!("INCOMPLETE: {who} did not answer for everything"),
        }
    }

    fn who(&self, text: &mut String) {
        let format = match self.hello.dtype {
            Dtype::F64 => "double precision",
            Dtype::F32 => "single precision",
            Dtype::Bf16 => "bfloat16",
        };
        _ = writeln!(
            text,
            "The installed {} {}, in {format}, configured as below and asked through its own dispatch; judged by grpo-oracle {} \
             within the tolerance of `verify`.\n",
            self.hello.name,
            self.hello.version,
            env!("CARGO_PKG_VERSION"),
        );
    }

    fn table(&self, text: &mut String) {
        text.push_str("| what | formula | options | right | verdict |\n|---|---|---|---|---|\n");
        for judged in &self.judged {
            let Part { title, formula, options, .. } = &judged.part;
            let put = judged.within.iter().filter(|outcome| outcome.status != Status::NotApplicable).count();
            let right = judged.within.iter().filter(|outcome| outcome.status == Status::Pass).count();
            let (options, verdict) = (told(formula, options), judged.verdict().word());
            _ = writeln!(text, "| {title} | `{formula}` | {options} | {right} of {put} | {verdict} |");
        }
        text.push_str("\nOptions that are not named are the specification's defaults.\n");
    }

    fn differences(&self, text: &mut String) {
        let differing: Vec<&Judged> =
            self.judged.iter().filter(|judged| judged.verdict() != Verdict::Passed).collect();
        if !differing.is_empty() {
            text.push_str("\n## Where the difference lies\n");
        }
        for judged in differing {
            _ = writeln!(text, "\n### {}: `{}`\n", judged.part.title, judged.part.formula);
            if let Some(remark) = judged.part.remark {
                _ = writeln!(text, "{remark}\n");
            }
            let outcomes: Vec<&Outcome> = judged.within.iter().collect();
            self.difference(text, &outcomes);
        }
    }

    fn difference(&self, text: &mut String, outcomes: &[&Outcome]) {
        if let Some(finding) = of_formula(outcomes, self.hello.dtype) {
            _ = writeln!(text, "{finding}.\n");
        }
        let bad: Vec<&&Outcome> = outcomes
            .iter()
            .filter(|outcome| !matches!(outcome.status, Status::Pass | Status::NotApplicable))
            .collect();
        for outcome in bad.iter().take(SHOWN) {
            let (case, clauses) = (&outcome.task.case, outcome.task.clauses.join(", "));
            _ = writeln!(text, "* `{case}` ({clauses}): {}", outcome.message);
        }
        if bad.len() > SHOWN {
            _ = writeln!(text, "* and {} more", bad.len() - SHOWN);
        }
    }

    /// What differs where this configuration never comes, which decides nothing: an example for each formula and reason.
    fn beyond(&self, text: &mut String) {
        let all = || self.judged.iter().flat_map(|judged| &judged.beyond);
        let is_failing = |outcome: &Outcome| outcome.status == Status::Fail;
        let wrong = all().filter(|(_, outcome)| is_failing(outcome)).count();
        if wrong == 0 {
            return;
        }
        let put = all().count();
        _ = writeln!(
            text,
            "\n## Beyond this configuration\n\n{put} more questions are about what a run under this configuration does not \
             come upon. They decide nothing; {wrong} of them are answered otherwise, such as:\n",
        );
        let mut told = Vec::new();
        for (why, outcome) in all().filter(|(_, outcome)| is_failing(outcome)) {
            let formula = outcome.task.formula.as_str();
            if !told.contains(&(formula, why)) {
                told.push((formula, why));
                _ = writeln!(text, "* `{formula}` `{}`, {why}: {}", outcome.task.case, outcome.message);
            }
        }
    }

    fn configuration(&self, text: &mut String) {
        text.push_str("\n## The configuration\n\n```text\n");
        for line in &self.overrides {
            _ = writeln!(text, "{line}");
        }
        text.push_str("```\n");
        if !self.notes.is_empty() {
            text.push_str("\nWhat has no exact counterpart in verl:\n\n");
        }
        for note in &self.notes {
            _ = writeln!(text, "* {note}");
        }
    }
}

/// The options that are not the specification's defaults.
fn told(formula: &str, options: &Map<String, Value>) -> String {
    let defaults = Formula::<f64>::find(formula).map(|row| (row.defaults)()).unwrap_or_default();
    let other = options.iter().filter(|(name, value)| defaults.get(name.as_str()) != Some(value));
    let told: Vec<String> = other.map(|(name, value)| format!("`{name}` = `{value}`")).collect();
    told.join(", ")
}
