//! Ctrl-C: it stops an answer, and ends the program only where there is none.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    thread,
};

use anyhow::{Context, Result};

/// Nobody is being answered.
const IDLE: u8 = 0;
/// An answer is on its way.
const ANSWERING: u8 = 1;
/// It is not wanted any more.
const STOPPED: u8 = 2;
/// What shells take for the end by Ctrl-C.
const EXIT_CODE: i32 = 130;

/// Listens for Ctrl-C as long as the program runs.
pub(super) struct Interrupts {
    state: Arc<AtomicU8>,
}

impl Interrupts {
    pub(super) fn start() -> Result<Self> {
        let state = Arc::new(AtomicU8::new(IDLE));
        let seen = Arc::clone(&state);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build();
        let runtime = runtime.context("cannot listen for Ctrl-C")?;
        thread::spawn(move || {
            runtime.block_on(async {
                while tokio::signal::ctrl_c().await.is_ok() {
                    if seen.swap(STOPPED, Ordering::AcqRel) != ANSWERING {
                        // What was acknowledged is on disk.
                        std::process::exit(EXIT_CODE);
                    }
                }
            });
        });
        Ok(Self { state })
    }

    /// From now on, Ctrl-C stops the answer.
    pub(super) fn begin(&self) {
        self.state.store(ANSWERING, Ordering::Release);
    }

    /// Whether the answer is not wanted any more.
    pub(super) fn is_stopped(&self) -> bool {
        self.state.load(Ordering::Acquire) == STOPPED
    }

    /// There is nothing to stop any more.
    pub(super) fn end(&self) {
        self.state.store(IDLE, Ordering::Release);
    }
}
