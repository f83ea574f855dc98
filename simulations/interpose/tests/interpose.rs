//! What a simulated thread sees, and what the others go on to see.

#![cfg(all(target_os = "linux", target_env = "gnu", target_pointer_width = "64"))]
#![expect(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "the clocks, threads and maps of std are what is tested"
)]

use std::{
    collections::HashMap,
    thread,
    time::{Duration, Instant, SystemTime},
};

use memcube_interpose::{REALTIME_START, enter, now, set_now};

/// The order of a hundred keys in a map of std, as a thread with nothing behind it sees it.
fn order(seed: Option<u64>) -> Vec<u32> {
    let thread = thread::spawn(move || {
        let _guard = seed.map(|seed| enter(seed, now));
        (0..100_u32).map(|key| (key, ())).collect::<HashMap<_, _>>().into_keys().collect()
    });
    thread.join().expect("iterating does not panic")
}

#[test]
fn the_order_of_a_hash_map_follows_the_seed() {
    assert_eq!(order(Some(7)), order(Some(7)));
    assert_ne!(order(Some(7)), order(Some(8)));
}

#[test]
fn other_threads_are_left_alone() {
    let _guard = enter(7, now);
    assert_ne!(order(None), order(None));
    assert_ne!(order(None), order(Some(7)));
    let real = thread::spawn(|| (SystemTime::now(), Instant::now())).join().unwrap();
    assert_ne!(real.0.duration_since(SystemTime::UNIX_EPOCH).unwrap(), REALTIME_START);
    assert_eq!(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap(), REALTIME_START);
}

#[test]
fn clocks_follow_now_and_come_back() {
    let before = Instant::now();
    let guard = enter(7, now);
    let start = Instant::now();
    set_now(Duration::new(90, 5));
    let unix = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    assert_eq!(unix, REALTIME_START + Duration::new(90, 5));
    assert_eq!(start.elapsed(), Duration::new(90, 5));
    drop(guard);
    assert!(before.elapsed() < Duration::from_secs(60));
    assert!(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap() != unix);
}

#[test]
fn a_now_that_reads_the_clock_reads_the_real_one() {
    fn real() -> Duration {
        SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap()
    }
    let guard = enter(7, real);
    let doubled = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    drop(guard);
    assert!(doubled > REALTIME_START + Duration::from_secs(1_000_000_000), "{doubled:?}");
}

#[test]
fn guards_nest() {
    fn hour() -> Duration {
        Duration::from_secs(3_600)
    }
    let _outer = enter(7, now);
    let unix = || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    let inner = enter(8, hour);
    assert_eq!(unix(), REALTIME_START + hour());
    drop(inner);
    assert_eq!(unix(), REALTIME_START);
}

/// Bytes through the function that crates find with `dlsym`, which must be ours as well.
fn looked_up_bytes(seed: u64) -> [u8; 13] {
    type Getrandom = unsafe extern "C" fn(*mut u8, usize, u32) -> isize;
    let _guard = enter(seed, now);
    let mut bytes = [0; 13];
    // SAFETY: the name ends in a zero byte; the function has this type; the buffer is as long.
    let length = unsafe {
        let symbol = libc::dlsym(libc::RTLD_DEFAULT, c"getrandom".as_ptr());
        let function = std::mem::transmute::<*mut libc::c_void, Getrandom>(symbol);
        function(bytes.as_mut_ptr(), bytes.len(), 0)
    };
    assert_eq!(length, 13);
    bytes
}

#[test]
fn functions_that_are_looked_up_are_ours() {
    assert_eq!(looked_up_bytes(7), looked_up_bytes(7));
    assert_ne!(looked_up_bytes(7), looked_up_bytes(8));
}

#[test]
fn entropy_is_seeded_and_bounded() {
    let drawn = |seed| {
        let _guard = enter(seed, now);
        let mut bytes = [0_u8; 9];
        // SAFETY: the buffer is as long.
        assert_eq!(unsafe { libc::getentropy(bytes.as_mut_ptr().cast(), bytes.len()) }, 0);
        bytes
    };
    assert_eq!(drawn(7), drawn(7));
    assert_ne!(drawn(7), drawn(8));
    let mut many = [0_u8; 257];
    // SAFETY: the buffer is as long.
    assert_eq!(unsafe { libc::getentropy(many.as_mut_ptr().cast(), many.len()) }, -1);
}

#[test]
fn a_child_exits_without_a_trace() {
    let exit_code = |work: fn()| {
        let child = memcube_interpose::fork_child(work).unwrap();
        let mut status = 0;
        // SAFETY: the status may be written.
        assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
        libc::WEXITSTATUS(status)
    };
    assert_eq!(exit_code(|| ()), 0);
    assert_eq!(exit_code(|| std::panic::resume_unwind(Box::new("on purpose"))), 101);
}
