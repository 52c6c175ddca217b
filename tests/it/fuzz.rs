//! What nobody vouches for is read without a panic, whatever it says: an adapter's lines, fixture files.
//!
//! A few thousand cases in the ordinary run; `GRPO_ORACLE_FUZZ=1000000 cargo test --test it fuzz` for a million.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use grpo_oracle::conformance::{Dtype, Fault, Hello, Line, Lines, Reply, Task, judge};
use grpo_oracle::evaluate::Question;
use grpo_oracle::fixture::{self, Expected, Fixture};
use serde_json::{Map, Value, json};

use crate::schema::Schema;

/// SplitMix64: the same cases on every machine.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below this one.
    fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }

    fn one_in(&mut self, count: usize) -> bool {
        self.below(count) == 0
    }
}

/// Values that stand where something else should.
fn oddity(dice: &mut Dice) -> Value {
    match dice.below(24) {
        0 => Value::Null,
        1 => json!(true),
        2 => json!(0),
        3 => json!(-1),
        4 => json!(1e308),
        5 => json!(5e-324),
        6 => json!(u64::MAX),
        7 => json!(i64::MIN),
        8 => json!(0.5),
        9 => json!(4_294_967_296_u64),
        10 => json!(""),
        11 => json!("NaN"),
        12 => json!("Infinity"),
        13 => json!("nan"),
        14 => json!("\u{0}\u{7f}\u{202e}\u{1f600}"),
        15 => json!("x".repeat(2000)),
        16 => json!([]),
        17 => json!({}),
        18 => json!([[], [1]]),
        19 => json!({ "shape": [0, u64::MAX], "data": [] }),
        20 => json!({ "shape": [u32::MAX, u32::MAX, 0], "data": [] }),
        21 => json!({ "shape": [], "data": ["-Infinity"] }),
        22 => json!({ "shape": vec![1; 40], "data": [1] }),
        _ => (0..100).fold(json!(1), |inner, _| json!([inner])),
    }
}

/// A node of the tree, each path as likely at every fork.
fn node<'a>(dice: &mut Dice, json: &'a mut Value) -> &'a mut Value {
    let count = match &*json {
        Value::Array(list) => list.len(),
        Value::Object(object) => object.len(),
        _ => 0,
    };
    if count == 0 || dice.one_in(6) {
        return json;
    }
    let chosen = dice.below(count);
    match json {
        Value::Array(list) => node(dice, &mut list[chosen]),
        Value::Object(object) => node(dice, object.values_mut().nth(chosen).unwrap()),
        _ => unreachable!(),
    }
}

/// Changes the tree in one place, as a careless program might.
fn change(dice: &mut Dice, json: &mut Value) {
    let other = node(dice, &mut json.clone()).clone();
    let odd = oddity(dice);
    let place = node(dice, json);
    match (dice.below(8), place) {
        (0, place) => *place = odd,
        (1, place) => *place = other,
        (2, place) => *place = json!([place.take()]),
        (3, place @ Value::Number(_)) => {
            let number = place.as_f64().unwrap_or(0.0);
            let near = [number + 1.0, -number, number * 1e300, number.trunc(), number * (1.0 + 1e-15)];
            *place = json!(near[dice.below(5)]);
        }
        (_, Value::Array(list)) if !list.is_empty() => {
            let (one, two) = (dice.below(list.len()), dice.below(list.len()));
            match dice.below(4) {
                0 => list.swap(one, two),
                1 => _ = list.remove(one),
                2 => list.insert(one, list[two].clone()),
                _ => list[one] = odd,
            }
        }
        (_, Value::Object(object)) if !object.is_empty() => {
            let keys: Vec<String> = object.keys().cloned().collect();
            let (one, two) = (&keys[dice.below(keys.len())], &keys[dice.below(keys.len())]);
            match dice.below(5) {
                0 => _ = object.remove(one),
                1 => _ = object.insert(one.clone(), odd),
                2 => _ = object.insert(two.clone(), object[one].clone()),
                3 => _ = object.insert(format!("{one}{two}"), other),
                _ => exchange(object, one, two),
            }
        }
        (_, place) => *place = odd,
    }
}

fn exchange(object: &mut Map<String, Value>, one: &str, two: &str) {
    let (first, second) = (object[one].clone(), object[two].clone());
    object.insert(one.to_owned(), second);
    object.insert(two.to_owned(), first);
}

/// Changes the text, as a broken pipe might.
fn spoil(dice: &mut Dice, text: &mut Vec<u8>) {
    let (at, length) = (dice.below(text.len()), dice.below(20));
    let end = (at + length).min(text.len());
    match dice.below(8) {
        0 => text.truncate(at),
        1 => _ = text.drain(at..end),
        2 => text.insert(at, dice.next() as u8),
        3 => {
            let piece = text[at..end].to_vec();
            let to = dice.below(text.len());
            text.splice(to..to, piece);
        }
        4 => _ = text.splice(at..end, *b"1e999"),
        5 => _ = text.splice(at..at, "[".repeat(200).into_bytes()),
        6 => _ = text.splice(at..end, *b"\"\\ud800\""),
        _ => text.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= 1 << dice.below(8)),
    }
}

/// A message after some mishaps, as bytes.
fn mutant(dice: &mut Dice, message: &Value) -> Vec<u8> {
    let mut json = message.clone();
    for _ in 0..dice.below(4) {
        change(dice, &mut json);
    }
    let mut text = json.to_string().into_bytes();
    if dice.one_in(4) {
        for _ in 0..=dice.below(3) {
            spoil(dice, &mut text);
        }
    }
    text
}

/// How many cases each of the three kinds gets.
fn count() -> u64 {
    let asked = std::env::var("GRPO_ORACLE_FUZZ").ok().map(|count| count.parse::<u64>().unwrap());
    asked.unwrap_or(6000).div_ceil(3)
}

/// Tries every case on two threads; a panic is told with what caused it.
fn try_all(kind: u64, mutant: impl Fn(&mut Dice) -> Vec<u8> + Sync, read: impl Fn(&[u8]) -> bool + Sync) {
    let part = |first: u64| {
        let mut accepted = 0_u64;
        for case in (first..count()).step_by(2) {
            let text = mutant(&mut Dice(case ^ (kind << 40)));
            match catch_unwind(AssertUnwindSafe(|| read(&text))) {
                Ok(is_accepted) => accepted += u64::from(is_accepted),
                Err(_) => panic!("case {case} of kind {kind} panics: {}", String::from_utf8_lossy(&text)),
            }
        }
        accepted
    };
    let accepted = std::thread::scope(|scope| {
        let halves = [0, 1].map(|first| scope.spawn(move || part(first)));
        halves.map(|half| half.join().unwrap()).iter().sum::<u64>()
    });
    // Neither all nor none: the mutants must reach what lies behind the first refusal.
    println!("kind {kind}: {accepted} of {} accepted", count());
    assert!(accepted > count() / 100 && accepted < count() * 99 / 100, "{accepted} of {} accepted", count());
}

/// A question of every formula with its right answer.
fn tasks() -> Vec<(Task, Value)> {
    let fixtures = fixture::built_in().unwrap();
    let cases = fixtures.iter().map(|fixture| {
        let has_answer = |case: &&fixture::Case| matches!(case.expected, Expected::Answer(_));
        let case = fixture.cases.iter().find(has_answer).unwrap();
        let task = Task::of(&fixture.formula, case);
        let Expected::Answer(answer) = &task.expected else { unreachable!() };
        let mut arrays = answer.outputs.clone();
        arrays.extend(answer.gradients.iter().map(|(name, array)| (format!("grad:{name}"), array.clone())));
        let reply = Reply::Answer(arrays).to_json(7);
        (task, reply)
    });
    cases.collect()
}

#[test]
fn no_answer_of_an_adapter_makes_the_judge_panic() {
    let tasks = tasks();
    let schema = Schema::of_the_protocol();
    let of = |text: &[u8]| text.len() % tasks.len();
    let mutant = |dice: &mut Dice| {
        let (_, reply) = &tasks[dice.below(tasks.len())];
        let others = [
            json!({ "id": 7, "error": { "kind": "shape", "message": "no" } }),
            json!({ "id": 7, "unsupported": "no" }),
        ];
        let (is_other, other) = (dice.one_in(5), dice.below(2));
        mutant(dice, if is_other { &others[other] } else { reply })
    };
    let read = |text: &[u8]| {
        // As the lines come: whole, cut, in pieces, too long.
        let lines = Lines::new(std::io::BufReader::with_capacity(1 + text.len() % 100, text), 1 << 12);
        let mut is_accepted = false;
        for line in lines {
            let (Line::Whole(line) | Line::Cut(line)) = line else { continue };
            let Ok(json) = serde_json::from_slice::<Value>(&line) else { continue };
            // Any names, so that most are the wanted ones.
            let named = json["ok"].as_object().map(|ok| ok.keys().cloned().collect::<Vec<_>>());
            let want = named.unwrap_or_default();
            let reply = Reply::from_json(&json, 7, &want);
            if reply.is_ok() {
                assert!(schema.allows("answer", &json), "what the reader accepts the schema refuses: {json}");
                is_accepted = true;
            }
            let task = tasks[of(text)].0.clone();
            let _ = judge(task, Dtype::F32, reply.map_err(Fault::Garbled)).message;
            let _ = json["ok"].as_object().map(|_| Reply::from_json(&json, 7, &tasks[of(text)].0.want()));
        }
        is_accepted
    };
    try_all(1, mutant, read);
}

#[test]
fn no_hello_and_no_question_makes_the_judge_panic() {
    let hello = json!({ "id": 0, "ok": {
        "protocol": 1, "name": "mine", "version": "0.3", "language": "python", "dtype": "f32",
        "formulas": ["kl.estimate", "advantage.group_norm"],
    } });
    let schema = Schema::of_the_protocol();
    let tasks = tasks();
    let mutant = |dice: &mut Dice| {
        if dice.one_in(2) {
            return mutant(dice, &hello);
        }
        let (task, _) = &tasks[dice.below(tasks.len())];
        let mut json = task.question.to_json();
        json["formula"] = json!(task.formula);
        mutant(dice, &json)
    };
    let read = |text: &[u8]| {
        let Ok(mut json) = serde_json::from_slice::<Value>(text) else { return false };
        let hello = Hello::from_line(&json, 0);
        if hello.is_ok() {
            assert!(
                schema.allows("hello-answer", &json),
                "what the reader accepts the schema refuses: {json}"
            );
        }
        let formula = json.as_object_mut().and_then(|json| json.remove("formula"));
        let id = formula.as_ref().and_then(Value::as_str).unwrap_or("kl.estimate");
        hello.is_ok() || Question::from_json(id, &json).is_ok()
    };
    try_all(2, mutant, read);
}

#[test]
fn no_fixture_file_makes_its_reader_panic() {
    // One case a file, so that the mishaps hit what is deep in it.
    let files: Vec<Value> = fixture::built_in()
        .unwrap()
        .into_iter()
        .map(|fixture| Fixture { cases: fixture.cases.into_iter().take(1).collect(), ..fixture }.to_json())
        .collect();
    let mutant = |dice: &mut Dice| {
        let file = &files[dice.below(files.len())];
        mutant(dice, file)
    };
    let read = |text: &[u8]| {
        let Ok(text) = std::str::from_utf8(text) else { return false };
        fixture::from_text(Path::new("mutant.json"), text).is_ok()
    };
    try_all(3, mutant, read);
}
