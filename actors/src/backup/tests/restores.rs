//! Restores onto something, under another name, killed, and two at a time.
