//! The decision log of a node as a file: one JSON line a decision, written by a thread of its own.

use std::{
    fs::{File, OpenOptions},
    io::{BufWriter, Write},
    path::Path,
    sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    thread::JoinHandle,
    time::Duration,
};

use memcube_actors::{
    Error, Result,
    scheduler::log::{DecisionLog, DecisionRecord},
};

/// Decisions that wait for the disk; more are dropped, for nothing may wait for a log.
const WAITING_MAX: usize = 1_024;
/// How long a line may stay in RAM.
const FLUSHED_AFTER: Duration = Duration::from_millis(500);

/// A file of decisions.
#[derive(Debug)]
pub(crate) struct FileLog {
    sender: Option<SyncSender<DecisionRecord>>,
    writer: Option<JoinHandle<()>>,
}

impl FileLog {
    /// Opens the file, and makes it if need be; goes on behind what stands in it.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(path).map_err(|error| {
            Error::invalid(format!(
                "`scheduler.decision-log` `{}` cannot be written: {error}",
                path.display()
            ))
        })?;
        let (sender, receiver) = sync_channel(WAITING_MAX);
        let writer = std::thread::Builder::new()
            .name("decision-log".to_owned())
            .spawn(move || write(file, &receiver))
            .map_err(|error| Error::internal(error.to_string()))?;
        Ok(Self { sender: Some(sender), writer: Some(writer) })
    }
}

impl DecisionLog for FileLog {
    fn write(&self, record: DecisionRecord) {
        if let Some(sender) = &self.sender {
            // A full queue means that the disk is too slow: a log is not worth waiting for.
            let _ = sender.try_send(record);
        }
    }
}

impl Drop for FileLog {
    fn drop(&mut self) {
        self.sender = None;
        if let Some(writer) = self.writer.take() {
            // It ends once it has written what waits; if it panicked, there is nothing to do.
            let _ = writer.join();
        }
    }
}

fn write(file: File, records: &Receiver<DecisionRecord>) {
    let mut out = BufWriter::new(file);
    loop {
        let written = match records.recv_timeout(FLUSHED_AFTER) {
            Ok(record) => serde_json::to_writer(&mut out, &record)
                .map_err(std::io::Error::from)
                .and_then(|()| out.write_all(b"\n")),
            Err(RecvTimeoutError::Timeout) => out.flush(),
            Err(RecvTimeoutError::Disconnected) => break,
        };
        if let Err(error) = written {
            tracing::warn!(%error, "the decision log cannot be written any more");
            return;
        }
    }
    if let Err(error) = out.flush() {
        tracing::warn!(%error, "the end of the decision log is lost");
    }
}
