//! Panics inside a simulation: injected ones are expected, any other is a violation.

use std::{cell::RefCell, panic, sync::Once};

/// How the messages of injected panics begin.
pub(crate) const INJECTED: &str = "simulated panic";
/// Panics kept of one run.
const KEPT_MAX: usize = 20;

thread_local! {
    static COLLECTED: RefCell<Option<Vec<String>>> = const { RefCell::new(None) };
}

/// Collects the panics of this thread from now on, instead of printing them.
pub(crate) fn collect() {
    static INSTALL: Once = Once::new();
    INSTALL.call_once(|| {
        let former = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            let is_collected = COLLECTED.with_borrow_mut(|collected| match collected {
                Some(messages) => {
                    let message = info.to_string();
                    if !message.contains(INJECTED) && messages.len() < KEPT_MAX {
                        messages.push(message);
                    }
                    true
                }
                None => false,
            });
            if !is_collected {
                former(info);
            }
        }));
    });
    COLLECTED.set(Some(Vec::new()));
}

/// Ends the collection, and returns the panics that nobody had asked for.
pub(crate) fn collected() -> Vec<String> {
    COLLECTED.take().unwrap_or_default()
}
