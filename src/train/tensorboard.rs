//! Scalars as TensorBoard reads them: a file of length-prefixed, checksummed protocol buffers. The messages are the few
//! fields of TensorFlow's `Event` and `Summary` that a scalar needs.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use prost::Message;

use crate::{Error, Result};

/// A file of events that grows while the run lasts.
#[derive(Debug)]
pub struct Events {
    file: File,
    path: PathBuf,
}

impl Events {
    /// A new file in the folder, which is made if it is missing.
    ///
    /// # Errors
    /// `file` if it cannot be written.
    pub fn create(folder: &Path) -> Result<Self> {
        std::fs::create_dir_all(folder).map_err(|error| Error::file(folder, error))?;
        // TensorBoard reads a folder's files in the order of their names, a resumed run's after the first one's.
        let path = folder.join(format!("events.out.tfevents.{:020.6}.grpo-oracle", now()));
        let file = OpenOptions::new().create_new(true).append(true).open(&path);
        let mut events = Self { file: file.map_err(|error| Error::file(&path, error))?, path };
        let header = Event { file_version: "brain.Event:2".to_owned(), wall_time: now(), ..Event::default() };
        events.write(&header)?;
        Ok(events)
    }

    /// One step's scalars, each under its tag.
    ///
    /// # Errors
    /// `file` if they cannot be written.
    pub fn scalars<'a>(
        &mut self,
        step: usize,
        scalars: impl IntoIterator<Item = (&'a str, f64)>,
    ) -> Result<()> {
        let value = scalars
            .into_iter()
            .map(|(tag, value)| SummaryValue { tag: tag.to_owned(), simple_value: Some(value as f32) });
        let summary = Some(Summary { value: value.collect() });
        self.write(&Event { wall_time: now(), step: step as i64, summary, ..Event::default() })
    }

    /// One write a record: whoever reads along never sees half of one.
    fn write(&mut self, event: &Event) -> Result<()> {
        let record = record(&event.encode_to_vec());
        self.file.write_all(&record).map_err(|error| Error::file(&self.path, error))
    }
}

/// The data's length and its checksum, the data and theirs.
fn record(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    [&length[..], &masked(&length), data, &masked(data)].concat()
}

/// The checksum as the format wants it: turned by 15 bits and moved by a constant.
fn masked(data: &[u8]) -> [u8; 4] {
    crc32c::crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes()
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

#[derive(Clone, PartialEq, Message)]
struct Event {
    #[prost(double, tag = "1")]
    wall_time: f64,
    #[prost(int64, tag = "2")]
    step: i64,
    #[prost(string, tag = "3")]
    file_version: String,
    #[prost(message, optional, tag = "5")]
    summary: Option<Summary>,
}

#[derive(Clone, PartialEq, Message)]
struct Summary {
    #[prost(message, repeated, tag = "1")]
    value: Vec<SummaryValue>,
}

#[derive(Clone, PartialEq, Message)]
struct SummaryValue {
    #[prost(string, tag = "1")]
    tag: String,
    #[prost(float, optional, tag = "2")]
    simple_value: Option<f32>,
}
