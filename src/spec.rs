//! The text of the specification, for showing beside a formula.

const PAGES: [&str; 9] = [
    include_str!("../spec/README.md"),
    include_str!("../spec/mask.md"),
    include_str!("../spec/advantage.md"),
    include_str!("../spec/logprob.md"),
    include_str!("../spec/objective.md"),
    include_str!("../spec/kl.md"),
    include_str!("../spec/aggregate.md"),
    include_str!("../spec/metrics.md"),
    include_str!("../spec/reward.md"),
];

/// The normative text of a clause, in Markdown: its paragraph, and the table or list that the paragraph announces.
///
/// ```
/// assert!(grpo_oracle::spec::clause("mask.mean").is_some_and(|text| text.contains("MUST")));
/// ```
pub fn clause(id: &str) -> Option<&'static str> {
    let mark = format!("\nr[{id}]\n");
    let after = PAGES.iter().find_map(|page| page.split_once(&mark).map(|(_, after)| after))?;
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
