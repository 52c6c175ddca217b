//! Named conventions: the options with which the formulas compute what a paper, a document or a version of a framework
//! computes. They stand in `spec/conventions/`, one page each.

use serde_json::{Map, Value};

use crate::formula::{Formula, nearest};
use crate::{Error, Result};

/// A named set of options.
#[derive(Debug, Clone, PartialEq)]
pub struct Convention {
    /// The permanent name, such as `verl-0.9.1`.
    pub name: &'static str,
    /// The title of its page.
    pub title: &'static str,
    /// For each formula that it computes, the options that differ from the specification's defaults.
    pub formulas: Map<String, Value>,
}

/// The pages by name: documents, papers, code.
const PAGES: &[(&str, &str)] = &[
    ("doc-compute-new-adv", include_str!("../spec/conventions/doc-compute-new-adv.md")),
    ("doc-group-ppo", include_str!("../spec/conventions/doc-group-ppo.md")),
    ("doc-cs336-notes", include_str!("../spec/conventions/doc-cs336-notes.md")),
    ("doc-grpo-trainer-guide", include_str!("../spec/conventions/doc-grpo-trainer-guide.md")),
    ("doc-grpo-dapo-fix", include_str!("../spec/conventions/doc-grpo-dapo-fix.md")),
    ("ppo", include_str!("../spec/conventions/ppo.md")),
    ("deepseek-math", include_str!("../spec/conventions/deepseek-math.md")),
    ("dr-grpo", include_str!("../spec/conventions/dr-grpo.md")),
    ("dapo", include_str!("../spec/conventions/dapo.md")),
    ("cispo", include_str!("../spec/conventions/cispo.md")),
    ("gspo", include_str!("../spec/conventions/gspo.md")),
    ("gmpo", include_str!("../spec/conventions/gmpo.md")),
    ("sapo", include_str!("../spec/conventions/sapo.md")),
    ("verl-0.9.1", include_str!("../spec/conventions/verl-0.9.1.md")),
    ("verl-0.7.0", include_str!("../spec/conventions/verl-0.7.0.md")),
    ("trl-1.16", include_str!("../spec/conventions/trl-1.16.md")),
    ("openrlhf-0.11", include_str!("../spec/conventions/openrlhf-0.11.md")),
    ("nemo-rl", include_str!("../spec/conventions/nemo-rl.md")),
    ("open-instruct", include_str!("../spec/conventions/open-instruct.md")),
    ("easyr1-brian", include_str!("../spec/conventions/easyr1-brian.md")),
    ("group-ppo-published", include_str!("../spec/conventions/group-ppo-published.md")),
    ("cs336", include_str!("../spec/conventions/cs336.md")),
];

impl Convention {
    /// Every convention, in the order of the pages' list.
    ///
    /// # Errors
    /// `file` for a page that is not as `spec/conventions/README.md` says.
    pub fn all() -> Result<Vec<Self>> {
        PAGES.iter().map(|&(name, page)| Self::read(name, page)).collect()
    }

    /// The convention of this name.
    ///
    /// # Errors
    /// `option`, with the nearest name.
    ///
    /// # Example
    /// ```
    /// let verl = grpo_oracle::convention::Convention::find("verl-0.9.1")?;
    /// assert_eq!(verl.options("objective.clip")?["clip_ratio_c"], 3.0);
    /// # Ok::<(), grpo_oracle::Error>(())
    /// ```
    pub fn find(name: &str) -> Result<Self> {
        let page = PAGES.iter().find(|page| page.0 == name).ok_or_else(|| {
            let hint = nearest(name, PAGES.iter().map(|page| page.0)).map_or_else(
                || format!("there are {}", PAGES.iter().map(|page| page.0).collect::<Vec<_>>().join(", ")),
                |near| format!("did you mean `{near}`?"),
            );
            Error::option("convention", format!("`{name}` is not known; {hint}"))
        })?;
        Self::read(page.0, page.1)
    }

    /// All options of a formula under this convention.
    ///
    /// # Errors
    /// `unknown-formula`; `unsupported` if the convention does not compute the formula.
    pub fn options(&self, formula: &str) -> Result<Map<String, Value>> {
        let row = Formula::<f64>::find(formula)?;
        match self.formulas.get(formula) {
            Some(Value::Object(given)) => row.resolve(given),
            _ => Err(Error::Unsupported { what: format!("{} does not compute {formula}", self.name) }),
        }
    }

    fn read(name: &'static str, page: &'static str) -> Result<Self> {
        let wrong = |problem: &str| Error::file(format!("spec/conventions/{name}.md"), problem);
        let title = page.lines().next().and_then(|line| line.strip_prefix("# "));
        let title = title.ok_or_else(|| wrong("does not begin with a title"))?;
        let json = page.split_once("\n```json\n").and_then(|(_, rest)| rest.split_once("\n```"));
        let (json, _) = json.ok_or_else(|| wrong("has no block of JSON"))?;
        let formulas: Map<String, Value> =
            serde_json::from_str(json).map_err(|problem| wrong(&format!("its JSON is wrong: {problem}")))?;
        Ok(Self { name, title, formulas })
    }
}
