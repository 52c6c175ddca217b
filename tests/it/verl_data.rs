//! `prepare-verl`: GSM8K as verl reads it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use grpo_oracle::problem::{jsonl, parquet};
use grpo_oracle::verl::data::{Written, prepare};
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::{Field, Row};
use serde_json::{Value, json};

use crate::python;

const LINES: [(&str, &str); 3] = [
    ("How much are 1,000 and 234?", "1000+234 = <<1000+234=1234>>1,234\n#### 1,234"),
    ("What is 2 - 5?", "#### -3"),
    ("Was \"kostet\" ein Äpfelchen 🍏?", "It costs 0.5\n#### 0.50"),
];

/// A folder like GSM8K's, small.
fn small() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, count) in [("train", 3), ("test", 1)] {
        let lines =
            LINES[..count].iter().map(|(q, a)| json!({"question": q, "answer": a}).to_string() + "\n");
        fs::write(folder.path().join(format!("{name}.jsonl")), lines.collect::<String>()).unwrap();
    }
    folder
}

fn rows(path: &Path) -> Vec<Value> {
    let reader = SerializedFileReader::new(fs::File::open(path).unwrap()).unwrap();
    reader.get_row_iter(None).unwrap().map(|row| of_row(&row.unwrap())).collect()
}

fn of_row(row: &Row) -> Value {
    row.get_column_iter().map(|(name, field)| (name.clone(), of_field(field))).collect()
}

fn of_field(field: &Field) -> Value {
    match field {
        Field::Str(text) => json!(text),
        Field::Long(number) => json!(number),
        Field::Group(row) => of_row(row),
        Field::ListInternal(list) => list.elements().iter().map(of_field).collect(),
        other => panic!("{other} is no field that was written"),
    }
}

#[test]
fn a_small_file_is_read_back_with_every_field() {
    let (from, to) = (small(), tempfile::tempdir().unwrap());
    assert_eq!(prepare(from.path(), to.path()).unwrap(), Written { train: 3, test: 1 });
    let expected = |index: usize, split: &str, number: &str| {
        let (question, answer) = LINES[index];
        let asked =
            format!("{question} Let's think step by step and output the final answer after \"####\".");
        json!({
            "data_source": "openai/gsm8k",
            "prompt": [{"role": "user", "content": asked}],
            "ability": "math",
            "reward_model": {"style": "rule", "ground_truth": number},
            "extra_info": {"split": split, "index": index, "answer": answer, "question": question},
        })
    };
    let train = [expected(0, "train", "1234"), expected(1, "train", "-3"), expected(2, "train", "0.50")];
    assert_eq!(rows(&to.path().join("train.parquet")), train);
    assert_eq!(rows(&to.path().join("test.parquet")), [expected(0, "test", "1234")]);
}

#[test]
fn our_own_trainer_reads_what_is_written_for_verl() {
    let (from, to) = (small(), tempfile::tempdir().unwrap());
    prepare(from.path(), to.path()).unwrap();
    for split in ["train", "test"] {
        let published = jsonl(&from.path().join(format!("{split}.jsonl"))).unwrap();
        assert_eq!(parquet(&to.path().join(format!("{split}.parquet"))).unwrap(), published);
    }
}

#[test]
fn an_answer_without_a_number_is_one_sentence_and_nothing_is_written() {
    let (from, to) = (small(), tempfile::tempdir().unwrap());
    fs::write(from.path().join("test.jsonl"), r#"{"question": "?", "answer": "many\n#### many"}"#).unwrap();
    let problem = prepare(from.path(), to.path()).unwrap_err().to_string();
    assert!(problem.ends_with("test.jsonl: problem 1: no number after `#### `"), "{problem}");
    assert_eq!(fs::read_dir(to.path()).unwrap().count(), 0);
}

/// The published data where `GSM8K_DIR` says where it is, else three problems.
#[test]
fn pyarrow_reads_the_rows_and_the_schema_of_verls_own_preparation() {
    let Some(python) = python::with("pyarrow") else { return };
    let (made, to) = (small(), tempfile::tempdir().unwrap());
    let from = std::env::var_os("GSM8K_DIR").map_or_else(|| made.path().to_owned(), PathBuf::from);
    prepare(&from, to.path()).unwrap();
    for split in ["train", "test"] {
        let check = Command::new(&python)
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python/check_verl_data.py"))
            .args([from.join(format!("{split}.jsonl")), to.path().join(format!("{split}.parquet"))])
            .arg(split)
            .output()
            .unwrap();
        assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stderr));
        println!("{split}: {}", String::from_utf8_lossy(&check.stdout));
    }
}
