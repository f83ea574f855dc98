//! Versions of the interface, the network thread, errors.

use std::ffi::{c_char, c_int};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use super::{c_api, copied, status};
use crate::errors::{
    self, API_VERSION_ALREADY_SET, API_VERSION_INVALID, API_VERSION_NOT_SUPPORTED,
    API_VERSION_UNSET, Code, NETWORK_ALREADY_SETUP, NETWORK_CANNOT_BE_RESTARTED, NETWORK_NOT_SETUP,
};
use crate::limits::{API_VERSION_MAX, API_VERSION_MIN};
use crate::options;
use crate::sim::SimConfig;
use crate::world::{Host, World};

/// How far the process is with the one network it may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Network {
    Unset,
    Selected,
    SetUp,
    Running,
    /// Stopped before it ran: it still may be run, and ends at once.
    StoppedEarly,
    Stopped,
}

static NETWORK: Mutex<Network> = Mutex::new(Network::Unset);
static HOST: OnceLock<Arc<Host>> = OnceLock::new();

fn network() -> MutexGuard<'static, Network> {
    NETWORK.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The world of the process, for those who do not simulate.
fn real_host() -> Arc<Host> {
    let host = HOST.get_or_init(|| {
        // Only the jitter of `on_error` depends on it.
        let seed = crate::world::real_clock_us();
        Host::new(World::new(seed, SimConfig::default(), false))
    });
    host.clone()
}

/// Where a database is opened: the simulation of this thread, or the world of the process.
pub(super) fn host() -> Result<Arc<Host>, Code> {
    if let Some(host) = crate::sim::host() {
        return Ok(host);
    }
    match *network() {
        Network::Unset => Err(API_VERSION_UNSET),
        Network::Selected => Err(NETWORK_NOT_SETUP),
        Network::SetUp | Network::Running | Network::StoppedEarly | Network::Stopped => {
            Ok(real_host())
        }
    }
}

fn select(runtime: c_int, header: c_int) -> Result<(), Code> {
    let mut network = network();
    if *network > Network::Unset {
        return Err(API_VERSION_ALREADY_SET);
    }
    if header < runtime {
        return Err(API_VERSION_INVALID);
    }
    if runtime > API_VERSION_MAX || header > API_VERSION_MAX || runtime < API_VERSION_MIN {
        return Err(API_VERSION_NOT_SUPPORTED);
    }
    *network = Network::Selected;
    Ok(())
}

fn run() -> Result<(), Code> {
    {
        let mut network = network();
        match *network {
            Network::Unset | Network::Selected => return Err(NETWORK_NOT_SETUP),
            Network::Running => return Err(NETWORK_ALREADY_SETUP),
            Network::Stopped => return Err(NETWORK_CANNOT_BE_RESTARTED),
            Network::SetUp => *network = Network::Running,
            Network::StoppedEarly => *network = Network::Stopped,
        }
    }
    real_host().run_loop(|| *network() == Network::Stopped);
    Ok(())
}

c_api! {
    /// The newest version of the interface that this library speaks.
    fn fdb_get_max_api_version() -> c_int {
        API_VERSION_MAX
    }

    /// Chooses the version of the interface; once, and before anything else.
    fn fdb_select_api_version_impl(runtime_version: c_int, header_version: c_int) -> c_int {
        status(select(runtime_version, header_version))
    }

    /// What this library is.
    fn fdb_get_client_version() -> *const c_char {
        c"7.3.0,memcube-fdb-c,fdb00b073000000".as_ptr()
    }

    /// The text of an error.
    fn fdb_get_error(code: c_int) -> *const c_char {
        errors::text(code).as_ptr()
    }

    /// Whether an error is of a kind.
    fn fdb_error_predicate(predicate_test: c_int, code: c_int) -> c_int {
        c_int::from(errors::predicate(predicate_test, code))
    }

    /// Sets an option of the network.
    fn fdb_network_set_option(option: c_int, value: *const u8, value_length: c_int) -> c_int {
        // SAFETY: the caller gives a byte string of that length.
        let value = unsafe { copied(value, value_length) };
        if *network() == Network::Unset && crate::sim::host().is_none() {
            return API_VERSION_UNSET;
        }
        status(options::check_network(option.unsigned_abs(), &value))
    }

    /// Prepares the network; once.
    fn fdb_setup_network() -> c_int {
        let mut network = network();
        match *network {
            Network::Unset => API_VERSION_UNSET,
            Network::Selected => {
                *network = Network::SetUp;
                0
            }
            Network::SetUp | Network::Running | Network::StoppedEarly | Network::Stopped => {
                NETWORK_ALREADY_SETUP
            }
        }
    }

    /// Runs the network on the calling thread until it is stopped. All callbacks come from here.
    fn fdb_run_network() -> c_int {
        status(run())
    }

    /// Ends `fdb_run_network`. It cannot be run again.
    fn fdb_stop_network() -> c_int {
        {
            let mut network = network();
            *network = match *network {
                Network::Unset | Network::Selected => return NETWORK_NOT_SETUP,
                Network::SetUp | Network::StoppedEarly => Network::StoppedEarly,
                Network::Running | Network::Stopped => Network::Stopped,
            };
        }
        real_host().ring();
        0
    }
}
