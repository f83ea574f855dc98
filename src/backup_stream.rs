//! A backup as one stream of bytes, from a running server to whoever keeps it: so the server needs
//! to know no place and no credentials, and writes nowhere for a caller.
//!
//! Each object is a frame: two bytes of length and its name, four bytes of length and its bytes,
//! both
//! lengths big-endian. A frame named `error` has a message in place of an object, and is the last.
//! Invariant: the manifest comes last, so that a stream that breaks off never looks like a backup.

use std::io::Read;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use memcube_actors::{Error, Result, backup::PartSink};
use memcube_schemas::{backup::is_object_name, limits::BACKUP_PART_BYTES_MAX};
use tokio::sync::mpsc;

/// The name of the frame that tells what went wrong.
const ERROR: &str = "error";
const NAME_BYTES_MAX: usize = 256;
/// A manifest may have more bytes than a part: one of 100 TB has about a billion.
const OBJECT_BYTES_MAX: usize = if usize::BITS > 32 { 1 << 30 } else { BACKUP_PART_BYTES_MAX };

/// What the task that takes a backup tells the request that waits for it.
pub(crate) enum Told {
    /// Nothing stands in the way.
    Begun,
    /// More of the stream.
    Bytes(Bytes),
    /// It is over.
    Ended(Result<()>),
}

/// Hands objects to a request.
pub(crate) struct StreamSink {
    told: mpsc::Sender<Told>,
}

impl StreamSink {
    pub(crate) const fn new(told: mpsc::Sender<Told>) -> Self {
        Self { told }
    }

    async fn tell(&self, told: Told) -> Result<()> {
        let gone = |_| Error::unavailable("whoever asked for the backup hung up");
        self.told.send(told).await.map_err(gone)
    }
}

impl PartSink for StreamSink {
    fn prepare(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(self.tell(Told::Begun))
    }

    fn put(&self, name: String, bytes: Bytes) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            self.tell(Told::Bytes(head(&name, bytes.len())?)).await?;
            self.tell(Told::Bytes(bytes)).await
        })
    }
}

/// The frame that ends a stream which broke off.
pub(crate) fn error_frame(message: &str) -> Bytes {
    let head = head(ERROR, message.len()).unwrap_or_default();
    [head.as_ref(), message.as_bytes()].concat().into()
}

fn head(name: &str, length: usize) -> Result<Bytes> {
    let long = |_| Error::internal(format!("the object `{name}` of the backup is too long"));
    let name_length = u16::try_from(name.len()).map_err(long)?.to_be_bytes();
    let length = u32::try_from(length).map_err(long)?.to_be_bytes();
    Ok([&name_length[..], name.as_bytes(), &length[..]].concat().into())
}

/// Reads the next object; `None` at the end of the stream.
///
/// # Errors
/// `Unavailable` with the server's reason when the backup broke off, or the connection did.
pub(crate) fn read_object(stream: &mut impl Read) -> Result<Option<(String, Bytes)>> {
    let broken = |error: &dyn std::fmt::Display| {
        Error::unavailable(format!("the backup broke off on its way from the server: {error}"))
    };
    let mut first = [0_u8; 1];
    if stream.read(&mut first).map_err(|error| broken(&error))? == 0 {
        return Ok(None);
    }
    let mut second = [0_u8; 1];
    stream.read_exact(&mut second).map_err(|error| broken(&error))?;
    let name = usize::from(u16::from_be_bytes([first[0], second[0]]));
    let name = read_bytes(stream, name, NAME_BYTES_MAX).map_err(|error| broken(&error))?;
    let mut length = [0_u8; 4];
    stream.read_exact(&mut length).map_err(|error| broken(&error))?;
    let length = usize::try_from(u32::from_be_bytes(length)).map_err(|error| broken(&error))?;
    let bytes = read_bytes(stream, length, OBJECT_BYTES_MAX).map_err(|error| broken(&error))?;
    let name = String::from_utf8(name).map_err(|error| broken(&error))?;
    if name == ERROR {
        return Err(broken(&String::from_utf8_lossy(&bytes)));
    }
    // The name becomes that of a file.
    if !is_object_name(&name) {
        return Err(broken(&format_args!("`{name}` is no object of a backup")));
    }
    Ok(Some((name, Bytes::from(bytes))))
}

fn read_bytes(stream: &mut impl Read, length: usize, max: usize) -> std::io::Result<Vec<u8>> {
    if length > max {
        let what = format!("{length} bytes are announced, the limit is {max}");
        return Err(std::io::Error::new(std::io::ErrorKind::InvalidData, what));
    }
    let mut bytes = Vec::new();
    // Grows with what arrives, not with what is announced.
    stream.take(length as u64).read_to_end(&mut bytes)?;
    if bytes.len() < length {
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(name: &str, bytes: &[u8]) -> Vec<u8> {
        [head(name, bytes.len()).expect("short").as_ref(), bytes].concat()
    }

    #[test]
    fn objects_come_out_as_they_went_in() {
        let part = "parts/0a-rows-000001";
        let stream = [frame(part, b"123"), frame("manifest", b"")].concat();
        let mut stream = stream.as_slice();
        let read = |stream: &mut &[u8]| read_object(stream).expect("an object");
        assert_eq!(read(&mut stream), Some((part.to_owned(), Bytes::from_static(b"123"))));
        assert_eq!(read(&mut stream), Some(("manifest".to_owned(), Bytes::new())));
        assert_eq!(read(&mut stream), None);
    }

    #[test]
    fn whatever_breaks_off_says_so() {
        let whole = frame("manifest", b"12345");
        for length in 1..whole.len() {
            assert!(read_object(&mut &whole[..length]).is_err(), "{length}");
        }
        for (bytes, words) in [
            (error_frame("the disk is full").to_vec(), "the disk is full"),
            (frame("../../etc/passwd", b""), "is no object of a backup"),
            (vec![0xff; 600], "65535 bytes are announced"),
            (b"\0\x08manifest\xff\xff\xff\xff".to_vec(), "4294967295 bytes are announced"),
        ] {
            let refused = read_object(&mut bytes.as_slice()).expect_err("refused");
            assert!(refused.to_string().contains(words), "{refused}");
        }
    }
}
