//! GSM8K as verl reads it: the rows and the schema that its own preparation of the published files gives.

use std::path::Path;
use std::sync::Arc;

use parquet::basic::Compression;
use parquet::column::writer::ColumnWriter;
use parquet::data_type::{ByteArray, ByteArrayType, DataType, Int64Type};
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use parquet::schema::parser::parse_message_type;

use crate::problem::{Problem, jsonl};
use crate::{Error, Result, file};

/// What stands behind every question.
pub const INSTRUCTION: &str = "Let's think step by step and output the final answer after \"####\".";

/// By this name verl finds the function that scores a response.
pub const DATA_SOURCE: &str = "openai/gsm8k";

/// The schema, with the columns in the order in which [`write_columns`] fills them.
const SCHEMA: &str = "
message schema {
  optional binary data_source (STRING);
  optional group prompt (LIST) {
    repeated group list {
      optional group element {
        optional binary role (STRING);
        optional binary content (STRING);
      }
    }
  }
  optional binary ability (STRING);
  optional group reward_model {
    optional binary style (STRING);
    optional binary ground_truth (STRING);
  }
  optional group extra_info {
    optional binary split (STRING);
    optional int64 index;
    optional binary answer (STRING);
    optional binary question (STRING);
  }
}";

/// How many rows each file got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// Problems in `train.parquet`.
    pub train: usize,
    /// Problems in `test.parquet`.
    pub test: usize,
}

/// Writes `train.parquet` and `test.parquet` to a folder, from `train.jsonl` and `test.jsonl` in another.
///
/// # Errors
/// `file` if one cannot be read, with the line's number if a line is not a problem whose answer ends in a number; if one
/// cannot be written. Nothing is written unless both were read.
pub fn prepare(gsm8k: &Path, out: &Path) -> Result<Written> {
    let [train, test] = ["train", "test"].map(|split| -> Result<(usize, Vec<u8>)> {
        let path = gsm8k.join(format!("{split}.jsonl"));
        let problems = jsonl(&path)?;
        Ok((problems.len(), parquet_of(&problems, split).map_err(|problem| Error::file(&path, problem))?))
    });
    let (train, test) = (train?, test?);
    std::fs::create_dir_all(out).map_err(|problem| Error::file(out, problem))?;
    file::replace(&out.join("train.parquet"), train.1)?;
    file::replace(&out.join("test.parquet"), test.1)?;
    Ok(Written { train: train.0, test: test.0 })
}

/// The file of one split; the error says which problem has no final number.
///
/// # Errors
/// A sentence without the file's name.
pub fn parquet_of(problems: &[Problem], split: &str) -> Result<Vec<u8>, String> {
    let numbers = problems.iter().enumerate().map(|(index, problem)| {
        ground_truth(&problem.answer).ok_or_else(|| format!("problem {}: no number after `#### `", index + 1))
    });
    let ground_truths: Vec<String> = numbers.collect::<Result<_, _>>()?;
    write(problems, &ground_truths, split).map_err(|problem| problem.to_string())
}

/// The number behind `#### ` without commas.
fn ground_truth(answer: &str) -> Option<String> {
    let (_, rest) = answer.split_once("#### ")?;
    let is_digit = |c: char| c.is_ascii_digit() || ".,".contains(c);
    let digits = rest.strip_prefix('-').unwrap_or(rest);
    let length = digits.find(|c| !is_digit(c)).unwrap_or(digits.len());
    let number = rest[..rest.len() - digits.len() + length].replace(',', "");
    number.contains(|c: char| c.is_ascii_digit()).then_some(number)
}

fn write(problems: &[Problem], ground_truths: &[String], split: &str) -> Result<Vec<u8>, ParquetError> {
    let schema = Arc::new(parse_message_type(SCHEMA)?);
    let properties = WriterProperties::builder().set_compression(Compression::SNAPPY).build();
    let mut bytes = Vec::new();
    let mut writer = SerializedFileWriter::new(&mut bytes, schema, Arc::new(properties))?;
    let mut rows = writer.next_row_group()?;
    write_columns(&mut rows, problems, ground_truths, split)?;
    rows.close()?;
    writer.close()?;
    Ok(bytes)
}

fn write_columns(
    rows: &mut SerializedRowGroupWriter<'_, &mut Vec<u8>>,
    problems: &[Problem],
    ground_truths: &[String],
    split: &str,
) -> Result<(), ParquetError> {
    let same = |text: &str| vec![ByteArray::from(text); problems.len()];
    let each = |text: &dyn Fn(&Problem) -> String| -> Vec<ByteArray> {
        problems.iter().map(|problem| ByteArray::from(text(problem).into_bytes())).collect()
    };
    let indices: Vec<i64> = (0..).take(problems.len()).collect();
    let numbers: Vec<ByteArray> =
        ground_truths.iter().map(|number| ByteArray::from(number.as_str())).collect();
    write_column::<ByteArrayType>(rows, &same(DATA_SOURCE))?;
    write_column::<ByteArrayType>(rows, &same("user"))?;
    write_column::<ByteArrayType>(rows, &each(&|problem| format!("{} {INSTRUCTION}", problem.question)))?;
    write_column::<ByteArrayType>(rows, &same("math"))?;
    write_column::<ByteArrayType>(rows, &same("rule"))?;
    write_column::<ByteArrayType>(rows, &numbers)?;
    write_column::<ByteArrayType>(rows, &same(split))?;
    write_column::<Int64Type>(rows, &indices)?;
    write_column::<ByteArrayType>(rows, &each(&|problem| problem.answer.clone()))?;
    write_column::<ByteArrayType>(rows, &each(&|problem| problem.question.clone()))
}

/// The next column: every value is there, and every list has one element.
fn write_column<T: DataType>(
    rows: &mut SerializedRowGroupWriter<'_, &mut Vec<u8>>,
    values: &[T::T],
) -> Result<(), ParquetError> {
    let Some(mut column) = rows.next_column()? else {
        return Err(ParquetError::General("more columns than the schema has".to_owned()));
    };
    let deepest = match column.untyped() {
        ColumnWriter::ByteArrayColumnWriter(writer) => writer.get_descriptor().max_def_level(),
        ColumnWriter::Int64ColumnWriter(writer) => writer.get_descriptor().max_def_level(),
        _ => {
            return Err(ParquetError::General("a column of a type that the schema does not have".to_owned()));
        }
    };
    let (whole, first) = (vec![deepest; values.len()], vec![0; values.len()]);
    column.typed::<T>().write_batch(values, Some(&whole), Some(&first))?;
    column.close()
}
