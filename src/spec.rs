//! The text of the specification, for showing beside a formula.

/// The pages by name.
pub const PAGES: &[(&str, &str)] = &[
    ("README", include_str!("../spec/README.md")),
    ("mask", include_str!("../spec/mask.md")),
    ("advantage", include_str!("../spec/advantage.md")),
    ("gae", include_str!("../spec/gae.md")),
    ("filter", include_str!("../spec/filter.md")),
    ("group_ppo", include_str!("../spec/group_ppo.md")),
    ("logprob", include_str!("../spec/logprob.md")),
    ("rollout", include_str!("../spec/rollout.md")),
    ("objective", include_str!("../spec/objective.md")),
    ("kl", include_str!("../spec/kl.md")),
    ("aggregate", include_str!("../spec/aggregate.md")),
    ("value", include_str!("../spec/value.md")),
    ("reward", include_str!("../spec/reward.md")),
    ("sampling", include_str!("../spec/sampling.md")),
    ("optim", include_str!("../spec/optim.md")),
    ("metrics", include_str!("../spec/metrics.md")),
];

/// The page that a formula's section stands on.
pub fn page_of(formula: &str) -> Option<&'static str> {
    let heading = format!("## `{formula}`\n");
    PAGES.iter().find(|(_, text)| text.contains(&heading)).map(|&(page, _)| page)
}

/// The normative text of a clause, in Markdown: its paragraph, and the table or list that the paragraph announces.
///
/// ```
/// assert!(grpo_oracle::spec::clause("mask.mean").is_some_and(|text| text.contains("MUST")));
/// ```
pub fn clause(id: &str) -> Option<&'static str> {
    let mark = format!("\nr[{id}]\n");
    let after = PAGES.iter().find_map(|(_, page)| page.split_once(&mark).map(|(_, after)| after))?;
    let mut end = 0;
    for paragraph in after.split("\n\n") {
        end += paragraph.len();
        if !paragraph.ends_with([',', ':']) {
            break;
        }
        end += 2;
    }
    Some(after[..end].trim_end())
}
