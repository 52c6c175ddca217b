//! The README's table of formulas is the table of formulas.

use std::fmt::Write;
use std::path::Path;

use grpo_oracle::formula::Formula;

/// Run with `UPDATE=1` to rewrite the table.
#[test]
fn lists_the_formulas() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
    let text = std::fs::read_to_string(&path).unwrap();
    let (before, rest) = text.split_once("<!-- formulas -->\n").unwrap();
    let (_, after) = rest.split_once("<!-- end of formulas -->\n").unwrap();
    let updated = format!("{before}<!-- formulas -->\n{}<!-- end of formulas -->\n{after}", table());
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&path, &updated).unwrap();
    }
    assert_eq!(
        std::fs::read_to_string(&path).unwrap(),
        updated,
        "run again with UPDATE=1 and look at the change"
    );
}

fn table() -> String {
    let mut table = "| formula | in one line | specification |\n|---|---|---|\n".to_owned();
    for formula in Formula::<f64>::all() {
        let page = grpo_oracle::spec::page_of(formula.id).unwrap();
        let summary = formula.summary.replace('|', "\\|");
        writeln!(table, "| `{}` | {summary} | [{page}](spec/{page}.md) |", formula.id).unwrap();
    }
    table
}
