//! Lines from a pipe that nobody vouches for.

use std::io::{BufRead, ErrorKind};

/// How much of a line that is too long is kept, to show.
const SHOWN: usize = 200;

/// What a reader of lines came upon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Line {
    /// A line, without its newline.
    Whole(Vec<u8>),
    /// The beginning of a line that is longer than allowed. The rest of it is read past and not kept.
    TooLong(Vec<u8>),
    /// What stood after the last newline when the pipe came to its end.
    Cut(Vec<u8>),
}

/// The lines of a stream; none is held that is longer than so many bytes.
#[derive(Debug)]
pub struct Lines<R> {
    from: R,
    longest: usize,
    /// Within a line that was too long.
    skipping: bool,
}

impl<R: BufRead> Lines<R> {
    /// The lines of a stream, none longer than so many bytes.
    pub fn new(from: R, longest: usize) -> Self {
        Self { from, longest, skipping: false }
    }
}

impl<R: BufRead> Iterator for Lines<R> {
    type Item = Line;

    fn next(&mut self) -> Option<Line> {
        let mut line = Vec::new();
        loop {
            let buffer = match self.from.fill_buf() {
                Ok(buffer) => buffer,
                Err(problem) if problem.kind() == ErrorKind::Interrupted => continue,
                Err(_) => &[], // a pipe that cannot be read has ended
            };
            if buffer.is_empty() {
                return (!line.is_empty()).then_some(Line::Cut(line));
            }
            let newline = buffer.iter().position(|&byte| byte == b'\n');
            let (text, used) = (&buffer[..newline.unwrap_or(buffer.len())], newline.map(|at| at + 1));
            let used = used.unwrap_or(buffer.len());
            if !self.skipping {
                let room = (self.longest + 1).saturating_sub(line.len());
                line.extend_from_slice(&text[..text.len().min(room)]);
            }
            self.from.consume(used);
            let was_skipping = self.skipping;
            self.skipping &= newline.is_none();
            if line.len() > self.longest {
                self.skipping = newline.is_none();
                line.truncate(SHOWN);
                line.shrink_to_fit();
                return Some(Line::TooLong(line));
            }
            if newline.is_some() && !was_skipping {
                return Some(Line::Whole(line));
            }
        }
    }
}
