//! The specification and the table of formulas say the same: no clause without a formula, no formula, option or error
//! code without its words.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;

use grpo_oracle::formula::{Formula, RULES};

type Table = Formula<f64>;

#[test]
fn every_clause_is_defined_once_and_in_its_familys_file() {
    let mut seen = BTreeSet::new();
    for (file, id) in defined_clauses() {
        let family = id.split('.').next().unwrap_or_default();
        let home =
            if family == "all" { "README.md".to_owned() } else { format!("{}.md", family.replace('-', "_")) };
        assert_eq!(file, home, "r[{id}] belongs to another file");
        assert!(seen.insert(id.clone()), "r[{id}] is defined twice; an id is never reused");
    }
}

#[test]
fn the_specification_and_the_table_name_the_same_clauses() {
    let defined: BTreeSet<String> = defined_clauses().into_iter().map(|(_, id)| id).collect();
    let named: BTreeSet<String> =
        Table::all().flat_map(|formula| formula.clauses).chain(RULES).map(ToString::to_string).collect();
    let undefined: Vec<_> = named.difference(&defined).collect();
    let unnamed: Vec<_> = defined.difference(&named).collect();
    let table: String =
        Table::all().map(|formula| format!("{:24} {}\n", formula.id, formula.clauses.join(" "))).collect();
    assert!(
        undefined.is_empty() && unnamed.is_empty(),
        "named in src/formula/ and not defined in spec/: {undefined:?}\n\
         defined in spec/ and named by no formula: {unnamed:?}\n\n{table}"
    );
}

#[test]
fn a_formula_names_no_clause_twice() {
    for formula in Table::all() {
        let unique: BTreeSet<_> = formula.clauses.iter().collect();
        assert_eq!(unique.len(), formula.clauses.len(), "{} names a clause twice", formula.id);
    }
}

#[test]
fn every_formula_has_its_section_with_inputs_options_and_outputs() {
    for formula in Table::all() {
        let section = section_of(formula.id);
        let mut rows = Vec::new();
        for input in formula.inputs {
            let shape = input.shape().replace(" or ", "` or `");
            rows.push(format!("| `{}` | `{shape}` | {} |", input.name, gradient_word(input)));
        }
        for output in formula.outputs {
            rows.push(format!("| `{}` | `[{}]`", output.name, output.axes.join(", ")));
        }
        for row in rows {
            assert!(
                section.iter().any(|line| line.starts_with(&row)),
                "spec/, section `{}`: no row {row}",
                formula.id
            );
        }
        let defaults = (formula.defaults)();
        assert_eq!(defaults.len(), formula.options.len(), "{}: options and defaults differ", formula.id);
        for option in formula.options {
            let default = &defaults[option.name];
            let (start, end) = (format!("| `{}` |", option.name), format!("| `{default}` |"));
            assert!(
                section.iter().any(|line| line.starts_with(&start) && line.ends_with(&end)),
                "spec/, section `{}`: no row {start} ... {end}",
                formula.id
            );
        }
    }
}

#[test]
fn every_section_is_a_formulas() {
    let ids: BTreeSet<&str> = Table::all().map(|formula| formula.id).collect();
    for (file, text) in pages() {
        for title in text.lines().filter_map(|line| line.strip_prefix("## `")) {
            assert!(ids.contains(title.trim_end_matches('`')), "spec/{file}: there is no formula `{title}");
        }
    }
}

#[test]
fn the_error_codes_are_those_of_the_error_type() {
    let source = read("src/error.rs");
    let codes: BTreeSet<&str> = source
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Self::")?.split_once("=> \""))
        .filter_map(|(_, code)| code.strip_suffix("\","))
        .collect();
    let readme = read("spec/README.md");
    let listed: BTreeSet<&str> = after(&readme, "## Errors")
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once('`'))
        .map(|(code, _)| code)
        .collect();
    assert_eq!(listed, codes, "the table of spec/README.md (left) and Error::code (right)");
    for (file, text) in pages() {
        for mention in unwrapped(&text).split("the error `").skip(1) {
            let code = mention.split('`').next().unwrap_or_default();
            assert!(codes.contains(code), "spec/{file} speaks of the error `{code}`");
        }
    }
}

#[test]
fn every_id_that_is_referred_to_exists() {
    let clauses: BTreeSet<String> = defined_clauses().into_iter().map(|(_, id)| id).collect();
    let errata: BTreeSet<String> = ids_on_lines_of_their_own(&read("spec/errata.md"), "e[").collect();
    for (file, text) in pages() {
        for (kind, ids) in [("`r[", &clauses), ("`e[", &errata)] {
            for mention in text.split(kind).skip(1).filter_map(|rest| rest.split_once("]`")) {
                let (id, is_example) = (mention.0, mention.0.contains("name"));
                assert!(is_example || ids.contains(id), "spec/{file} refers to {kind}{id}]`");
            }
        }
    }
    for (page, _) in grpo_oracle::spec::PAGES.iter().filter(|(page, _)| *page != "README") {
        let path = format!("src/reference/{page}.rs");
        let source = read(&path);
        let file = page.replace('_', "-");
        for line in source.lines().filter(|line| line.starts_with("/// Clause")) {
            for id in line.split('`').skip(1).step_by(2).filter(|id| id.starts_with(&format!("{file}."))) {
                assert!(clauses.contains(id), "{path} refers to the clause {id}");
            }
        }
    }
}

/// Every clause id with its file, in the order of the pages.
fn defined_clauses() -> Vec<(String, String)> {
    let of_page = |(file, text): (String, String)| {
        ids_on_lines_of_their_own(&text, "r[").map(|id| (file.clone(), id)).collect::<Vec<_>>()
    };
    pages().into_iter().flat_map(of_page).collect()
}

fn ids_on_lines_of_their_own(text: &str, start: &str) -> impl Iterator<Item = String> {
    let ids = text.lines().filter_map(|line| line.strip_prefix(start)?.strip_suffix(']'));
    ids.map(str::to_owned).collect::<Vec<_>>().into_iter()
}

/// The lines of a formula's section.
fn section_of(id: &str) -> Vec<String> {
    let page =
        grpo_oracle::spec::page_of(id).unwrap_or_else(|| panic!("no page of spec/ has a section `{id}`"));
    let text = read(&format!("spec/{page}.md"));
    let section = after(&text, &format!("## `{id}`\n"));
    section.split("\n## ").next().unwrap_or_default().lines().map(str::to_owned).collect()
}

fn gradient_word(input: &grpo_oracle::formula::Input) -> &'static str {
    use grpo_oracle::formula::Gradient;
    match input.gradient {
        Gradient::Flows => "flows",
        Gradient::Stops => "stops",
        Gradient::None => "none",
    }
}

/// What follows a heading.
fn after<'a>(text: &'a str, heading: &str) -> &'a str {
    text.split_once(heading).map_or("", |(_, rest)| rest)
}

/// The text with its paragraphs on one line each.
fn unwrapped(text: &str) -> String {
    text.replace('\n', " ")
}

/// The pages of the specification by file name.
fn pages() -> BTreeMap<String, String> {
    let folder = root().join("spec");
    let files = fs::read_dir(&folder).expect("the folder spec/");
    let names = files.map(|file| file.expect("a file").file_name().to_string_lossy().into_owned());
    names
        .filter(|name| name.ends_with(".md"))
        .map(|name| (name.clone(), read(&format!("spec/{name}"))))
        .collect()
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|problem| format!("{path}: {problem}"))
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// What `explain` shows of a clause is its normative paragraph.
#[test]
fn every_clause_can_be_shown() {
    for id in Table::all().flat_map(|formula| formula.clauses).chain(RULES) {
        let text = grpo_oracle::spec::clause(id).unwrap_or_default();
        assert!(text.contains("MUST") || text.contains("SHOULD"), "r[{id}]: {text}");
    }
}
