//! How an array follows from another: by rows, by padding, by a factor.

use crate::value::{Array, Data};

/// How an output or gradient follows from that of the question that another was made of.
#[derive(Debug, Clone, PartialEq)]
pub enum Image {
    /// It is the same.
    Same,
    /// Its rows are these of the other's.
    Rows(Vec<usize>),
    /// It is the same in all rows but this one.
    RowsBut(usize),
    /// It has a row more, of this number.
    Lengthened(f64),
    /// It has so many columns more, of 0.
    Padded(usize),
    /// It is so many times the other.
    Times(f64),
    /// It is so much more.
    Plus(f64),
}

impl Image {
    /// What follows from the other: an array of which NaN says that nothing follows about an entry.
    pub fn of(&self, other: &Array) -> Array {
        match self {
            Self::Same => other.clone(),
            Self::Rows(rows) => select_rows(other, rows),
            Self::RowsBut(row) => {
                let width = width(other);
                let mut array = other.clone();
                if let Data::Real(data) = &mut array.data {
                    data.iter_mut().skip(row * width).take(width).for_each(|entry| *entry = f64::NAN);
                }
                array
            }
            Self::Lengthened(number) => {
                let mut array = append_row(other);
                if let Data::Real(data) = &mut array.data {
                    data.iter_mut().skip(other.len()).for_each(|entry| *entry = *number);
                }
                array
            }
            Self::Padded(columns) => padded_with(other, *columns, 0.0),
            Self::Times(factor) => mapped(other, |entry| entry * factor),
            Self::Plus(more) => mapped(other, |entry| entry + more),
        }
    }
}

fn mapped(array: &Array, change: impl Fn(f64) -> f64) -> Array {
    let data = array.reals().iter().map(|&entry| change(entry)).collect();
    Array { shape: array.shape.clone(), data: Data::Real(data) }
}

/// How many entries a row has.
fn width(array: &Array) -> usize {
    array.shape.iter().skip(1).product()
}

/// These rows of an array.
pub(super) fn select_rows(array: &Array, rows: &[usize]) -> Array {
    fn chosen<T: Clone>(data: &[T], rows: &[usize], width: usize) -> Vec<T> {
        rows.iter().flat_map(|row| data.iter().skip(row * width).take(width).cloned()).collect()
    }
    let width = width(array);
    let mut shape = array.shape.clone();
    if let Some(first) = shape.first_mut() {
        *first = rows.len();
    }
    let data = match &array.data {
        Data::Real(data) => Data::Real(chosen(data, rows, width)),
        Data::Mask(data) => Data::Mask(chosen(data, rows, width)),
        Data::Integer(data) => Data::Integer(chosen(data, rows, width)),
        Data::Text(data) => Data::Text(chosen(data, rows, width)),
    };
    Array { shape, data }
}

/// One row more: ones where numbers are, nothing kept.
pub(super) fn append_row(array: &Array) -> Array {
    let width = width(array);
    let mut longer = array.clone();
    if let Some(first) = longer.shape.first_mut() {
        *first += 1;
        let count = longer.shape.iter().product::<usize>().max(width);
        match &mut longer.data {
            Data::Real(data) => data.resize(count, 1.0),
            Data::Mask(data) => data.resize(count, false),
            Data::Integer(data) => data.resize(count, 0),
            Data::Text(data) => data.resize(count, String::new()),
        }
    }
    longer
}

/// So many columns more: ones where numbers are, nothing kept.
pub(super) fn pad_columns(array: &Array, columns: usize) -> Array {
    padded_with(array, columns, 1.0)
}

fn padded_with(array: &Array, columns: usize, number: f64) -> Array {
    fn padded<T: Clone>(data: &[T], width: usize, columns: usize, fill: &T) -> Vec<T> {
        let padding = vec![fill.clone(); columns];
        data.chunks(width.max(1)).flat_map(|row| row.iter().chain(&padding).cloned()).collect()
    }
    let &[rows, width] = array.shape.as_slice() else { return array.clone() };
    let data = match &array.data {
        Data::Real(data) => Data::Real(padded(data, width, columns, &number)),
        Data::Mask(data) => Data::Mask(padded(data, width, columns, &false)),
        Data::Integer(data) => Data::Integer(padded(data, width, columns, &0)),
        Data::Text(data) => Data::Text(padded(data, width, columns, &String::new())),
    };
    Array { shape: vec![rows, width + columns], data }
}
