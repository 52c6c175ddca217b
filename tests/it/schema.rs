//! The schema of the adapter protocol, its page and its reader say the same.

use grpo_oracle::conformance::{Dtype, Hello, Reply, Request, Status, Task, judge};
use grpo_oracle::evaluate::{Question, evaluate};
use grpo_oracle::fixture::{self, Case, Expected};
use serde_json::{Map, Value, json};

/// JSON Schema, as far as this one goes. A keyword that is not known here fails the test, so nothing in the schema goes
/// unchecked.
pub(crate) struct Schema {
    root: Value,
}

impl Schema {
    /// The schema of the adapter protocol.
    pub(crate) fn of_the_protocol() -> Self {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/adapters/protocol.schema.json");
        Self { root: serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap() }
    }

    /// Whether one of its definitions allows this.
    pub(crate) fn allows(&self, definition: &str, json: &Value) -> bool {
        self.valid(&self.root["$defs"][definition], json)
    }

    fn valid(&self, schema: &Value, json: &Value) -> bool {
        let Value::Object(schema) = schema else { panic!("no schema: {schema}") };
        schema.iter().all(|(keyword, rule)| self.obeys(schema, keyword, rule, json))
    }

    fn obeys(&self, schema: &Map<String, Value>, keyword: &str, rule: &Value, json: &Value) -> bool {
        let each = |rule: &Value| rule.as_array().unwrap().clone();
        let alternatives = || each(rule).iter().filter(|rule| self.valid(rule, json)).count();
        match keyword {
            "description" | "title" | "examples" => true,
            "$ref" => {
                let name = rule.as_str().unwrap().strip_prefix("#/$defs/").unwrap();
                self.valid(&self.root["$defs"][name], json)
            }
            "type" => match rule.as_str().unwrap() {
                "object" => json.is_object(),
                "array" => json.is_array(),
                "string" => json.is_string(),
                "number" => json.is_number(),
                "integer" => json.as_f64().is_some_and(|number| number.fract() == 0.0),
                "null" => json.is_null(),
                other => panic!("the type {other} is not known here"),
            },
            "const" => json == rule,
            "enum" => each(rule).contains(json),
            "minimum" => json.as_f64().is_none_or(|number| number >= rule.as_f64().unwrap()),
            "oneOf" => alternatives() == 1,
            "anyOf" => alternatives() > 0,
            "required" => json.as_object().is_none_or(|object| {
                each(rule).iter().all(|name| object.contains_key(name.as_str().unwrap()))
            }),
            "items" => json.as_array().is_none_or(|list| list.iter().all(|entry| self.valid(rule, entry))),
            "properties" => json.as_object().is_none_or(|object| {
                object.iter().all(|(name, value)| rule.get(name).is_none_or(|rule| self.valid(rule, value)))
            }),
            "additionalProperties" => json.as_object().is_none_or(|object| {
                let named =
                    |name: &str| schema.get("properties").is_some_and(|named| named.get(name).is_some());
                object.iter().all(|(name, value)| {
                    named(name) || (*rule != Value::Bool(false) && self.valid(rule, value))
                })
            }),
            "uniqueItems" => json.as_array().is_none_or(|list| {
                list.iter().enumerate().all(|(index, entry)| !list[..index].contains(entry))
            }),
            other => panic!("the keyword {other} is not known here"),
        }
    }
}

#[test]
fn what_is_sent_is_what_the_schema_says() {
    let schema = Schema::of_the_protocol();
    let fixtures = fixture::built_in().unwrap();
    for fixture in &fixtures {
        for case in &fixture.cases {
            let task = Task::of(&fixture.formula, case);
            let want = task.want();
            let request =
                Request { formula: &task.formula, question: &task.question, want: &want }.to_json(1);
            assert!(schema.allows("request", &request), "{request}");
        }
    }
    for (line, is_right) in [
        (json!({ "id": 0, "cmd": "hello", "protocol": 1 }), true),
        (json!({ "id": 9, "cmd": "bye" }), true),
        (json!({ "id": -1, "cmd": "bye" }), false),
        (json!({ "id": 1, "cmd": "run" }), false),
    ] {
        assert_eq!(schema.allows("request", &line), is_right, "{line}");
    }
}

#[test]
fn what_the_reader_refuses_the_schema_refuses() {
    let schema = Schema::of_the_protocol();
    let want = ["kl".to_owned()];
    let right = [
        json!({ "id": 1, "ok": { "kl": { "shape": [2], "data": [1, "NaN"] } } }),
        json!({ "id": 1, "ok": { "kl": [[1.5], ["-Infinity"]] } }),
        json!({ "id": 1, "ok": { "kl": 3 } }),
        json!({ "id": 1, "ok": { "kl": null } }),
        json!({ "id": 1, "unsupported": "no" }),
        json!({ "id": 1, "error": { "kind": "shape", "message": "no" } }),
        json!({ "id": 1, "error": { "kind": "shape" } }),
    ];
    for line in right {
        assert!(Reply::from_json(&line, 1, &want).is_ok(), "{line}");
        assert!(schema.allows("answer", &line), "{line}");
    }
    let wrong = [
        json!([]),
        json!({}),
        json!({ "id": 1 }),
        json!({ "id": "1", "unsupported": "no" }),
        json!({ "id": 1.5, "unsupported": "no" }),
        json!({ "id": 1, "unsupported": null }),
        json!({ "id": 1, "unsupported": "no", "ok": {} }),
        json!({ "id": 1, "unsupported": "no", "more": 1 }),
        json!({ "id": 1, "error": "no" }),
        json!({ "id": 1, "error": { "message": "no" } }),
        json!({ "id": 1, "error": { "kind": "shape", "where": 3 } }),
        json!({ "id": 1, "ok": [] }),
        json!({ "id": 1, "ok": { "kl": "nan" } }),
        json!({ "id": 1, "ok": { "kl": [null] } }),
        json!({ "id": 1, "ok": { "kl": { "data": [1] } } }),
        json!({ "id": 1, "ok": { "kl": { "shape": [-1], "data": [1] } } }),
        json!({ "id": 1, "ok": { "kl": { "shape": [1], "data": [true] } } }),
        json!({ "id": 1, "ok": { "kl": { "shape": [1], "data": [1], "dtype": "f32" } } }),
    ];
    for line in wrong {
        assert!(Reply::from_json(&line, 1, &want).is_err(), "{line}");
        assert!(!schema.allows("answer", &line), "{line}");
    }
}

#[test]
fn the_conversation_on_the_page_is_one() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/adapters/PROTOCOL.md");
    let page = std::fs::read_to_string(path).unwrap();
    let said = |arrow: &str| -> Vec<Value> {
        let lines = page.lines().filter_map(|line| line.strip_prefix(arrow));
        lines.map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let (asked, answered) = (said("-> "), said("<- "));
    let schema = Schema::of_the_protocol();
    assert!(asked.iter().all(|line| schema.allows("request", line)));
    let hello = Hello::from_line(&answered[0], 0).unwrap();
    assert!(schema.allows("hello-answer", &answered[0]) && schema.allows("answer", &answered[1]));
    // The answer is right, and everything that is there is wanted.
    let question = json!({ "options": asked[1]["options"], "inputs": asked[1]["inputs"] });
    let question = Question::from_json("kl.estimate", &question).unwrap();
    let expected = Expected::Answer(evaluate("kl.estimate", &question).unwrap());
    let case = Case {
        id: "the-page".to_owned(),
        clauses: Vec::new(),
        flags: Vec::new(),
        exact_in: Vec::new(),
        question,
        expected,
        rivals: Vec::new(),
    };
    let task = Task::of("kl.estimate", &case);
    let wanted = asked[1]["want"].as_array().unwrap();
    assert_eq!(wanted.len(), task.want().len());
    assert!(task.want().iter().all(|name| wanted.contains(&json!(name))));
    assert_eq!(hello.dtype, Dtype::F32);
    let outcome =
        judge(task.clone(), hello.dtype, Ok(Reply::from_json(&answered[1], 1, &task.want()).unwrap()));
    assert_eq!((outcome.status, outcome.message.as_str()), (Status::Pass, ""));
}
