//! A strict reader of GGUF files, versions 2 and 3.
//!
//! [`Gguf::open`] reads the metadata and the table of tensors and holds every length against the size of the
//! file, so that a truncated or corrupt file is one error there and not a surprise later.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use tch::{Kind, Tensor};

use crate::{Error, Result};

/// An opened GGUF file: what its header says, and the file to read tensors from.
#[derive(Debug)]
pub struct Gguf {
    path: PathBuf,
    file: File,
    header: Header,
}

impl Gguf {
    /// Opens a file and reads everything but the tensors' data.
    ///
    /// # Errors
    /// The file cannot be read, is no GGUF file, is truncated or corrupt, or has a tensor of an unknown type.
    pub fn open(path: &Path) -> Result<Self> {
        let at = |problem: String| Error::file(path, problem);
        let file = File::open(path).map_err(|e| at(format!("cannot be opened ({e})")))?;
        let size = file.metadata().map_err(|e| at(format!("its size is unknown ({e})")))?.len();
        let header = Header::read(BufReader::new(&file), size).map_err(at)?;
        Ok(Self { path: path.to_owned(), file, header })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The names of all tensors, in alphabetical order.
    pub fn tensor_names(&self) -> impl Iterator<Item = &str> {
        self.header.tensors.keys().map(String::as_str)
    }

    /// A tensor's values in f32 on the CPU, with its slowest axis first; `None` if there is none of this name.
    ///
    /// # Errors
    /// The file cannot be read any more.
    pub fn tensor(&self, name: &str) -> Result<Option<Tensor>> {
        let Some(info) = self.header.tensors.get(name) else { return Ok(None) };
        let mut bytes = vec![0; info.bytes as usize];
        let mut file = &self.file;
        file.seek(SeekFrom::Start(info.start))
            .and_then(|_| file.read_exact(&mut bytes))
            .map_err(|e| Error::file(&self.path, format!("tensor `{name}` cannot be read ({e})")))?;
        Ok(Some(info.encoding.decode(&bytes).view(info.shape.as_slice())))
    }

    /// A metadata value; `None` if the key is not there.
    pub fn value(&self, key: &str) -> Option<&Value> {
        self.header.metadata.get(key)
    }

    /// A text value.
    ///
    /// # Errors
    /// The key is there with a value of another type.
    pub fn text(&self, key: &str) -> Result<Option<&str>> {
        self.typed(key, "a string", |value| match value {
            Value::Text(text) => Some(text.as_str()),
            _ => None,
        })
    }

    /// A whole number that is not negative.
    ///
    /// # Errors
    /// The key is there with a value of another type, or a negative one.
    pub fn unsigned(&self, key: &str) -> Result<Option<u64>> {
        self.typed(key, "a whole number, 0 or more", |value| match *value {
            Value::Unsigned(number) => Some(number),
            Value::Signed(number) => u64::try_from(number).ok(),
            _ => None,
        })
    }

    /// A real number.
    ///
    /// # Errors
    /// The key is there with a value of another type.
    pub fn float(&self, key: &str) -> Result<Option<f64>> {
        self.typed(key, "a floating-point number", |value| match *value {
            Value::Float(number) => Some(number),
            _ => None,
        })
    }

    /// A list of texts.
    ///
    /// # Errors
    /// The key is there with a value of another type.
    pub fn texts(&self, key: &str) -> Result<Option<Vec<&str>>> {
        self.typed(key, "a list of strings", |value| match value {
            Value::List(values) => {
                values.iter().map(|v| if let Value::Text(t) = v { Some(t.as_str()) } else { None }).collect()
            }
            _ => None,
        })
    }

    /// A list of whole numbers.
    ///
    /// # Errors
    /// The key is there with a value of another type.
    pub fn integers(&self, key: &str) -> Result<Option<Vec<i64>>> {
        self.typed(key, "a list of whole numbers", |value| match value {
            Value::List(values) => values
                .iter()
                .map(|v| match *v {
                    Value::Signed(number) => Some(number),
                    Value::Unsigned(number) => i64::try_from(number).ok(),
                    _ => None,
                })
                .collect(),
            _ => None,
        })
    }

    /// An error that names this file.
    pub fn error(&self, problem: impl std::fmt::Display) -> Error {
        Error::file(&self.path, problem)
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        wanted: &str,
        get: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>> {
        let Some(value) = self.value(key) else { return Ok(None) };
        get(value).map(Some).ok_or_else(|| self.error(format!("metadata `{key}` is not {wanted}")))
    }
}

/// A metadata value; the integer and float types are kept in their widest form.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// `u8`, `u16`, `u32`, `u64`.
    Unsigned(u64),
    /// `i8`, `i16`, `i32`, `i64`.
    Signed(i64),
    /// `f32`, `f64`.
    Float(f64),
    /// A boolean.
    Bool(bool),
    /// A UTF-8 string.
    Text(String),
    /// An array; the format lets arrays nest.
    List(Vec<Self>),
}

/// Everything before the tensors' data.
#[derive(Debug)]
struct Header {
    metadata: BTreeMap<String, Value>,
    tensors: BTreeMap<String, TensorInfo>,
}

#[derive(Debug)]
struct TensorInfo {
    shape: Vec<i64>,
    encoding: Encoding,
    start: u64,
    bytes: u64,
}

/// What an error of the header's readers is: the problem, to which the caller adds the file.
type Parsed<T> = std::result::Result<T, String>;

impl Header {
    fn read(inner: impl Read, size: u64) -> Parsed<Self> {
        let mut from = Bounded { inner, at: 0, size };
        if size < 4 || from.array()? != *b"GGUF" {
            return Err("is not a GGUF file".into());
        }
        match from.u32()? {
            2 | 3 => (),
            version if (2..=3).contains(&version.swap_bytes()) => {
                return Err("is a big-endian GGUF file; only little-endian ones are read".into());
            }
            version => return Err(format!("is GGUF version {version}; versions 2 and 3 are read")),
        }
        let (tensor_count, value_count) = (from.u64()?, from.u64()?);

        let mut metadata = BTreeMap::new();
        for _ in 0..value_count {
            let key = from.text()?;
            let kind = from.u32()?;
            let value = from.value(kind, 0)?;
            if metadata.insert(key.clone(), value).is_some() {
                return Err(format!("has the metadata `{key}` twice; the file is corrupt"));
            }
        }
        let alignment = match metadata.get("general.alignment") {
            None => 32,
            Some(&Value::Unsigned(alignment)) if alignment.is_power_of_two() && alignment <= 1 << 20 => {
                alignment
            }
            Some(other) => return Err(format!("has the alignment {other:?}; it must be a power of two")),
        };

        let mut tensors = BTreeMap::new();
        for _ in 0..tensor_count {
            let name = from.text()?;
            let info = from.tensor_info(&name)?;
            if tensors.insert(name.clone(), info).is_some() {
                return Err(format!("has the tensor `{name}` twice; the file is corrupt"));
            }
        }
        place(&mut tensors, from.at.next_multiple_of(alignment), alignment, size)?;
        Ok(Self { metadata, tensors })
    }
}

/// Turns offsets within the data into positions in the file, and checks that all tensors are there.
fn place(tensors: &mut BTreeMap<String, TensorInfo>, data: u64, alignment: u64, size: u64) -> Parsed<()> {
    for (name, info) in tensors.iter_mut() {
        if info.start % alignment != 0 {
            return Err(format!(
                "puts tensor `{name}` at {}, off its alignment of {alignment}; it is corrupt",
                info.start
            ));
        }
        let end = data.checked_add(info.start).and_then(|start| start.checked_add(info.bytes));
        match end {
            Some(end) if end <= size => info.start += data,
            _ => {
                let bytes = info.bytes;
                return Err(format!(
                    "is truncated: its {size} bytes end before the {bytes} bytes of tensor `{name}` do; fetch it again"
                ));
            }
        }
    }
    let mut spans: Vec<_> =
        tensors.iter().map(|(name, info)| (info.start, info.start + info.bytes, name)).collect();
    spans.sort_unstable();
    match spans.windows(2).find(|pair| pair[0].1 > pair[1].0) {
        Some(pair) => Err(format!(
            "has the tensors `{}` and `{}` in the same place; it is corrupt",
            pair[0].2, pair[1].2
        )),
        None => Ok(()),
    }
}

/// A reader that never reads or allocates beyond the file's size.
struct Bounded<R> {
    inner: R,
    at: u64,
    size: u64,
}

/// The deepest nesting of arrays that is followed, so that a corrupt file cannot exhaust the stack.
const MAX_DEPTH: usize = 4;
/// The longest metadata array that is read; vocabularies have up to a million entries.
const MAX_LIST: u64 = 1 << 23;
/// The longest axis and the most elements of a tensor: keeps all later arithmetic within i64.
const MAX_ELEMENTS: u64 = 1 << 40;

impl<R: Read> Bounded<R> {
    fn bytes(&mut self, count: u64) -> Parsed<Vec<u8>> {
        self.need(count)?;
        let mut bytes = vec![0; count as usize];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> Parsed<[u8; N]> {
        self.need(N as u64)?;
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn need(&self, count: u64) -> Parsed<()> {
        if count <= self.size - self.at {
            return Ok(());
        }
        let Self { at, size, .. } = self;
        Err(format!("wants {count} bytes at {at} of its {size}; it is truncated or corrupt, fetch it again"))
    }

    fn fill(&mut self, bytes: &mut [u8]) -> Parsed<()> {
        self.inner.read_exact(bytes).map_err(|e| format!("cannot be read at byte {} ({e})", self.at))?;
        self.at += bytes.len() as u64;
        Ok(())
    }

    fn u32(&mut self) -> Parsed<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Parsed<u64> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    fn text(&mut self) -> Parsed<String> {
        let at = self.at;
        let length = self.u64()?;
        String::from_utf8(self.bytes(length)?)
            .map_err(|_| format!("has a string at byte {at} that is not UTF-8; it is corrupt"))
    }

    fn value(&mut self, kind: u32, depth: usize) -> Parsed<Value> {
        Ok(match kind {
            0 => Value::Unsigned(u8::from_le_bytes(self.array()?).into()),
            1 => Value::Signed(i8::from_le_bytes(self.array()?).into()),
            2 => Value::Unsigned(u16::from_le_bytes(self.array()?).into()),
            3 => Value::Signed(i16::from_le_bytes(self.array()?).into()),
            4 => Value::Unsigned(self.u32()?.into()),
            5 => Value::Signed(i32::from_le_bytes(self.array()?).into()),
            6 => Value::Float(f32::from_le_bytes(self.array()?).into()),
            7 => match self.array()? {
                [0] => Value::Bool(false),
                [1] => Value::Bool(true),
                [other] => {
                    return Err(format!("has the boolean {other} at byte {}; it is corrupt", self.at - 1));
                }
            },
            8 => Value::Text(self.text()?),
            9 => self.list(depth)?,
            10 => Value::Unsigned(self.u64()?),
            11 => Value::Signed(i64::from_le_bytes(self.array()?)),
            12 => Value::Float(f64::from_le_bytes(self.array()?)),
            other => {
                return Err(format!(
                    "has a value of the unknown type {other} before byte {}; it is corrupt",
                    self.at
                ));
            }
        })
    }

    fn list(&mut self, depth: usize) -> Parsed<Value> {
        let kind = self.u32()?;
        let length = self.u64()?;
        if depth == MAX_DEPTH || length > MAX_LIST {
            return Err(format!(
                "has an array of {length} entries, {depth} deep, before byte {}; it is corrupt",
                self.at
            ));
        }
        // Not with_capacity(length): the length is not to be believed before the entries are there.
        (0..length).map(|_| self.value(kind, depth + 1)).collect::<Parsed<Vec<_>>>().map(Value::List)
    }

    fn tensor_info(&mut self, name: &str) -> Parsed<TensorInfo> {
        let axes = self.u32()?;
        if !(1..=4).contains(&axes) {
            return Err(format!(
                "gives tensor `{name}` {axes} axes where 1 to 4 are possible; it is corrupt"
            ));
        }
        let axes = (0..axes).map(|_| self.u64()).collect::<Parsed<Vec<_>>>()?;
        let encoding = Encoding::of(self.u32()?, name)?;
        let start = self.u64()?;

        let elements = axes
            .iter()
            .try_fold(1, |n: u64, &axis| n.checked_mul(axis))
            .filter(|&n| (1..=MAX_ELEMENTS).contains(&n));
        let (per_block, block_bytes) = encoding.block();
        match elements {
            Some(elements) if axes[0] % per_block == 0 => {
                // The file names the fastest axis first, torch the slowest.
                let shape = axes.iter().rev().map(|&axis| axis as i64).collect();
                Ok(TensorInfo { shape, encoding, start, bytes: elements / per_block * block_bytes })
            }
            _ => Err(format!("gives tensor `{name}` the impossible shape {axes:?}; it is corrupt")),
        }
    }
}

/// How a tensor's values are stored; the quantised kinds in blocks of 32 with a scale each.
#[derive(Debug, Clone, Copy)]
enum Encoding {
    F32,
    F16,
    Bf16,
    Q8_0,
    Q4_0,
    Q4_1,
}

impl Encoding {
    fn of(code: u32, tensor: &str) -> Parsed<Self> {
        Ok(match code {
            0 => Self::F32,
            1 => Self::F16,
            2 => Self::Q4_0,
            3 => Self::Q4_1,
            8 => Self::Q8_0,
            30 => Self::Bf16,
            _ => {
                let known = [
                    (6, "Q5_0"),
                    (7, "Q5_1"),
                    (10, "Q2_K"),
                    (11, "Q3_K"),
                    (12, "Q4_K"),
                    (13, "Q5_K"),
                    (14, "Q6_K"),
                ];
                let name = known.iter().find(|(c, _)| *c == code).map_or("unknown", |(_, name)| name);
                let supported = "F32, F16, BF16, Q8_0, Q4_0 and Q4_1 are read";
                return Err(format!(
                    "stores tensor `{tensor}` as type {code} ({name}); {supported}, so convert the file to one of these"
                ));
            }
        })
    }

    /// Elements and bytes of one block.
    fn block(self) -> (u64, u64) {
        match self {
            Self::F32 => (1, 4),
            Self::F16 | Self::Bf16 => (1, 2),
            Self::Q8_0 => (32, 2 + 32),
            Self::Q4_0 => (32, 2 + 16),
            Self::Q4_1 => (32, 2 + 2 + 16),
        }
    }

    /// The values in f32, as one row.
    fn decode(self, bytes: &[u8]) -> Tensor {
        let bytes = Tensor::from_data_size(bytes, &[bytes.len() as i64], Kind::Uint8);
        let blocks = || bytes.view([-1, self.block().1 as i64]);
        let field = |from: i64, length: i64, kind: Kind| {
            blocks().narrow(1, from, length).contiguous().view_dtype(kind).to_kind(Kind::Float)
        };
        // The low halves of 16 bytes are the first 16 values, the high halves the other 16.
        let nibbles = |from: i64| {
            let pairs = blocks().narrow(1, from, 16);
            Tensor::cat(&[pairs.bitwise_and(15), pairs.bitwise_right_shift_tensor_scalar(4)], 1)
                .to_kind(Kind::Float)
        };
        match self {
            Self::F32 => bytes.view_dtype(Kind::Float),
            Self::F16 => bytes.view_dtype(Kind::Half).to_kind(Kind::Float),
            Self::Bf16 => bytes.view_dtype(Kind::BFloat16).to_kind(Kind::Float),
            Self::Q8_0 => field(2, 32, Kind::Int8) * field(0, 2, Kind::Half),
            Self::Q4_0 => (nibbles(2) - 8.) * field(0, 2, Kind::Half),
            Self::Q4_1 => nibbles(4) * field(0, 2, Kind::Half) + field(2, 2, Kind::Half),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn every_type_of_value_is_read() {
        let (bytes, _) = sample();
        let header = read(&bytes).unwrap();
        let expected = [
            ("u8", Value::Unsigned(200)),
            ("i8", Value::Signed(-3)),
            ("u16", Value::Unsigned(60_000)),
            ("i16", Value::Signed(-30_000)),
            ("u32", Value::Unsigned(4_000_000_000)),
            ("i32", Value::Signed(-2_000_000_000)),
            ("f32", Value::Float(0.25)),
            ("bool", Value::Bool(true)),
            ("text", Value::Text("Ġthe".into())),
            ("list", Value::List(vec![Value::List(vec![Value::Unsigned(7)]), Value::List(vec![])])),
            ("u64", Value::Unsigned(u64::MAX)),
            ("i64", Value::Signed(i64::MIN)),
            ("f64", Value::Float(0.1)),
            ("general.alignment", Value::Unsigned(64)),
        ];
        assert_eq!(
            header.metadata,
            expected.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
        );
    }

    #[test]
    fn every_encoding_is_decoded() {
        let (bytes, _) = sample();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("sample.gguf");
        std::fs::write(&path, &bytes).unwrap();
        let gguf = Gguf::open(&path).unwrap();
        let values = |name: &str| -> Vec<f64> {
            let tensor = gguf.tensor(name).unwrap().unwrap();
            assert_eq!((tensor.size(), tensor.kind()), (vec![2, 32], Kind::Float), "{name}");
            Vec::try_from(tensor.view(-1).to_kind(Kind::Double)).unwrap()
        };
        let expected =
            |f: &dyn Fn(i32, i32) -> f64| -> Vec<f64> { (0..64).map(|i| f(i / 32, i % 32)).collect() };
        // The nibbles of `quants`: low halves first.
        let nibble = |row: i32, i: i32| f64::from(if i < 16 { (i + row) % 16 } else { 15 - i % 16 });
        assert_eq!(values("F32"), expected(&|row, i| f64::from(row * 32 + i) * 0.5));
        assert_eq!(values("F16"), expected(&|row, i| f64::from((row * 32 + i) % 2) * -2.));
        assert_eq!(values("BF16"), expected(&|row, i| f64::from((row * 32 + i) % 2) * -2.));
        assert_eq!(values("Q8_0"), expected(&|row, i| f64::from(i - 16 - row) * 0.5));
        assert_eq!(values("Q4_0"), expected(&|row, i| (nibble(row, i) - 8.) * 0.5));
        assert_eq!(values("Q4_1"), expected(&|row, i| nibble(row, i) * 0.5 - 2.));
        assert!(gguf.tensor("none").unwrap().is_none());
    }

    #[test]
    fn a_file_cut_off_anywhere_is_an_error() {
        let (bytes, _) = sample();
        assert!(read(&bytes).is_ok());
        for length in 0..bytes.len() {
            let problem = read(&bytes[..length]).unwrap_err();
            assert!(problem.contains("truncated") || problem == "is not a GGUF file", "{length}: {problem}");
        }
    }

    #[test]
    fn flipped_bits_never_panic() {
        let (bytes, header) = sample();
        let mut refused = 0;
        for at in 0..header {
            for flip in (0..8).map(|bit| 1 << bit).chain([0xff]) {
                let mut bytes = bytes.clone();
                bytes[at] ^= flip;
                refused += usize::from(read(&bytes).is_err());
            }
        }
        assert!(refused > 2 * header, "{refused} of {}", 9 * header);
    }

    #[test]
    fn lengths_that_lie_are_refused_without_reserving_room_for_them() {
        let (bytes, _) = sample();
        for at in 8..bytes.len() - 8 {
            for length in [u64::MAX, u64::MAX / 2, 1 << 62, 1 << 40, 1 << 33] {
                let mut bytes = bytes.clone();
                bytes[at..at + 8].copy_from_slice(&length.to_le_bytes());
                let _ = read(&bytes); // an error or, within some value, none; but never a panic
            }
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        let problem = |build: &dyn Fn(&mut Vec<u8>)| {
            let mut bytes = Vec::new();
            build(&mut bytes);
            bytes.resize(bytes.len() + 4096, 0);
            read(&bytes).unwrap_err()
        };
        assert_eq!(problem(&|b| preamble(b, 1, 0, 0)), "is GGUF version 1; versions 2 and 3 are read");
        let big_endian = "is a big-endian GGUF file; only little-endian ones are read";
        assert_eq!(problem(&|b| preamble(b, 3_u32.swap_bytes(), 0, 0)), big_endian);
        let tensor = |b: &mut Vec<u8>, axes: &[u64], kind: u32, offset: u64| {
            text(b, "t");
            b.extend((axes.len() as u32).to_le_bytes());
            axes.iter().for_each(|axis| b.extend(axis.to_le_bytes()));
            b.extend(kind.to_le_bytes());
            b.extend(offset.to_le_bytes());
        };
        let one = |axes: &'static [u64], kind: u32, offset: u64| {
            problem(&move |b| {
                preamble(b, 3, 1, 0);
                tensor(b, axes, kind, offset);
            })
        };
        assert_eq!(
            one(&[256], 12, 0),
            "stores tensor `t` as type 12 (Q4_K); F32, F16, BF16, Q8_0, Q4_0 and Q4_1 are read, so convert the file to one of these"
        );
        assert_eq!(one(&[33], 3, 0), "gives tensor `t` the impossible shape [33]; it is corrupt");
        assert_eq!(
            one(&[1 << 40, 1 << 40], 0, 0),
            format!("gives tensor `t` the impossible shape [{0}, {0}]; it is corrupt", 1_u64 << 40)
        );
        assert_eq!(one(&[2], 0, 33), "puts tensor `t` at 33, off its alignment of 32; it is corrupt");
        assert!(one(&[2000], 0, 0).contains("end before the 8000 bytes of tensor `t` do"));
        let twice = problem(&|b| {
            preamble(b, 3, 2, 0);
            tensor(b, &[2], 0, 0);
            tensor(b, &[2], 0, 32);
        });
        assert_eq!(twice, "has the tensor `t` twice; the file is corrupt");
    }

    fn read(bytes: &[u8]) -> Parsed<Header> {
        Header::read(bytes, bytes.len() as u64)
    }

    fn text(bytes: &mut Vec<u8>, text: &str) {
        bytes.extend((text.len() as u64).to_le_bytes());
        bytes.extend(text.as_bytes());
    }

    fn preamble(bytes: &mut Vec<u8>, version: u32, tensors: u64, values: u64) {
        bytes.extend(b"GGUF");
        bytes.extend(version.to_le_bytes());
        bytes.extend(tensors.to_le_bytes());
        bytes.extend(values.to_le_bytes());
    }

    /// A file with every type of value and every encoding, and the length of its header.
    fn sample() -> (Vec<u8>, usize) {
        let nested: Vec<u8> = [
            &9_u32.to_le_bytes()[..],
            &2_u64.to_le_bytes(),
            &0_u32.to_le_bytes(),
            &1_u64.to_le_bytes(),
            &[7],
            &10_u32.to_le_bytes(),
            &0_u64.to_le_bytes(),
        ]
        .concat();
        let mut the = Vec::new();
        text(&mut the, "Ġthe");
        let values: [(&str, u32, Vec<u8>); 14] = [
            ("u8", 0, vec![200]),
            ("i8", 1, vec![253]),
            ("u16", 2, 60_000_u16.to_le_bytes().into()),
            ("i16", 3, (-30_000_i16).to_le_bytes().into()),
            ("u32", 4, 4_000_000_000_u32.to_le_bytes().into()),
            ("i32", 5, (-2_000_000_000_i32).to_le_bytes().into()),
            ("f32", 6, 0.25_f32.to_le_bytes().into()),
            ("bool", 7, vec![1]),
            ("text", 8, the),
            ("list", 9, nested),
            ("u64", 10, u64::MAX.to_le_bytes().into()),
            ("i64", 11, i64::MIN.to_le_bytes().into()),
            ("f64", 12, 0.1_f64.to_le_bytes().into()),
            ("general.alignment", 4, 64_u32.to_le_bytes().into()),
        ];
        // 0.5 and -2 in f16, -2 in bf16.
        let (half, minus_two, minus_two_bf16) = ([0x00, 0x38], [0x00, 0xc0], [0x00, 0xc0]);
        let quants = |row: u8| (0..16).map(move |i| ((i + row) % 16) | ((15 - i) << 4)).collect::<Vec<u8>>();
        let halves =
            |pair: [u8; 2]| (0..64).flat_map(|i| if i % 2 == 0 { [0, 0] } else { pair }).collect::<Vec<u8>>();
        let rows = |row: &dyn Fn(u8) -> Vec<u8>| [row(0), row(1)].concat();
        let tensors: [(&str, u32, Vec<u8>); 6] = [
            ("F32", 0, (0..64_u8).flat_map(|i| (f32::from(i) * 0.5).to_le_bytes()).collect()),
            ("F16", 1, halves(minus_two)),
            ("BF16", 30, halves(minus_two_bf16)),
            (
                "Q8_0",
                8,
                rows(&|row| {
                    half.into_iter().chain((0..32).map(|i| i - 16 - row as i8).map(|q| q as u8)).collect()
                }),
            ),
            ("Q4_0", 2, rows(&|row| [&half[..], &quants(row)].concat())),
            ("Q4_1", 3, rows(&|row| [&half[..], &minus_two, &quants(row)].concat())),
        ];
        let mut bytes = Vec::new();
        preamble(&mut bytes, 3, tensors.len() as u64, values.len() as u64);
        for (key, kind, value) in &values {
            text(&mut bytes, key);
            bytes.extend(kind.to_le_bytes());
            bytes.extend(value);
        }
        let mut data = Vec::new();
        for (name, kind, value) in &tensors {
            text(&mut bytes, name);
            bytes.extend(2_u32.to_le_bytes());
            bytes.extend([32_u64, 2].map(u64::to_le_bytes).concat());
            bytes.extend(kind.to_le_bytes());
            data.resize(data.len().next_multiple_of(64), 0);
            bytes.extend((data.len() as u64).to_le_bytes());
            data.extend(value);
        }
        let header = bytes.len();
        bytes.resize(header.next_multiple_of(64), 0);
        bytes.extend(data);
        (bytes, header)
    }
}
