//! Cuts a file into JSON records: lines, or the elements of one large array.

use std::{
    fs::File,
    io::{BufRead, BufReader, Read},
    path::Path,
};

use serde::de::DeserializeOwned;
use serde_json::error::Category;

use super::ImportError;

/// Bytes of one record: the longest conversations of real exports have a few megabytes.
const RECORD_BYTES_MAX: usize = 256 << 20;
/// Bytes that are read from the file at once.
const BUFFER_BYTES: usize = 256 << 10;
const BYTE_ORDER_MARK: [u8; 3] = [0xef, 0xbb, 0xbf];

/// How the records of a file are set apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    /// One record a line.
    Lines,
    /// The elements of one array, or objects one after the other.
    Elements,
}

/// The JSON text of one record.
#[derive(Debug)]
pub(super) struct Record {
    /// The line on which it begins, from 1 on.
    pub(super) line: u64,
    text: String,
}

impl Record {
    fn new(bytes: Vec<u8>, line: u64) -> Result<Self, ImportError> {
        let text = String::from_utf8(bytes).map_err(|error| {
            let valid = &error.as_bytes()[..error.utf8_error().valid_up_to()];
            ImportError::NotUtf8 { line: line + count_lines(valid) }
        })?;
        Ok(Self { line, text })
    }

    /// Reads the record as what the format asks for, which `expected` names.
    pub(super) fn read<T: DeserializeOwned>(&self, expected: &str) -> Result<T, ImportError> {
        serde_json::from_str(&self.text).map_err(|error| {
            let line = self.line + (error.line() as u64).saturating_sub(1);
            // The position is told by the error itself.
            let reason = error.to_string();
            let reason = reason.split(" at line ").next().unwrap_or_default().to_owned();
            match error.classify() {
                Category::Eof => ImportError::Truncated { line: self.line },
                Category::Data => self.unexpected_on(line, expected, reason),
                Category::Syntax | Category::Io => {
                    ImportError::NotJson { line, column: error.column(), reason }
                }
            }
        })
    }

    /// The error for a record that is not what was expected.
    pub(super) fn unexpected(&self, expected: &str, found: impl Into<String>) -> ImportError {
        self.unexpected_on(self.line, expected, found.into())
    }

    fn unexpected_on(&self, line: u64, expected: &str, found: String) -> ImportError {
        ImportError::Unexpected { line, expected: expected.to_owned(), found }
    }
}

/// The records of a file, in order.
#[derive(Debug)]
pub(super) struct Records {
    file: BufReader<File>,
    shape: Shape,
    bytes_total: u64,
    bytes_read: u64,
    line: u64,
    count: u64,
    in_array: bool,
}

impl Records {
    pub(super) fn open(path: &Path, shape: Shape) -> Result<Self, ImportError> {
        let file = File::open(path).map_err(ImportError::Io)?;
        let bytes_total = file.metadata().map_err(ImportError::Io)?.len();
        let file = BufReader::with_capacity(BUFFER_BYTES, file);
        let mut records =
            Self { file, shape, bytes_total, bytes_read: 0, line: 1, count: 0, in_array: false };
        if records.file.fill_buf().map_err(ImportError::Io)?.starts_with(&BYTE_ORDER_MARK) {
            records.skip(BYTE_ORDER_MARK.len());
        }
        Ok(records)
    }

    pub(super) const fn bytes_total(&self) -> u64 {
        self.bytes_total
    }

    pub(super) const fn bytes_read(&self) -> u64 {
        self.bytes_read
    }

    /// Records handed out so far.
    pub(super) const fn count(&self) -> u64 {
        self.count
    }

    /// The next record, or `None` at the end of the file.
    pub(super) fn next_record(&mut self) -> Result<Option<Record>, ImportError> {
        let record = match self.shape {
            Shape::Lines => self.next_line()?,
            Shape::Elements => self.next_element()?,
        };
        self.count += u64::from(record.is_some());
        Ok(record)
    }

    fn skip(&mut self, bytes: usize) {
        self.file.consume(bytes);
        self.bytes_read += bytes as u64;
    }

    fn next_line(&mut self) -> Result<Option<Record>, ImportError> {
        loop {
            let mut bytes = Vec::new();
            let limit = RECORD_BYTES_MAX as u64 + 1;
            let read = self.file.by_ref().take(limit).read_until(b'\n', &mut bytes);
            let read = read.map_err(ImportError::Io)?;
            let line = self.line;
            self.line += 1;
            self.bytes_read += read as u64;
            if read == 0 {
                return Ok(None);
            }
            if read > RECORD_BYTES_MAX {
                return Err(ImportError::TooLarge { line, bytes_max: RECORD_BYTES_MAX });
            }
            if !bytes.trim_ascii().is_empty() {
                return Record::new(bytes, line).map(Some);
            }
        }
    }

    fn next_element(&mut self) -> Result<Option<Record>, ImportError> {
        let mut element = Element::default();
        let mut line_begun = self.line;
        loop {
            let chunk = self.file.fill_buf().map_err(ImportError::Io)?;
            if chunk.is_empty() {
                let is_complete = element.bytes.is_empty() && !self.in_array;
                return if is_complete {
                    Ok(None)
                } else {
                    Err(ImportError::Truncated { line: line_begun })
                };
            }
            let mut used = 0;
            let mut step = Step::Skip;
            for byte in chunk {
                used += 1;
                self.line += u64::from(*byte == b'\n');
                step = element.step(*byte, &mut self.in_array);
                match step {
                    Step::Begin => line_begun = self.line,
                    Step::Skip | Step::Inside => {}
                    Step::End | Step::Stray => break,
                }
            }
            self.skip(used);
            match step {
                Step::End => return Record::new(element.bytes, line_begun).map(Some),
                Step::Stray => return Err(self.stray(&element)),
                Step::Begin | Step::Skip | Step::Inside => {}
            }
            if element.bytes.len() > RECORD_BYTES_MAX {
                return Err(ImportError::TooLarge {
                    line: line_begun,
                    bytes_max: RECORD_BYTES_MAX,
                });
            }
        }
    }

    fn stray(&self, element: &Element) -> ImportError {
        let sign = char::from(element.stray);
        let found = if element.stray.is_ascii() {
            format!("`{}`", sign.escape_debug())
        } else {
            "a sign that is not ASCII".to_owned()
        };
        ImportError::Unexpected {
            line: self.line,
            expected: "a JSON object, or a list of objects".to_owned(),
            found,
        }
    }
}

/// What one byte means for the element that is collected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// It lies between elements.
    Skip,
    /// It is the first one of the element.
    Begin,
    Inside,
    /// It is the last one.
    End,
    /// No element begins like this.
    Stray,
}

#[derive(Debug, Default)]
struct Element {
    bytes: Vec<u8>,
    depth: usize,
    in_text: bool,
    is_escaped: bool,
    stray: u8,
}

impl Element {
    fn step(&mut self, byte: u8, in_array: &mut bool) -> Step {
        if self.bytes.is_empty() {
            return match byte {
                b'{' => {
                    self.bytes.push(byte);
                    self.depth = 1;
                    Step::Begin
                }
                b'[' if !*in_array => {
                    *in_array = true;
                    Step::Skip
                }
                b']' if *in_array => {
                    *in_array = false;
                    Step::Skip
                }
                b',' if *in_array => Step::Skip,
                _ if byte.is_ascii_whitespace() => Step::Skip,
                _ => {
                    self.stray = byte;
                    Step::Stray
                }
            };
        }
        self.bytes.push(byte);
        if self.in_text {
            match byte {
                _ if self.is_escaped => self.is_escaped = false,
                b'\\' => self.is_escaped = true,
                b'"' => self.in_text = false,
                _ => {}
            }
            return Step::Inside;
        }
        match byte {
            b'"' => self.in_text = true,
            b'{' | b'[' => self.depth += 1,
            b'}' | b']' => self.depth -= 1,
            _ => {}
        }
        if self.depth == 0 { Step::End } else { Step::Inside }
    }
}

fn count_lines(bytes: &[u8]) -> u64 {
    bytes.iter().filter(|byte| **byte == b'\n').count() as u64
}
