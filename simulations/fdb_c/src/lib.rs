//! A test double of FoundationDB's C client: its semantics, limits and faults in one process.
