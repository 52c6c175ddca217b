//! What `identify` makes of a package: its settings, told by its answers alone.

use std::error::Error;
use std::fmt::Write as _;

use grpo_oracle::conformance::{Finding, Identification, Identified, Told};
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
        Finding::NoMatch { agreed, first: (question, how), .. } => {
            let how = how.split(": off by").next().unwrap_or_default();
            let words = format!(
                "no setting; the nearest gives {agreed} of {} answers, not that of `{question}`: {how}",
                one.answered
            );
            (words, String::new())
        }
        Finding::Unanswered => ("not answered".to_owned(), String::new()),
    }
}

fn differing(formula: &str, options: &[Told]) -> String {
    let defaults = Formula::<f64>::find(formula).map(|row| (row.defaults)()).unwrap_or_default();
    let is_default =
        |told: &&Told| matches!(told.values.as_slice(), [one] if defaults.get(&told.name) == Some(one));
    let told = options.iter().filter(|told| !told.is_idle && !is_default(told)).map(|told| {
        let values: Vec<String> = told.values.iter().map(Value::to_string).collect();
        format!("`{} = {}`", told.name, values.join(" or "))
    });
    let told: Vec<String> = told.collect();
    if told.is_empty() { "none".to_owned() } else { told.join(", ") }
}
