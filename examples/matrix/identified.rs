//! What `identify` makes of a package: its settings, told by its answers alone.

use std::error::Error;
use std::fmt::Write as _;

use grpo_oracle::conformance::{Finding, Identification, Identified, Setting, Told};
use grpo_oracle::formula::Formula;
use serde_json::Value;

/// So many conventions are named.
const NEAREST: usize = 3;

/// Writes a table of the settings, and the conventions that they are nearest to.
pub(crate) fn section(page: &mut String, identification: &Identification) -> Result<(), Box<dyn Error>> {
    writeln!(page, "What `identify` finds, asking with no options:\n")?;
    page.push_str(
        "| formula | beside the specification's defaults | makes no difference here |\n|---|---|---|\n",
    );
    for one in &identification.formulas {
        let (setting, idle) = found(one);
        writeln!(page, "| `{}` | {setting} | {idle} |", one.formula)?;
    }
    let ranks = identification.conventions.iter().take(NEAREST).map(|fit| {
        let page = format!("[{0}](../spec/conventions/{0}.md)", fit.convention);
        format!("{page} ({} of {} formulas)", fit.same.len(), fit.total())
    });
    Ok(writeln!(page, "\nThe nearest conventions: {}.", ranks.collect::<Vec<_>>().join(", "))?)
}

/// The setting in words, and the options that the answers say nothing of.
fn found(one: &Identified) -> (String, String) {
    match &one.finding {
        Finding::Found { options, .. } => {
            let idle = options.iter().filter(|told| told.is_idle).map(|told| format!("`{}`", told.name));
            (differing(&one.formula, options), idle.collect::<Vec<_>>().join(", "))
        }
        Finding::NoMatch { nearest, agreed, first: (question, how) } => {
            let how = how.split(": off by").next().unwrap_or_default();
            let words = format!(
                "{}, but for {} of {} answers, such as that of `{question}`: {how}",
                set(&one.formula, nearest),
                one.answered - agreed,
                one.answered
            );
            (words, String::new())
        }
        Finding::Unanswered => ("not answered".to_owned(), String::new()),
    }
}

/// The options that the answers tell, where they are not the defaults.
fn differing(formula: &str, options: &[Told]) -> String {
    let defaults = Formula::<f64>::find(formula).map(|row| (row.defaults)()).unwrap_or_default();
    let is_default =
        |told: &&Told| matches!(told.values.as_slice(), [one] if defaults.get(&told.name) == Some(one));
    listed(options.iter().filter(|told| !told.is_idle && !is_default(told)).map(|told| {
        let values: Vec<String> = told.values.iter().map(Value::to_string).collect();
        (told.name.as_str(), values.join(" or "))
    }))
}

/// A whole setting, where it is not the defaults.
fn set(formula: &str, setting: &Setting) -> String {
    let defaults = Formula::<f64>::find(formula).map(|row| (row.defaults)()).unwrap_or_default();
    let differing = setting.iter().filter(|(name, value)| defaults.get(*name) != Some(value));
    listed(differing.map(|(name, value)| (name.as_str(), value.to_string())))
}

fn listed<'a>(options: impl Iterator<Item = (&'a str, String)>) -> String {
    let words: Vec<String> = options.map(|(name, value)| format!("`{name} = {value}`")).collect();
    if words.is_empty() { "none".to_owned() } else { words.join(", ") }
}
