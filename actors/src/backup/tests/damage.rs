//! Backups with damage in them: whatever is wrong is named, and nothing of it gets into a store.
