//! Traceability: every formula of the source documents has a clause, a reference function, and golden cases that notice
//! another answer. The test prints the table of `spec/documents.md` and fails on a gap.

use std::collections::BTreeSet;
use std::path::Path;

use grpo_oracle::conformance::{Dtype, compare};
use grpo_oracle::fixture::{self, Case, Expected};
use grpo_oracle::formula::Formula;
use grpo_oracle::spec;

/// One formula of a document.
struct Row {
    document: String,
    line: String,
    what: String,
    function: String,
    clauses: Vec<String>,
    errata: Vec<String>,
}

#[test]
fn every_formula_has_its_clause_function_and_cases() {
    let cases = cases();
    let errata = std::fs::read_to_string(root().join("spec/errata.md")).unwrap();
    let mut gaps = Vec::new();
    for row in rows() {
        println!(
            "{} {:>16}  {}: {} [{}]",
            row.document,
            row.line,
            row.what,
            row.function,
            row.clauses.join(" ")
        );
        let mut gap = |what: String| gaps.push(format!("{} line {}: {what}", row.document, row.line));
        let (file, name) = row.function.split_once("::").unwrap_or((&row.function, ""));
        let source = std::fs::read_to_string(root().join(format!("src/reference/{file}.rs")));
        if !source.is_ok_and(|source| {
            source.contains(&format!("\npub fn {name}<")) || source.contains(&format!("\npub fn {name}("))
        }) {
            gap(format!("there is no reference function {}", row.function));
        }
        for clause in &row.clauses {
            if spec::clause(clause).is_none() {
                gap(format!("there is no clause {clause}"));
            }
            let of_clause: Vec<&(&str, Case)> =
                cases.iter().filter(|(_, case)| case.clauses.contains(clause)).collect();
            let noticing = of_clause.iter().filter(|(id, case)| notices_another_answer(id, case)).count();
            if noticing == 0 {
                gap(format!("no case of {clause} would notice another answer ({} cases)", of_clause.len()));
            }
        }
        for erratum in &row.errata {
            if !errata.contains(&format!("\ne[{erratum}]\n")) {
                gap(format!("there is no erratum {erratum}"));
            }
        }
    }
    assert!(gaps.is_empty(), "{}", gaps.join("\n"));
}

#[test]
fn every_document_has_rows() {
    let documents: BTreeSet<String> = rows().into_iter().map(|row| row.document).collect();
    assert_eq!(documents.len(), 5, "{documents:?}");
}

/// Whether the judge turns down an answer that is a millionth off, or another error than the one that is expected.
fn notices_another_answer(id: &str, case: &Case) -> bool {
    let Expected::Answer(expected) = &case.expected else { return true };
    let outputs = Formula::<f64>::find(id).unwrap().outputs.iter().map(|output| output.name);
    outputs.into_iter().all(|name| {
        let (right, bounds) = (&expected.outputs[name], &expected.bounds[name]);
        let wrong: Vec<f64> = right.reals().iter().map(|x| x + 1e-6 * x.abs().max(1e-3)).collect();
        right.is_empty() || compare(right.reals(), bounds.reals(), &wrong, Dtype::F64).is_err()
    })
}

fn cases() -> Vec<(&'static str, Case)> {
    let files = Formula::<f64>::all().map(|formula| {
        let path = fixture::path_of(&root().join("fixtures/v1"), formula.id);
        fixture::read(&path).unwrap().cases.into_iter().map(|case| (formula.id, case))
    });
    files.flatten().collect()
}

/// The tables of `spec/documents.md`.
fn rows() -> Vec<Row> {
    let text = std::fs::read_to_string(root().join("spec/documents.md")).unwrap();
    let mut document = String::new();
    let mut rows = Vec::new();
    for line in text.lines() {
        if let Some(title) = line.strip_prefix("## ") {
            title.clone_into(&mut document);
        }
        let cells: Vec<&str> = line.trim_matches('|').split(" | ").map(str::trim).collect();
        let is_row = line.starts_with("| ") && !line.starts_with("| line");
        if !is_row {
            continue;
        }
        let [line, what, function, clauses, errata] = cells[..] else { panic!("spec/documents.md: {line}") };
        let names = |cell: &str| cell.split('`').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>();
        rows.push(Row {
            document: document.clone(),
            line: line.to_owned(),
            what: what.to_owned(),
            function: names(function).concat(),
            clauses: names(clauses),
            errata: names(errata),
        });
    }
    rows
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}
