//! JSON Schema, as far as the schemas of this package go. A keyword that is not known here fails the test, so nothing in
//! a schema goes unchecked.

use serde_json::{Map, Value};

/// A schema with its `$defs`.
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
