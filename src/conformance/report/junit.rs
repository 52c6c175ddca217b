//! JUnit XML, which every CI reads: a suite a formula, a test a case.

use std::io;

use quick_xml::Writer;
use quick_xml::events::{BytesDecl, BytesText, Event};

use super::record::{Entry, Record, counts, utc};
use super::{Verdict, table};
use crate::conformance::Status;
use crate::{Error, Result};

type Xml = Writer<Vec<u8>>;

/// The run as JUnit XML. A run that has neither passed nor failed has a failing test that says so.
///
/// # Errors
/// None that is known of; writing XML is fallible by its type.
pub fn junit(record: &Record) -> Result<String> {
    let mut xml = Writer::new_with_indent(Vec::new(), b' ', 2);
    write(&mut xml, record).map_err(|problem| unwritten(&problem))?;
    let mut text = String::from_utf8(xml.into_inner()).map_err(|problem| unwritten(&problem))?;
    text.push('\n');
    Ok(text)
}

fn unwritten(problem: &dyn std::fmt::Display) -> Error {
    Error::file("JUnit", problem)
}

fn write(xml: &mut Xml, record: &Record) -> io::Result<()> {
    let lacks = usize::from(is_lacking(record));
    xml.write_event(Event::Decl(BytesDecl::new("1.0", Some("UTF-8"), None)))?;
    // The strictest of the schemas in use allows the outermost element no attribute.
    let suites = xml.create_element("testsuites");
    suites.write_inner_content(|xml| {
        if is_lacking(record) {
            run_suite(xml, record)?;
        }
        for (index, (formula, entries)) in record.by_formula().into_iter().enumerate() {
            formula_suite(xml, record, index + lacks, formula, &entries)?;
        }
        Ok(())
    })?;
    Ok(())
}

/// Whether the run is to be red for something that no case is to blame for.
fn is_lacking(record: &Record) -> bool {
    record.verdict() == Verdict::Incomplete || !record.is_complete()
}

/// The suite of the test that the run itself fails.
fn run_suite(xml: &mut Xml, record: &Record) -> io::Result<()> {
    suite(xml, record, "run", 0, [1, 1, 0, 0], 0.0, |xml| {
        let case = xml
            .create_element("testcase")
            .with_attribute(("name", "the run is complete"))
            .with_attribute(("classname", "run"))
            .with_attribute(("time", "0.000"));
        case.write_inner_content(|xml| {
            let sentence = table::verdict_sentence(record);
            note(xml, "failure", Some("incomplete"), &sentence, &sentence)
        })?;
        Ok(())
    })
}

fn formula_suite(
    xml: &mut Xml,
    record: &Record,
    id: usize,
    formula: &str,
    entries: &[&Entry],
) -> io::Result<()> {
    let counts = counts(entries.iter().copied());
    let of = |statuses: &[Status]| statuses.iter().map(|status| counts[status]).sum();
    let numbers = [
        entries.len(),
        of(&[Status::Fail]),
        of(&[Status::Error, Status::Hang]),
        of(&[Status::Unsupported, Status::NotApplicable]),
    ];
    let seconds = entries.iter().map(|entry| entry.seconds).sum();
    suite(xml, record, formula, id, numbers, seconds, |xml| {
        entries.iter().try_for_each(|entry| case(xml, record, entry))
    })
}

/// A suite; the numbers are those of tests, failures, errors and skipped.
fn suite(
    xml: &mut Xml,
    record: &Record,
    name: &str,
    id: usize,
    [tests, failures, errors, skipped]: [usize; 4],
    seconds: f64,
    cases: impl FnOnce(&mut Xml) -> io::Result<()>,
) -> io::Result<()> {
    let header = &record.header;
    let suite = xml
        .create_element("testsuite")
        .with_attribute(("name", clean(name).as_str()))
        .with_attribute(("id", id.to_string().as_str()))
        .with_attribute(("package", "grpo-oracle"))
        .with_attribute(("hostname", "localhost"))
        .with_attribute(("timestamp", utc(header.started, "T").as_str()))
        .with_attribute(("tests", tests.to_string().as_str()))
        .with_attribute(("failures", failures.to_string().as_str()))
        .with_attribute(("errors", errors.to_string().as_str()))
        .with_attribute(("skipped", skipped.to_string().as_str()))
        .with_attribute(("time", format!("{seconds:.3}").as_str()));
    suite.write_inner_content(|xml| {
        let properties = [
            ("adapter", header.adapter.as_str()),
            ("name", &header.hello.name),
            ("version", &header.hello.version),
            ("language", &header.hello.language),
            ("dtype", header.hello.dtype.name()),
            ("grpo-oracle", &header.oracle),
        ];
        xml.create_element("properties").write_inner_content(|xml| {
            for (name, value) in properties {
                let property = xml.create_element("property").with_attribute(("name", name));
                property.with_attribute(("value", clean(value).as_str())).write_empty()?;
            }
            Ok(())
        })?;
        cases(xml)?;
        xml.create_element("system-out").write_empty()?;
        xml.create_element("system-err").write_empty()?;
        Ok(())
    })?;
    Ok(())
}

fn case(xml: &mut Xml, record: &Record, entry: &Entry) -> io::Result<()> {
    let case = xml
        .create_element("testcase")
        .with_attribute(("name", clean(&entry.case).as_str()))
        .with_attribute(("classname", clean(&entry.formula).as_str()))
        .with_attribute(("time", format!("{:.3}", entry.seconds).as_str()));
    let (element, kind) = match entry.status {
        Status::Pass => {
            case.write_empty()?;
            return Ok(());
        }
        Status::Fail => ("failure", Some("fail")),
        Status::Error => ("error", Some("error")),
        Status::Hang => ("error", Some("hang")),
        Status::Unsupported | Status::NotApplicable => ("skipped", None),
    };
    let message = match entry.status {
        Status::Unsupported | Status::NotApplicable => format!("{}: {}", entry.status.word(), entry.message),
        _ => entry.why().to_owned(),
    };
    case.write_inner_content(|xml| note(xml, element, kind, &message, &table::story(record, entry)))?;
    Ok(())
}

/// What became of a test that did not pass.
fn note(xml: &mut Xml, element: &str, kind: Option<&str>, message: &str, text: &str) -> io::Result<()> {
    let note = xml.create_element(element).with_attribute(("message", clean(message).as_str()));
    match kind {
        Some(kind) => {
            note.with_attribute(("type", kind)).write_text_content(BytesText::new(&clean(text)))?;
        }
        None => _ = note.write_empty()?,
    }
    Ok(())
}

/// The text without the characters that XML has no way to say.
fn clean(text: &str) -> String {
    let is_allowed = |c: char| matches!(c, '\t' | '\n' | '\r' | ' '..='\u{fffd}' | '\u{10000}'..);
    text.chars().map(|c| if is_allowed(c) { c } else { '\u{fffd}' }).collect()
}
