//! `identify`: which options an implementation computes with, and which conventions have them.

use std::io::Write;
use std::process::ExitCode;

use clap::Args;
use grpo_oracle::conformance::{self, Difference, Finding, Fit, Identification, Identified, Setting, Told};
use grpo_oracle::formula::Formula;
use grpo_oracle::{Error, Result};
use serde_json::Value;

use super::verify::{Golden, Who};

/// So many differences fit into a line that is read.
const MOST: usize = 4;

/// Who is asked, and how the answer is shown.
#[derive(Args)]
pub(crate) struct Identify {
    #[command(flatten)]
    who: Who,
    #[command(flatten)]
    golden: Golden,
    /// Write JSON instead of a table.
    #[arg(long)]
    json: bool,
}

pub(crate) fn identify(arguments: &Identify) -> Result<ExitCode> {
    let mut subject = arguments.who.subject()?;
    let has = &subject.hello().formulas;
    let rows = Formula::<f64>::all().filter(|row| arguments.golden.has(row.id));
    let formulas: Vec<String> =
        rows.map(|row| row.id.to_owned()).filter(|id| has.iter().any(|formula| formula == id)).collect();
    if formulas.is_empty() {
        return Err(Error::option(
            "formula",
            "selects nothing that the implementation has; `grpo-oracle list` shows all",
        ));
    }
    let mut out = std::io::stdout();
    // Whoever does not listen any more is not told more, and the exit status stands.
    let identification =
        conformance::identify(subject.as_mut(), &arguments.golden.fixtures()?, &formulas, |one| {
            if !arguments.json {
                let _ = out.write_all(block(one).as_bytes());
            }
        })?;
    let end =
        if arguments.json { format!("{}\n", identification.to_json()) } else { ranking(&identification) };
    let _ = std::io::stdout().write_all(end.as_bytes());
    Ok(match () {
        () if identification.has_mismatch() => ExitCode::from(1),
        () if identification.is_found() && !identification.has_faults() => ExitCode::SUCCESS,
        () => ExitCode::from(3),
    })
}

/// One formula, option by option.
fn block(one: &Identified) -> String {
    let mut text = format!("{}\n", one.formula);
    let mut line = |words: String| text.push_str(&format!("    {words}\n"));
    match &one.finding {
        Finding::Found { options, alternatives, .. } => {
            let width = options.iter().map(|told| told.name.len()).max().unwrap_or(0);
            options.iter().filter(|told| !told.is_idle).for_each(|told| {
                line(format!("{:width$} = {}", told.name, possible(told)));
            });
            let idle: Vec<&str> =
                options.iter().filter(|told| told.is_idle).map(|told| told.name.as_str()).collect();
            if !idle.is_empty() {
                line(format!("no difference seen: {}", idle.join(", ")));
            }
            for changes in alternatives.iter().take(MOST) {
                line(format!("or, all the same: {}", listed(changes)));
            }
            if options.is_empty() {
                line("as specified; it has no options".to_owned());
            }
        }
        Finding::NoMatch { nearest, agreed, first: (question, how) } => {
            line(format!(
                "no setting known gives these answers; the nearest gives {agreed} of {}:",
                one.answered
            ));
            line(format!("    {}", overlay(&one.formula, nearest)));
            line(format!("    not that of {question}: {how}"));
        }
        Finding::Unanswered => {
            let why = one.unanswered.as_deref().unwrap_or("no question could be put in this format");
            line(format!("not answered: {why}"));
        }
    }
    if one.faults > 0 {
        let why = one.unanswered.as_deref().unwrap_or_default();
        line(format!("{} question(s) ended without an answer: {why}", one.faults));
    }
    if !one.all_tried {
        line(format!("{} settings tried, which is not every combination", one.tried));
    }
    text
}

fn possible(told: &Told) -> String {
    let values: Vec<String> = told.values.iter().map(Value::to_string).collect();
    match values.as_slice() {
        [value] => value.clone(),
        values => format!("{} (not told apart)", values.join(" or ")),
    }
}

/// What differs from the specification's defaults.
fn overlay(formula: &str, setting: &Setting) -> String {
    let defaults = Formula::<f64>::find(formula).map(|row| (row.defaults)()).unwrap_or_default();
    let mut differing = setting.clone();
    differing.retain(|name, value| defaults.get(name) != Some(value));
    if differing.is_empty() { "the specification's defaults".to_owned() } else { listed(&differing) }
}

fn listed(options: &Setting) -> String {
    options.iter().map(|(name, value)| format!("{name} = {value}")).collect::<Vec<_>>().join(", ")
}

/// The conventions, the best first.
fn ranking(identification: &Identification) -> String {
    let fits = &identification.conventions;
    let width = fits.iter().map(|fit| fit.convention.len()).max().unwrap_or(0);
    let all = &identification.formulas;
    let found = all.iter().filter(|one| matches!(one.finding, Finding::Found { .. })).count();
    let mut text = format!("\na setting found for {found} of {} formulas\n\nconventions\n", all.len());
    for fit in fits {
        let (same, total) = (fit.same.len(), fit.total());
        text.push_str(&format!("    {:width$}  {same} of {total} formulas", fit.convention));
        text.push_str(&differences(fit));
        text.push('\n');
    }
    if fits.is_empty() {
        text.push_str("    none computes any of these formulas\n");
    }
    text
}

fn differences(fit: &Fit) -> String {
    if fit.same.is_empty() || fit.different.is_empty() {
        return String::new();
    }
    let words = fit.different.iter().take(MOST).map(|(formula, difference)| match difference {
        Difference::Options(options) => {
            let names: Vec<&str> = options.iter().map(|(name, ..)| name.as_str()).collect();
            format!("{formula}: {}", names.join(", "))
        }
        Difference::Agreed(agreed, answered) => format!("{formula}: {agreed} of {answered} answers"),
    });
    let more = match fit.different.len().saturating_sub(MOST) {
        0 => String::new(),
        more => format!("; and {more} more, which --json lists"),
    };
    format!("; differs in {}{more}", words.collect::<Vec<_>>().join("; "))
}
