//! See `stored` tests.
